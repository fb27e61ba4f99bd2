"""Stages as jobs of a real Slurm: chained, submitted once, cut to what Slurm allows, seen and ended by commands."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import ROOT, DevCluster, ask, cluster, wait_until  # noqa: F401  a fixture

from mistral.lease import acquire
from mistral.workspace import Workspace
from pipeline import options
from slurm import follow, lock, queue, submit

# ruff: noqa: F811  pytest's way of asking for a fixture
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

CLUSTER = """
name: jobs
executor: slurm
extra: {extra}
{more}
stages:
  preprocess: {{tasks: 2, memory_gigabytes: 2, minutes: 20, array_width: {width}}}
  train: {{nodes: 2, ranks_per_node: 1, memory_gigabytes: 2, minutes: 30, array_width: 2}}
  export: {{tasks: 2, memory_gigabytes: 2, minutes: 20, array_width: 2}}
"""
LOCAL = "{name: local2, executor: local, stages: {train: {ranks_per_node: 2}}}"


def call(folder: Path, name: str, *arguments: str, code: int = 0, cluster: str = "jobs.yaml", **variables: str) -> str:
    line = [sys.executable, "-m", "pipeline.cli", name, str(folder / "tiny.yaml"), "--workspace", str(folder / "ws")]
    if name not in ("status", "verify", "logs", "cancel"):
        line += ["--cluster", str(folder / cluster)]
    done = subprocess.run(
        [*line, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def write_cluster(
    folder: Path, name: str = "jobs.yaml", *, extra: str = "{}", width: int = 2, more: str = "setup: []"
) -> None:
    (folder / name).write_text(CLUSTER.format(extra=extra, width=width, more=more))


def weights_of(workspace: Path) -> dict[str, str]:
    files = sorted(workspace.glob("runs/*/checkpoints/*/model.safetensors"))
    return {str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def jobs_of(folder: Path) -> list[queue.Job]:
    """The tasks in the queue that belong to a workspace."""
    known = {path.parent.name for path in (folder / "ws" / "jobs").glob("*/*/submission.json")}
    return [job for job in queue.my_jobs() or [] if job.submission in known]


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that two ranks on this machine train."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "local2.yaml").write_text(LOCAL)
    shutil.copytree(packed / "workspace", folder / "ws")
    for name in ("corpus", "tokenizer", "tiny.yaml"):
        (folder / name).symlink_to(packed / name)
    call(folder, "train", cluster="local2.yaml")
    return weights_of(folder / "ws")


def test_a_whole_experiment_runs_as_a_chain_of_jobs(cluster: DevCluster, tiny: Path, undisturbed: dict[str, str]):
    write_cluster(tiny)
    output = call(tiny, "run", "--wait", HF_TOKEN="hf_secret", WANDB_API_KEY="wandb_secret")
    assert [line.split(":")[0] for line in output.splitlines()[:3]] == ["preprocess", "train", "export"]
    assert "checkpoint-12" in output
    assert weights_of(tiny / "ws") == undisturbed
    assert len(list((tiny / "ws").glob("exports/*/*/model.safetensors"))) == 10
    call(tiny, "verify", "--quick")
    folders = [
        path for path in (tiny / "ws" / "jobs").rglob("*") if path.is_dir() and path.parent.parent.name == "jobs"
    ]
    assert {oct(path.stat().st_mode)[-3:] for path in folders if path.parent.name != "attempts"} == {"700"}
    written = b"".join(path.read_bytes() for path in (tiny / "ws" / "jobs").rglob("*") if path.is_file())
    assert b"secret" not in written

    before = {path: path.stat().st_mtime_ns for path in (tiny / "ws").rglob("*")}
    assert "nothing to do" in call(tiny, "run")
    assert {path: path.stat().st_mtime_ns for path in (tiny / "ws").rglob("*")} == before
    log = call(tiny, "logs", "--seed", "battlestar", "--rank", "0")
    assert "train battlestar-tiny-x49: 12 of 12 steps" in log
    assert "preprocess plays" in call(tiny, "logs", "--stage", "preprocess")
    assert "found no job of" in call(tiny, "logs", "--seed", "alias", "--set", "name=other", code=1)


def test_a_second_call_attaches_and_finishes_what_a_crash_left_undone(cluster: DevCluster, tiny: Path):
    write_cluster(tiny, extra="{hold: true}")
    [row] = json.loads(call(tiny, "preprocess", "--json"))
    assert [job.state for job in jobs_of(tiny)] == ["PENDING"]
    [folder] = (tiny / "ws" / "jobs" / "preprocess").iterdir()
    (folder / "job.json").unlink()  # as if the process had died as sbatch answered
    for path in folder.glob("*_submitted.pkl"):
        path.unlink()
    output = call(tiny, "preprocess")
    assert f"preprocess: found job {row['job']}" in output
    assert len(jobs_of(tiny)) == 1
    assert "preprocess tasks: 1 queued (" in call(tiny, "status")
    assert json.loads(call(tiny, "status", "--json"))["jobs"][0]["job"] == row["job"]
    ask("scontrol", "release", row["job"])
    wait_until(lambda: not jobs_of(tiny), "the end of the job")
    assert "nothing to do" in call(tiny, "preprocess")
    assert list((tiny / "ws").glob("manifest/preprocess/*/dataset.json"))


def test_where_duplicates_are_to_be_found_one_call_hashes_then_packs(cluster: DevCluster, tiny: Path):
    write_cluster(tiny)
    output = call(tiny, "preprocess", "--wait", "--set", "data.deduplicate=exact", "--set", "data.unit_megabytes=1")
    assert [line.split(":")[0] for line in output.splitlines()[:2]] == ["preprocess", "preprocess"]
    assert list((tiny / "ws").glob("manifest/preprocess/*/dataset.json"))


def test_a_stage_waits_for_the_one_before_it_and_dies_with_it(cluster: DevCluster, tiny: Path):
    write_cluster(tiny, extra="{hold: true}")
    rows = {row["stage"]: row["job"] for row in json.loads(call(tiny, "run", "--json"))}
    waits = {job.label.partition("_")[0]: ask("scontrol", "show", "job", job.label) for job in jobs_of(tiny)}
    assert f"Dependency=afterok:{rows['preprocess']}" in waits[rows["train"]]
    assert f"Dependency=afterany:{rows['train']}" in waits[rows["export"]]
    assert {row["found"] for row in json.loads(call(tiny, "run", "--json"))} == {True}
    assert "cancelled 1 task" in call(tiny, "cancel", "--stage", "preprocess")
    wait_until(lambda: not [job for job in jobs_of(tiny) if job.label.startswith(rows["train"])], "the end of train")
    call(tiny, "cancel")
    wait_until(lambda: not jobs_of(tiny), "the end of all jobs")


def test_an_array_is_cut_to_what_slurm_allows_and_its_parts_follow_each_other(
    cluster: DevCluster, tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    write_cluster(tiny, extra="{hold: true}", width=1)
    assert queue.max_array_size() == 1001
    monkeypatch.setattr(queue, "max_array_size", lambda: 2)
    context = options.make_context(
        str(tiny / "tiny.yaml"), tiny / "ws", str(tiny / "jobs.yaml"), (), ["preprocess", str(tiny / "tiny.yaml")]
    )
    plan = submit.Plan("preprocess", tuple((n, f"task {n} of 9") for n in (0, 2, 3, 5, 8)), ("--tasks", "9"))
    jobs = submit.submit(context, [plan])
    assert [job.submission.tasks for job in jobs] == [(0, 2), (3, 5), (8,)]
    second = ask("scontrol", "show", "job", f"{jobs[1].number}_0")
    assert f"Dependency=afterany:{jobs[0].number}" in second
    assert "ArrayTaskThrottle=1" in second
    path = jobs[1].submission.folder / f"{jobs[1].number}_1_submitted.pkl"
    tasks = pickle.loads(path.read_bytes()).function
    assert (tasks.arguments[0], tasks.arguments[-2:], tasks.numbers) == ("preprocess", ("--tasks", "9"), (3, 5))
    assert sorted(task.task for task in follow.active(Workspace(tiny / "ws"), "tiny") or []) == [0, 2, 3, 5, 8]
    again = submit.submit(context, [plan])
    assert all(job.found for job in again)
    assert "expected --tasks 2" in call(tiny, "preprocess", code=1)  # whose numbers mean something else
    call(tiny, "cancel")


def test_what_slurm_refuses_is_told_and_nothing_is_left_behind(cluster: DevCluster, tiny: Path):
    write_cluster(tiny, extra="{reservation: none-such}")
    errors = call(tiny, "preprocess", code=1)
    assert "Slurm refuses the job" in errors
    assert "reservation" in errors
    with lock.alone(Workspace(tiny / "ws")):
        assert "another process submits" in call(tiny, "preprocess", code=1)


def test_setup_and_python_that_fail_end_the_attempt_with_their_line(cluster: DevCluster, tiny: Path):
    failing = {"alias": "setup: [ulimit -c 0, module load cuda/99]", "battlestar": "python: /missing/python"}
    for seed, more in failing.items():
        write_cluster(tiny, f"{seed}.yaml", more=more)
        call(tiny, "train", "--seed", seed, cluster=f"{seed}.yaml")
    wait_until(lambda: not jobs_of(tiny), "the end of both jobs")
    reasons = {run["run"]: (run["state"], run["reason"]) for run in json.loads(call(tiny, "status", "--json"))["runs"]}
    for run, line in (("alias-tiny-x21", "module load cuda/99"), ("battlestar-tiny-x49", "/missing/python -c")):
        state, reason = reasons[run]
        assert (state, reason.count(f"setup failed: exit code 127 of: {line}")) == ("failed", 1)
    logs = "".join(path.read_text() for path in (tiny / "ws" / "jobs").glob("train/*/*.err"))
    assert logs.count("EnvironmentProblem: setup failed: exit code 127 of: ") == 2  # no attempt but the first


def test_a_job_that_slurm_holds_is_released_by_the_same_command(cluster: DevCluster, tiny: Path):
    """Its node is lost and comes back while a copy of the job is still there, as its daemon is halted."""
    again = tiny / "again"
    write_cluster(tiny, extra="{nodelist: n1}", more=f'setup: ["[ -e {again} ] || sleep 300"]')
    [row] = json.loads(call(tiny, "preprocess", "--tasks", "1", "--json"))
    wait_until(lambda: [job.state for job in jobs_of(tiny)] == ["RUNNING"], "the start of the job")
    daemons = daemons_of(cluster, row["job"])
    assert daemons
    again.touch()
    for process in daemons:
        os.kill(process, signal.SIGSTOP)
    ask("scontrol", "update", "nodename=n1", "state=down", "reason=lost")
    ask("scontrol", "update", "nodename=n1", "state=resume")
    wait_until(lambda: "launch failed requeued held" in [job.reason for job in jobs_of(tiny)], "the hold", 60)
    for process in daemons:
        os.kill(process, signal.SIGCONT)
    wait_until(lambda: [job.state for job in jobs_of(tiny)] == ["PENDING"], "the end of the copy", 60)
    ask("scontrol", "update", "nodename=n1", "state=resume")  # Slurm drains a node on which a job is there twice
    assert f"preprocess: found job {row['job']}" in call(tiny, "preprocess", "--tasks", "1")
    wait_until(lambda: not jobs_of(tiny), "the end of the job", 60)
    assert list((tiny / "ws").glob("manifest/preprocess/*/dataset.json"))
    [released] = (tiny / "ws" / "jobs" / "preprocess").glob("*/released-*")
    assert released.name == f"released-{row['job']}-1"


def daemons_of(cluster: DevCluster, job: str) -> list[int]:
    """The processes of Slurm that stand for a job on its node, which is a namespace of this machine."""
    found, settings = [], f"SLURM_CONF={cluster.environment['DEVCLUSTER_DIR']}/".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"slurmstepd: [{job}.".encode() in words and settings in environment:
            found.append(int(folder.name))
    return found


def test_where_slurm_does_not_answer_nothing_is_submitted_and_nothing_is_called_failed(
    cluster: DevCluster, tiny: Path, tmp_path: Path
):
    write_cluster(tiny, extra="{hold: true}")
    call(tiny, "preprocess")
    (tmp_path / "bin").mkdir()
    calls = tmp_path / "calls"
    mute = tmp_path / "bin" / "squeue"
    mute.write_text(f"#!/bin/bash\necho squeue >> {calls}\necho 'squeue: error: no answer' >&2\nexit 1\n")
    mute.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    folder = tiny / "ws" / "runs" / "alias-tiny-x21"
    acquire(folder, {"kind": "slurm", "job": "12_3", "restart": 0}, lambda _: False)
    assert json.loads(call(tiny, "status", "--json"))["runs"][0]["state"] == "stopped"
    assert json.loads(call(tiny, "status", "--json", PATH=path))["runs"][0]["state"] == "unknown"
    calls.unlink()
    assert "jobs: unknown" in call(tiny, "status", PATH=path)
    assert json.loads(call(tiny, "status", "--json", PATH=path))["jobs"] is None
    assert "nothing was submitted" in call(tiny, "preprocess", PATH=path, code=1)
    assert calls.read_text().splitlines() == ["squeue"] * 3  # each command asks once
    call(tiny, "cancel")


def test_a_job_whose_python_is_not_there_is_failed_with_a_reason_and_its_log(cluster: DevCluster, tiny: Path):
    write_cluster(tiny)
    text = (tiny / "jobs.yaml").read_text()
    (tiny / "jobs.yaml").write_text(text.replace("executor: slurm", "executor: slurm\npython: /nonexistent"))
    [row] = json.loads(call(tiny, "preprocess", "--json"))
    wait_until(lambda: not jobs_of(tiny), "the end of the job")

    def told() -> list[dict]:
        return [task for task in json.loads(call(tiny, "status", "--json"))["tasks"] if task["state"] != "unknown"]

    wait_until(told, "the accounting of the job", 30)
    [task] = told()
    assert (task["stage"], task["name"], task["job"], task["state"]) == (
        "preprocess",
        "task 1 of 2",
        row["job"],
        "failed",
    )
    assert "exit code 127" in task["reason"]
    assert "/nonexistent" in Path(task["log"]).read_text()
    assert "preprocess task 1 of 2: failed" in call(tiny, "status")


def test_the_sbatch_scripts_give_the_same_bits(cluster: DevCluster, tiny: Path, undisturbed: dict[str, str]):
    write_cluster(tiny)
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def sbatch(stage: str, *arguments: str) -> str:
        line = ["sbatch", "--parsable", "--mem=2G", "--time=20", "--cpus-per-task=1", f"--output={tiny}/{stage}-%a"]
        line += [*arguments, str(ROOT / "slurm" / f"{stage}.sbatch")]
        line += [str(tiny / "tiny.yaml"), str(tiny / "jobs.yaml"), str(tiny / "ws")]
        done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = sbatch("preprocess", "--array=0-1")
    wide = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
    second = sbatch("train", "--array=0-1", *wide, f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    third = sbatch("export", "--array=0-1", f"--dependency=afterany:{second}")
    wait_until(lambda: queue.may_run(third) is False and queue.may_run(second) is False, "the end of the three jobs")
    logs = "".join(path.read_text() for path in sorted(tiny.glob("*-[01]")))
    assert weights_of(tiny / "ws") == undisturbed, logs
    assert len(list((tiny / "ws").glob("exports/*/*/model.safetensors"))) == 10, logs


@pytest.mark.parametrize(("binding", "own"), [([], False), (["--gpus-per-task=1"], True)])
def test_each_rank_takes_a_gpu_of_its_own_however_slurm_binds_them(
    cluster: DevCluster, tmp_path: Path, binding: list[str], own: bool
):
    """Two ranks on each of two nodes; the GPUs are mere device files, so torch is not asked how many it sees."""
    script = (
        "import os, sys; from pathlib import Path; from slurm import rendezvous\n"
        "os.environ.update(rendezvous.join(os.environ, Path(sys.argv[1])))\n"
        "from mistral.ranks import Ranks\n"
        "me, seen = Ranks.from_environment(), os.environ['CUDA_VISIBLE_DEVICES'].split(',')\n"
        "index = me.device_index(len(seen))\n"
        "print(me.rank, me.local_rank, os.environ['SLURMD_NODENAME'], len(seen), index, seen[index])\n"
    )
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--mem=1G", "--time=5"]
    line = ["srun", "--quiet", *size, *binding, sys.executable, "-c", script, str(tmp_path)]
    told = sorted(row.split() for row in ask(*line).splitlines())
    assert [row[0] for row in told] == ["0", "1", "2", "3"]
    assert {(node, device) for *_, node, _, _, device in told} == {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}
    for _, local_rank, _, seen, index, _ in told:
        assert (seen, index) == (("1", "0") if own else ("2", local_rank))
