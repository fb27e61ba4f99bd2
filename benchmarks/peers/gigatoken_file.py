"""gigatoken's way: encode_files over JSON lines, in memory, then one raw file of uint16 with end-of-text between."""

import sys
from pathlib import Path

import gigatoken
import numpy as np

END_OF_TEXT = 50256


def main(corpus: Path, output: Path, tokenizer: Path) -> int:
    """Returns the number of tokens."""
    encoder = gigatoken.Tokenizer(str(tokenizer / "tokenizer.json"))
    source = gigatoken.JsonlFileSource(sorted(corpus.glob("*.jsonl")), field="text")
    layout = encoder.encode_files(source).layout
    offsets = np.asarray(layout.offsets)  # (documents + 1,)
    ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]  # (tokens,) uint32
    ends = offsets[1:] - offsets[0] + np.arange(len(offsets) - 1)  # of each document, in the stream
    stream = np.empty(len(ids) + len(ends), dtype=np.uint16)
    is_text = np.ones(len(stream), dtype=bool)
    is_text[ends] = False
    stream[is_text] = ids
    stream[ends] = END_OF_TEXT
    stream.tofile(output / "train.bin")
    return len(stream)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])))
