"""records of a dataset -> what contradicts what: units, their hashes, the duplicates that they drop, and the seal."""

from collections.abc import Iterator

from mistral.deduplication import DUPLICATES
from mistral.manifest import Record
from mistral.records import Records, follows, place


def _dataset(records: Records, seal: Record) -> Iterator[str]:
    """The units of a dataset are those that it was sealed with."""
    yield from _follows_all(records, seal, "preprocess/unit")


def _duplicates(records: Records, duplicates: Record) -> Iterator[str]:
    """The hashes that were compared are those of all units."""
    yield from _follows_all(records, duplicates, "preprocess/hashes")


def _hashes(records: Records, hashes: Record) -> Iterator[str]:
    """A unit's hashes are those of the documents that it was packed from."""
    dataset, name = hashes.key
    unit = records.get("preprocess", dataset, name.removeprefix("hashes-"))
    if unit is None:
        return
    if unit.config != hashes.config:
        yield f"{place(hashes)}: belongs to another source or data section than {place(unit)}; restore the records"
    for entry in hashes.files:
        split = entry.path.rsplit(".", 2)[-2]
        if (expected := unit.facts["source_sha256"][split]) != entry.sha256:
            yield f"{entry.path}: found sha256 {entry.sha256}, expected {expected} by the documents of {place(unit)}"


def _unit(records: Records, unit: Record) -> Iterator[str]:
    """A unit of a dataset without duplicates dropped those that were found."""
    dataset = unit.key[0]
    if "duplicates" in unit.inputs or records.exists("preprocess", dataset, DUPLICATES):
        yield from follows(records, unit, "duplicates", "preprocess", dataset, DUPLICATES)


def _follows_all(records: Records, record: Record, kind: str) -> Iterator[str]:
    """The inputs of a record are the records of a kind that its dataset has."""
    dataset = record.key[0]
    for name in sorted({*record.inputs, *(key[1] for key in records.keys(kind, dataset))}):
        yield from follows(records, record, name, "preprocess", dataset, name)


DATASET_CHECKS = {
    "preprocess/hashes": _hashes,
    "preprocess/duplicates": _duplicates,
    "preprocess/unit": _unit,
    "preprocess/dataset": _dataset,
}
