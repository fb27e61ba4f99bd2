"""blocks of a source -> documents by split, hashed and cleaned: what is tokenized, deduplicated, trained on, shown."""

import functools
import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from mistral.config import Data
from mistral.corpus import BY_HASH, Piece, Plan, SourceFile, Unit
from mistral.detokenize import detokenize_wikitext
from mistral.documents import Bad, Block, Ids
from mistral.errors import DataError
from mistral.readers import read_blocks

SPLITS = ("train", "validation")
# hashlib gives up the interpreter's lock for this many bytes or more, and waits up to 5 ms to get it back where other
# threads want it too. Documents below LONG_BYTES take microseconds to hash, so they are hashed in smaller parts.
UNLOCKED_BYTES = 2048
LONG_BYTES = 1 << 20


@dataclass
class Documents:
    """The documents of one split, in order."""

    texts: list[Any] = field(default_factory=list)  # as they are tokenized; ids where the corpus is ids
    digests: list[bytes] = field(default_factory=list)  # sha256 of each one's UTF-8 text, or of its ids as uint32
    sizes: list[int] = field(default_factory=list)  # bytes of that

    def extend(self, texts: list[Any], hashed: list[tuple[bytes, int]]) -> None:
        """Add documents, and the hash and size of each."""
        self.texts += texts
        self.digests += [digest for digest, _ in hashed]
        self.sizes += [size for _, size in hashed]


@dataclass
class SplitBlock:
    """The documents of a block, by split, and what is not used of it."""

    splits: dict[str, Documents] = field(default_factory=lambda: {split: Documents() for split in SPLITS})
    bad: list[Bad] = field(default_factory=list)
    empty: int = 0


def split_block(data: Data, piece: Piece, block: Block) -> SplitBlock:
    """Parse a block of a piece; each document goes into its split, with the detokenizer applied."""
    documents, found = block.parse(), SplitBlock()
    used: list[Any] = [document for document in documents if not isinstance(document, Bad) and len(document)]
    if len(used) < len(documents):
        found.bad = [document for document in documents if isinstance(document, Bad)]
        found.empty = len(documents) - len(used) - len(found.bad)
    hashed = [_digest_and_size(document) for document in used]
    if data.detokenizer == "wikitext":
        used = [detokenize_wikitext(document) for document in used]
    if piece.split != BY_HASH:
        found.splits[piece.split].extend(used, hashed)
        return found
    first = first_train_digest(data.validation_fraction)
    train = [digest >= first for digest, _ in hashed]
    for split, chosen in (("train", train), ("validation", list(map(operator.not_, train)))):
        found.splits[split].extend(list(compress(used, chosen)), list(compress(hashed, chosen)))
    return found


def _digest_and_size(document: str | Ids) -> tuple[bytes, int]:
    """sha256 and length of a text's UTF-8 form, or of ids as little-endian uint32."""
    raw = document.encode("utf-8") if isinstance(document, str) else document.astype("<u4").tobytes()
    if not UNLOCKED_BYTES <= len(raw) <= LONG_BYTES:
        return hashlib.sha256(raw).digest(), len(raw)
    digest = hashlib.sha256()
    for start in range(0, len(raw), UNLOCKED_BYTES - 1):
        digest.update(raw[start : start + UNLOCKED_BYTES - 1])
    return digest.digest(), len(raw)


@functools.cache
def first_train_digest(fraction: float) -> bytes:
    """The least sha256 of a document that is not validation, or more than any if all are.

    A document is validation if the first 8 bytes of its sha256, big-endian, over 2^64 are below the fraction. As that
    quotient grows with the bytes, one comparison of bytes tells.
    """
    low, high = 0, 2**64
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle / 2**64 < fraction else (low, middle)
    return low.to_bytes(8, "big") if low < 2**64 else b"\xff" * 33


def unit_blocks(data: Data, unit: Unit, files: dict[str, SourceFile]) -> Iterator[tuple[Piece, Block]]:
    """The blocks of a unit, in order.

    Raises:
        DataError: a file is not as it was planned, is damaged, or cannot be read at all.
    """
    for piece in unit.pieces:
        for block in read_blocks(files[piece.name], piece, data.text_field, data.passthrough()):
            yield piece, block


def source_hashes(data: Data, unit: Unit, files: dict[str, SourceFile]) -> dict[str, str]:
    """Of each split of a unit: the sha256 of the sha256 of its documents in a row, read again from the source."""
    found = {split: hashlib.sha256() for split in SPLITS}
    for piece, block in unit_blocks(data, unit, files):
        for split, documents in split_block(data, piece, block).splits.items():
            found[split].update(b"".join(documents.digests))
    return {split: digest.hexdigest() for split, digest in found.items()}


def refuse(data: Data, bad: Bad) -> None:
    """Stop at a bad document, unless they are skipped.

    Raises:
        DataError: says where it is and what is wrong with it.
    """
    if data.on_bad_document == "stop":
        raise DataError(
            f"{bad.where()}: found a document that cannot be read: {bad.reason} ({bad.found}), expected "
            f"{'text in UTF-8' if data.passthrough() is None else 'token ids'}, in the field {data.text_field!r} where "
            "there are fields\n"
            "  mend it, or set data.on_bad_document: skip to leave it out"
        )


def training_texts(data: Data, plan: Plan, limit: int) -> Iterator[list[str]]:
    """Texts of the training split, about `limit` bytes: the same share of the beginning of every unit."""
    total = sum(unit.bytes() for unit in plan.units)
    for unit in plan.units:
        left = unit.bytes() * min(1.0, limit / max(1, total))
        for piece, block in unit_blocks(data, unit, plan.files):
            found = split_block(data, piece, block)
            for bad in found.bad:
                refuse(data, bad)
            yield found.splits["train"].texts
            left -= block.source_bytes
            if left <= 0:
                break
