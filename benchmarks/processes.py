"""preprocess by one process of one core, and by two such at once on halves of the units: does the time halve?

    .venv/bin/python benchmarks/processes.py --megabytes 380 --copies 4

Each process is an array task, `--task N --tasks M`, in a fresh workspace, with start-up in its time. One that does a
half alone shows what the second process costs the first. Only a machine that nobody else uses can answer.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from contenders import Place, ours
from corpus import FOLDER, make_corpus

UNIT_MEGABYTES = 50  # a unit a file, so that the halves are equal
CASES = {"one, all units": ([0], 1), "one, half of the units": ([0], 2), "two at once, half of them each": ([0, 1], 2)}


def wall_seconds(corpus: Path, numbers: Sequence[int], tasks: int) -> float:
    """From the start of the first process to the end of the last one; each does one of so many tasks."""
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="processes-") as folder:
        place = Place(corpus, Path(folder), Path(folder), cores=1)
        command = [*ours(place, Path(sys.executable)), "--set", f"data.unit_megabytes={UNIT_MEGABYTES}"]
        start = time.monotonic()
        running = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command, "--task", str(number), "--tasks", str(tasks)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for number, core in zip(numbers, sorted(os.sched_getaffinity(0)), strict=False)
        ]  # fmt: skip
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit(f"a task failed; run it by hand: {' '.join(command)} --task 0 --tasks {tasks}")
        return time.monotonic() - start


def main() -> None:
    """Rounds of all cases in turn, so that a busy machine is busy for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the corpus (default 200)")
    parser.add_argument("--copies", type=int, default=1, help="how often all of it is there (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="the table has the medians (default 5)")
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.megabytes)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="processes-") as name:
        folder = Path(name)
        for path in corpus.folder.glob("*.jsonl"):
            for copy in range(arguments.copies):
                shutil.copy(path, folder / f"{copy}-{path.name}")  # and into the page cache
        rounds = [{case: wall_seconds(folder, *CASES[case]) for case in CASES} for _ in range(arguments.rounds)]
    print(f"{arguments.copies * corpus.text_bytes / 1e6:.1f} MB; medians of {arguments.rounds}")
    for case in CASES:
        times = [seconds[case] for seconds in rounds]
        print(f"{case}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
