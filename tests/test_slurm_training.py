"""Training under a real Slurm: signals, requeues, dead nodes and crashes end in the bits of an undisturbed local run.

Slurm looks at the clock every 30 s, so all jobs run side by side: the first test submits and disturbs them all, and
each test waits for its own.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from slurm_cluster import DevCluster, ask, cluster, wait_until  # noqa: F401  a fixture

from mistral.workspace import Workspace
from slurm import history

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

LONG = ("training.max_steps=240", "checkpoints.schedule=[[60,240]]", "checkpoints.resume_every_steps=20")
LONG += ("evaluation.every_steps=120",)
ALIAS, BATTLESTAR = "alias-tiny-x21", "battlestar-tiny-x49"
SLURM = """
name: {name}
executor: slurm
partition: {partition}
setup: {setup}
requeue: {requeue}
stages: {{train: {{nodes: {nodes}, ranks_per_node: {ranks}, memory_gigabytes: 2, minutes: {minutes},
                   signal_lead_seconds: {lead}, array_width: 2, max_attempts_without_progress: {attempts}}}}}
"""
LOCAL = "{{name: local{ranks}, executor: local, stages: {{train: {{ranks_per_node: {ranks}}}}}}}"


@dataclass
class Scene:
    """A workspace of its own, in which one job trains."""

    experiment: Path
    workspace: Path
    cluster_file: Path
    job: str = ""
    killed: str = ""  # which rank was, as it should be told

    def command(self, name: str, *arguments: str, at: Path | None = None) -> list[str]:
        """The real command line."""
        overrides = [word for value in LONG for word in ("--set", value)]
        place = ["--workspace", str(self.workspace)]
        if name not in ("status", "logs", "cancel", "verify"):
            place += ["--cluster", str(at or self.cluster_file)]
        return [sys.executable, "-m", "pipeline.cli", name, str(self.experiment), *place, *overrides, *arguments]

    def call(self, name: str, *arguments: str, code: int = 0, at: Path | None = None) -> str:
        """Run it, and return what it prints."""
        done = subprocess.run(
            self.command(name, *arguments, at=at), capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def submit(self, *arguments: str) -> None:
        """Submit what there is to train."""
        [row] = json.loads(self.call("train", "--json", *arguments))
        self.job = ",".join(row["jobs"])  # several of a chain

    def steps(self, run: str = ALIAS) -> int:
        """How many steps are logged."""
        path = self.workspace / "runs" / run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_step(self, step: int, run: str = ALIAS) -> None:
        """Wait until a run is at a step, which it then soon leaves behind."""
        wait_until(lambda: self.steps(run) >= step, f"step {step} of {run} ({self.logs()})")

    def is_complete(self, run: str = ALIAS) -> bool:
        """Whether the run has ended well."""
        return (self.workspace / "manifest" / "train" / run / "complete.json").exists()

    def finish(self, run: str = ALIAS) -> None:
        """Wait for the end of a run."""
        wait_until(lambda: self.is_complete(run), f"the end of {run}")
        wait_until(lambda: not in_queue(self.job), f"the end of job {self.job}")

    def ends(self) -> list[dict]:
        """Why the attempts ended, as far as they could say so."""
        return [json.loads(path.read_bytes()) for path in sorted(self.workspace.glob("jobs/attempts/*/*.end"))]

    def begins(self) -> list[Path]:
        """What the attempts of all tasks wrote first."""
        return list(self.workspace.glob("jobs/attempts/*/*.begin"))

    def attempts(self, label: str | None = None) -> int:
        """How often the job began."""
        return len([path for path in self.begins() if path.parent.name == (label or self.job)])

    def logs(self) -> Path:
        """Where to look when a test fails."""
        return self.workspace / "jobs"

    def result(self, run: str = ALIAS) -> tuple[dict[str, str], list[dict]]:
        """Hashes of all weights, and the metrics without what a clock decides."""
        weights = sorted((self.workspace / "runs" / run / "checkpoints").glob("*/model.safetensors"))
        lines = [
            json.loads(line) for line in (self.workspace / "runs" / run / "metrics.jsonl").read_text().splitlines()
        ]
        metrics = [{k: v for k, v in line.items() if k not in ("timing", "memory")} for line in lines]
        return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}, metrics


def in_queue(job: str) -> str:
    """What squeue says of a job, without those that have ended."""
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def state_of(label: str) -> str:
    """How a job ended, by sacct; the accounting may lag."""
    lines = ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", label).splitlines()
    return lines[0].split()[0] if lines else ""


@pytest.fixture(scope="module")
def make_scene(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scene]:
    """Makes workspaces that hold the small dataset, and a cluster file each."""

    def make(name: str, text: str = SLURM, **values: object) -> Scene:
        folder = tmp_path_factory.mktemp(name)
        settings = {
            "nodes": 1,
            "ranks": 1,
            "minutes": 30,
            "lead": 60,
            "partition": "main",
            "setup": "[]",
            "attempts": 2,
            "requeue": "true",
        } | values
        (folder / "cluster.yaml").write_text(text.format(name=name, **settings))
        shutil.copytree(packed / "workspace", folder / "workspace")
        return Scene(packed / "tiny.yaml", folder / "workspace", folder / "cluster.yaml")

    return make


@pytest.fixture(scope="module")
def scenes(cluster: DevCluster, make_scene: Callable[..., Scene]) -> Iterator[Callable[[str], Scene]]:  # noqa: F811
    """All jobs, submitted and disturbed at once; gives one of them when that has been done to it."""
    every = {
        "limit": make_scene("limit", minutes=1, lead=30, attempts=9),
        "signal": make_scene("signal", nodes=2, ranks=2),
        "rank": make_scene("rank", nodes=2),
        "cancel": make_scene("cancel"),
        "requeue": make_scene("requeue"),
        "crash": make_scene("crash", setup='["ulimit -v 400000"]'),
        "preempt": make_scene("preempt", partition="preempt"),
        "grace": make_scene("grace", partition="preempt"),
        "chain": make_scene("chain", requeue="false"),
        "node": make_scene("node"),
    }
    actions = {"limit": halt_until_signal, "signal": send_usr2, "cancel": cancel_alias, "requeue": requeue}
    actions |= {"rank": kill_a_rank, "chain": disturb_chain}
    actions["preempt"] = partial(preempt, told=signal.SIGUSR2, neighbours=[every[name] for name in actions])
    actions["grace"] = partial(preempt_by_sigterm, cluster=cluster, neighbours=[every[name] for name in actions])
    actions["node"] = partial(kill_node, cluster=cluster, neighbours=[every[name] for name in actions])
    for name in [name for name in every if name not in ("preempt", "grace")]:
        scene = every[name]
        scene.submit(*(() if name == "cancel" else ("--seed", "alias")))
    with ThreadPoolExecutor(len(actions)) as pool:
        done = {name: pool.submit(action, every[name]) for name, action in actions.items()}

        def disturbed(name: str) -> Scene:
            if name in done:
                done[name].result(timeout=400)
            return every[name]

        yield disturbed
    subprocess.run(["scancel", "--user=root"], check=False)


def send_usr2(scene: Scene) -> None:
    """As Slurm does before a time limit or a preemption."""
    scene.wait_for_step(30)
    ask("scancel", "--signal=USR2", scene.job)


def cancel_alias(scene: Scene) -> None:
    """One task of an array of two."""
    scene.wait_for_step(30)
    output = scene.call("cancel", "--seed", "alias")
    assert f"{scene.job}_0" in output
    wait_until(lambda: not in_queue(f"{scene.job}_0"), "the end of the cancelled task")


def requeue(scene: Scene) -> None:
    """As an operator does."""
    scene.wait_for_step(30)
    ask("scontrol", "requeue", scene.job)


def kill_a_rank(scene: Scene) -> None:
    """As the kernel does when memory runs out: the other rank waits for it, and srun ends that one."""
    scene.wait_for_step(30)
    ranks = processes_of(scene)
    assert len(ranks) == 2
    words = Path(f"/proc/{ranks[-1]}/environ").read_text().split("\0")
    where = dict(word.split("=", 1) for word in words if word.startswith("SLURM"))
    scene.killed = (
        f"rank {where['SLURM_PROCID']} was killed by signal 9 (out of memory?) on node {where['SLURMD_NODENAME']}"
    )
    os.kill(ranks[-1], signal.SIGKILL)


def disturb_chain(scene: Scene) -> None:
    """Tell the first of four jobs to stop, kill the second, and let the third end the run."""
    scene.wait_for_step(30)
    [row] = json.loads(scene.call("train", "--seed", "alias", "--json"))
    assert (row["jobs"], row["found"]) == (scene.job.split(","), True)
    assert [in_queue(job) for job in row["jobs"]] == ["RUNNING", "PENDING", "PENDING", "PENDING"]
    ask("scancel", "--signal=USR2", row["job"])
    wait_until(lambda: len(scene.begins()) == 2, "the start of the second job of the chain")
    scene.wait_for_step(90)  # beyond a periodic state
    [process] = processes_of(scene)
    os.kill(process, signal.SIGKILL)


def halt_until_signal(scene: Scene) -> None:
    """Let no step pass until Slurm's signal has come, as a run of a minute would keep the machine busy."""
    scene.wait_for_step(10)
    [process] = processes_of(scene)
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: is_told(process, signal.SIGUSR2), "the signal before the time limit", 100)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def preempt_by_sigterm(scene: Scene, cluster: DevCluster, neighbours: Sequence[Scene]) -> None:  # noqa: F811
    """Where Slurm does not send the signal that the job asked for."""
    wait_for_end_of(neighbours)
    path = Path(cluster.environment["DEVCLUSTER_DIR"]) / "etc" / "slurm.conf"
    path.write_text(path.read_text().replace("SlurmctldParameters=preempt_send_user_signal\n", ""))
    ask("scontrol", "reconfigure")
    preempt(scene, (), signal.SIGTERM)


