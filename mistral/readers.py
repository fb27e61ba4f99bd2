"""a piece of a source file -> its documents, one by one; a document that cannot be read comes as a Bad."""

import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mistral.corpus import DATASET, Piece, open_dataset
from mistral.errors import DataError

ROWS = 1000  # read at a time from parquet and datasets


@dataclass(frozen=True)
class Bad:
    """A document that cannot be used: why, and where it stands."""

    reason: str
    where: str


Document = str | Bad


def read_piece(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    """The documents of a piece, in order. Memory stays at one document and a small buffer.

    Raises:
        DataError: the file is shorter or longer than when it was planned, or cannot be read at all.
    """
    if piece.form == DATASET:
        yield from _read_dataset(path, piece, field)
    elif piece.form == ".parquet":
        yield from _read_parquet(path, piece, field)
    elif piece.form.startswith(".jsonl"):
        yield from _read_lines(path, piece, _json_parser(field))
    elif piece.line_documents:
        yield from _read_lines(path, piece, _text_parser)
    else:
        yield from _read_whole(path, piece)


def _read_whole(path: Path, piece: Piece) -> Iterator[Document]:
    raw = path.read_bytes()
    if len(raw) != piece.stop:
        raise DataError(f"{path}: found {len(raw)} bytes, expected the {piece.stop} of the plan; do not change it now")
    try:
        yield raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield Bad("not UTF-8", f"{path}, line {line}")


def _open(path: Path, form: str) -> BinaryIO:
    if form.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]  # a BinaryIO in all that is used here
    if form.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.open(path, "rb"), 1 << 20)
    return path.open("rb", buffering=1 << 20)


def _read_lines(path: Path, piece: Piece, parse: Callable[[bytes], str]) -> Iterator[Document]:
    """Lines that start inside [start, stop) of the file; blank ones are no documents."""
    ranged = piece.form in (".jsonl", ".txt", ".md")
    with _open(path, piece.form) as file:
        place = _skip_to_line(file, piece.start) if ranged else 0
        number = 0
        while not ranged or place < piece.stop:
            try:
                line = file.readline()
            except (OSError, EOFError, ValueError) as error:
                raise DataError(
                    f"{path}: found a damaged stream ({error}), expected whole {piece.form}; replace it"
                ) from None
            if not line:
                break
            number += 1
            place += len(line)
            if line.isspace():
                continue
            try:
                yield parse(line)
            except ValueError as error:
                yield Bad(_reason(line, error), f"{path}, line {number + _lines_before(path, piece, ranged)}")
    if ranged and place < piece.stop:
        raise DataError(f"{path}: found {place} bytes, expected {piece.stop} or more; it changed since it was planned")


def _skip_to_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that starts at `start` or later; returns where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    file.readline()
    return file.tell()


def _lines_before(path: Path, piece: Piece, ranged: bool) -> int:
    if not ranged or piece.start == 0:
        return 0
    count = 0
    with path.open("rb") as file:
        left = _skip_to_line(file, piece.start)
        file.seek(0)
        while left and (block := file.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def _json_parser(field: str) -> Callable[[bytes], str]:
    """Reads only the text field of a JSON object; the rest is skipped over, not built."""
    struct: Any = msgspec.defstruct("Line", [("text", str)], rename={"text": field})
    decode = msgspec.json.Decoder(struct).decode

    def parse(line: bytes) -> str:
        text: str = decode(line).text
        return text

    return parse


def _text_parser(line: bytes) -> str:
    return line.decode("utf-8").removesuffix("\n").removesuffix("\r")


def _reason(line: bytes, error: ValueError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in str(error):
            return "no such field"
        return "not an object" if "Expected `object`" in str(error) else "the field is not text"
    return "not JSON"


def _read_parquet(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if field not in columns:
            raise DataError(f"{path}: found the columns {', '.join(columns)}, expected {field}; set data.text_field")
        row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, piece.stop))
        for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=[field]):
            yield from _texts(batch.column(0).to_pylist(), path, row)
            row += batch.num_rows


def _read_dataset(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    dataset = open_dataset(path, piece.name)
    if field not in dataset.column_names:
        raise DataError(
            f"{path}: found the columns {', '.join(dataset.column_names)}, expected {field}; set data.text_field"
        )
    for start in range(piece.start, piece.stop, ROWS):
        yield from _texts(dataset[start : min(start + ROWS, piece.stop)][field], path, start)


def _texts(values: list[Any], path: Path, row: int) -> Iterator[Document]:
    for offset, value in enumerate(values):
        yield value if isinstance(value, str) else Bad("the field is not text", f"{path}, row {row + offset}")
