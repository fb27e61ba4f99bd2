"""recorded checkpoint -> a Hugging Face model folder, loaded by transformers and checked against the probe."""

import errno
import filecmp
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mistral.config import Experiment
from mistral.drift import drift_of
from mistral.errors import CheckpointError, ManifestError
from mistral.files import (
    digest_of,
    finish_file,
    fsync_folder,
    make_folder,
    read_json,
    remove_folder,
    sha256_of,
    storage_errors,
    temporary_beside,
)
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.metrics import read_metrics
from mistral.modelcard import CardFacts, model_card
from mistral.parity import check_probe
from mistral.provenance import software
from mistral.setaside import set_aside
from mistral.tensorfiles import MODEL, dtype_of, link_or_copy, require_rounded, write_rounded

CARD, CONFIG = "README.md", "config.json"


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
    require_checkpoint(manifest, weights, dataset)
    run, step, dtype = weights.key[0], weights.facts["step"], experiment.export.dtype
    folder = manifest.workspace.export(run, step)
    if record := manifest.find("export", (run, folder.name)):
        if dtype_of(record) == dtype:
            return record
        withdraw_export(manifest, record)
    begun = manifest.get("train", (run, "begin"), "run verify")
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            metrics = list(read_metrics(manifest.workspace.metrics(run), step))
            drift = drift_of(manifest, weights)
            written = _fill(temporary, manifest, CardFacts(experiment, seed, begun, weights, dataset, metrics, drift))
        whole = not has_shown_whole_probe(manifest, run, temporary)
        probe = check_probe(temporary, weights, experiment.model.attn_implementation, dtype, whole)
        facts, config = {"step": step, "dtype": dtype, "probe": probe}, card_config(experiment)
        record = publish_folder(temporary, manifest, weights, config=config, facts=facts, written=written)
    except Exception:
        if not temporary.exists() and (record := manifest.find("export", (run, folder.name))):
            return record  # whoever recorded this checkpoint first has cleared away the folder that was being filled
        raise
    finally:
        remove_folder(temporary)
    for rubbish in folder.parent.glob(f".{folder.name}.*.tmp"):  # of processes that were killed, or came second
        _clear_away(rubbish, folder)
    return record


def has_shown_whole_probe(manifest: Manifest, run: str, folder: Path) -> bool:
    """Whether an export of a run with the same config.json gave the loss of the whole probe with the same software."""
    config = sha256_of(folder / CONFIG)
    for name in manifest.names("export", (run,)):  # the first one that was exported, and mostly the first by name
        with suppress(ManifestError):  # damaged: for verify to tell
            record = manifest.find("export", (run, name))
            if record is None or record.facts["probe"].get("part", "whole") != "whole":
                continue
            same = any(entry.path.endswith(f"/{CONFIG}") and entry.sha256 == config for entry in record.files)
            if same and record.made_by["software"] == software():
                return True
    return False


def require_checkpoint(manifest: Manifest, weights: Record, dataset: Record) -> None:
    """Refuse a checkpoint whose files changed, or that was trained on another dataset."""
    problems = manifest.damage(weights)
    if problems:
        raise CheckpointError(f"found {'; '.join(problems)}; restore the file from a copy")
    if weights.inputs.get("dataset") != dataset.content:
        raise CheckpointError(
            f"found weights of the dataset {str(weights.inputs.get('dataset'))[:12]}, expected {dataset.content[:12]}, "
            f"which is {dataset.key[0]} now; run verify"
        )


def card_config(experiment: Experiment) -> str:
    """Digest of what decides a folder besides its checkpoint: what its model card names, and the dtype."""
    export = experiment.export
    named = {"license": export.license, "language": export.language, "dtype": export.dtype}
    given = {name: value for name, value in named.items() if value and value != "fp32"}  # the digest it always had
    return digest_of({"organization": export.organization} | given)


def withdraw_export(manifest: Manifest, record: Record) -> None:
    """Take an exported folder back, as the config names another place for its model card or another dtype now.

    The folder goes first: a kill in between leaves a record that is withdrawn again, not a folder with the old card.
    """
    remove_folder(manifest.workspace.export(record.key[0], record.facts["step"]))
    manifest.remove("export", record.key)


