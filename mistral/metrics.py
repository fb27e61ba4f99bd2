"""logged steps -> metrics.jsonl, one JSON object a line, and TensorBoard.

A resumed run cuts the file back to the step it resumes from, so that no line is repeated or missing. What a clock or
a machine decides stands under `timing` and `memory`; everything else is part of the bitwise promise.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from mistral.files import make_folder, storage_errors, write_bytes


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file; a last line without its newline was cut by a crash and does not count."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class Metrics:
    """The open metrics of one run; only rank 0 has one."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        """Open for going on after `step`; later lines of an earlier attempt are dropped."""
        self._path = path
        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
        data = "".join(kept).encode("utf-8")
        if not path.exists() or path.read_bytes() != data:
            write_bytes(path, data)
        self._file = path.open("ab")
        self._tensorboard = _open_tensorboard(tensorboard, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with storage_errors(self._path), ExitStack() as stack:
            stack.callback(self._tensorboard.close)
            stack.callback(self._file.close)  # writes once more what a full disk refused

    def log(self, line: dict[str, Any]) -> None:
        """Append one line."""
        with storage_errors(self._path):
            self._file.write(json.dumps(line).encode("utf-8") + b"\n")
            self._file.flush()
            for name, value in _scalars(line):
                self._tensorboard.add_scalar(name, value, line["step"])

    def make_durable(self) -> None:
        """Wait until all lines are on the disk; comes before a state is committed."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())
            self._tensorboard.flush()


def _open_tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    make_folder(folder)
    return SummaryWriter(log_dir=str(folder), purge_step=step + 1)


def _scalars(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, float(value)
