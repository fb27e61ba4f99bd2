"""preprocess by one process of one core, and by two such at once on halves of the units: does the time halve?

    .venv/bin/python benchmarks/processes.py --megabytes 380 --copies 4

Each process is an array task, `--task N --tasks M`, in a fresh workspace. Start-up is measured by itself, on a corpus
of one document, and taken off for the ratio. One that does a half alone shows what the second process costs the first;
one beside a program that only reads memory, or only counts, shows how much of that is the machine's.
Only a machine that nobody else uses can answer.
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
ONE, HALF, TWO = "one, all units", "one, half of the units", "two at once, half of them each"
CASES = {ONE: ([0], 1), HALF: ([0], 2), TWO: ([0, 1], 2)}
START_UP = "one, a single document"
BESIDE = {
    "one, half of the units, beside a reader of memory": "import numpy as np; a = np.arange(2**22); "
    "order = np.random.default_rng(0).permutation(len(a))\nwhile True: a[order].sum()",
    "one, half of the units, beside a counter": "while True: pass",
}


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


def wall_seconds_beside(program: str, corpus: Path) -> float:
    """As `wall_seconds` of one that does a half, while the next core runs another program."""
    core = sorted(os.sched_getaffinity(0))[1]
    with subprocess.Popen(["taskset", "--cpu-list", str(core), sys.executable, "-c", program]) as beside:
        try:
            return wall_seconds(corpus, *CASES[HALF])
        finally:
            beside.kill()


def main() -> None:
    """Rounds of all cases in turn, so that what slows the machine down slows all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the corpus (default 200)")
    parser.add_argument("--copies", type=int, default=1, help="how often all of it is there (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="the table has the medians (default 5)")
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.megabytes)
    times: dict[str, list[float]] = {case: [] for case in (*CASES, *BESIDE, START_UP)}
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="processes-") as name:
        folder = Path(name)
        whole, single = folder / "whole", folder / "single"
        whole.mkdir()
        single.mkdir()
        for path in corpus.folder.glob("*.jsonl"):
            for copy in range(arguments.copies):
                shutil.copy(path, whole / f"{copy}-{path.name}")  # and into the page cache
        (single / "0.jsonl").write_text('{"text": "' + "A document. " * 1000 + '"}\n', encoding="utf-8")
        for _ in range(arguments.rounds):
            for case, (numbers, tasks) in CASES.items():
                times[case].append(wall_seconds(whole, numbers, tasks))
            for case, program in BESIDE.items():
                times[case].append(wall_seconds_beside(program, whole))
            times[START_UP].append(wall_seconds(single, [0], 1))
    print(f"{arguments.copies * corpus.text_bytes / 1e6:.1f} MB; medians of {arguments.rounds}")
    medians = {case: statistics.median(seconds) for case, seconds in times.items()}
    for case, seconds in times.items():
        print(f"{case}: {medians[case]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    packing = {case: medians[case] - medians[START_UP] for case in CASES}
    print(f"after start-up, two at once are {packing[ONE] / packing[TWO]:.2f} times as fast as one")


if __name__ == "__main__":
    main()
