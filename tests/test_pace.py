"""No hour has more commits than the limit, over restarts and over processes, and how long the rest takes is known."""

import random
import time
from pathlib import Path

import pytest
from told import Clock, Told

from mistral.config import load_experiment
from mistral.files import write_bytes
from mistral.pace import LONGEST_COMMIT_SECONDS, Pace
from mistral.progress import Silent
from mistral.waiting import pause

HOUR = 3600


def busiest_hour(arrived: list[float]) -> int:
    return max(sum(begin <= time < begin + HOUR for time in arrived) for begin in arrived)


def test_no_hour_holds_more_commits_than_the_limit_also_over_restarts(tmp_path):
    clock, sent, told = Clock(1e9), [], Told()
    for commits in (3, 7, 40, 1, 13):  # the command is stopped after so many, and run again
        pace = clock.pace(tmp_path / "turns", 10, told)
        for _ in range(commits):
            with pace.turn():
                sent.append(clock.now)
            clock.now += 7
    assert busiest_hour(sent) == 10
    assert sent[63] - sent[0] < 6 * HOUR + 64 * 7, "and no hour holds less while there is work"
    assert told.lines[0].startswith("10 commits in the last hour (export.commits_per_hour): waiting 3,5")


def test_no_hour_holds_more_arrivals_however_long_each_commit_takes(tmp_path):
    """A commit may arrive at any time between its sending and its answer."""
    clock, chance, arrived = Clock(1e9), random.Random(1), []
    pace = clock.pace(tmp_path / "turns", 5)
    for _ in range(60):
        with pace.turn():
            taken = chance.uniform(0, 250)
            arrived.append(clock.now + chance.uniform(0, taken))
            clock.now += taken
    assert busiest_hour(arrived) == 5


def send(folder: Path, seed: int, sent: Path, began: float) -> None:
    """One of several processes, on a clock that runs 4,000 times too fast."""
    chance = random.Random(seed)

    def now() -> float:
        return 1e9 + (time.monotonic() - began) * 4_000

    pace = Pace(folder, 10, Silent(), now, lambda seconds, *_: time.sleep(min(seconds, 400) / 4_000))
    for number in range(8):
        with pace.turn():
            time.sleep(chance.uniform(0, 0.01))
            write_bytes(sent / f"{seed}-{number}", f"{now():.3f}".encode())


def test_processes_of_one_workspace_keep_the_limit_together(tmp_path, fork):
    began = time.monotonic()
    workers = [
        fork.Process(target=send, args=(tmp_path / "turns", seed, tmp_path / "sent", began)) for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    turns = sorted(float(path.read_text()) for path in (tmp_path / "turns").iterdir())
    assert len(turns) == len(list((tmp_path / "sent").iterdir())) == 24
    assert busiest_hour([float(path.read_text()) for path in (tmp_path / "sent").iterdir()]) <= 10


def test_a_commit_that_was_killed_counts_as_one_that_arrived_as_late_as_it_could(tmp_path):
    clock = Clock(1e9)
    turn = clock.pace(tmp_path, 1).turn()
    turn.__enter__()  # and never left
    with clock.pace(tmp_path, 1).turn():
        assert clock.slept == [HOUR + LONGEST_COMMIT_SECONDS]


def test_a_damaged_file_and_a_clock_that_was_set_back_count_as_commits_of_this_moment(tmp_path):
    clock = Clock(1e9)
    for number, text in enumerate(("999999999.000", "2000000000.000", "rubb"), start=1):
        (tmp_path / f"{number:08d}").write_text(text)
    (tmp_path / "notes").write_text("of somebody")
    pace = clock.pace(tmp_path, 3)
    for slept in ([3599], [3599, 1], [3599, 1], [3599, 1, 3599]):
        with pace.turn():
            assert clock.slept == slept


def test_files_of_more_than_a_day_ago_are_removed_and_no_number_is_used_twice(tmp_path):
    clock = Clock(1e9)
    for _ in range(3):
        with clock.pace(tmp_path, 5).turn():
            pass
    clock.now += 2 * 86_400
    with clock.pace(tmp_path, 5).turn():
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000003", "00000004"]


@pytest.mark.parametrize("before", [0, 3, 10])
@pytest.mark.parametrize("commits", [0, 1, 7, 8, 10, 11, 35])
def test_how_long_the_rest_takes_is_told_before(tmp_path, before, commits):
    clock = Clock(1e9)
    pace = clock.pace(tmp_path, 10)
    for _ in range(before):
        with pace.turn():
            clock.now += 60
    seconds, began = pace.seconds_until(commits), clock.now
    for _ in range(commits):
        with pace.turn():
            pass
    assert seconds == pytest.approx(clock.now - began)


def test_a_wait_is_told_of_every_second(monkeypatch):
    told, slept = Told(), []
    monkeypatch.setattr("time.sleep", slept.append)
    pause(90.5, "60 commits in the last hour", told)
    assert sum(slept) == pytest.approx(90.5)
    assert len(told.waits) == 91
    assert told.waits[60] == "60 commits in the last hour, 30 s left"


def test_publishing_keeps_to_the_pace_of_the_config(exported, tmp_path, monkeypatch):
    clock = Clock(1e9)
    monkeypatch.setattr("pipeline.push.Pace", clock.pace)
    exported.export("alias", *range(7))
    exported.experiment = load_experiment(str(tmp_path / "tiny.yaml"), ("export.commits_per_hour=3",))
    exported.push()
    assert clock.slept == [HOUR, HOUR], "8 commits"
    assert exported.problems() == []