def preempt(scene: Scene, neighbours: Sequence[Scene], told: signal.Signals) -> None:
    """A job of low priority, once those before which it would give way are gone; then ask for the rest of its node."""
    wait_for_end_of(neighbours)
    scene.submit("--seed", "alias")
    scene.wait_for_step(30)
    [process] = processes_of(scene)
    os.kill(process, signal.SIGSTOP)
    node = ask("squeue", "--noheader", "--format=%N", "--jobs", scene.job)
    busy = sum(map(int, ask("squeue", "--noheader", "--partition=main", f"--nodelist={node}", "--format=%C").split()))
    size = [f"--nodelist={node}", f"--cpus-per-task={4 - busy}", "--mem=100M"]
    ask("sbatch", "--output=/dev/null", *size, "--wrap=sleep 1")
    wait_until(lambda: is_told(process, told), "the signal of the preemption", 100)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def wait_for_end_of(scenes: Sequence[Scene]) -> None:
    """Wait until none of the jobs is in the queue."""
    for scene in scenes:
        wait_until(scene.begins, f"the start of {scene.job}")
        wait_until(lambda scene=scene: scene.job and not in_queue(scene.job), f"the end of {scene.job}", 400)


def kill_node(scene: Scene, cluster: DevCluster, neighbours: Sequence[Scene]) -> None:  # noqa: F811
    """Halt a job, and kill its node once no other job is there."""
    scene.wait_for_step(30)
    [process] = processes_of(scene)
    os.kill(process, signal.SIGSTOP)
    wait_for_end_of(neighbours)
    node = ask("squeue", "--noheader", "--format=%N", "--jobs", scene.job)
    cluster.call("kill", node)
    ask("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")
    cluster.call("boot", node)


