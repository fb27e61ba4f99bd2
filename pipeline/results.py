"""records of finished runs -> the final table."""

from collections.abc import Sequence
from typing import Any

from pipeline.context import Context

COLUMNS = ("seed", "steps", "train_loss", "validation_loss", "perplexity", "tokens_per_second", "exported")
DECIMALS = {"train_loss": 4, "validation_loss": 4, "perplexity": 2, "tokens_per_second": 0}


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
    """Rows as aligned text; `-` where there is no value."""
    texts = [[_text(column, row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (columns, *texts)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{DECIMALS.get(column, 4)}f}"
    return str(value)
