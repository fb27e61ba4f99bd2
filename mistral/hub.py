"""recorded checkpoint -> a Hugging Face model folder, loaded by transformers and checked against the probe."""

import math
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mistral.config import Experiment
from mistral.errors import CheckpointError
from mistral.files import (
    digest_of,
    fsync_file,
    fsync_folder,
    make_folder,
    remove_folder,
    storage_errors,
    temporary_beside,
)
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.metrics import read_metrics
from mistral.modelcard import CardFacts, model_card

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
            the checkpoint.
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
    begun = manifest.get("train", (run, "begin"), "run verify")
    folder = manifest.workspace.export(run, step)
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            metrics = [line for line in read_metrics(manifest.workspace.metrics(run)) if line["step"] <= step]
            _fill(temporary, manifest, CardFacts(experiment, seed, begun, weights, dataset, metrics))
        check_probe(temporary, weights, experiment.model.attn_implementation)
        with storage_errors(folder):
            files = [_durable(manifest, path, folder, weights) for path in sorted(temporary.iterdir())]
            fsync_folder(temporary)
            remove_folder(folder)
            temporary.rename(folder)
            fsync_folder(folder.parent)
    finally:
        remove_folder(temporary)
    inputs = {"weights": weights.content, "dataset": dataset.content}
    config = digest_of(experiment.export.model_dump(mode="json"))
    key, facts = (run, folder.name), {"step": step}
    record = manifest.publish(
        make_record("export/checkpoint", key, config=config, inputs=inputs, files=files, facts=facts)
    )
    for rubbish in folder.parent.glob(f".{folder.name}.*.tmp"):  # left by processes that were killed
        with suppress(OSError):
            remove_folder(rubbish)
    return record


def _fill(folder: Path, manifest: Manifest, facts: CardFacts) -> None:
    from transformers import GenerationConfig, GPT2Config

    run, step = facts.weights.key[0], facts.weights.facts["step"]
    source = manifest.workspace.weights(run, step)
    link_or_copy(source / "model.safetensors", folder / "model.safetensors")
    shutil.copyfile(source / "config.json", folder / "config.json")
    config = GPT2Config.from_pretrained(source)
    generation = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)
    generation.save_pretrained(folder)
    for path in manifest.workspace.tokenizer(facts.dataset.key[0]).iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name: linked on one file system, copied across two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _durable(manifest: Manifest, path: Path, folder: Path, weights: Record) -> FileEntry:
    fsync_file(path)
    same = [entry for entry in weights.files if path.samefile(manifest.workspace.inside(entry.path))]
    entry = same[0] if same else manifest.entry(path)  # a link was hashed a moment ago, under its other name
    return replace(entry, path=manifest.workspace.relative(folder / path.name))


def check_probe(folder: Path, weights: Record, attention: str) -> None:
    """Load an exported folder as its users will, and compare its loss with the one that training recorded.

    Raises:
        CheckpointError: they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress goes through the reporter
    probe, losses = weights.facts["probe"], []
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention
    ).eval()
    model.loss_type = "ForCausalLM"
    with torch.no_grad():
        for sequence in probe["sequences"]:  # one by one: the logits of all of them would be GBs
            input_ids = torch.tensor([sequence])  # (1, seq_len) int64
            losses.append(float(model(input_ids=input_ids, labels=input_ids).loss))
    loss = math.fsum(losses) / len(losses)
    if not abs(loss - probe["loss"]) <= TOLERANCE[attention] * abs(probe["loss"]):  # a NaN is refused as well
        raise CheckpointError(
            f"found probe loss {loss}, expected {probe['loss']} as recorded in training; the weights are not those of "
            "this checkpoint, or transformers computes another model: run verify"
        )
