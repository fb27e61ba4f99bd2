"""logged steps -> metrics.jsonl, one JSON object a line, and TensorBoard.

A resumed run cuts the file back to the step it resumes from, so that no line is repeated or missing. What a clock or
a machine decides stands under `timing` and `memory`; everything else is part of the bitwise promise.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from mistral.errors import CheckpointError
from mistral.files import make_folder, storage_errors, write_bytes
from mistral.numbers import counted


def read_metrics(path: Path, last_step: float = float("inf")) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics file up to a step; a last line without its newline was cut by a crash.

    Raises:
        CheckpointError: a line up to that step is no measurement; names file and line.
    """
    passed = False  # a line of a later step: what follows it does not matter
    for number, line in numbered_lines(path):
        if line is None and not passed:
            raise CheckpointError(
                f"{path}, line {number}: found something else than a measurement, expected one JSON object with a step "
                "and its loss or evaluation\n  restore that line, or remove it (verify then names the step as missing)"
            )
        if line is not None and line["step"] <= last_step:
            yield line
        passed = passed or (line is not None and line["step"] > last_step)


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and content of each whole line of a metrics file; None for what is no measurement."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.endswith(b"\n"):
                yield number, parse_line(raw)


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """One line of a metrics file; None if it is no measurement of a step."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not _is_number(line.get("step"), int):
        return None
    measured = _is_number(line.get("loss")) and isinstance(line.get("timing", {}), dict)
    evaluation = line.get("evaluation")
    return (
        line if measured or (isinstance(evaluation, dict) and all(map(_is_evaluation, evaluation.values()))) else None
    )


def tokens_per_second(line: dict[str, Any]) -> float | None:
    """The throughput that a line tells; None if it tells none."""
    rate = line.get("timing", {}).get("tokens_per_second")
    return float(rate) if _is_number(rate) else None


def seconds_of(line: dict[str, Any]) -> float | None:
    """How long it took since the line before, without evaluations and saving; None if the line does not tell."""
    seconds = line.get("timing", {}).get("seconds")
    return float(seconds) if _is_number(seconds) else None


def _is_evaluation(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def metrics_digest(lines: Iterable[dict[str, Any]]) -> str:
    """sha256 over what the bitwise promise covers of some lines: all but `timing` and `memory`."""
    digest = hashlib.sha256()
    for line in lines:
        kept = {name: value for name, value in line.items() if name not in ("timing", "memory")}
        digest.update(json.dumps(kept, sort_keys=True).encode("utf-8") + b"\n")
    return digest.hexdigest()


def metrics_problems(path: Path, every: int | None, last_step: int) -> list[str]:
    """What is wrong with a metrics file: lines that are damaged, steps that are repeated, out of order or missing.

    Args:
        path: the file.
        every: steps between two logged ones; None if that changed, so that it cannot be told what is missing.
        last_step: up to where the lines are known to have been durable.
    """
    problems, logged, latest = [], set(), 0
    for number, line in numbered_lines(path):
        if line is None:
            problems.append(f"{path}, line {number}: found something else than a measurement; restore that line")
            continue
        step, what = line["step"], "a loss" if "loss" in line else "an evaluation"
        if (step, what) in logged:
            problems.append(f"{path}, line {number}: found {what} of step {step} again; remove the wrong one")
        elif step < latest:
            problems.append(f"{path}, line {number}: found step {step} after step {latest}; put the lines in order")
        logged.add((step, what))
        latest = max(latest, step)
    expected = [*range(every, last_step + 1, every)] if every else []
    if missing := [str(step) for step in expected if (step, "a loss") not in logged]:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(
            f"{path}: found no line of {counted(len(missing), 'steps')} ({listed}), expected one every {every} steps "
            f"up to {last_step}; restore these lines"
        )
    return problems


class Metrics:
    """The open metrics of one run; only rank 0 has one."""

    def __init__(self, path: Path, tensorboard: Path, step: int) -> None:
        """Open for going on after `step`; later lines of an earlier attempt are dropped.

        Raises:
            CheckpointError: a line that is to be kept is damaged.
        """
        self._path = path
        kept = [json.dumps(line) + "\n" for line in (read_metrics(path, step) if step else ())]
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
