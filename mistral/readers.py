"""a piece of a source -> blocks of its documents, in order; refuses a source that changed since it was planned."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mistral.corpus import DATASET, JSON_LINES, Piece, SourceFile
from mistral.datasections import PassthroughIds
from mistral.documents import Bad, Block, Document
from mistral.errors import DataError
from mistral.hubsource import open_dataset
from mistral.lines import json_parser, read_line_blocks, text_parser
from mistral.passthrough import WrongIds, ids_document

ROWS = 1000  # of parquet and datasets that are read at a time, at most
ROW_BYTES = 4 << 20  # about as many of them as hold this much


def read_piece(
    source: SourceFile, piece: Piece, field: str, vocabulary: PassthroughIds | None = None
) -> Iterator[Document]:
    """The documents of a piece, in order. As `read_blocks`, and parsed."""
    for block in read_blocks(source, piece, field, vocabulary):
        yield from block.parse()


def read_blocks(
    source: SourceFile, piece: Piece, field: str, vocabulary: PassthroughIds | None = None
) -> Iterator[Block]:
    """The documents of a piece in blocks, in order. Memory stays at one block, which is one document or about 1 MB.

    Args:
        source: where its file is.
        piece: what to read of it.
        field: of JSON objects and tables.
        vocabulary: of a field that holds token ids; text unless given.

    Raises:
        DataError: the file is not as it was planned, is damaged, or cannot be read at all.
    """
    source.require_unchanged()
    try:
        yield from _read(source.path, piece, field, vocabulary)
    except DataError:
        raise
    except _damaged() as error:
        raise DataError(
            f"{source.path}: found a file that cannot be read ({error}), expected whole {piece.form}\n"
            "  replace it, and check its permissions and the disk"
        ) from error
    source.require_unchanged()


def _damaged() -> tuple[type[Exception], ...]:
    """What Python and the libraries raise for files that are damaged or cannot be read."""
    import pyarrow
    import zstandard

    return OSError, EOFError, ValueError, zlib.error, pyarrow.ArrowException, zstandard.ZstdError


def _read(path: Path, piece: Piece, field: str, vocabulary: PassthroughIds | None) -> Iterator[Block]:
    if piece.form == DATASET:
        return _read_dataset(path, piece, field, vocabulary)
    if piece.form == ".parquet":
        return _read_parquet(path, piece, field, vocabulary)
    if piece.form in JSON_LINES:
        return read_line_blocks(path, piece, json_parser(field, vocabulary))
    if vocabulary is not None:
        raise DataError(f"{path}: found a file of text, expected token ids in jsonl, parquet or a dataset; convert it")
    return read_line_blocks(path, piece, text_parser) if piece.line_documents else _read_whole(path, piece)


def _read_whole(path: Path, piece: Piece) -> Iterator[Block]:
    raw = path.read_bytes()
    if len(raw) != piece.stop:
        raise DataError(f"{path}: found {len(raw)} bytes, expected the {piece.stop} of the plan; do not change it now")

    def parse() -> list[Document]:
        try:
            return [raw.decode("utf-8")]
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            return [Bad("not UTF-8", str(error), lambda: f"{path}, line {line}")]

    yield Block(len(raw), len(raw), parse)


# --- rows -------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, piece: Piece, field: str, vocabulary: PassthroughIds | None) -> Iterator[Block]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        require_column(path, file.schema_arrow.names, field)
        if file.metadata.num_row_groups < piece.stop:
            raise DataError(f"{path}: found fewer row groups than were planned; do not change it now")
        row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, piece.stop))
        rows = sum(file.metadata.row_group(i).num_rows for i in groups)
        at_a_time = _rows_at_a_time(piece, rows)
        for batch in file.iter_batches(batch_size=at_a_time, row_groups=groups, columns=[field], use_threads=False):
            yield _rows_block(path, batch.column(0), row, piece.bytes * batch.num_rows // rows, vocabulary)
            row += batch.num_rows


def _read_dataset(path: Path, piece: Piece, field: str, vocabulary: PassthroughIds | None) -> Iterator[Block]:
    dataset = open_dataset(path, piece.name)
    require_column(path, dataset.column_names, field)
    if len(dataset) < piece.stop:
        raise DataError(f"{path}: found {len(dataset)} rows, expected {piece.stop} or more; do not change it now")
    table = dataset.select_columns([field]).with_format("arrow")
    rows = piece.stop - piece.start
    at_a_time = _rows_at_a_time(piece, rows)
    for start in range(piece.start, piece.stop, at_a_time):
        column = table[start : min(start + at_a_time, piece.stop)].column(0)
        yield _rows_block(path, column.combine_chunks(), start, piece.bytes * len(column) // rows, vocabulary)


def _rows_at_a_time(piece: Piece, rows: int) -> int:
    return max(1, min(ROWS, rows * ROW_BYTES // max(1, piece.bytes)))


def require_column(path: Path, columns: list[str], field: str) -> None:
    """Refuse a table without the text field.

    Raises:
        DataError: names the columns that it has.
    """
    if field not in columns:
        raise DataError(f"{path}: found the columns {', '.join(columns)}, expected {field}; set data.text_field")


def _rows_block(path: Path, values: Any, first: int, source_bytes: int, vocabulary: PassthroughIds | None) -> Block:
    """A block of the rows of an Arrow array, of which `first` is the number of the first."""

    def parse() -> list[Document]:
        numbered = enumerate(values, first)
        if vocabulary is not None:
            return [_ids(value, vocabulary, path, row) for row, value in numbered]
        texts = _plain_texts(values)
        return texts if texts is not None else [_text(value, path, row) for row, value in numbered]

    return Block(source_bytes, values.nbytes, parse)


def _plain_texts(values: Any) -> list[Document] | None:
    """The texts of an array of strings, straight from its buffer; None unless every one is whole, valid text."""
    import pyarrow
    import pyarrow.compute

    if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)) or values.null_count:
        return None
    lengths = pyarrow.compute.binary_length(values).to_pylist()
    _, offsets, data = values.buffers()
    if data is None:
        return [""] * len(values)
    width = 4 if pyarrow.types.is_string(values.type) else 8
    start = int.from_bytes(memoryview(offsets)[values.offset * width : (values.offset + 1) * width], "little")
    view = memoryview(data)
    texts: list[Document] = []
    try:
        for length in lengths:
            texts.append(str(view[start : start + length], "utf-8"))
            start += length
    except UnicodeDecodeError:
        return None
    return texts


def _text(value: Any, path: Path, row: int) -> Document:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", str(error), lambda: _where(path, row))
    if isinstance(text, str):
        return text
    return Bad("the field is not text", f"a value of type {value.type}", lambda: _where(path, row))


def _ids(value: Any, vocabulary: PassthroughIds, path: Path, row: int) -> Document:
    inner = getattr(value, "values", None)
    if inner is None:
        return Bad("the field is not a list of ids", f"a value of type {value.type}", lambda: _where(path, row))
    try:
        return ids_document(inner.to_numpy(zero_copy_only=False), vocabulary)
    except WrongIds as error:
        found = str(error)
        return Bad("wrong ids", found, lambda: _where(path, row))


def _where(path: Path, row: int) -> str:
    return f"{path}, row {row} (the first is 0)"
