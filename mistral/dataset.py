"""recorded units -> one sealed dataset, and a split of it -> a stream of sequences."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from mistral.config import Experiment
from mistral.errors import DataError, ManifestError
from mistral.files import digest_of, write_bytes
from mistral.manifest import Manifest, Record, make_record
from mistral.numbers import counted
from mistral.shards import MappedShard, TokenStream, token_dtype
from mistral.tokens import Tokenizer
from mistral.workspace import Workspace

SEAL = "dataset"
LONGEST = 5  # documents that the seal tells of
HASHED_BELOW_BYTES = 1_000_000_000  # datasets above are checked by size at the start of a run, and by verify


def unit_names(manifest: Manifest, dataset: str) -> list[str]:
    """Recorded units of a dataset, sorted; their names are numbers."""
    return [name for name in manifest.names("preprocess", (dataset,)) if name.isdecimal()]


def seal(
    manifest: Manifest,
    experiment: Experiment,
    tokenizer: Tokenizer,
    units: list[Record],
    *,
    commits: Sequence[str | None],
    whole_sequence: bool = True,
) -> Record:
    """Record that a dataset is whole.

    Args:
        manifest: where the record goes.
        experiment: whose data it is.
        tokenizer: what made the tokens.
        units: the records of all units, in order.
        commits: of each source, the commit of the Hub that it was fetched at.
        whole_sequence: whether each split must hold one; an evaluation set may be shorter, but not empty.

    Raises:
        DataError: a split has less than that.
        ManifestError: a shard is gone, or was made with another tokenizer.
    """
    dataset = experiment.data.dataset_name()
    _require_whole(manifest, dataset, tokenizer, units)
    splits = {split: _totals(units, split) for split in ("train", "validation")}
    for split, totals in splits.items():
        wanted = split == "train" or experiment.data.has_validation()
        if wanted and totals["tokens"] < (experiment.seq_len if whole_sequence else 1):
            _refuse_empty(dataset, split, totals["tokens"], experiment.seq_len if whole_sequence else None)
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": splits,
        "sources": _shares(units, commits),
        "skipped": _sums(record.facts["skipped"] for record in units),
        "source_bytes": sum(record.facts["source_bytes"] for record in units),
        "timing": _sums(record.facts["timing"] for record in units),
    }
    paths = sorted(manifest.workspace.tokenizer(dataset).iterdir())
    paths += _write_validation_documents(manifest, dataset, units)
    files = [manifest.entry(path) for path in paths]
    inputs = {record.key[-1]: record.content for record in units}
    config = digest_of(experiment.data.identity())
    record = make_record("preprocess/dataset", (dataset, SEAL), config=config, inputs=inputs, files=files, facts=facts)
    return manifest.publish(record)


def _sums(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of each entry over all rows."""
    sums: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            sums[name] = sums.get(name, 0) + value
    return dict(sorted(sums.items()))


def _shares(units: list[Record], commits: Sequence[str | None]) -> list[dict[str, Any]]:
    """Documents, tokens and bytes of text of each source, and its commit; a unit has one source."""
    shares: dict[int, list[dict[str, Any]]] = {}
    for record in units:
        counts = [
            {name: facts[name] for name in ("documents", "tokens", "text_bytes")}
            for facts in record.facts["splits"].values()
        ]
        shares.setdefault(record.facts["pieces"][0]["source"], []).extend(counts)
    return [
        _sums(shares.get(number, [])) | ({} if commit is None else {"commit": commit})
        for number, commit in enumerate(commits)
    ]


def _write_validation_documents(manifest: Manifest, dataset: str, units: list[Record]) -> list[Path]:
    """One file that names the validation documents of all units; none where there are none."""
    listed = [
        manifest.workspace.inside(entry.path)
        for record in units
        for entry in record.files
        if entry.path.endswith(".jsonl")
    ]
    if not listed:
        return []
    path = manifest.workspace.dataset(dataset) / "validation_documents.jsonl"
    write_bytes(path, b"".join(part.read_bytes() for part in listed))
    return [path]


def _require_whole(manifest: Manifest, dataset: str, tokenizer: Tokenizer, units: list[Record]) -> None:
    problems = []
    for record in units:
        problems += manifest.damage(record, quick=True)
        if record.facts["tokenizer_sha256"] != tokenizer.sha256:
            problems.append(f"unit {record.key[-1]} was made with another tokenizer")
    if problems:
        _refuse(dataset, problems)


def _refuse(dataset: str, problems: list[str]) -> NoReturn:
    listed = "\n".join(f"  {problem}" for problem in problems[:10])
    raise ManifestError(
        f"{dataset}: found {counted(len(problems), 'shards')} changed since the record was made:\n{listed}\n"
        f"  restore them, or move manifest/preprocess/{dataset} and data/{dataset} elsewhere and preprocess again"
    )


def _totals(units: list[Record], split: str) -> dict[str, Any]:
    parts = [(record.key[-1], record.facts["splits"][split]) for record in units]
    return {
        "documents": sum(part["documents"] for _, part in parts),
        "tokens": sum(part["tokens"] for _, part in parts),
        "text_bytes": sum(part["text_bytes"] for _, part in parts),
        "longest": sorted((length for _, part in parts for length in part["longest"]), reverse=True)[:LONGEST],
        "units": [[name, part["tokens"]] for name, part in parts if part["tokens"]],
    }


def _refuse_empty(dataset: str, split: str, tokens: int, seq_len: int | None) -> None:
    if seq_len is None:
        raise DataError(f"{dataset}: found no text, expected some; check the source and its text_field")
    advice = "raise data.validation_fraction (0 for no validation)" if split == "validation" else "lower the fraction"
    raise DataError(
        f"{dataset}: found {tokens} tokens in the {split} split, expected at least one sequence of {seq_len}\n"
        f"  give it more text, {advice}, or shorten training.seq_len"
    )


def evaluation_record(name: str, experiment: Experiment, manifest: Manifest) -> Record:
    """The seal of an evaluation set.

    Args:
        name: of the set.
        experiment: whose data it is.
        manifest: where it is recorded.

    Raises:
        ManifestError: it is not there; says which command makes it.
    """
    command = experiment.command("preprocess", manifest.workspace.root)
    advice = f"it is the set of evaluation.{name}; run: {command}"
    return manifest.get("preprocess", (experiment.data.dataset_name(), SEAL), advice)


def open_split(workspace: Workspace, dataset: Record, split: str, seq_len: int) -> TokenStream:
    """The sequences of a split of a sealed dataset, its shards checked against their records.

    Raises:
        ManifestError: a shard changed since it was recorded; names it.
    """
    manifest, name = Manifest(workspace), dataset.key[0]
    units = [unit for unit, _ in dataset.facts["splits"][split]["units"]]
    dtype = token_dtype(dataset.facts["vocabulary_size"])
    quick = dataset.facts["splits"][split]["tokens"] * dtype.itemsize > HASHED_BELOW_BYTES
    problems, shards = [], []
    for unit in units:
        record = manifest.get("preprocess", (name, unit), "run verify, then preprocess again")
        if record.content != dataset.inputs[unit]:
            problems.append(f"unit {unit}: its record is not the one that the dataset was sealed with")
        path = workspace.shard(name, split, unit)
        own = [entry for entry in record.files if entry.path == workspace.relative(path)]
        problems += manifest.damage(replace(record, files=tuple(own)), quick)
        if not problems:
            offset = record.facts["splits"][split]["offset"]
            shards.append(MappedShard(path, offset, record.facts["splits"][split]["tokens"], dtype.str))
    if problems:
        _refuse(name, problems)
    return TokenStream(shards, seq_len)
