"""recorded checkpoint -> a Hugging Face model folder, loaded by transformers and checked against the probe."""

import os
import shutil
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
        CheckpointError: the checkpoint's files changed, or the exported model is not the checkpoint.
    """
    run, step = weights.key[0], weights.facts["step"]
    problems = manifest.damage(weights)
    if problems:
        raise CheckpointError(f"found {'; '.join(problems)}; restore the file, or remove its record and train again")
    folder = manifest.workspace.export(run, step)
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            begun = manifest.get("train", (run, "begin"), "run verify")
            metrics = [line for line in read_metrics(manifest.workspace.metrics(run)) if line["step"] <= step]
            _fill(temporary, manifest, CardFacts(experiment, seed, begun, weights, dataset, metrics))
            check_probe(temporary, weights, experiment.model.attn_implementation)
            files = [_durable(manifest, path, folder) for path in sorted(temporary.iterdir())]
            fsync_folder(temporary)
            remove_folder(folder)
            temporary.rename(folder)
            fsync_folder(folder.parent)
    finally:
        remove_folder(temporary)
    inputs = {"weights": weights.content, "dataset": dataset.content}
    config = digest_of(experiment.export.model_dump(mode="json"))
    key, facts = (run, folder.name), {"step": step}
    return manifest.publish(
        make_record("export/checkpoint", key, config=config, inputs=inputs, files=files, facts=facts)
    )


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


def _durable(manifest: Manifest, path: Path, folder: Path) -> FileEntry:
    fsync_file(path)
    entry = manifest.entry(path)
    return FileEntry(manifest.workspace.relative(folder / path.name), entry.bytes, entry.sha256)


def check_probe(folder: Path, weights: Record, attention: str) -> None:
    """Load an exported folder as its users will, and compare its loss with the one that training recorded.

    Raises:
        CheckpointError: they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM

    probe = weights.facts["probe"]
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention
    ).eval()
    model.loss_type = "ForCausalLM"
    input_ids = torch.tensor(probe["sequences"])  # (sequences, seq_len) int64
    with torch.no_grad():
        loss = float(model(input_ids=input_ids, labels=input_ids).loss)
    if abs(loss - probe["loss"]) > TOLERANCE[attention] * abs(probe["loss"]):
        raise CheckpointError(
            f"found probe loss {loss}, expected {probe['loss']} as recorded in training; the weights are not those of "
            "this checkpoint, or transformers computes another model: run verify"
        )
