"""The promises of mistral/lease.py: one owner per run, and one that was superseded finds out."""

from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from mistral.errors import LeaseError
from mistral.lease import LEASE, Owner, acquire, describe

ONE: Owner = {"kind": "local", "host": "node1", "boot_id": "b", "pid": 11, "start_time": 1}
OTHER: Owner = {"kind": "local", "host": "node2", "boot_id": "c", "pid": 22, "start_time": 2}


def alive(_: Owner) -> bool:
    return True


def dead(_: Owner) -> bool:
    return False


def unknown(_: Owner) -> None:
    return None


def unasked(_: Owner) -> bool:
    raise RuntimeError("nobody had to be asked")


def slurm(job: str, restart: int) -> Owner:
    return {"kind": "slurm", "job": job, "restart": restart}


def numbers(folder: Path) -> list[int]:
    return sorted(int(match[1]) for path in folder.iterdir() if (match := LEASE.match(path.name)) and not match[2])


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    first = acquire(tmp_path / "run", ONE, unasked)
    for steal in (False, True):
        with pytest.raises(LeaseError, match="run is being trained already, by process 11 on node1"):
            acquire(tmp_path / "run", OTHER, alive, steal=steal)
    first.check()
    assert numbers(tmp_path / "run") == [1]


def test_a_dead_owner_is_replaced(tmp_path):
    acquire(tmp_path, ONE, unasked)
    lease = acquire(tmp_path, OTHER, dead)
    lease.check()
    assert lease.number == 2


def test_an_owner_who_cannot_be_seen_is_replaced_on_demand_only(tmp_path):
    acquire(tmp_path, ONE, unasked)
    with pytest.raises(LeaseError, match=r"process 11 on node1.*\n.*--steal-lease"):
        acquire(tmp_path, OTHER, unknown)
    acquire(tmp_path, OTHER, unknown, steal=True).check()


def test_a_requeued_job_supersedes_its_own_former_attempt(tmp_path):
    former = acquire(tmp_path, slurm("12_3", 0), unasked)
    acquire(tmp_path, slurm("12_3", 1), unasked).check()
    with pytest.raises(LeaseError, match="Slurm job 12_3, restart 1"):
        former.check()


@pytest.mark.parametrize("late", [slurm("12_3", 1), slurm("12_3", 0), slurm("12_4", 9), ONE, {"kind": "slurm"}])
def test_nobody_else_supersedes_a_slurm_job(tmp_path, late):
    acquire(tmp_path, slurm("12_3", 1), unasked)
    with pytest.raises(LeaseError, match="Slurm job 12_3, restart 1"):
        acquire(tmp_path, late, alive)


def test_a_paused_owner_finds_out_that_it_was_superseded(tmp_path):
    paused = acquire(tmp_path, ONE, unasked)
    paused.check()
    acquire(tmp_path, OTHER, dead)
    with pytest.raises(LeaseError, match=r"took this run over \(process 22 on node2\)"):
        paused.check()


def test_a_paused_owner_that_leaves_late_releases_nothing_of_its_successor(tmp_path):
    paused = acquire(tmp_path, ONE, unasked)
    acquire(tmp_path, OTHER, dead)
    paused.release()
    with pytest.raises(LeaseError, match="process 22 on node2"):
        acquire(tmp_path, ONE, alive)


def test_a_released_lease_is_taken_without_asking(tmp_path):
    first = acquire(tmp_path, ONE, unasked)
    first.release()
    first.release()
    acquire(tmp_path, OTHER, unasked).check()


def test_no_number_is_ever_used_twice(tmp_path):
    taken = []
    for turn in range(12):
        lease = acquire(tmp_path, ONE, dead)
        taken.append(lease.number)
        if turn % 2:
            lease.release()
    assert taken == list(range(1, 13)) == numbers(tmp_path)


def test_a_process_that_slept_while_others_came_and_went_gets_no_lease(tmp_path):
    """It saw lease 1; by the time it links lease 2, the leases 2 and 3 have been taken."""

    def others_come_and_go(_: Owner) -> bool:
        acquire(tmp_path, OTHER, dead).release()
        acquire(tmp_path, OTHER, dead)
        return False

    acquire(tmp_path, ONE, unasked)
    with pytest.raises(LeaseError, match="at the same moment"):
        acquire(tmp_path, ONE, others_come_and_go)
    assert numbers(tmp_path) == [1, 2, 3]


def test_a_lease_that_cannot_be_read_is_nobody_knows_whose(tmp_path):
    acquire(tmp_path, ONE, unasked)
    (tmp_path / "lease-00000001").write_bytes(b"{")
    with pytest.raises(LeaseError, match="an unknown process"):
        acquire(tmp_path, OTHER, unasked)
    acquire(tmp_path, OTHER, unasked, steal=True).check()


def test_a_removed_run_folder_stops_its_owner(tmp_path):
    lease = acquire(tmp_path / "run", ONE, unasked)
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(LeaseError):
        lease.check()


@pytest.mark.parametrize("former", ["none", "dead", "released"])
def test_of_processes_that_race_exactly_one_wins(tmp_path: Path, fork: ForkContext, former: str):
    racers = 4
    for heat in range(12):
        folder, won = tmp_path / f"run-{heat}", tmp_path / f"won-{heat}"
        won.mkdir()
        if former != "none":
            lease = acquire(folder, ONE, unasked)
            if former == "released":
                lease.release()
        start = fork.Barrier(racers)

        def race(number: int, folder: Path = folder, won: Path = won, start=start) -> None:
            start.wait()
            try:
                acquire(folder, {**OTHER, "pid": number}, lambda owner: owner["pid"] != ONE["pid"]).check()
            except LeaseError:
                return
            (won / str(number)).touch()

        processes = [fork.Process(target=race, args=(100 + number,)) for number in range(racers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * racers
        assert len(list(won.iterdir())) == 1
        assert len(numbers(folder)) == (1 if former == "none" else 2)


def test_owners_are_named_as_an_operator_knows_them():
    assert describe(slurm("12_3", 1)) == "Slurm job 12_3, restart 1"
    assert describe(ONE) == "process 11 on node1"


def test_a_planted_last_number_is_refused_with_its_path_and_the_way_out(tmp_path):
    path = tmp_path / "lease-99999999"
    path.write_text("{}")
    with pytest.raises(LeaseError, match=rf"{path}: found the last number(.|\n)*remove that file$"):
        acquire(tmp_path, ONE, dead, steal=True)
    path.unlink()
    assert acquire(tmp_path, ONE, dead).number == 1
