"""a unit's documents -> one stream of tokens per split, each document ended by end-of-text; bounded memory."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from mistral.config import Data
from mistral.corpus import BY_HASH, Unit
from mistral.detokenize import detokenize_wikitext
from mistral.errors import DataError
from mistral.files import storage_errors
from mistral.readers import Bad, read_piece
from mistral.shards import Int64, Tokens, token_dtype
from mistral.tokens import Tokenizer

BATCH_CHARACTERS = 4_000_000  # of text that is tokenized at a time
SPILL_TOKENS = 32 << 20  # held in memory before they go to a temporary file


@dataclass
class Stream:
    """The tokens of one split of a unit; what exceeds 64 MiB waits in an unnamed temporary file."""

    folder: Path
    dtype: np.dtype[np.uint16] | np.dtype[np.uint32]
    tokens: int = 0
    text_bytes: int = 0
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._blocks: list[Tokens] = []
        self._held = 0
        self._spilled = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  closed by close()

    def append(self, ids: Tokens, end_of_text_id: int, text_bytes: int) -> None:
        """Add one document."""
        self.starts.append(self.tokens)
        self._blocks += [ids, np.array([end_of_text_id], dtype=self.dtype)]
        self.tokens += len(ids) + 1
        self.text_bytes += text_bytes
        self._held += len(ids) + 1
        if self._held > SPILL_TOKENS:
            with storage_errors(self.folder / "unnamed temporary file"):
                self._spilled.write(np.concatenate(self._blocks).tobytes())
            self._blocks, self._held = [], 0

    def blocks(self) -> Iterator[Tokens]:
        """All tokens in order, in blocks."""
        self._spilled.seek(0)
        while raw := self._spilled.read(SPILL_TOKENS):
            yield np.frombuffer(raw, dtype=self.dtype)
        if self._blocks:
            yield np.concatenate(self._blocks)

    def document_starts(self) -> Int64:
        """(documents,) int64."""
        return np.array(self.starts, dtype=np.int64)

    def facts(self) -> dict[str, int]:
        """What the unit's record says of this split."""
        return {"documents": len(self.starts), "tokens": self.tokens, "text_bytes": self.text_bytes}

    def close(self) -> None:
        """Give the temporary file back."""
        self._spilled.close()


@dataclass
class Packer:
    """Packs one unit: reads, splits, cleans and tokenizes its documents."""

    data: Data
    tokenizer: Tokenizer
    folder: Path
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        dtype = token_dtype(self.tokenizer.vocabulary_size)
        self.streams = {split: Stream(self.folder, dtype) for split in ("train", "validation")}
        self._waiting: list[tuple[str, str, int]] = []
        self._characters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams.values():
            stream.close()

    def pack(self, unit: Unit, paths: dict[str, Path], advance: Callable[[int], None]) -> None:
        """Read a unit to its end.

        Args:
            unit: what to read.
            paths: where its files are.
            advance: told the bytes of source that were read since the last call, about; together the unit's.

        Raises:
            DataError: a document cannot be read, and data.on_bad_document is stop.
        """
        for piece in unit.pieces:
            left = piece.bytes
            for document in read_piece(paths[piece.name], piece, self.data.text_field):
                if isinstance(document, Bad):
                    self._refuse(document)
                elif size := self._add(document, piece.split):
                    size = min(left, size)
                    left -= size
                    advance(size)
            advance(left)
        self._flush()

    def _refuse(self, bad: Bad) -> None:
        if self.data.on_bad_document == "stop":
            raise DataError(
                f"{bad.where()}: found a document that cannot be read: {bad.reason} ({bad.found}), expected text in "
                f"UTF-8, in the field {self.data.text_field!r} where there are fields\n"
                "  mend it, or set data.on_bad_document: skip to leave it out"
            )
        self.skipped[bad.reason] += 1

    def _add(self, text: str, split: str) -> int:
        """Put a document into the batch; returns its size in UTF-8 bytes."""
        raw = text.encode("utf-8")
        if not raw:
            self.skipped["empty"] += 1
            return 0
        if split == BY_HASH:
            split = "validation" if belongs_to_validation(raw, self.data.validation_fraction) else "train"
        if self.data.detokenizer == "wikitext":
            text = detokenize_wikitext(text)
        self._waiting.append((split, text, len(raw)))
        self._characters += len(text)
        if self._characters >= BATCH_CHARACTERS:
            self._flush()
        return len(raw)

    def _flush(self) -> None:
        ids = self.tokenizer.encode([text for _, text, _ in self._waiting])
        for (split, _, size), tokens in zip(self._waiting, ids, strict=True):
            self.streams[split].append(tokens, self.tokenizer.end_of_text_id, size)
        self._waiting, self._characters = [], 0


def belongs_to_validation(raw: bytes, fraction: float) -> bool:
    """Whether a document is validation: by the first 8 bytes, big-endian, of the sha256 of its UTF-8 text."""
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") / 2**64 < fraction