@pytest.fixture(scope="module")
def undisturbed(make_scene: Callable[..., Scene]) -> Callable[[int], tuple]:
    """The results of an undisturbed local run of so many ranks."""
    known: dict[int, tuple] = {}

    def result(ranks: int) -> tuple:
        if ranks not in known:
            scene = make_scene(f"local{ranks}", LOCAL, ranks=ranks)
            scene.call("train", "--seed", "alias")
            known[ranks] = scene.result()
        return known[ranks]

    return result


def processes_of(scene: Scene) -> list[int]:
    """The training processes in a workspace, which run in namespaces of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "pipeline.cli" in words and "train" in words and str(scene.workspace) in words and "--task" in words:
            found.append(int(path.parent.name))
    return found


def is_told(process: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a halted process (proc(5)), or made it go on and end: Slurm sends SIGCONT as well."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_usr2_makes_all_ranks_save_and_the_job_run_again(scenes, undisturbed):
    scene = scenes("signal")
    scene.finish()
    assert scene.attempts() == 2
    [end] = scene.ends()
    assert (end["code"], "SIGUSR2" in end["signals"]) == (75, True)
    assert scene.result() == undisturbed(4)  # two nodes of two ranks give the bits of four ranks on one machine
    assert not list(scene.workspace.glob("jobs/attempts/*/rendezvous*"))


def test_a_cancelled_task_leaves_a_state_and_does_not_come_back(scenes, undisturbed, make_scene):
    scene = scenes("cancel")
    assert 30 <= scene.steps() < 240
    [end] = scene.ends()
    assert (end["code"], end["signals"]) == (75, ["SIGTERM"])
    wait_until(lambda: state_of(f"{scene.job}_0") == "CANCELLED", "the accounting of the cancelled task", 30)
    scene.finish(BATTLESTAR)  # the other task of the array is left alone
    assert not scene.is_complete()
    assert scene.attempts(f"{scene.job}_0") == 1
    local = make_scene("by-hand", LOCAL, ranks=1).cluster_file
    scene.call("train", at=local)  # the lease of the job has ended with it
    assert scene.result() == undisturbed(1)


def test_a_requeued_job_goes_on_where_it_was(scenes, undisturbed):
    scene = scenes("requeue")
    scene.finish()
    assert scene.attempts() == 2
    assert scene.result() == undisturbed(1)


def test_a_rank_that_is_killed_costs_no_more_than_the_steps_since_the_last_state(scenes, undisturbed):
    scene = scenes("rank")
    scene.finish()
    assert scene.attempts() == 2
    assert [(end["code"], end["reason"]) for end in scene.ends()] == [(None, scene.killed)]
    assert scene.result() == undisturbed(2)


def test_the_time_limit_ends_in_the_same_run(scenes, undisturbed):
    scene = scenes("limit")
    scene.finish()
    # A job that requeues itself is out of the queue for a moment, also if its signal came after the last step.
    wait_until(lambda: state_of(scene.job) == "COMPLETED", "the end of the last attempt", 60)
    told = [(end["code"], end["signals"]) for end in scene.ends()]
    assert told == [(75, ["SIGUSR2"])] * len(told)
    assert scene.attempts() == len(told) + 1 >= 2  # on a busy machine the minute may pass more than once
    assert scene.result() == undisturbed(1)


@pytest.mark.parametrize(("name", "told"), [("preempt", "SIGUSR2"), ("grace", "SIGTERM")])
def test_a_job_that_gives_way_goes_on_later(scenes, undisturbed, name, told):
    scene = scenes(name)
    scene.finish()
    assert scene.attempts() == 2
    [end] = scene.ends()
    assert (end["code"], end["signals"][0]) == (75, told)
    assert scene.result() == undisturbed(1)


def test_where_requeue_is_forbidden_a_chain_of_jobs_ends_in_the_same_run(scenes, undisturbed):
    scene = scenes("chain")
    scene.finish()
    assert [(path.name, path.parent.name) for path in sorted(scene.begins())] == [
        (f"000{number}.begin", next(scene.workspace.glob("jobs/train/*")).name) for number in range(3)
    ]
    assert [end["code"] for end in scene.ends()] == [75, None]
    states = ["FAILED", "FAILED", "COMPLETED", "CANCELLED"]  # the fourth had nothing to do
    wait_until(lambda: [state_of(job) for job in scene.job.split(",")] == states, "the accounting of the chain", 30)
    assert scene.result() == undisturbed(1)


def test_a_crash_loop_ends_after_its_bounded_attempts_and_says_why(scenes):
    scene = scenes("crash")
    wait_until(lambda: not in_queue(scene.job), "the end of the crash loop")
    wait_until(lambda: state_of(scene.job) == "FAILED", "the accounting of the crash loop", 30)
    assert len(scene.ends()) == 2
    log = "".join(path.read_text() for path in scene.workspace.glob("jobs/train/*/*.err"))
    assert "found 2 attempts in a row without progress, so it is not run again" in log
    past = history.past_of(Workspace(scene.workspace), scene.job, scene.job)
    assert (past.attempts, past.code) == (2, 3)
    assert "Error: " in past.reason


def test_a_dead_node_costs_no_more_than_the_steps_since_the_last_state(scenes, undisturbed):
    scene = scenes("node")
    scene.finish()
    assert scene.attempts() == 2
    leases = sorted(scene.workspace.glob(f"runs/{ALIAS}/lease-????????"))
    assert [json.loads(path.read_bytes())["restart"] for path in leases] == [0, 1]
    assert scene.result() == undisturbed(1)
