"""Run preprocess and its peers on the same corpus and cores, each in a fresh process, and print what each cost.

    .venv/bin/python benchmarks/preprocess.py --megabytes 50 --rounds 3

Timed from outside, with start-up and, for ours, hashing included. README.md beside this file says what is compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders import CONTENDERS, OFFLINE, ROOT, Contender, Place, ours, peers_python, write_tokenizer_files
from corpus import FOLDER, Corpus, make_corpus
from exactness import differing_documents
from measurement import Cost, folder_bytes, measure

MEGA = 1_000_000
SHORT_SECONDS = 10  # a run that takes less varies much: there are REPEATS of it in a round
REPEATS = 5


@dataclass(frozen=True)
class Run:
    """One run of one contender."""

    cost: Cost
    tokens: int
    output_bytes: int


@dataclass(frozen=True)
class Row:
    """The median run of one contender."""

    name: str
    whole: bool
    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float
    output_megabytes: float
    tokens: int


def run_once(contender: Contender, corpus: Path, tokenizer: Path, cores: int, python: Path) -> Run:
    """Run one contender in an empty folder, which is removed."""
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=f"{contender.name}-") as folder:
        output = Path(folder)
        place = Place(corpus, output, tokenizer, cores)
        own = {"PYTHONPATH": str(ROOT)} if contender.command is ours else {**OFFLINE, "HF_HOME": str(output / "hf")}
        log = FOLDER / f"{contender.name}.log"
        cost = measure(contender.command(place, python), cores, own, log)
        return Run(cost, tokens_of(cost.output), folder_bytes(output))


def tokens_of(output: str) -> int:
    """The number of tokens that a contender printed: ours as JSON, a peer on its last line."""
    if output.startswith("{"):
        splits = json.loads(output)["facts"]["splits"]
        return sum(int(totals["tokens"]) for totals in splits.values())
    return int(output.splitlines()[-1])


def median_row(contender: Contender, runs: Sequence[Run]) -> Row:
    """The medians over the rounds."""
    return Row(
        contender.name,
        contender.whole,
        statistics.median(run.cost.wall_seconds for run in runs),
        statistics.median(run.cost.cpu_seconds for run in runs),
        statistics.median(run.cost.peak_bytes for run in runs) / MEGA,
        statistics.median(run.output_bytes for run in runs) / MEGA,
        runs[0].tokens,
    )


def table(rows: Sequence[Row], megabytes: float) -> list[list[str]]:
    """The rows as text, with their header; `ours is` says how many times as much ours does, by wall and by CPU time."""
    header = ["contender", "wall s", "MB/s", "CPU s", "MB per CPU-s", "ours is, wall", "ours is, CPU"]
    lines = [[*header, "peak MB", "output MB", "tokens"]]
    first = next((row for row in rows if row.name == "ours"), None)
    for row in rows:
        ratios = ["", ""]
        if first is not None and row is not first:
            ratios = [f"{row.wall_seconds / first.wall_seconds:.2f}x", f"{row.cpu_seconds / first.cpu_seconds:.2f}x"]
        line = [row.name, f"{row.wall_seconds:.1f}", f"{megabytes / row.wall_seconds:.1f}", f"{row.cpu_seconds:.1f}"]
        line += [f"{megabytes / row.cpu_seconds:.2f}", *ratios]
        lines.append([*line, f"{row.peak_megabytes:.0f}", f"{row.output_megabytes:.0f}", f"{row.tokens:,}"])
    return lines


def as_text(lines: Sequence[Sequence[str]], markdown: bool) -> str:
    """A table for people, or for a page."""
    if markdown:
        rule = ["-"] + ["-:"] * (len(lines[0]) - 1)
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def compare_tokens(rows: Sequence[Row]) -> str:
    """Whether those that keep every token have the same number of them."""
    counts = {row.name: row.tokens for row in rows if row.whole}
    if len(set(counts.values())) <= 1:
        return f"tokens: equal in {', '.join(counts)}"
    return "tokens differ: " + ", ".join(f"{name} {tokens:,}" for name, tokens in counts.items())


def measure_all(chosen: Sequence[Contender], corpus: Corpus, arguments: argparse.Namespace) -> list[Row]:
    """Rounds of all contenders in turn, so that a busy machine is busy for all."""
    tokenizer = write_tokenizer_files(FOLDER / "tokenizer")
    peers = any(contender.command is not ours for contender in chosen)
    python = arguments.peers_python or (peers_python() if peers else Path(sys.executable))
    runs: dict[str, list[Run]] = {contender.name: [] for contender in chosen}
    for path in corpus.folder.glob("*.jsonl"):
        path.read_bytes()  # into the page cache, for all alike
    for number in range(arguments.rounds):
        for contender in chosen:
            for _ in range(REPEATS):
                run = run_once(contender, corpus.folder, tokenizer, arguments.cores, python)
                runs[contender.name].append(run)
                seconds = f"{run.cost.wall_seconds:.1f} s, {run.cost.cpu_seconds:.1f} CPU-s"
                print(f"round {number + 1}: {contender.name} {seconds}", file=sys.stderr)
                if run.cost.wall_seconds > SHORT_SECONDS:
                    break
    return [median_row(contender, runs[contender.name]) for contender in chosen]


def parse() -> argparse.Namespace:
    """The command line."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the corpus (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="the table has the medians (default 3)")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--peers-python", type=Path, help="instead of the Python of benchmarks/.venv")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page")
    parser.add_argument("--skip-exactness", action="store_true", help="do not compare with the reference tokenizer")
    return parser.parse_args()


def main() -> int:
    """Returns the exit code: 3 if a token differs."""
    arguments = parse()
    corpus = make_corpus(arguments.megabytes)
    chosen = [contender for contender in CONTENDERS if contender.name in arguments.only]
    try:
        rows = measure_all(chosen, corpus, arguments)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}\n{error.stderr}") from None
    mean = corpus.text_bytes / corpus.documents
    print(f"{corpus.documents:,} documents, {corpus.text_bytes / MEGA:.1f} MB, mean {mean:,.0f} bytes, "
          f"sha256 {corpus.sha256[:16]}; --cores {arguments.cores}; medians, {arguments.rounds} rounds\n")  # fmt: skip
    print(as_text(table(rows, corpus.text_bytes / MEGA), arguments.markdown))
    print("\n" + compare_tokens(rows))
    if arguments.skip_exactness:
        return 0
    documents, differing = differing_documents(corpus.folder, FOLDER)
    print(f"exactness: {differing} of {documents:,} documents differ from Hugging Face's tokenizer")
    return 3 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
