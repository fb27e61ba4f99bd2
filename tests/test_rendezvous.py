"""The ranks of a Slurm step find each other: on a port that is free, with what torchrun would have set."""

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import threading

import pytest

from mistral import ranks
from mistral.errors import EnvironmentProblem, LostRanks, Stopped
from mistral.ranks import Ranks
from slurm import rendezvous

STEP = {
    "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_LAUNCHER_PORT": "40000",
    "SLURM_STEP_NUM_TASKS": "4", "SLURMD_NODENAME": "localhost",
}  # fmt: skip


def rank(number: int, local: int) -> dict[str, str]:
    return {**STEP, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(local)}


def test_ranks_meet_where_rank_0_listens(tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"rendezvous-12-1-0-40000: found no such file within 0 s"):
        rendezvous.join(rank(3, 1), tmp_path, wait_seconds=0.2)
    late = threading.Timer(0.3, lambda: first.update(rendezvous.join(rank(0, 0), tmp_path)))
    first: dict[str, str] = {}
    late.start()
    other = rendezvous.join(rank(3, 1), tmp_path)
    late.join()
    os.close(int(first["MASTER_LISTEN_FD"]))
    assert {**first, "RANK": "3", "LOCAL_RANK": "1", "MASTER_LISTEN_FD": ""} == other
    assert (first["RANK"], first["LOCAL_RANK"], first["WORLD_SIZE"]) == ("0", "0", "4")
    assert other["MASTER_ADDR"] == "localhost"
    rendezvous.leave(STEP, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_passed_over_and_never_waited_for():
    row = list(rendezvous.ports("12-0-0"))
    with contextlib.ExitStack() as stack:
        for port in row[:2]:
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody else has it
                taken.bind(("", port))
                taken.listen()
        listener = stack.enter_context(rendezvous.listen("12-0-0"))
        assert listener.getsockname()[1] in row[2:]


def test_no_free_port_at_all_is_told(monkeypatch):
    monkeypatch.setattr(rendezvous, "TRIES", 1)
    with rendezvous.listen("key") as _, pytest.raises(EnvironmentProblem, match="expected a free one"):
        rendezvous.listen("key")


def test_ports_differ_by_job_and_restart_and_stay_in_their_range():
    rows = [list(rendezvous.ports(key)) for key in ("12-0-0", "13-0-0", "12-1-0", "12-0-1")]
    assert len({row[0] for row in rows}) == 4
    assert all(len(set(row)) == rendezvous.TRIES for row in rows)
    assert all(12_000 <= port < 32_000 for row in rows for port in row)
    assert rows[0] == list(rendezvous.ports("12-0-0"))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8"}, False),  # set in the batch shell too
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "RANK": "0"}, False),  # torchrun, or this program, started it
    ],
)
def test_only_a_step_of_several_tasks_makes_a_rank(environment, expected):
    assert rendezvous.is_one_of_several(environment) is expected


def test_torch_takes_over_the_socket_that_was_found_free(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from slurm import rendezvous\n"
        "os.environ.update(rendezvous.join(os.environ, Path(sys.argv[1])))\n"
        "import torch, torch.distributed as dist; from mistral.ranks import Ranks, store_of\n"
        "ranks = Ranks.from_environment(); store = store_of(ranks, lambda: False)\n"
        "dist.init_process_group('gloo', rank=ranks.rank, world_size=ranks.world_size, **store)\n"
        "total = torch.ones(1) * (1 + ranks.rank); dist.all_reduce(total)\n"
        "print(int(total), os.environ['MASTER_PORT'])\n"
        "dist.barrier(); dist.destroy_process_group(); sys.stdout.flush(); os._exit(0)\n"
    )
    environment = {**os.environ, **STEP, "SLURM_STEP_NUM_TASKS": "2"}
    line, port = [sys.executable, "-c", script, str(tmp_path)], next(rendezvous.ports("12-1-0"))
    with socket.socket() as taken:
        with contextlib.suppress(OSError):
            taken.bind(("", port))
            taken.listen()
        ranks = [
            subprocess.Popen(
                line, env={**environment, **rank(n, n), "SLURM_STEP_NUM_TASKS": "2"}, stdout=subprocess.PIPE
            )
            for n in (1, 0)
        ]
        told = [process.communicate(timeout=120)[0].split() for process in ranks]
    assert told[0] == told[1]
    assert int(told[0][0]) == 3
    assert int(told[0][1]) != port


