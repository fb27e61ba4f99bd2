"""status tells how far each run is from names of records and the end of its metrics."""

import json
import os
import time

import pytest

from mistral.lease import acquire
from mistral.manifest import Manifest
from pipeline.jobs import Job, Jobs, Past, queue_lines
from pipeline.local import process_owner
from pipeline.status import last_step, read_tail, status


def log(trained, run: str, steps: int, rest: str = "") -> None:
    lines = [
        {"step": n, "loss": 6 - n / 100, "tokens": 64 * n, "timing": {"tokens_per_second": 32.0}}
        for n in range(1, steps + 1)
    ]
    trained.workspace.metrics(run).write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


def test_the_numbers_of_each_run(trained):
    alias, battlestar = trained.train("alias"), trained.train("battlestar", [0, 2])
    trained.export(seeds=["alias"], steps=[2, 4])
    log(
        trained,
        battlestar,
        3,
        '{"step": 3, "evaluation": {"validation": {"loss": 1.0}}}\n[1]\n{"step": "4"}\n5\n{"step": 4, "lo',
    )
    report = status(trained.experiment, trained.workspace)
    first, second = report.to_json()["runs"]
    assert (report.units, report.sealed) == (1, True)
    assert (first["run"], first["state"], first["step"], first["max_steps"]) == (alias, "complete", 4, 4)
    assert (first["weights"], first["scheduled"], first["exported"]) == (3, 3, 2)
    assert first["eta_seconds"] is None
    assert (second["state"], second["step"], second["loss"]) == ("stopped", 3, 5.97)
    assert (second["weights"], second["tokens_per_second"], second["eta_seconds"]) == (2, 32.0, 2.0)
    table = report.as_table().splitlines()
    assert table[0] == f"{trained.dataset.key[0]}: 1 unit, whole"
    assert table[2].split()[:3] == [alias, "complete", "4/4"]
    assert "2/3" in table[3]


def test_a_run_that_has_not_started_and_a_workspace_that_is_empty(trained, tmp_path):
    [alias, _] = status(trained.experiment, trained.workspace).runs
    assert (alias.state, alias.step, alias.loss, alias.weights, alias.owner) == ("not started", 0, None, 0, None)
    report = status(None, type(trained.workspace)(tmp_path / "nothing"))
    assert report.runs == []
    report.as_table()


def test_without_an_experiment_all_runs_are_told_by_their_own_records(trained):
    run = trained.train("alias", [0, 2])
    [row] = status(None, trained.workspace).runs
    assert (row.run, row.max_steps, row.weights, row.scheduled) == (run, 4, 2, 3)
    trained.manifest.path("train", (run, "begin")).write_text("{}")  # verify says what is wrong with it
    [row] = status(None, trained.workspace).runs
    assert (row.run, row.max_steps, row.weights) == (run, None, 2)


def test_at_most_the_first_record_of_a_run_is_read(trained, monkeypatch):
    trained.train("alias")
    trained.export(seeds=["alias"])
    read, find = [], Manifest.find
    monkeypatch.setattr(Manifest, "find", lambda self, stage, key: read.append(key) or find(self, stage, key))
    status(None, trained.workspace)
    assert len(read) == 1
    status(trained.experiment, trained.workspace)
    assert len(read) == 1


