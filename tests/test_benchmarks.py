"""The promises of benchmarks/: all work of a command is counted, and no paragraph of the corpus stands in it twice."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PROSE = "This is one of the many things that are said of it, and it was written to be read by all of them."
BUSY = "sum(i * i for i in range(3_000_000)); held = bytearray(80_000_000)"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a file of benchmarks/ as its scripts do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_time_and_memory_of_grandchildren_are_counted(benchmark, tmp_path):
    measure = benchmark("measurement").measure
    child = f"import time; {BUSY}; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); print(7)"
    alone = measure([sys.executable, "-c", "print(7)"], 1, {}, tmp_path / "log")
    cost = measure([sys.executable, "-c", parent], 1, {}, tmp_path / "log")
    assert cost.output == "7\n"
    assert cost.cpu_seconds > alone.cpu_seconds + 0.05
    assert cost.wall_seconds > 0.5
    assert cost.peak_bytes > 80_000_000


def test_a_failed_contender_is_told_with_what_it_said(benchmark, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        benchmark("measurement").measure([sys.executable, "-c", "raise SystemExit('why')"], 1, {}, tmp_path / "log")
    assert "why" in failure.value.stderr


def test_documents_are_english_and_no_paragraph_comes_twice(benchmark, tmp_path):
    corpus = benchmark("corpus")
    wheel = tmp_path / "some-1-py3-none-any.whl"
    again = PROSE.replace(" ", "\n")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.md", "\n\n".join(f"{PROSE} {i}" for i in range(9)) + f"\n\n{'x = y ; ' * 30}")
        archive.writestr(
            "b.py", f'"""{again} 3\n\n' + "\n\n".join(f":param a b: {PROSE} b{i}" for i in range(7)) + '"""'
        )
        archive.writestr("c.json", f'{{"description": "<p>{PROSE * 6} c</p>", "name": "{PROSE * 9}"}}')
    documents = corpus.documents_of([wheel])["some"]
    paragraphs = [" ".join(text.split()) for document in documents for text in document.split("\n\n")]
    wanted = [*(f"{PROSE} {i}" for i in range(9)), *(f"{PROSE} b{i}" for i in range(7)), f"{PROSE * 6} c"]
    assert paragraphs == wanted


def test_every_way_of_reading_gives_the_same_tokens(benchmark, tmp_path):
    reading = benchmark("reading")
    files = reading.write_files(tmp_path, 1)
    numbers = np.arange(files.sequences)
    first, *others = (read(numbers) for read in reading.readers(files).values())
    assert all(np.array_equal(first, other) for other in others)
    assert len(files.shards) > 1
