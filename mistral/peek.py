"""a corpus -> its first documents as a model will see them."""

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mistral.config import Experiment
from mistral.corpus import Plan, plan_units
from mistral.packing import Packer
from mistral.splitting import SPLITS, training_texts
from mistral.tokens import read_tokenizer
from mistral.vocabulary import write_tokenizer
from mistral.workspace import Workspace

SHOWN_TOKENS = 200  # of each document


def first_documents(experiment: Experiment, workspace: Workspace, count: int) -> Iterator[str]:
    """The first documents of a corpus as a model will see them; changes nothing but what is fetched.

    Raises:
        DataError: the corpus cannot be read.
    """
    plan, data = plan_units(experiment, workspace.sources()), experiment.data
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace.tokenizer(data.dataset_name())
        if not folder.exists():
            folder = Path(temporary) / "tokenizer"
            write_tokenizer(experiment, folder, partial(training_texts, data, plan))
        tokenizer = read_tokenizer(folder, data.tokenizer_engine)
        with Packer(data, tokenizer, Path(temporary)) as packer:
            yield from itertools.islice(_shown_documents(packer, plan), count)


def _shown_documents(packer: Packer, plan: Plan) -> Iterator[str]:
    numbers = {split: itertools.count() for split in SPLITS}
    for unit in plan.units:
        for block in packer.packed_blocks(unit, plan.files):
            for bad in block.bad:
                yield f"--- {bad.where()}: {bad.reason}"
            for split, part in block.parts.items():
                for number, (digest, size) in enumerate(zip(part.digests, part.sizes, strict=True)):
                    ids = part.encoded.document(number)
                    text = packer.tokenizer.decode(ids[:SHOWN_TOKENS])
                    rest = f" [{len(ids) - SHOWN_TOKENS:,} more tokens] " if len(ids) > SHOWN_TOKENS else ""
                    end = packer.tokenizer.decode(part.encoded.tokens[part.encoded.ends[number] - 1 :][:1])
                    yield (
                        f"--- {split} document {next(numbers[split])}: {len(ids):,} tokens, {size:,} bytes, "
                        f"sha256 {digest.hex()[:16]}\n{text}{rest}{end}"
                    )
