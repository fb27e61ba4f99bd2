"""weights and states of all runs -> those that are equal where they must differ."""

from collections.abc import Iterator

from mistral.manifest import Record
from mistral.records import Records, updates_of
from mistral.tensorfiles import MODEL
from mistral.workspace import step_number


def twins(records: Records) -> Iterator[str]:
    """Two steps of a run, or two runs of other seeds, that have the same weights or states."""
    seen: dict[str, list[Record]] = {}
    for record in (*records.of_kind("train/weights"), *records.of_kind("train/state")):
        for entry in record.files:
            if entry.path.endswith(f"/{MODEL}") or entry.path.endswith("/state.safetensors"):
                others = seen.setdefault(entry.sha256, [])
                twin = next((other for other in others if _must_differ(records, other, record)), None)
                if twin:
                    yield f"{entry.path}: holds the same weights as {'/'.join(twin.key)}"
                others.append(record)


def _must_differ(records: Records, first: Record, second: Record) -> bool:
    """Whether two checkpoints must differ.

    Within a run they must if updates lie between them; across runs after step 0, if the init or data seeds differ.
    """
    if first.key[0] == second.key[0]:
        return updates_of(first) != updates_of(second)
    begun = [records.get("train", record.key[0], "begin") for record in (first, second)]
    seeds = [record.facts.get("frozen", {}).get("seed", {}) for record in begun if record]
    later = step_number(first.key[-1]) > 0
    return later and len(seeds) == 2 and any(seeds[0].get(s) != seeds[1].get(s) for s in ("init", "data"))
