"""Two ways that keep everything in Arrow: datasets.map with the tokenizer, then datasets.map to blocks of 1,024 tokens.

`mistral` is written anew after src/corpora/auto.py of stanford-crfm/mistral, `run_clm` after transformers' run_clm.py.
Neither puts end-of-text between documents; both drop the rest of every 1,000 documents.
"""

import copy
import functools
import itertools
import operator
import sys
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerFast

SEQ_LEN = 1024
Columns = dict[str, list[Any]]


def group_like_mistral(examples: Columns) -> Columns:
    """Blocks of SEQ_LEN tokens; lists are added one to the next."""
    joined: Columns = {key: functools.reduce(operator.add, lists, []) for key, lists in examples.items()}
    total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
    blocks = {key: [ids[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, ids in joined.items()}
    return blocks | {"labels": copy.deepcopy(blocks["input_ids"])}


def group_like_run_clm(examples: Columns) -> Columns:
    """Blocks of SEQ_LEN tokens; lists are chained."""
    joined = {key: list(itertools.chain(*lists)) for key, lists in examples.items()}
    total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
    blocks = {key: [ids[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, ids in joined.items()}
    return blocks | {"labels": blocks["input_ids"].copy()}


def main(way: str, corpus: Path, output: Path, cores: int, folder: Path) -> int:
    """Returns the number of tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def tokenize(examples: Columns) -> Any:
        return tokenizer(examples["text"])

    group = {"mistral": group_like_mistral, "run_clm": group_like_run_clm}[way]
    files = sorted(map(str, corpus.glob("*.jsonl")))
    text = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(output / "hf"))
    tokens_file, blocks_file = str(output / "tokenized.arrow"), str(output / "blocks.arrow")
    tokenized = text.map(tokenize, batched=True, num_proc=cores, remove_columns=["text"], cache_file_name=tokens_file)
    blocks = tokenized.map(group, batched=True, num_proc=cores, cache_file_name=blocks_file)
    return len(blocks) * SEQ_LEN


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
