"""a sample of a corpus -> the number of documents whose tokens in our shards differ from Hugging Face's tokenizer."""

import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contenders import ROOT, Place, ours, write_tokenizer_files

SAMPLE = 2_000
END_OF_TEXT = 50256
# What tokenizers like to get wrong: a literal end-of-text, white space of all kinds, apostrophes, other scripts,
# digits, code points that are newer than many tables, control characters, long runs.
AWKWARD = (
    "one <|endoftext|> two<|endoftext|>",
    "  two  spaces \t tab\r\nline\u00a0no-break\u2003em\u3000ideographic \x0b\x0c\x1c\x85 ends  ",
    "I'll say 'twas they'RE don't we'd 've \u2019s CAN'T",
    "Größe naïve Ελληνικά русский العربية हिन्दी 中文 日本語 한국어 עברית ไทย",
    "e\u0301 \u200d\u200b 👩‍👩‍👧‍👦🏽 🇩🇪 \U0001fae8 \U0001f6dc \U00010d4a \u1c89's \ua7da! \U00016d40,",
    "1234567890 3.14159 ٣٤٥ Ⅷ ½ ² 1e-9 0x7f",
    "\x00\x01\x1f\x7f \ufeff \ufffd",
    "a" * 5_000 + " " * 5_000 + "1" * 5_000 + "\n" * 500 + "!" * 500,
    " ",
)


def differing_documents(corpus: Path, scratch: Path) -> tuple[int, int]:
    """Preprocess a sample with the real command line and compare it.

    Args:
        corpus: folder of *.jsonl.
        scratch: where a temporary folder is made.

    Returns:
        How many documents were compared, and how many differ.
    """
    sample = [*AWKWARD, *itertools.islice(texts(corpus), SAMPLE)]
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        own = list(our_documents(sample, Path(folder)))
    reference = reference_documents(sample, scratch / "tokenizer")
    if len(own) != len(sample):
        return len(sample), len(sample)
    return len(sample), sum(not np.array_equal(a, b) for a, b in zip(own, reference, strict=True))


def texts(corpus: Path) -> Iterator[str]:
    """The texts of a corpus."""
    for path in sorted(corpus.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def our_documents(sample: list[str], folder: Path) -> Iterator[Any]:
    """The tokens of each document, with its end-of-text, out of the shards that preprocess writes."""
    from mistral.shards import locate_tokens, read_document_starts

    (folder / "corpus").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in sample)
    (folder / "corpus" / "0.jsonl").write_text(lines, encoding="utf-8")
    command = ours(Place(folder / "corpus", folder, folder, 2), Path())
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for path in sorted((folder / "workspace" / "data").glob("*/train/*.h5")):
        tokens, starts = locate_tokens(path).map(), read_document_starts(path)
        yield from np.split(tokens.copy(), starts[1:])


def reference_documents(sample: list[str], tokenizer: Path) -> Iterator[Any]:
    """The same by transformers' GPT2TokenizerFast, which is told that special tokens in a text are text."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(write_tokenizer_files(tokenizer)).backend_tokenizer
    reference.encode_special_tokens = True
    for text in sample:
        yield np.array([*reference.encode(text, add_special_tokens=False).ids, END_OF_TEXT])
