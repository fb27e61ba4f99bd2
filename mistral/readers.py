"""a piece of a source file -> its documents, one by one; a document that cannot be read comes as a Bad."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mistral.corpus import COMPRESSED, DATASET, JSON_LINES, Piece, open_dataset
from mistral.errors import DataError

ROWS = 1000  # read at a time from parquet and datasets
BUFFER_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 16  # a block that expands a thousandfold still fits into memory
LARGEST_WINDOW = 2**31  # zstd --long=31


@dataclass(frozen=True)
class Bad:
    """A document that cannot be used: why, what was found, and where it stands (asked for only if somebody is told)."""

    reason: str
    found: str
    where: Callable[[], str]


Document = str | Bad


def read_piece(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    """The documents of a piece, in order. Memory stays at one document and a small buffer.

    Raises:
        DataError: the file is shorter or longer than when it was planned, is damaged, or cannot be read at all.
    """
    try:
        yield from _read(path, piece, field)
    except DataError:
        raise
    except _damaged() as error:
        raise DataError(
            f"{path}: found a file that cannot be read ({error}), expected whole {piece.form}\n"
            "  replace it, and check its permissions and the disk"
        ) from error


def _damaged() -> tuple[type[Exception], ...]:
    """What Python and the libraries raise for files that are damaged or cannot be read."""
    import pyarrow
    import zstandard

    return OSError, EOFError, ValueError, zlib.error, pyarrow.ArrowException, zstandard.ZstdError


def _read(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    if piece.form == DATASET:
        return _read_dataset(path, piece, field)
    if piece.form == ".parquet":
        return _read_parquet(path, piece, field)
    if piece.form in JSON_LINES:
        return _read_lines(path, piece, _json_parser(field))
    return _read_lines(path, piece, _text_parser) if piece.line_documents else _read_whole(path, piece)


def _read_whole(path: Path, piece: Piece) -> Iterator[Document]:
    raw = path.read_bytes()
    if len(raw) != piece.stop:
        raise DataError(f"{path}: found {len(raw)} bytes, expected the {piece.stop} of the plan; do not change it now")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield Bad("not UTF-8", str(error), lambda: f"{path}, line {line}")
        return
    yield text


# --- lines ------------------------------------------------------------------------------------------------------


def _read_lines(path: Path, piece: Piece, parse: Callable[[bytes], str]) -> Iterator[Document]:
    """Lines that start inside [start, stop) of the file; blank ones are no documents."""
    ranged = piece.form not in COMPRESSED
    with _open(path, piece.form) as file:
        place = _skip_to_line(file, piece.start) if ranged else 0
        number = 0
        while (not ranged or place < piece.stop) and (line := file.readline()):
            number += 1
            place += len(line)
            if not line.isspace():
                yield _parsed(line, parse, path, piece, number)
    if ranged and place < piece.stop:
        raise DataError(f"{path}: found {place} bytes, expected {piece.stop} or more; it changed since it was planned")


def _parsed(line: bytes, parse: Callable[[bytes], str], path: Path, piece: Piece, number: int) -> Document:
    try:
        return parse(line)
    except (ValueError, RecursionError) as error:
        reason, found = _reason(line, error), f"{error}, in the line {line[:60]!r}"
        return Bad(reason, found, lambda: f"{path}, line {number + _lines_before(path, piece)}")


def _open(path: Path, form: str) -> BinaryIO:
    if form.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]  # a BinaryIO in all that is used here
    if form.endswith(".zst"):
        return io.BufferedReader(_Blocks(_zstd_blocks(path)), BUFFER_BYTES)
    return path.open("rb", buffering=BUFFER_BYTES)


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    """All frames of a stream, decompressed; zstandard's own reader takes a stream cut short for a whole one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    frame = None
    with path.open("rb") as file:
        while block := file.read(COMPRESSED_BYTES):
            while block:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the stream ends inside a frame")


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _skip_to_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that starts at `start` or later; returns where that is."""
    if start == 0:
        return 0
    file.seek(start - 1)
    file.readline()
    return file.tell()


def _lines_before(path: Path, piece: Piece) -> int:
    """Lines that start before the piece's own first one."""
    if piece.start == 0 or piece.form in COMPRESSED:
        return 0
    count = 0
    with path.open("rb") as file:
        left = _skip_to_line(file, piece.start)
        file.seek(0)
        while left and (block := file.read(min(left, BUFFER_BYTES))):
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


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in str(error):
            return "no such field"
        return "not an object" if "Expected `object`" in str(error) else "the field is not text"
    return "lone surrogate" if _has_lone_surrogate(line) else "not JSON"


def _has_lone_surrogate(line: bytes) -> bool:
    """Whether a line that is not strict JSON is JSON for Python, which takes half a character for a whole one."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return b"\\ud" in line.lower()


# --- rows -------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        require_column(path, file.schema_arrow.names, field)
        if file.metadata.num_row_groups < piece.stop:
            raise DataError(f"{path}: found fewer row groups than were planned; do not change it now")
        row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, piece.stop))
        for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=[field]):
            yield from _texts(batch.column(0), path, row)
            row += batch.num_rows


def _read_dataset(path: Path, piece: Piece, field: str) -> Iterator[Document]:
    dataset = open_dataset(path, piece.name)
    require_column(path, dataset.column_names, field)
    if len(dataset) < piece.stop:
        raise DataError(f"{path}: found {len(dataset)} rows, expected {piece.stop} or more; do not change it now")
    column = dataset.select_columns([field]).with_format("arrow")
    for start in range(piece.start, piece.stop, ROWS):
        yield from _texts(column[start : min(start + ROWS, piece.stop)].column(0), path, start)


def require_column(path: Path, columns: list[str], field: str) -> None:
    """Refuse a table without the text field.

    Raises:
        DataError: names the columns that it has.
    """
    if field not in columns:
        raise DataError(f"{path}: found the columns {', '.join(columns)}, expected {field}; set data.text_field")


def _texts(values: Iterable[Any], path: Path, first: int) -> Iterator[Document]:
    for row, value in enumerate(values, first):
        yield _text(value, path, row)


def _text(value: Any, path: Path, row: int) -> Document:
    def where() -> str:
        return f"{path}, row {row} (the first is 0)"

    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", str(error), where)
    return text if isinstance(text, str) else Bad("the field is not text", f"a value of type {value.type}", where)
