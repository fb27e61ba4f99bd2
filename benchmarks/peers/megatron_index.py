"""Megatron's way: JSON lines -> a tokenizer per document in worker processes -> .bin and .idx.

The builder of .bin and .idx is megatron-core's own; the loop around it, which no package brings, is written anew after
tools/preprocess_data.py, with Hugging Face's fast tokenizer and --append-eod.
"""

import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import PreTrainedTokenizerFast

CHUNK = 32
STATE: dict[str, Any] = {}  # of a worker process


def load(folder: str) -> None:
    """Give a worker process its tokenizer."""
    STATE["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder)


def encode(line: str) -> list[int]:
    """Token ids of one document, and end-of-text."""
    tokenizer = STATE["tokenizer"]
    ids: list[int] = tokenizer(json.loads(line)["text"]).input_ids
    ids.append(tokenizer.eos_token_id)
    return ids


def lines(corpus: Path) -> Iterator[str]:
    """The lines of all files."""
    for path in sorted(corpus.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from file


def main(corpus: Path, output: Path, cores: int, tokenizer: Path) -> int:
    """Returns the number of tokens."""
    vocabulary = PreTrainedTokenizerFast.from_pretrained(tokenizer).vocab_size
    tokens = 0
    with multiprocessing.Pool(cores, initializer=load, initargs=(str(tokenizer),)) as pool:
        builder = IndexedDatasetBuilder(str(output / "text.bin"), dtype=DType.optimal_dtype(vocabulary))
        for ids in pool.imap(encode, lines(corpus), CHUNK):
            builder.add_document(ids, [len(ids)])
            tokens += len(ids)
        builder.finalize(str(output / "text.idx"))
        pool.close()
        pool.join()
    return tokens


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
