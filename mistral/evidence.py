"""tensor files -> whether they are what their records claim: the seed's initial weights, the probe, the state.

A chain of records proves each link by the next one. The first and last checkpoints have no neighbour to verify them, so
they are recomputed: the weights of step 0 from the seed, the loss of the newest ones on the probe. A state is compared
with the weights of its step, and an exported folder whose tensors were rounded with those of its checkpoint.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mistral.checkpoints import parameter_names
from mistral.config import Model
from mistral.errors import CheckpointError, ManifestError
from mistral.manifest import Manifest, Record
from mistral.model import build_model, gpt2_config
from mistral.parity import TOLERANCE, require_probe
from mistral.progress import Progress
from mistral.provenance import software
from mistral.records import Records, place
from mistral.tensorfiles import dtype_of, other_than_rounded
from mistral.workspace import step_name, step_number

# What a checkpoint of another shape, or forged facts, can raise on the way.
UNREADABLE = (
    *(CheckpointError, ManifestError, SafetensorError),
    *(ArithmeticError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError),
)


def recompute(manifest: Manifest, records: Records, damaged: Sequence[str], progress: Progress) -> Iterator[str]:
    """Compare the ends of each run's chain, and its states, with what they must be.

    Args:
        manifest: the records, read again where a probe is needed.
        records: all of them.
        damaged: what is wrong with files; one that is damaged is told already.
        progress: receives runs.
    """
    runs = records.of_kind("train/begin")
    progress.start("recompute", len(runs), "runs")
    try:
        for begun in runs:
            yield from _run(manifest, records, begun, damaged)
            progress.advance(1)
    finally:
        progress.finish()


def _run(manifest: Manifest, records: Records, begun: Record, damaged: Sequence[str]) -> Iterator[str]:
    run = begun.key[0]
    whole = [record for record in records.of_kind("train/weights", run) if _is_whole(record, damaged)]
    for state in records.of_kind("train/state", run):
        weights = records.get("train", run, "weights", state.key[-1])
        if weights in whole and _is_whole(state, damaged):
            yield from _told(state, other_parameters(records, state, weights))
    for export in records.of_kind("export/checkpoint", run):
        weights = records.get("train", run, "weights", step_name(step_number(export.key[-1])))
        if dtype_of(export) == "bf16" and weights in whole and _is_whole(export, damaged):
            yield from _told(export, other_rounding(records, export, weights))
    seals = [seal for seal in records.of_kind("preprocess/dataset") if seal.content == begun.inputs.get("dataset")]
    if seals and whole:
        yield from _told(begun, ends(manifest, records, begun, seals[0], whole))


def _is_whole(record: Record, damaged: Sequence[str]) -> bool:
    return not any(problem.startswith(f"{entry.path}:") for entry in record.files for problem in damaged)


def _told(record: Record, findings: Iterator[str]) -> Iterator[str]:
    """The findings of a check; that it cannot be made is one as well."""
    try:
        yield from findings
    except UNREADABLE as error:
        yield f"{place(record)}: {error}"


def other_parameters(records: Records, state: Record, weights: Record) -> Iterator[str]:
    """A state holds the weights of its step."""
    with safe_open(_file(records, state), "pt") as saved, safe_open(_file(records, weights), "pt") as kept:
        names = set(kept.keys())
        alike = names == set(parameter_names(saved.keys())) and all(
            _equal(saved.get_tensor(f"param/{name}"), kept.get_tensor(name)) for name in names
        )
    if not alike:
        yield f"{place(state)}: found other parameters than in {place(weights)}, expected the same; remove the state"


def other_rounding(records: Records, export: Record, weights: Record) -> Iterator[str]:
    """An exported folder whose tensors were rounded holds those of its checkpoint."""
    if wrong := list(other_than_rounded(_file(records, weights), _file(records, export))):
        yield (
            f"{place(export)}: found other tensors than those of {place(weights)} rounded to bf16 "
            f"({', '.join(wrong[:5])}), expected the same; remove its record and export it again"
        )


def ends(
    manifest: Manifest, records: Records, begun: Record, dataset: Record, weights: Sequence[Record]
) -> Iterator[str]:
    """The first and the newest weights of a run."""
    frozen, facts = begun.facts["frozen"], dataset.facts
    model = Model.model_validate(frozen["model"])
    config = gpt2_config(model, facts["vocabulary_size"], facts["end_of_text_id"])
    network = build_model(model, config, frozen["seed"]["init"])
    first, newest = weights[0], manifest.get("train", weights[-1].key, "run verify again")
    same_torch = begun.facts["cohort"]["software"]["torch"] == software()["torch"]  # another may draw other numbers
    if first.key[-1] == step_name(0) and same_torch:
        yield from _told(first, other_than_initial(records, first, network))
    yield from _told(newest, other_loss(records, newest, network, model.attn_implementation))


def other_than_initial(records: Records, first: Record, network: Any) -> Iterator[str]:
    """The weights of step 0 are those that the seed gives."""
    expected = dict(network.named_parameters())
    found = load_file(_file(records, first))
    if found.keys() != expected.keys() or not all(_equal(found[name], expected[name]) for name in expected):
        yield f"{place(first)}: found other weights than the run's seed gives, expected these; restore the checkpoint"


def other_loss(records: Records, newest: Record, network: Any, attention: str) -> Iterator[str]:
    """The weights give the loss that training recorded for them.

    Raises:
        CheckpointError: they give another one.
    """
    missing, unexpected = network.load_state_dict(load_file(_file(records, newest)), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # tied to the embedding
        yield f"{place(newest)}: found other tensors than those of the run's model; restore the checkpoint"
    require_probe(network, newest, TOLERANCE[attention])


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _file(records: Records, record: Record) -> Path:
    """The tensors of a checkpoint."""
    return next(records.workspace.inside(entry.path) for entry in record.files if entry.path.endswith(".safetensors"))
