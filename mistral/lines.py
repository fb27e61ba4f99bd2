"""files of lines (.jsonl, .json, .txt, .md, also compressed) -> blocks of whole lines -> documents."""

import gzip
import io
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import filterfalse
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mistral.corpus import COMPRESSED, Piece
from mistral.datasections import PassthroughIds
from mistral.documents import Bad, Block, Document, Ids
from mistral.errors import DataError
from mistral.passthrough import WrongIds, ids_document

BLOCK_BYTES = 1 << 20  # of lines that are read and parsed at a time: they stay in the processor's cache
COMPRESSED_BYTES = 1 << 16  # a block that expands a thousandfold still fits into memory
LARGEST_WINDOW = 2**31  # zstd --long=31
BLANK = b" \t\n\r\x0b\x0c"

# Lines -> the document of each; ValueError or RecursionError if one of them has none.
Parser = Callable[[Iterable[bytes]], Sequence[str | Ids]]


def read_line_blocks(path: Path, piece: Piece, parse: Parser) -> Iterator[Block]:
    """Lines that start inside [start, stop) of the file, in blocks; blank ones are no documents.

    Raises:
        DataError: the file ends before `stop`.
    """
    ranged = piece.form not in COMPRESSED
    with path.open("rb", buffering=BLOCK_BYTES) as raw, _decompressed(raw, piece.form) as file:
        place = _skip_to_line(file, piece.start) if ranged else 0
        before = raw.tell()
        while not ranged or place < piece.stop:
            lines = _whole_lines(file, min(BLOCK_BYTES, piece.stop - place) if ranged else BLOCK_BYTES)
            if not lines:
                break
            after = raw.tell()
            source_bytes, before = (len(lines) if ranged else after - before), after
            yield Block(source_bytes, len(lines), _LineBlock(path, piece.form, place, lines, parse).documents)
            place += len(lines)
    if ranged and place < piece.stop:
        raise DataError(f"{path}: found {place} bytes, expected {piece.stop} or more; it changed since it was planned")


def _whole_lines(file: BinaryIO, size: int) -> bytes:
    """`size` bytes and the rest of their last line."""
    lines = file.read(size)
    return lines if lines.endswith(b"\n") else lines + file.readline()


class _LineBlock:
    """Lines that begin at a place of a (decompressed) file."""

    def __init__(self, path: Path, form: str, place: int, lines: bytes, parse: Parser) -> None:
        self._path, self._form, self._place = path, form, place
        self._lines, self._parse = lines, parse

    def documents(self) -> list[Document]:
        """Its documents: the whole block at once, or line by line if one of them is blank or bad."""
        lines = list(io.BytesIO(self._lines))
        try:
            for line in filterfalse(bytes.isascii, lines):
                line.decode("utf-8")  # JSON's reader skips over the fields that nobody asks for
            return list(self._parse(lines))
        except (ValueError, RecursionError):
            return [self._document(line, number) for number, line in enumerate(lines, 1) if line.strip(BLANK)]

    def _document(self, line: bytes, number: int) -> Document:
        try:
            line.decode("utf-8")
            return self._parse([line])[0]
        except (ValueError, RecursionError) as error:
            reason, found = _reason(line, error), f"{error}, in the line {line[:60]!r}"
            path, form, place = self._path, self._form, self._place
            return Bad(reason, found, lambda: f"{path}, line {_lines_before(path, form, place) + number}")


# --- one line ---------------------------------------------------------------------------------------------------


def json_parser(field: str, vocabulary: PassthroughIds | None = None) -> Parser:
    """Reads only one field of a JSON object, text or token ids; the rest is skipped over, not built."""
    kind = str if vocabulary is None else list[int]
    struct: Any = msgspec.defstruct("Line", [("content", kind)], rename={"content": field}, gc=False)
    decode, content = msgspec.json.Decoder(struct).decode, operator.attrgetter("content")
    if vocabulary is not None:
        return lambda lines: [ids_document(content(decode(line)), vocabulary) for line in lines]
    return lambda lines: list(map(content, map(decode, lines)))  # no step of Python for a line


def text_parser(lines: Iterable[bytes]) -> list[str]:
    """Lines of text without their ends.

    Raises:
        ValueError: one is blank, which is no document, or not UTF-8.
    """
    return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    if not line.strip(BLANK):
        raise ValueError("blank")
    return line.decode("utf-8").removesuffix("\n").removesuffix("\r")


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if isinstance(error, WrongIds):
        return "wrong ids"
    if isinstance(error, msgspec.ValidationError):
        if "missing required field" in str(error):
            return "no such field"
        if "Expected `object`" in str(error):
            return "not an object"
        return "the field is not text" if "Expected `str`" in str(error) else "the field is not a list of ids"
    return "lone surrogate" if _has_lone_surrogate(line) else "not JSON"


def _has_lone_surrogate(line: bytes) -> bool:
    """Whether a line that is not strict JSON is JSON for Python, which takes half a character for a whole one."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return b"\\ud" in line.lower()


# --- files ------------------------------------------------------------------------------------------------------


def _decompressed(raw: BinaryIO, form: str) -> BinaryIO:
    if form.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK_BYTES)
    if form.endswith(".zst"):
        return io.BufferedReader(_Blocks(_zstd_blocks(raw)), BLOCK_BYTES)
    return raw


def _zstd_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """All frames of a stream, decompressed; zstandard's own reader takes a stream cut short for a whole one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    frame = None
    while block := raw.read(COMPRESSED_BYTES):
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


def _lines_before(path: Path, form: str, place: int) -> int:
    """Line ends in the first `place` bytes of a (decompressed) file."""
    count = 0
    with path.open("rb") as raw, _decompressed(raw, form) as file:
        while place and (block := file.read(min(place, BLOCK_BYTES))):
            count += block.count(b"\n")
            place -= len(block)
    return count
