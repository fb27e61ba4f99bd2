"""a dataset of the Hub, or a folder written by save_to_disk -> rows; fetched into the workspace once, then offline."""

from pathlib import Path
from typing import Any

from mistral.config import Experiment, HubSource
from mistral.errors import DataError, MistralError
from mistral.files import (
    canonical_json,
    digest_of,
    finish_file,
    fsync_folder,
    make_folder,
    read_json,
    remove_folder,
    storage_errors,
    temporary_beside,
)

COMMIT = "fetched.json"  # in a fetched folder: from where, and at which commit


def saved_dataset(experiment: Experiment, source: HubSource, sources: Path, fetch: bool) -> Path:
    """The folder of a saved dataset: the one that is named, or one fetched from the Hub into the workspace once.

    Raises:
        DataError: it cannot be fetched.
    """
    local = experiment.path(source.hub)
    if local.is_dir():
        return local.absolute()
    name = source.hub.replace("/", "--")
    folder = sources / f"{name}-{digest_of(source.model_dump(mode='json'))[:8]}"
    if not folder.exists():
        if not fetch:
            raise DataError(
                f"data.source.hub: found no {folder}, expected the fetched dataset; run preprocess with --fetch-only"
            )
        _fetch(source, folder)
    return folder


def fetched_commit(folder: Path) -> str | None:
    """The commit of the Hub that a folder was fetched at; None if it was not fetched."""
    path = folder / COMMIT
    return str(read_json(path)["commit"]) if path.exists() else None


def _fetch(source: HubSource, folder: Path) -> None:
    """Fetch a dataset at the commit that its revision names now, and keep that commit beside it."""
    import datasets
    from huggingface_hub import HfApi

    splits = [source.split] + ([source.validation_split] if source.validation_split else [])
    temporary = temporary_beside(folder)
    make_folder(folder.parent)
    try:
        commit = HfApi().dataset_info(source.hub, revision=source.revision).sha
        loaded = datasets.DatasetDict(
            {split: datasets.load_dataset(source.hub, source.config, revision=commit, split=split) for split in splits}
        )
        with storage_errors(folder):
            loaded.save_to_disk(str(temporary))
            (temporary / COMMIT).write_bytes(canonical_json({"commit": commit, **source.model_dump(mode="json")}))
            _make_durable(temporary)
            _take_place(temporary, folder)
    except MistralError:
        raise
    except Exception as error:  # every library below has its own word for having no network
        raise DataError(
            f"data.source.hub: found no dataset {source.hub} at revision {source.revision} ({error})\n"
            "  expected a folder written by save_to_disk, or a dataset of the Hub and a network: run preprocess where "
            "there is one"
        ) from error
    finally:
        remove_folder(temporary)


def _make_durable(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        (fsync_folder if path.is_dir() else finish_file)(path)
    fsync_folder(folder)


def _take_place(temporary: Path, folder: Path) -> None:
    """Rename a whole folder, unless another process was first with the same one."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    fsync_folder(folder.parent)


def open_dataset(folder: Path, split: str, brings_validation: bool = False) -> Any:
    """One split of a folder written by Dataset.save_to_disk or DatasetDict.save_to_disk.

    Raises:
        DataError: it is no such folder, has no such split, or has none at all though two are wanted.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: found no dataset ({error}), expected what save_to_disk writes; check it") from None
    if not isinstance(loaded, datasets.DatasetDict):
        if brings_validation:
            raise DataError(
                f"{folder}: found a dataset without splits, expected one with a validation split; save a DatasetDict, "
                "or leave out data.source.validation_split"
            )
        return loaded
    if split not in loaded:
        raise DataError(f"{folder}: found the splits {', '.join(loaded)}, expected {split}; set data.source.split")
    return loaded[split]