def test_only_the_end_of_the_metrics_is_read(trained):
    run = trained.train("alias", [0])
    log(trained, run, 100_000)
    assert last_step(trained.workspace.metrics(run))["step"] == 100_000


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{"])
def test_the_owner_is_who_holds_the_newest_lease(trained, damage):
    def row() -> tuple[str, str | None]:
        [run, _] = status(trained.experiment, trained.workspace).runs
        return run.state, run.owner

    folder = trained.workspace.run(trained.experiment.run_name("alias"))
    assert row() == ("not started", None)
    acquire(folder, {"kind": "local", "host": "node7", "pid": 1}, lambda _: False).release()
    assert row() == ("not started", None)
    lease = acquire(folder, {"kind": "slurm", "job": "12_3", "restart": 1}, lambda _: False)
    assert row() == ("unknown", "Slurm job 12_3, restart 1")
    (folder / f"lease-{lease.number:08d}").write_bytes(damage)
    assert row() == ("unknown", "an unknown process")


def test_a_run_is_running_while_its_owner_lives_and_stopped_when_it_is_dead(trained):
    run = trained.train("alias", [0, 2])
    folder = trained.workspace.run(run)

    def state() -> str:
        return status(trained.experiment, trained.workspace).runs[0].state

    assert state() == "stopped"  # it left in order
    me = process_owner()
    acquire(folder, me, lambda _: False)
    assert state() == "running"
    acquire(folder, me | {"start_time": me["start_time"] - 1}, lambda _: False)  # killed; its number is another's now
    assert state() == "stopped"
    acquire(folder, me | {"boot_id": "before"}, lambda _: False)
    assert state() == "stopped"
    acquire(folder, me | {"pid": None}, lambda _: False)
    assert state() == "unknown"
    acquire(folder, me | {"host": "elsewhere"}, lambda _: False)
    assert state() == "unknown"
    trained.train("alias")
    acquire(folder, me, lambda _: False)
    assert state() == "complete"


@pytest.mark.parametrize("line", ["{}", '{"step": 3, "loss": 1.0, "timing": 7}', '{"step": 3, "loss": 1.0}', "\x00"])
def test_a_damaged_end_of_the_metrics_is_no_crash(trained, line):
    run = trained.train("alias", [0, 2])
    log(trained, run, 2, line + "\n")
    [row, _] = status(trained.experiment, trained.workspace).runs
    assert row.step in (2, 3)
    assert row.state == "stopped"


def hang(trained, run: str, seconds: float) -> None:
    """Let the last step of a run be so old."""
    past = time.time() - seconds
    os.utime(trained.workspace.metrics(run), (past, past))


@pytest.mark.parametrize(
    ("usual", "age", "stale"),
    [(2.0, 59, False), (2.0, 61, True), (30.0, 140, False), (30.0, 160, True), (None, 61, True)],
)
def test_a_run_that_hangs_looks_hung(trained, usual, age, stale):
    """Its state is that of a run which works; the age of its last step tells, and its rate is no rate of now."""
    run = trained.train("alias", [0, 2])
    acquire(trained.workspace.run(run), process_owner(), lambda _: False)
    log(trained, run, 3)
    path = trained.workspace.metrics(run)
    if usual is not None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["timing"]["seconds"] = usual
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    hang(trained, run, age)
    report = status(trained.experiment, trained.workspace)
    row = report.to_json()["runs"][0]
    assert (row["state"], row["step"], row["loss"]) == ("running", 3, 5.97)
    assert age <= row["step_age_seconds"] < age + 20
    assert (row["tokens_per_second"], row["eta_seconds"]) == ((None, None) if stale else (32.0, 2.0))
    assert f" {row['step_age_seconds']:.0f} s " in report.as_table()


def test_a_complete_run_keeps_its_rate_and_has_no_age(trained):
    run = trained.train("alias")
    hang(trained, run, 86_400)
    row = status(trained.experiment, trained.workspace).runs[0]
    assert (row.state, row.step_age_seconds, row.tokens_per_second) == ("complete", None, 128.0)


def test_the_age_of_a_step_costs_no_look_at_the_file_system(trained, monkeypatch):
    run = trained.train("alias", [0, 2])
    log(trained, run, 3)
    monkeypatch.setattr(os, "stat", lambda *given, **more: pytest.fail("the open file says it"))
    assert read_tail(trained.workspace.metrics(run)).age_seconds is not None


# --- jobs -------------------------------------------------------------------------------------------------------

RUN = "alias-tiny-x21"


def job(state: str, reason: str = "None", stage: str = "train", name: str = RUN) -> Job:
    return Job(stage, name, "12_0", state, reason)


@pytest.mark.parametrize(
    ("jobs", "state", "reason"),
    [
        (Jobs([job("pending", "Priority")]), "queued", "Priority"),
        (Jobs([job("pending")]), "queued", None),
        (Jobs([job("running")]), "running", None),  # it has not come to its lease yet
        (Jobs([job("completing")]), "completing", None),
        (Jobs([job("pending", "Priority", "export"), job("running", name="another")]), "stopped", None),
        (Jobs([job("pending", "BeginTime")], past={RUN: Past("12_0", 2, None, "crash")}), "queued", "BeginTime"),
        (Jobs(past={RUN: Past("12_0", 2, 3, "found 2 attempts\nin a row")}), "failed", "found 2 attempts\nin a row"),
        (Jobs(past={RUN: Past("12_0", 1, 1, "ConfigError: no")}), "failed", "ConfigError: no"),
        (Jobs(past={RUN: Past("12_0", 1, 75, "Stopped: saved")}), "stopped", "Stopped: saved"),
        (Jobs(past={RUN: Past("12_0", 1, None, "OSError")}), "failed", "OSError"),
        (Jobs(past={RUN: Past("12_0", 1, None, "")}), "stopped", None),
        (Jobs(None, past={RUN: Past("12_0", 1, 1, "ConfigError: no")}), "unknown", None),
        (Jobs(None), "stopped", None),  # it was never submitted
    ],
)
def test_a_run_is_told_with_its_job(trained, jobs, state, reason):
    trained.train("alias", [0, 2])
    [run, _] = status(trained.experiment, trained.workspace, jobs).runs
    assert (run.state, run.reason) == (state, reason)
    if RUN in jobs.past:
        assert (run.job, run.attempts) == ("12_0", jobs.past[RUN].attempts)


def test_a_run_that_has_not_begun_is_told_with_its_job(trained):
    def told(jobs: Jobs) -> tuple[str, str | None]:
        row = status(trained.experiment, trained.workspace, jobs).runs[0]
        return row.state, row.reason

    assert told(Jobs([job("pending", "Dependency")])) == ("queued", "Dependency")
    assert told(Jobs(past={RUN: Past("12_0", 1, 1, "ConfigError: no")})) == ("failed", "ConfigError: no")
    assert told(Jobs(past={RUN: Past("12_0", 1, None, "it was killed")})) == ("failed", "it was killed")


def test_a_job_owns_its_run_while_it_runs(trained):
    folder = trained.workspace.run(trained.train("alias", [0, 2]))
    acquire(folder, {"kind": "slurm", "job": "12_0", "restart": 1}, lambda _: False)

    def state(jobs: Jobs) -> str:
        return status(trained.experiment, trained.workspace, jobs).runs[0].state

    assert state(Jobs(running=frozenset({"12_0"}))) == "running"
    assert state(Jobs(running=frozenset())) == "stopped"
    assert state(Jobs(None)) == "unknown"
    assert state(Jobs(running=frozenset(), queue=[job("pending", "BeginTime")])) == "queued"
    trained.train("alias")
    assert state(Jobs(None, past={RUN: Past("12_0", 1, 1, "ConfigError: no")})) == "complete"


def test_the_table_has_one_line_a_run_and_one_for_the_tasks_of_a_stage(trained):
    trained.train("alias", [0, 2])
    jobs = [job("pending", "Priority", "export", f"task {n} of 900") for n in range(900)]
    jobs += [job("running", stage="export", name="task 900 of 1000"), job("pending", "Dependency")]
    report = status(trained.experiment, trained.workspace, Jobs(jobs))
    assert report.as_table().splitlines()[-3:] == [
        "",
        "export tasks: 900 queued (Priority), 1 running",
        "train tasks: 1 queued (Dependency)",
    ]
    assert len(report.to_json()["jobs"]) == 902
    some = [
        Job("export", f"task {number} of 3", f"13_{number}", "running", "None", f"n{number % 2}") for number in range(3)
    ]
    assert queue_lines(some) == ["", "export tasks: 3 running on n0, n1"]
    assert queue_lines([]) == []
    assert "unknown" in queue_lines(None)[-1]
    long = Jobs(past={RUN: Past("12_0", 1, 1, "x" * 500 + "\nmore")})
    assert max(map(len, status(trained.experiment, trained.workspace, long).as_table().splitlines())) < 320


def test_how_many_units_there_will_be_is_told_once_preprocess_was_submitted(trained):
    [seal] = trained.workspace.manifest().glob("preprocess/*/dataset.json")
    seal.unlink()
    dataset = trained.experiment.data.dataset_name()
    report = status(trained.experiment, trained.workspace, Jobs(planned_units=64))
    assert report.as_table().splitlines()[0] == f"{dataset}: 1 of 64 units, unfinished"
    report = status(trained.experiment, trained.workspace)
    assert report.as_table().splitlines()[0] == f"{dataset}: 1 unit, unfinished"
    assert report.planned_units is None
