"""Read random sequences through TokenStream and through memory maps of the same bytes, and print the ratios.

    .venv/bin/python benchmarks/reading.py --processes 1 2

Both give int64. A raw file of all tokens is read the way of nanoGPT: a slice of np.memmap for each sequence, stacked
for a batch. `memmap` is the map as numpy gives it, `array` the same map viewed as an ndarray, which is faster to slice.
Rates are per CPU-second, since other programs may use the machine; each process opens its files after the fork.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mistral.shards import ShardFacts, TokenStream, locate_tokens, token_dtype, write_shard

VOCABULARY, END_OF_TEXT = 50257, 50256
SHARDS = 7
SEQ_LEN = 1025
BATCHES = (1, 8)
SLICE_SECONDS = 0.1
Int64 = npt.NDArray[np.int64]
Read = Callable[[Int64], Int64]


@dataclass(frozen=True)
class Files:
    """The same tokens twice: in shards, and in one raw file."""

    shards: tuple[Path, ...]
    raw: Path
    tokens: int

    @property
    def sequences(self) -> int:
        """Whole sequences in the stream."""
        return self.tokens // SEQ_LEN


def write_files(folder: Path, megabytes: int) -> Files:
    """Random tokens, in shards of different lengths, so that some sequences lie across two of them."""
    dtype = token_dtype(VOCABULARY)
    tokens = np.random.default_rng(21).integers(0, VOCABULARY, megabytes * 500_000).astype(dtype)
    tokens.tofile(folder / "raw.bin")
    paths = []
    for number, part in enumerate(np.array_split(tokens, SHARDS)):
        facts = ShardFacts("", END_OF_TEXT, "train", f"{number:05d}", len(part), 1)
        write_shard(folder / f"{number:05d}.h5", facts, [part], np.zeros(1, dtype=np.int64))
        paths.append(folder / f"{number:05d}.h5")
    return Files(tuple(paths), folder / "raw.bin", len(tokens))


def readers(files: Files) -> dict[str, Read]:
    """Each way to read sequences by number: (n,) int64 -> (n, SEQ_LEN) int64."""
    memmap = np.memmap(files.raw, dtype=token_dtype(VOCABULARY), mode="r")
    stream = TokenStream([locate_tokens(path) for path in files.shards], SEQ_LEN)
    return {"stream": stream.read, "memmap": slices_of(memmap), "array": slices_of(memmap.view(np.ndarray))}


def slices_of(tokens: npt.NDArray[Any]) -> Read:
    """One slice for each sequence; for a batch they are stacked."""

    def read(numbers: Int64) -> Int64:
        rows = [tokens[i * SEQ_LEN : (i + 1) * SEQ_LEN].astype(np.int64) for i in numbers.tolist()]
        return np.stack(rows) if len(rows) > 1 else rows[0][None]

    return read


def rates(files: Files, batch: int, rounds: int, seed: int) -> dict[str, float]:
    """Sequences per CPU-second of each reader, in this process: the medians of rounds that take turns."""
    ways, found = readers(files), dict[str, list[float]]()
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        for name, read in ways.items():
            numbers = rng.integers(0, files.sequences, (4096, batch))
            found.setdefault(name, []).append(rate(read, numbers) * batch)
    return {name: statistics.median(values) for name, values in found.items()}


def rate(read: Read, numbers: Int64) -> float:
    """Calls per CPU-second of this process."""
    start, calls = time.process_time(), 0
    while (seconds := time.process_time() - start) < SLICE_SECONDS:
        for row in numbers[:256]:
            read(row)
        calls += 256
        numbers = np.roll(numbers, 256, axis=0)
    return calls / seconds


def rates_of_processes(files: Files, processes: int, batch: int, rounds: int) -> dict[str, float]:
    """The mean rates of processes that read at the same time."""
    if processes == 1:
        return rates(files, batch, rounds, seed=1)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        parts = pool.starmap(rates, [(files, batch, rounds, seed) for seed in range(processes)], chunksize=1)
    return {name: statistics.mean(part[name] for part in parts) for name in parts[0]}


def require_equal(files: Files) -> None:
    """All ways read the same.

    Raises:
        SystemExit: they do not.
    """
    numbers = np.random.default_rng(3).permutation(files.sequences)[:20_000]
    first, *others = (read(numbers) for read in readers(files).values())
    if any(not np.array_equal(first, other) for other in others):
        raise SystemExit("the readers differ")


def lines(files: Files, processes: list[int], rounds: int) -> Iterator[str]:
    """The table."""
    yield "| processes | sequences a call | TokenStream, 1/CPU-s | of np.memmap | of the map as an array |"
    yield "|-:|-:|-:|-:|-:|"
    for count in processes:
        for batch in BATCHES:
            found = rates_of_processes(files, count, batch, rounds)
            own, ratios = found["stream"], [found["stream"] / found[name] for name in ("memmap", "array")]
            yield f"| {count} | {batch} | {own:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of uint16 tokens (default 200)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=int, default=15, help="of 0.1 CPU-seconds for each way (default 15)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), arguments.megabytes)
        require_equal(files)
        for line in lines(files, arguments.processes, arguments.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
