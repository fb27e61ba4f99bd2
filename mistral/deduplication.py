"""exact deduplication, before units are packed: of the same document the first one stays, in the order of the source.

Each unit's document hashes are recorded by the task that holds it; whoever finds all of them recorded compares them and
records which documents each unit drops. Documents of different splits are never compared.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mistral.config import Experiment
from mistral.corpus import Plan, Unit
from mistral.files import make_folder, storage_errors, written_beside
from mistral.manifest import Manifest, Record, make_record
from mistral.ordered import Workers
from mistral.progress import Progress
from mistral.shards import Int64
from mistral.splitting import SPLITS, refuse, split_block, unit_blocks

HASH_BYTES = 32
DUPLICATES = "duplicates"  # the record of the comparison
IN_FLIGHT_BYTES = 32_000_000
MEGABYTE = 1_000_000

Drops = dict[str, Int64]  # split -> (n,) numbers of the documents that a unit drops, counted within its split


def hashes_name(unit: str) -> str:
    """The name of the record of a unit's hashes."""
    return f"hashes-{unit}"


def hash_missing(
    manifest: Manifest, experiment: Experiment, plan: Plan, units: list[Unit], *, workers: Workers, progress: Progress
) -> None:
    """Record the document hashes of the units that have no such record yet.

    Raises:
        DataError: a document cannot be read, and data.on_bad_document is stop.
    """
    dataset = experiment.data.dataset_name()
    left = [unit for unit in units if manifest.find("preprocess", (dataset, hashes_name(unit.name))) is None]
    if not left:
        return
    progress.start(f"deduplicate {dataset}", sum(unit.bytes() for unit in left) / MEGABYTE, "MB")
    try:
        for unit in left:
            _hash_unit(manifest, experiment, plan, unit, workers)
            progress.advance(unit.bytes() / MEGABYTE)
    finally:
        progress.finish()


def _hash_unit(manifest: Manifest, experiment: Experiment, plan: Plan, unit: Unit, workers: Workers) -> None:
    dataset, data = experiment.data.dataset_name(), experiment.data
    hashes: dict[str, list[bytes]] = {split: [] for split in SPLITS}

    blocks = workers.in_order(
        lambda item: split_block(data, *item),
        unit_blocks(data, unit, plan.files),
        weight=lambda item: item[1].held_bytes,
        limit=IN_FLIGHT_BYTES,
    )
    for found in blocks:
        for bad in found.bad:
            refuse(data, bad)
        for name, documents in found.splits.items():
            hashes[name] += documents.digests
    files = []
    for name, digests in hashes.items():
        path = _hashes_path(manifest, dataset, unit.name, name)
        with written_beside(path) as temporary:
            temporary.write_bytes(b"".join(digests))
        files.append(manifest.entry(path))
    facts = {
        "documents": {name: len(digests) for name, digests in hashes.items()},
        "pieces": [asdict(piece) for piece in unit.pieces],
    }
    key, config = (dataset, hashes_name(unit.name)), unit.digest(data.identity())
    manifest.publish(make_record("preprocess/hashes", key, config=config, inputs={}, files=files, facts=facts))


def _hashes_path(manifest: Manifest, dataset: str, unit: str, split: str) -> Path:
    return manifest.workspace.hashes(dataset) / f"{unit}.{split}.sha256"


def find_duplicates(manifest: Manifest, experiment: Experiment, plan: Plan) -> Record | None:
    """The record that says which documents each unit drops, made if it is not there; None while hashes are missing.

    Compares 32 bytes a document in memory: 8 million documents take about a gigabyte and ten seconds.
    """
    dataset = experiment.data.dataset_name()
    if (found := manifest.find("preprocess", (dataset, DUPLICATES))) is not None:
        return found
    records = [manifest.find("preprocess", (dataset, hashes_name(unit.name))) for unit in plan.units]
    whole = [record for record in records if record is not None]
    if len(whole) < len(records):
        return None
    drops = {split: list(_duplicates(manifest, plan, dataset, split)) for split in SPLITS}
    path = manifest.workspace.hashes(dataset) / "duplicates.npz"
    make_folder(path.parent)
    arrays = {
        f"{unit.name}.{split}": numbers
        for split in SPLITS
        for unit, numbers in zip(plan.units, drops[split], strict=True)
        if len(numbers)
    }
    with written_beside(path) as temporary, storage_errors(path), temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    facts = {"dropped": {split: sum(map(len, numbers)) for split, numbers in drops.items()}}
    inputs = {record.key[-1]: record.content for record in whole}
    key, files = (dataset, DUPLICATES), [manifest.entry(path)]
    record = make_record("preprocess/duplicates", key, config=whole[0].config, inputs=inputs, files=files, facts=facts)
    return manifest.publish(record)


def _duplicates(manifest: Manifest, plan: Plan, dataset: str, split: str) -> Iterator[Int64]:
    """For each unit, the numbers of its documents that stand in an earlier place as well."""
    parts = [
        np.fromfile(_hashes_path(manifest, dataset, unit.name, split), dtype=f"S{HASH_BYTES}") for unit in plan.units
    ]
    every = np.concatenate(parts)
    repeated = np.ones(len(every), dtype=bool)
    repeated[np.unique(every, return_index=True)[1]] = False  # the first of each
    start = 0
    for part in parts:
        yield np.flatnonzero(repeated[start : start + len(part)])
        start += len(part)


def drops_of(manifest: Manifest, duplicates: Record, unit: str) -> Drops:
    """Which documents a unit drops."""
    with np.load(manifest.workspace.inside(duplicates.files[0].path)) as arrays:
        return {split: arrays[f"{unit}.{split}"] for split in SPLITS if f"{unit}.{split}" in arrays}
