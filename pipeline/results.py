"""records of finished runs -> the final table; and tables that fit into the terminal they are shown in."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.context import Context

COLUMNS = ("seed", "steps", "train_loss", "validation_loss", "perplexity", "tokens_per_second", "exported")
DECIMALS = {"train_loss": 4, "validation_loss": 4, "perplexity": 2, "tokens_per_second": 0, "eta_seconds": 0}
COLORS = {"complete": 32, "running": 36, "queued": 36, "stopped": 33, "unknown": 33, "failed": 31}  # ANSI, of a `state`
GAP, INDENT = "  ", "    "


def results(context: Context, seeds: Sequence[str]) -> list[dict[str, Any]]:
    """One row per seed; a run that is not complete has only its name and None elsewhere."""
    manifest, rows = context.manifest, []
    for seed in seeds:
        run = context.experiment.run_name(seed)
        record = manifest.find("train", (run, "complete"))
        facts = record.facts if record else {}
        last = context.experiment.training.max_steps
        exported = manifest.find("export", (run, f"checkpoint-{last}")) is not None
        row = {column: facts.get(column) for column in COLUMNS}
        row |= {"seed": seed, "exported": str(context.workspace.export(run, last)) if exported else None}
        rows.append(row)
    return rows


def as_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as aligned text, `-` where there is no value.

    On a terminal, columns for which it is too narrow follow below each row, without those that have no value. There,
    states have colours unless NO_COLOR is set (https://no-color.org). Elsewhere each row is one line.
    """
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    texts = [[_text(column, row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    beside = _columns_that_fit(widths, width)
    lines = []
    for row in (columns, *texts):
        padded = [cell.ljust(wide) for cell, wide in zip(row[:beside], widths, strict=False)]
        lines.append(GAP.join(_colored(padded, columns) if on_terminal else padded).rstrip())
        rest = zip(columns[beside:], row[beside:], strict=True) if row is not columns else ()
        lines += _wrapped(", ".join(f"{name} {cell}" for name, cell in rest if cell != "-"), width)
    return "\n".join(lines)


def _colored(cells: list[str], columns: Sequence[str]) -> list[str]:
    """The cells of a row, that of its state in its colour."""
    if os.environ.get("NO_COLOR"):
        return cells
    codes = [COLORS.get(cell.strip()) if name == "state" else None for cell, name in zip(cells, columns, strict=False)]
    return [f"\x1b[{code}m{cell}\x1b[0m" if code else cell for cell, code in zip(cells, codes, strict=True)]


def _columns_that_fit(widths: Sequence[int], width: int | None) -> int:
    """How many columns stand beside each other; at least one."""
    if width is None:
        return len(widths)
    fitting = [n for n in range(1, len(widths) + 1) if sum(widths[:n]) + len(GAP) * (n - 1) <= width]
    return max(fitting, default=1)


def _wrapped(text: str, width: int | None) -> list[str]:
    """A text in lines below a row; a path is not broken."""
    return textwrap.wrap(
        text, width or len(text) + len(INDENT) + 1, initial_indent=INDENT, subsequent_indent=INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{DECIMALS.get(column, 4)}f}"
    return str(value)
