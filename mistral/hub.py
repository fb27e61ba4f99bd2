"""recorded checkpoint -> a Hugging Face model folder, loaded by transformers and checked against the probe."""

import errno
import filecmp
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mistral.cohort import drift_of
from mistral.config import Experiment
from mistral.errors import CheckpointError
from mistral.files import (
    digest_of,
    fsync_file,
    fsync_folder,
    make_folder,
    read_json,
    remove_folder,
    storage_errors,
    temporary_beside,
)
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.metrics import read_metrics
from mistral.modelcard import CardFacts, model_card

CARD = "README.md"
TOLERANCE = {"sdpa": 1e-5, "eager": 1e-4}  # relative, of the probe loss


def export_checkpoint(
    experiment: Experiment, seed: str, manifest: Manifest, weights: Record, dataset: Record
) -> Record:
    """Write the folder of one checkpoint and record it.

    Args:
        experiment: what was trained.
        seed: the seed's name.
        manifest: the records.
        weights: the checkpoint's record.
        dataset: the seal of its dataset.

    Raises:
        CheckpointError: the checkpoint's files changed, it was trained on another dataset, or the exported model is not
            the checkpoint, or a line of its run's metrics is damaged.
        ManifestError: the beginning of its run is not recorded.
    """
    run, step = weights.key[0], weights.facts["step"]
    problems = manifest.damage(weights)
    if problems:
        raise CheckpointError(f"found {'; '.join(problems)}; restore the file, or remove its record and train again")
    if weights.inputs.get("dataset") != dataset.content:
        raise CheckpointError(
            f"found weights of the dataset {str(weights.inputs.get('dataset'))[:12]}, expected {dataset.content[:12]}, "
            f"which is {dataset.key[0]} now; run verify"
        )
    folder = manifest.workspace.export(run, step)
    if record := manifest.find("export", (run, folder.name)):
        return record
    begun = manifest.get("train", (run, "begin"), "run verify")
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            metrics = list(read_metrics(manifest.workspace.metrics(run), step))
            drift = drift_of(manifest, weights)
            _fill(temporary, manifest, CardFacts(experiment, seed, begun, weights, dataset, metrics, drift))
        check_probe(temporary, weights, experiment.model.attn_implementation)
        record = _publish(temporary, manifest, weights, card_config(experiment))
    except Exception:
        if not temporary.exists() and (record := manifest.find("export", (run, folder.name))):
            return record  # whoever recorded this checkpoint first has cleared away the folder that was being filled
        raise
    finally:
        remove_folder(temporary)
    for rubbish in folder.parent.glob(f".{folder.name}.*.tmp"):  # of processes that were killed, or came second
        _clear_away(rubbish, folder)
    return record


def card_config(experiment: Experiment) -> str:
    """Digest of what the model card says of the place where it is published."""
    return digest_of({"organization": experiment.export.organization})


def withdraw_export(manifest: Manifest, record: Record) -> None:
    """Take an exported folder back, whose model card names another place than the config does now.

    The folder goes first: a kill in between leaves a record that is withdrawn again, not a folder with the old card.
    """
    remove_folder(manifest.workspace.export(record.key[0], record.facts["step"]))
    manifest.remove("export", record.key)


def _publish(temporary: Path, manifest: Manifest, weights: Record, config: str) -> Record:
    """Give a whole folder its name and record what lies there then."""
    run, step = weights.key[0], weights.facts["step"]
    folder = manifest.workspace.export(run, step)
    with storage_errors(folder):
        for path in temporary.iterdir():
            fsync_file(path)
        fsync_folder(temporary)
        _take_place(temporary, folder)
        fsync_folder(folder.parent)
        files = [_entry(manifest, path, weights) for path in sorted(folder.iterdir())]
    inputs = {"weights": weights.content, "dataset": weights.inputs["dataset"]}
    key, facts = (run, folder.name), {"step": step}
    return manifest.publish(
        make_record("export/checkpoint", key, config=config, inputs=inputs, files=files, facts=facts)
    )


def _take_place(temporary: Path, folder: Path) -> None:
    """Rename a whole folder, unless an equal one has the name: another process may be about to record that one."""
    try:
        temporary.rename(folder)  # which never replaces a folder that holds files
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _equal(temporary, folder):
            _clear_away(folder, folder)
            temporary.rename(folder)


def _equal(one: Path, other: Path) -> bool:
    """Whether two exports of a checkpoint differ in nothing but the model card, to which an evaluation may be added."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all(
        (one / name).samefile(other / name) or filecmp.cmp(one / name, other / name, shallow=False)
        for name in names
        if name != CARD
    )


def _clear_away(rubbish: Path, folder: Path) -> None:
    """Remove a folder whose owner may still be at work: it sees all of it go at once."""
    aside = temporary_beside(folder)
    with suppress(OSError):  # gone already; where it is in the way and cannot be moved, the rename that follows says so
        rubbish.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _fill(folder: Path, manifest: Manifest, facts: CardFacts) -> None:
    from transformers import GenerationConfig, GPT2Config

    run, step = facts.weights.key[0], facts.weights.facts["step"]
    source = manifest.workspace.weights(run, step)
    link_or_copy(source / "model.safetensors", folder / "model.safetensors")
    body = read_json(source / "config.json") | {"use_cache": True}  # training needs no cache, generation does
    (folder / "config.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    config = GPT2Config.from_pretrained(source)
    generation = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)
    generation.save_pretrained(folder)
    for path in manifest.workspace.tokenizer(facts.dataset.key[0]).iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name: linked on one file system, copied across two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _entry(manifest: Manifest, path: Path, weights: Record) -> FileEntry:
    same = [entry for entry in weights.files if path.samefile(manifest.workspace.inside(entry.path))]
    entry = same[0] if same else manifest.entry(path)  # a link was hashed a moment ago, under its other name
    return replace(entry, path=manifest.workspace.relative(path))


def check_probe(folder: Path, weights: Record, attention: str) -> None:
    """Load an exported folder as its users will, and compare its loss with the one that training recorded.

    Raises:
        CheckpointError: they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress goes through the reporter
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention
    )
    require_probe(model, weights, attention)


def require_probe(model: Any, weights: Record, attention: str) -> None:
    """Compare the loss of a model with the one that training recorded for the checkpoint.

    Raises:
        CheckpointError: they differ.
    """
    import torch

    model.eval()
    model.loss_type = "ForCausalLM"
    probe, losses = weights.facts["probe"], []
    with torch.no_grad():
        for sequence in probe["sequences"]:  # one by one: the logits of all of them would be GBs
            input_ids = torch.tensor([sequence])  # (1, seq_len) int64
            losses.append(float(model(input_ids=input_ids, labels=input_ids, use_cache=False).loss))
    loss = math.fsum(losses) / len(losses)
    if not abs(loss - probe["loss"]) <= TOLERANCE[attention] * abs(probe["loss"]):  # a NaN is refused as well
        raise CheckpointError(
            f"found probe loss {loss}, expected {probe['loss']} as recorded in training; the weights are not those of "
            "this checkpoint, or transformers computes another model: run verify"
        )
