"""preprocess by one process of one core, and by two such at once on halves of the units: does the time halve?

    .venv/bin/python benchmarks/processes.py --megabytes 200 --rounds 5

Each process is an array task, `--task N --tasks M`, in a fresh workspace, with start-up in its time. Only a machine
that nobody else uses can answer.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import Place, ours
from corpus import FOLDER, make_corpus

UNIT_MEGABYTES = 50  # a unit a file, so that the halves are equal


def wall_seconds(corpus: Path, processes: int) -> float:
    """From the start of the first process to the end of the last one."""
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="processes-") as folder:
        place = Place(corpus, Path(folder), Path(folder), cores=1)
        command = [*ours(place, Path(sys.executable)), "--set", f"data.unit_megabytes={UNIT_MEGABYTES}"]
        cores = sorted(os.sched_getaffinity(0))[:processes]
        start = time.monotonic()
        running = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command, "--task", str(number), "--tasks", str(processes)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for number, core in enumerate(cores)
        ]  # fmt: skip
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit(f"a task failed; run it by hand: {' '.join(command)} --task 0 --tasks {processes}")
        return time.monotonic() - start


def main() -> None:
    """Rounds of both in turn, so that a busy machine is busy for both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the corpus (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="the table has the medians (default 5)")
    arguments = parser.parse_args()
    corpus = make_corpus(arguments.megabytes)
    for path in corpus.folder.glob("*.jsonl"):
        path.read_bytes()  # into the page cache
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="processes-") as folder:
        little = Path(folder)
        with (corpus.folder / "0.jsonl").open("rb") as file:
            (little / "0.jsonl").write_bytes(b"".join(itertools.islice(file, 10)))
        whole = {"start": (little, 1), "one": (corpus.folder, 1), "two": (corpus.folder, 2)}
        rounds = [{name: wall_seconds(*which) for name, which in whole.items()} for _ in range(arguments.rounds)]
    start, one, two = (statistics.median(seconds[name] for seconds in rounds) for name in whole)
    print(f"{corpus.text_bytes / 1e6:.1f} MB; median of {arguments.rounds}; start-up (ten documents) {start:.2f} s")
    print(f"1 process {one:.2f} s, 2 processes {two:.2f} s: {one / two:.2f} times as fast, "
          f"{(one - start) / (two - start):.2f} without start-up")  # fmt: skip


if __name__ == "__main__":
    main()
