"""nanoGPT's way: datasets.map over single documents with tiktoken, then a memory map that is filled shard by shard.

Written anew after data/openwebtext/prepare.py; the corpus comes from JSON lines and is not split.
"""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tiktoken
import tiktoken.load
from tiktoken_ext.openai_public import r50k_pat_str

END_OF_TEXT, WRITES = 50256, 1024


def gpt2(vocabulary: Path) -> tiktoken.Encoding:
    """tiktoken's "gpt2" from the two files that it would fetch."""
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(vocabulary / "vocab.bpe"), encoder_json_file=str(vocabulary / "encoder.json")
    )
    special = {"<|endoftext|>": END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def main(corpus: Path, output: Path, cores: int, vocabulary: Path) -> int:
    """Returns the number of tokens."""
    encoding = gpt2(vocabulary)

    def process(example: dict[str, str]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        ids.append(END_OF_TEXT)
        return {"ids": ids, "len": len(ids)}

    files = sorted(map(str, corpus.glob("*.jsonl")))
    text = datasets.load_dataset("json", data_files=files, split="train", num_proc=cores, cache_dir=str(output / "hf"))
    tokenized = text.map(process, remove_columns=["text"], num_proc=cores)
    tokens = int(np.sum(tokenized["len"], dtype=np.uint64))
    array = np.memmap(output / "train.bin", dtype=np.uint16, mode="w+", shape=(tokens,))
    start, writes = 0, min(WRITES, len(tokenized))
    for index in range(writes):
        shard = tokenized.shard(num_shards=writes, index=index, contiguous=True).with_format("numpy")
        batch = np.concatenate(shard["ids"])
        array[start : start + len(batch)] = batch
        start += len(batch)
    array.flush()
    return tokens


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