def publish_folder(
    temporary: Path, manifest: Manifest, weights: Record, *, config: str, facts: dict[str, Any], written: str | None
) -> Record:
    """Give a whole folder its name and record what lies there then.

    Args:
        temporary: the folder.
        manifest: the records.
        weights: that of the checkpoint.
        config: digest of what else decided the folder.
        facts: its step, dtype and probe.
        written: sha256 of its tensors; None if they are a link.
    """
    run = weights.key[0]
    folder = manifest.workspace.export(run, facts["step"])
    with storage_errors(folder):
        for path in temporary.iterdir():
            finish_file(path)
        fsync_folder(temporary)
        _take_place(temporary, folder, manifest, run)
        fsync_folder(folder.parent)
        hashes = {MODEL: written}
        files = [_entry(manifest, path, weights, hashes.get(path.name)) for path in sorted(folder.iterdir())]
    inputs = {"weights": weights.content, "dataset": weights.inputs["dataset"]}
    return manifest.publish(
        make_record("export/checkpoint", (run, folder.name), config=config, inputs=inputs, files=files, facts=facts)
    )


def _take_place(temporary: Path, folder: Path, manifest: Manifest, run: str) -> None:
    """Rename a whole folder, unless an equal one has the name: another process may be about to record that one.

    Another folder that has the name, and no record, is set aside.
    """
    try:
        temporary.rename(folder)  # which never replaces a folder that holds files
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _equal(temporary, folder):
            into = manifest.workspace.exports_set_aside(run)
            set_aside(manifest, folder, into, "it has no record, and is not what an export of this checkpoint holds")
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


def _clear_away(temporary: Path, folder: Path) -> None:
    """Rename a temporary folder, then delete it, so that a concurrent writer never sees a half-deleted one."""
    doomed = temporary_beside(folder)
    with suppress(OSError):  # another process has removed it
        temporary.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _fill(folder: Path, manifest: Manifest, facts: CardFacts) -> str | None:
    """Write what an exported folder holds; returns the sha256 of its tensors, unless they are a link."""
    from transformers import GenerationConfig, GPT2Config

    run, step = facts.weights.key[0], facts.weights.facts["step"]
    source, dtype = manifest.workspace.weights(run, step), facts.experiment.export.dtype
    written = place_tensors(source / MODEL, folder / MODEL, facts.weights, dtype)
    body = read_json(source / CONFIG) | {"use_cache": True}  # training needs no cache, generation does
    if dtype == "bf16":
        body |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}  # the later, the earlier name in transformers
    (folder / CONFIG).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    config = GPT2Config.from_pretrained(source)
    generation = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)
    generation.save_pretrained(folder)
    for path in manifest.workspace.tokenizer(facts.dataset.key[0]).iterdir():
        shutil.copyfile(path, folder / path.name)
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    return written


def place_tensors(source: Path, target: Path, weights: Record, dtype: str) -> str | None:
    """Link, copy or round the tensors of a checkpoint; returns the sha256 of what was written, None of a link.

    Raises:
        CheckpointError: what was written is not what was read.
    """
    if dtype == "bf16":
        written = write_rounded(source, target)
        require_rounded(source, target)
        return written
    copied = link_or_copy(source, target)
    expected = next(entry.sha256 for entry in weights.files if entry.path.endswith(f"/{MODEL}"))
    if copied not in (None, expected):
        raise CheckpointError(
            f"{source}: copied bytes with sha256 {copied}, expected {expected}, which it had a moment ago; run the "
            "same command again, and check the disk if it says so again"
        )
    return copied


def _entry(manifest: Manifest, path: Path, weights: Record, sha256: str | None) -> FileEntry:
    same = [entry for entry in weights.files if path.samefile(manifest.workspace.inside(entry.path))]
    entry = same[0] if same else manifest.entry(path, sha256)  # a link was hashed a moment ago, under its other name
    return replace(entry, path=manifest.workspace.relative(path))
