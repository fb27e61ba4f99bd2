"""What a large experiment costs: a look at it does not grow with its checkpoints, units or old submissions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from mistral.dataset import unit_names
from mistral.manifest import Manifest
from pipeline.status import run_names
from slurm.history import LOOK_BACK, SHOWN

ROOT = Path(__file__).parent.parent
RUNS = 2
FEW, MANY = "[[40000, 400000]]", "[[1000, 400000]]"  # 11 and 401 checkpoints

# Runs a command in this process and prints how often it looks into the file system, below a folder: every call that
# opens, lists or asks for the state of a file or folder. A path passes through os.stat and os.lstat, whoever asks.
COUNT = """
import collections, json, os, sys
root, counts = sys.argv.pop(1), collections.Counter()
def count(name, path):
    if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(root):
        counts[name] += 1
sys.addaudithook(lambda name, given: name in ("open", "os.listdir", "os.scandir") and count(name, given[0]))
def counted(name, ask):
    return lambda path, *more, **options: count(name, path) or ask(path, *more, **options)
for name in ("stat", "lstat", "readlink", "access"):
    setattr(os, name, counted(name, getattr(os, name)))
from pipeline.cli import cli
cli(standalone_mode=False)
print(json.dumps(counts), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def large():
    """The file of benchmarks/ that makes large workspaces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import large

        yield large


@pytest.fixture(scope="module")
def few(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "few"
    return make(large, folder, units=5, schedule=FEW, submissions=30, tasks=1100)


@pytest.fixture(scope="module")
def many(large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "many"
    return make(large, folder, units=150, schedule=MANY, submissions=90, tasks=2000)


def make(large, folder: Path, *, units: int, schedule: str, submissions: int, tasks: int):
    made = large.lay_out(folder, seeds=RUNS, units=units, schedule=schedule)
    large.record_all(made, complete=1)
    large.leave_jobs(made, submissions=submissions, tasks=tasks)
    return made


def operations(made, *arguments: str, asks: tuple[str, ...] = ("squeue",)) -> dict[str, int]:
    """How often `status` looks into the file system, by kind; it asks Slurm once, and the accounting where it must."""
    (made.state / "calls").unlink(missing_ok=True)
    named = [str(made.folder / word) if word.endswith(".yaml") else word for word in arguments]
    line = [sys.executable, "-c", COUNT, str(made.folder), "status", *named, "--workspace", str(made.workspace.root)]
    done = subprocess.run(line, env=made.environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    assert (made.state / "calls").read_text().split() == list(asks)
    counts: dict[str, int] = json.loads(done.stderr.splitlines()[-1])
    return counts


def queue(made, stage: str) -> None:
    """Let all tasks of a stage wait in Slurm."""
    lines = []
    for path in sorted((made.workspace.root / "jobs" / stage).glob("*/submission.json")):
        job = json.loads((path.parent / "job.json").read_bytes())["job"]
        tasks = json.loads(path.read_bytes())["tasks"]
        lines += [f"{job}_{index}|PENDING|Priority|{path.parent.name}" for index in range(len(tasks))]
    (made.state / "queue").write_text("\n".join(lines) + "\n")


def test_the_large_workspaces_are_as_large_as_they_should_be(few, many):
    for made, units, steps in ((few, 5, 11), (many, 150, 401)):
        manifest, runs = Manifest(made.workspace), run_names(made.experiment, made.workspace)
        assert len(unit_names(manifest, made.experiment.data.dataset_name())) == units
        for run in runs:
            names = manifest.names("train", (run, "weights"))
            assert len(names) == len(manifest.names("export", (run,))) == steps
            manifest.get("train", (run, "weights", names[-1]), "")
            manifest.get("export", (run, "checkpoint-400000"), "")
        assert [manifest.find("train", (run, "complete")) is not None for run in runs] == [True, False]


@pytest.mark.parametrize(
    "arguments", [[], ["large.yaml"], ["large.yaml", "--json"], ["large.yaml", "--set", "name=new"]]
)
def test_a_look_costs_the_same_however_much_is_recorded(few, many, arguments):
    told = operations(many, *arguments)
    assert told == operations(few, *arguments)
    # All newest submissions are read where no job of the experiment is found, or where any experiment's jobs count.
    submissions = 2 * LOOK_BACK if "--set" in arguments else 0 if arguments else LOOK_BACK
    assert told["open"] <= 6 + 4 * RUNS + submissions
    assert told["os.listdir"] + told["os.scandir"] <= 6 + 9 * RUNS
    assert sum(told.values()) <= 40 + 40 * RUNS + submissions


def test_a_look_at_thousands_of_tasks_in_the_queue_reads_one_file_for_each_array(few, many):
    before = operations(many, "large.yaml")
    for made in (few, many):
        queue(made, "preprocess")
    told = operations(many, "large.yaml")
    assert told == operations(few, "large.yaml")
    assert told["open"] == before["open"] + 2


def test_a_look_at_thousands_of_failures_asks_twice_and_reads_a_few_of_their_files(few, many):
    for made in (few, many):
        (made.state / "queue").unlink(missing_ok=True)
        jobs = sorted((made.workspace.root / "jobs" / "preprocess").glob("*/job.json"))
        numbers = [json.loads(path.read_bytes())["job"] for path in jobs]
        lines = [f"{number}_{index}|FAILED|127:0" for number in numbers for index in range(1001)]
        (made.state / "ended").write_text("\n".join(lines) + "\n")
        [seal] = made.workspace.manifest().glob("preprocess/*/dataset.json")
        seal.rename(made.folder / "dataset.json")
    try:
        told = operations(many, "large.yaml", asks=("squeue", "sacct"))
        assert told == operations(few, "large.yaml", asks=("squeue", "sacct"))
        assert sum(told.values()) <= 60 + 40 * RUNS + 6 * SHOWN
    finally:
        for made in (few, many):
            (made.state / "ended").unlink()
            [dataset] = made.workspace.manifest().glob("preprocess/*")
            (made.folder / "dataset.json").rename(dataset / "dataset.json")


def test_thousands_of_tasks_are_submitted_once_and_seen_together(large, tmp_path):
    """5,000 units, a task each, cut to what Slurm takes; the counts of the queue are told, not its lines."""
    made = large.lay_out(tmp_path / "new", seeds=RUNS, units=1500)

    def call(name: str, *arguments: str) -> str:
        line = [sys.executable, "-m", "pipeline.cli", name, str(made.folder / "large.yaml"), *arguments]
        line += ["--workspace", str(made.workspace.root)]
        done = subprocess.run(line, env=made.environment(), capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = call("preprocess", "--cluster", made.cluster(1500)).splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == [
        "preprocess: submitted job 17 (1001 tasks: task 0 of 1500 ... task 1000 of 1500)",
        "preprocess: submitted job 18 (499 tasks: task 1001 of 1500 ... task 1499 of 1500)",
    ]
    folder = Path(lines[1].rpartition(" logs in ")[2])
    wanted = {f"18_{index}_submitted.pkl" for index in range(499)}
    assert {path.name for path in folder.glob("*_submitted.pkl")} == wanted
    (folder / "18_7_submitted.pkl").unlink()  # as if the process had died before it was there
    again = call("preprocess", "--cluster", made.cluster(1500)).splitlines()
    pickled = DelayedSubmission.load(folder / "18_7_submitted.pkl").function
    assert (pickled.arguments[0], pickled.numbers[7]) == ("preprocess", 1008)
    assert not list(folder.glob(".*.tmp"))
    assert [line.split(" (")[0] for line in again[:2]] == ["preprocess: found job 17", "preprocess: found job 18"]
    text = call("status")
    assert "0 of 1500 units, unfinished" in text
    assert text.endswith("preprocess tasks: 1500 queued (Priority)\n")
    told = json.loads(call("status", "--json"))
    assert (told["planned_units"], len(told["jobs"])) == (1500, 1500)
    assert call("cancel").startswith("cancelled 1,500 tasks: 17, 18")
    asked = (made.state / "calls").read_text().split()
    assert asked == ["squeue", "scontrol", "sbatch", "sbatch", *["squeue"] * 4, "scancel"]
