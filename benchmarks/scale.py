"""How long `status` and a submission take for 10 runs of 609 checkpoints, 5,000 units and thousands of tasks.

Each command runs as a process of its own, from start to end, on records as `large.py` makes them; squeue, sbatch and
scontrol are stand-ins that answer at once. Where there is strace, the calls of the kernel that name a file below the
folder of the experiment, or list such a folder, are counted too, in one more run.

    .venv/bin/python benchmarks/scale.py
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from large import Large, lay_out, leave_jobs, record_all
from measurement import Cost, measure

COUNTED = "trace=%file,getdents64"
ROW = "| {what} | {wall:.2f} | {cpu:.2f} | {calls} | {slurm} |"


def command(large: Large, name: str, *arguments: str) -> list[str]:
    """A command line of the program."""
    return [sys.executable, "-m", "pipeline.cli", name, *arguments, "--workspace", str(large.workspace.root)]


def row(large: Large, what: str, line: list[str], rounds: int, prepare: Callable[[], None] = lambda: None) -> str:
    """Run a command several times, each time after `prepare`; the row of the medians."""
    costs: list[Cost] = []
    for _ in range(rounds):
        prepare()
        asked = len(calls_of(large))
        costs.append(measure(line, 2, large.environment(), large.folder / "log"))
        slurm = calls_of(large)[asked:]
    prepare()
    wall, cpu = (statistics.median(getattr(cost, name) for cost in costs) for name in ("wall_seconds", "cpu_seconds"))
    return ROW.format(what=what, wall=wall, cpu=cpu, calls=file_calls(large, line), slurm=counts(slurm))


def calls_of(large: Large) -> list[str]:
    """The commands of Slurm that were called so far."""
    path = large.state / "calls"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def counts(names: list[str]) -> str:
    """`1 squeue, 3 sbatch`."""
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names))) or "none"


def file_calls(large: Large, line: list[str]) -> str:
    """How many calls of the kernel name a file or list a folder below the experiment's folder."""
    if shutil.which("strace") is None:
        return "-"
    log = large.folder / "strace"
    traced = ["strace", "--follow-forks", "--decode-fds=path", "-e", COUNTED, f"--output={log}", *line]
    measure(traced, 2, large.environment(), large.folder / "log")
    place = str(large.folder)
    with log.open(encoding="utf-8", errors="replace") as file:
        return f"{sum(place in text for text in file):,}"


def nothing_recorded(folder: Path, rounds: int) -> Iterator[str]:
    """Submissions of a whole experiment, and what is seen of them."""
    large = lay_out(folder)

    def clear() -> None:
        shutil.rmtree(large.workspace.root, ignore_errors=True)
        (large.state / "queue").unlink(missing_ok=True)

    for tasks in (80, 5000):
        run = command(large, "run", str(folder / "large.yaml"), "--cluster", large.cluster(tasks))
        yield row(large, f"`run --cluster`: 5,000 units in {tasks:,} tasks, 10 runs, 6,090 exports", run, rounds, clear)
    yield row(large, "the same again, while all 5,090 tasks wait", run, rounds)
    yield row(large, "`status EXPERIMENT` of that", command(large, "status", str(folder / "large.yaml")), rounds)
    yield row(large, "`cancel` of that", command(large, "cancel", str(folder / "large.yaml")), rounds)


def all_recorded(folder: Path, rounds: int) -> Iterator[str]:
    """Looking at a workspace with all records."""
    large = lay_out(folder)
    start = time.monotonic()
    record_all(large)
    leave_jobs(large)
    print(f"the records took {time.monotonic() - start:.0f} s", file=sys.stderr)
    experiment = str(folder / "large.yaml")
    yield row(large, "`status EXPERIMENT`, all recorded, 205 submissions", command(large, "status", experiment), rounds)
    yield row(large, "`status EXPERIMENT --json`", command(large, "status", experiment, "--json"), rounds)
    yield row(large, "`status` of the workspace", command(large, "status"), rounds)

    def clear() -> None:
        (large.state / "queue").unlink(missing_ok=True)

    run = command(large, "run", experiment, "--cluster", large.cluster(80))
    yield row(large, "`run --cluster`, 7 runs not complete", run, rounds, clear)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are told (default 3)")
    arguments = parser.parse_args()
    print("| command | wall s | CPU s | calls that name a file of it | Slurm was asked |")
    print("|-|-:|-:|-:|-|")
    with tempfile.TemporaryDirectory() as folder:
        for part in (nothing_recorded, all_recorded):
            for line in part(Path(folder) / part.__name__, arguments.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
