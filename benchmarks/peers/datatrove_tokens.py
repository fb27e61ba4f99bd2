"""datatrove's way: JsonlReader -> DocumentTokenizer, a task per core; unshuffled, as the others are."""

import sys
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main(corpus: Path, output: Path, cores: int, tokenizer: Path) -> int:
    """Returns the number of tokens."""
    writer = DocumentTokenizer(
        output_folder=str(output / "tokens"),
        tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
    )
    pipeline = [JsonlReader(str(corpus), glob_pattern="*.jsonl"), writer]
    LocalPipelineExecutor(pipeline, tasks=cores, workers=cores, logging_dir=str(output / "logs")).run()
    sizes = [path.stat().st_size for path in (output / "tokens").glob("*.ds")]
    return sum(sizes) // np.dtype(np.uint16).itemsize


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