@pytest.mark.parametrize(("visible", "expected"), [(1, 0), (4, 3)])
def test_the_device_is_right_whether_a_task_sees_its_own_gpu_or_all_of_its_node(visible, expected):
    assert Ranks(rank=7, local_rank=3, world_size=8).device_index(visible) == expected


def test_a_rank_without_a_gpu_of_its_own_says_what_it_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(EnvironmentProblem, match=r"rank 7: found 2 GPUs .*is 0,1.*, expected at least 4, one for each"):
        Ranks(rank=7, local_rank=3, world_size=8).device_index(2)


@pytest.fixture
def alone(monkeypatch):
    """The environment of one of two ranks, whose sibling does not come; gives the socket that rank 0 listens on."""
    with rendezvous.listen("alone") as listener:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(listener.getsockname()[1]))
        monkeypatch.setattr(ranks, "TIMEOUT", datetime.timedelta(seconds=2))
        yield listener
    for thread in [thread for thread in threading.enumerate() if thread.name == "meeting"]:
        thread.join()  # what torch writes belongs to this test


@pytest.mark.parametrize("rank_number", [0, 1])
@pytest.mark.parametrize("by_slurm", [True, False])
def test_a_signal_is_seen_while_a_rank_waits_for_the_others(alone, monkeypatch, rank_number, by_slurm):
    if by_slurm:
        monkeypatch.setenv("MASTER_LISTEN_FD", "" if rank_number else str(os.dup(alone.fileno())))
    elif rank_number == 0:
        alone.close()  # rank 0 listens by itself
    with pytest.raises(Stopped, match="while the ranks waited for each other"):
        ranks.store_of(Ranks(rank_number, 0, 2), lambda: True)


def test_a_rank_does_not_wait_for_ever_for_one_that_does_not_come(alone, monkeypatch):
    monkeypatch.setenv("MASTER_LISTEN_FD", "")
    with pytest.raises(LostRanks, match="not all 2 ranks appeared within"):
        ranks.store_of(Ranks(1, 0, 2), lambda: False)


def test_a_rank_that_hangs_is_a_lost_rank_to_the_others_when_their_patience_ends(tmp_path):
    """LostRanks is what the batch script runs again."""
    script = (
        "import datetime, os, sys, time; from pathlib import Path; from slurm import rendezvous\n"
        "os.environ.update(rendezvous.join(os.environ, Path(sys.argv[1])))\n"
        "from mistral import engine, ranks; from mistral.config import load_experiment; import torch\n"
        "from mistral.errors import LostRanks; from pipeline.train import lost_connections_told\n"
        "engine.TIMEOUT = datetime.timedelta(seconds=2); me = ranks.Ranks.from_environment()\n"
        "engine.connect(me, load_experiment('quickstart').training, needs_gpu=False)\n"
        "if me.rank == 0: time.sleep(60)\n"
        "try:\n"
        "    with lost_connections_told(1): torch.distributed.all_reduce(torch.ones(1))\n"
        "except LostRanks as error: print(error, flush=True); os._exit(7)\n"
    )
    line = [sys.executable, "-c", script, str(tmp_path)]
    environments = [{**os.environ, **STEP, **rank(n, n), "SLURM_STEP_NUM_TASKS": "2"} for n in (0, 1)]
    hung, other = (subprocess.Popen(line, env=one, stdout=subprocess.PIPE, text=True) for one in environments)
    try:
        told, _ = other.communicate(timeout=50)
        assert (other.returncode, hung.poll()) == (7, None), told
        assert "rank 1 lost the other ranks" in told
    finally:
        hung.kill()
        hung.communicate()
