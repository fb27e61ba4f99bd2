"""documents -> token ids by byte-level BPE, and back; exact to transformers' GPT2TokenizerFast.

A literal `<|endoftext|>` inside a document is text: the id of end-of-text stands only between documents. Two engines
give the same ids: `fast` (fastokens) and `reference` (Hugging Face's tokenizers); the fast one is held against the
reference on samples.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from mistral import passthrough
from mistral.errors import DataError
from mistral.files import sha256_of
from mistral.shards import Int64, Tokens, token_dtype
from mistral.sizes import LARGEST_VOCABULARY

PIECE_CHARACTERS = 1 << 18
BATCH_CHARACTERS = 4 << 20
SAMPLE_CHARACTERS = 1000  # of one document that is held against the reference, at least
LONGEST_SAMPLE = 10_000  # a text without a gap that is longer is not held against it
# Between such a character and the white space after it, GPT-2's pattern always ends one word and begins the next: white
# space stands only at the beginning of its words, and it looks ahead from white space only.
BETWEEN_WORDS = re.compile(r"[!-~](?=[ \n])")

FILES = ("tokenizer.json", "tokenizer_config.json")
EngineName = Literal["fast", "reference"]


class Engine(Protocol):
    """Encodes texts; safe to call from several threads."""

    def encode(self, texts: list[Any]) -> tuple[npt.NDArray[np.uint32], Int64]:
        """Ids of all texts in one row, (ids,) uint32, and the index after the last id of each, (texts,) int64."""


class FastEngine:
    """fastokens: the same ids at about a hundred times the speed of the reference."""

    def __init__(self, text: str) -> None:
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # the threads are the pipeline's own
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(text)

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.uint32], Int64]:
        """As Engine.encode."""
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<u8")[1:].astype(np.int64)


class ReferenceEngine:
    """Hugging Face's tokenizers: what defines the right ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> tuple[npt.NDArray[np.uint32], Int64]:
        """As Engine.encode."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        ids = np.fromiter((number for row in rows for number in row), dtype=np.uint32)
        return ids, np.cumsum([len(row) for row in rows], dtype=np.int64)


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens: (tokens,) uint16 or uint32 with end-of-text after each, and (documents,) int64 ends."""

    tokens: Tokens
    ends: Int64

    def starts(self) -> Int64:
        """(documents,) int64: index of each document's first token."""
        return np.concatenate([np.zeros(1, dtype=np.int64), self.ends])[:-1]

    def document(self, number: int) -> Tokens:
        """The tokens of one document, without its end-of-text."""
        return self.tokens[self.ends[number - 1] if number else 0 : self.ends[number] - 1]

    def only(self, numbers: list[int]) -> "Encoded":
        """Some of its documents, in order."""
        lengths = np.diff(self.ends, prepend=0)
        chosen = np.zeros(len(self.ends), dtype=bool)
        chosen[numbers] = True
        return Encoded(self.tokens[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen], dtype=np.int64))


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as the pipeline uses it."""

    engine: Engine
    reference: Any  # tokenizers.Tokenizer; what else decodes where the corpus is token ids
    sha256: str
    vocabulary_size: int
    end_of_text_id: int
    cuts: bool  # whether a long text may be cut between words without changing an id
    checked: bool = True  # whether there is another engine to hold it against

    def encode(self, texts: list[Any]) -> Encoded:
        """Token ids of documents (texts, or ids where the corpus is ids), each ended by end-of-text.

        Long texts are encoded in pieces, so that memory does not grow with their length.
        """
        dtype, parts, ends, before = token_dtype(self.vocabulary_size), [], [], 0
        if not texts:
            return Encoded(np.zeros(0, dtype=dtype), np.zeros(0, dtype=np.int64))
        counts: list[int] = []  # pieces of each text, where they are cut
        short = sum(map(len, texts)) <= BATCH_CHARACTERS
        for batch in [texts] if short else _batches(self._pieces(texts, counts)):
            ids, batch_ends = self.engine.encode(batch)
            parts.append(ids.astype(dtype))
            ends.append(batch_ends + before)
            before += len(ids)
        document_ends = ends[0] if short else np.concatenate(ends)[np.cumsum(counts) - 1]
        tokens = np.insert(np.concatenate(parts) if len(parts) > 1 else parts[0], document_ends, self.end_of_text_id)
        return Encoded(tokens, document_ends + np.arange(1, len(texts) + 1))

    def _pieces(self, texts: list[Any], counts: list[int]) -> Iterator[Any]:
        """All texts in pieces; tells how many each one had."""
        for text in texts:
            count = 0
            for piece in pieces_of(text) if self.cuts else (text,):
                count += 1
                yield piece
            counts.append(count)

    def hold_against_reference(self, text: str, ids: Tokens) -> None:
        """Compare the ids of a document, or of its beginning, with Hugging Face's.

        Args:
            text: the document; one whose beginning cannot be cut off is not compared.
            ids: (n,) its token ids, without end-of-text.

        Raises:
            DataError: they differ.
        """
        sample = beginning_of(text) if self.cuts else text
        if len(sample) > LONGEST_SAMPLE or not self.checked:
            return
        expected = self.reference.encode(sample, add_special_tokens=False).ids
        found = ids[: len(expected)].tolist() if len(sample) < len(text) else ids.tolist()
        if found != expected:
            at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), -1)
            raise DataError(
                f"found token ids {found[at : at + 8]} for a document where Hugging Face's tokenizer gives "
                f"{expected[at : at + 8]} (token {at} of the text {sample[:60]!r}), expected the same ids\n"
                "  set data.tokenizer_engine: reference, and report this text"
            )

    def decode(self, ids: Tokens) -> str:
        """The text of token ids; end-of-text is shown as `<|endoftext|>`."""
        text: str = self.reference.decode(ids.tolist(), skip_special_tokens=False)
        return text


def read_tokenizer(folder: Path, engine: EngineName = "fast") -> Tokenizer:
    """Load the tokenizer that `write_tokenizer` put into a folder.

    Raises:
        DataError: it cannot be read, or has no end-of-text token.
    """
    from tokenizers import Tokenizer as Reference

    if (folder / passthrough.FILE).exists():
        return _read_passthrough(folder)
    path = folder / "tokenizer.json"
    try:
        body, config = (msgspec.json.decode((folder / name).read_bytes()) for name in FILES)
        text = _quick_to_read(body)
        reference: Any = Reference.from_str(text)
        fast = FastEngine(text) if engine == "fast" else None
        size, cuts = _size(body), may_cut(body)
    except Exception as error:  # the libraries raise plain Exception for a broken tokenizer.json
        raise DataError(
            f"{folder}: found no tokenizer that the {engine} engine can read ({error}), expected one\n"
            "  set data.tokenizer_engine: reference if it is whole; else remove the folder and preprocess again"
        ) from error
    if size > LARGEST_VOCABULARY:
        raise DataError(
            f"{path}: found token ids up to {size - 1:,}, expected at most {LARGEST_VOCABULARY - 1:,}; give "
            "another tokenizer"
        )
    end_of_text = config.get("eos_token")
    name = end_of_text.get("content") if isinstance(end_of_text, dict) else end_of_text
    end_of_text_id = None if name is None else reference.token_to_id(name)
    if end_of_text_id is None:
        raise DataError(f"{folder}: found a tokenizer without an eos_token, expected one to end documents; add it")
    reference.encode_special_tokens = True
    reference.no_truncation()
    reference.no_padding()
    chosen = fast or ReferenceEngine(reference)
    return Tokenizer(chosen, reference, sha256_of(path), size, end_of_text_id, cuts)


def _size(body: dict[str, Any]) -> int:
    """The largest id of a tokenizer.json, and one: ids may have gaps."""
    vocabulary = body["model"]["vocab"]  # token -> id, or rows in the order of their ids
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest: int = max([*ids, *(token["id"] for token in body["added_tokens"])])
    return largest + 1


def _quick_to_read(body: dict[str, Any]) -> str:
    """A tokenizer.json with its merges as texts, which both libraries read in two thirds of the time."""
    model = body["model"]
    pairs = model.get("merges") or []
    joined = [" ".join(pair) for pair in pairs if isinstance(pair, list)]
    if len(joined) == len(pairs) > 0 and all(text.count(" ") == 1 for text in joined):
        body = {**body, "model": {**model, "merges": joined}}
    return msgspec.json.encode(body).decode("utf-8")


def _read_passthrough(folder: Path) -> Tokenizer:
    vocabulary, engine = passthrough.read_passthrough(folder), passthrough.IdsEngine()
    sha256 = sha256_of(folder / passthrough.FILE)
    return Tokenizer(
        engine, engine, sha256, vocabulary.vocab_size, vocabulary.end_of_text_id, cuts=False, checked=False
    )


# --- long texts -------------------------------------------------------------------------------------------------


def may_cut(body: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits by GPT-2's pattern, and nothing else in it looks at the text."""
    splitter = body["pre_tokenizer"] or {}
    plain = splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]
    return bool(plain) and body["normalizer"] is None and all(token["special"] for token in body["added_tokens"])


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces of about PIECE_CHARACTERS, cut between words; their ids are together the ids of the text."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS and (found := BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def beginning_of(text: str) -> str:
    """About SAMPLE_CHARACTERS of a text, cut between words: their ids are the first ids of the text."""
    found = BETWEEN_WORDS.search(text, SAMPLE_CHARACTERS, LONGEST_SAMPLE)
    return text[: found.end()] if found else text


def _batches(texts: Iterable[Any]) -> Iterator[list[Any]]:
    batch, characters = list[Any](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
