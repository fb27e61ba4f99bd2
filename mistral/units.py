"""planned units -> shards and records; the shards of one unit are committed while the next one is packed."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mistral.config import Data, Experiment
from mistral.corpus import Plan, SourceFile, Unit
from mistral.dataset import unit_names
from mistral.deduplication import drops_of
from mistral.files import make_folder, write_bytes
from mistral.manifest import FileEntry, Manifest, Record, make_record
from mistral.ordered import Workers
from mistral.packing import Packer, Stream
from mistral.progress import Progress
from mistral.readers import read_piece
from mistral.shards import ShardFacts, locate_tokens, write_shard
from mistral.splitting import source_hashes
from mistral.tokens import Tokenizer

MEGABYTE = 1_000_000
LEFTOVER_SECONDS = 3600


@dataclass(frozen=True)
class Work:
    """What packing a unit needs besides the unit."""

    experiment: Experiment
    manifest: Manifest
    plan: Plan
    tokenizer: Tokenizer
    progress: Progress
    workers: Workers  # the threads that parse and tokenize
    counts_words: bool = False
    duplicates: Record | None = None  # which documents are left out

    @property
    def dataset(self) -> str:
        """`<name>-<digest>`."""
        return self.experiment.data.dataset_name()

    def shard(self, split: str, unit: str) -> Path:
        """Where a shard stands."""
        return self.manifest.workspace.shard(self.dataset, split, unit)


def pack_missing(work: Work, units: list[Unit]) -> int:
    """Pack and record the units that are not recorded; returns how many those were."""
    recorded = set(unit_names(work.manifest, work.dataset))
    left = [unit for unit in units if unit.name not in recorded]
    total, done = sum(unit.bytes() for unit in units), sum(unit.bytes() for unit in units if unit.name in recorded)
    make_folder(work.manifest.workspace.dataset(work.dataset))
    work.progress.start(f"preprocess {work.dataset}", total / MEGABYTE, "MB", done / MEGABYTE)
    try:
        with ThreadPoolExecutor(1) as writer:
            committed: Future[None] | None = None
            for unit in left:
                packed = pack_unit(work, unit)
                if committed is not None:
                    committed.result()
                committed = writer.submit(commit_unit, work, unit, *packed)
            if committed is not None:
                committed.result()
    finally:
        work.progress.finish()
    return len(left)


def pack_unit(work: Work, unit: Unit) -> tuple[Packer, dict[str, float]]:
    """Read and tokenize one unit; returns its tokens and how long that took."""
    start, cpu_start = time.monotonic(), time.process_time()
    folder = work.manifest.workspace.dataset(work.dataset)
    drops = drops_of(work.manifest, work.duplicates, unit.name) if work.duplicates else {}
    packer = Packer(work.experiment.data, work.tokenizer, folder, work.workers, drops)
    try:
        packer.pack(unit, work.plan.files, lambda size: work.progress.advance(size / MEGABYTE))
    except BaseException:
        packer.close()
        raise
    return packer, {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu_start}


def commit_unit(work: Work, unit: Unit, packer: Packer, timing: dict[str, float]) -> None:
    """Write the shards of a packed unit and record it."""
    with packer:
        files = list(_write(work, unit, packer))
        facts = {
            "splits": {
                split: stream.facts() | _offset(work, split, unit, stream) for split, stream in packer.streams.items()
            },
            "skipped": dict(sorted(packer.skipped.items())),
            "tokenizer_sha256": work.tokenizer.sha256,
            "source_bytes": unit.bytes(),
            "pieces": [asdict(piece) for piece in unit.pieces],
            "mtimes": mtimes(unit, work.plan.files),
            "source_sha256": packer.source_sha256(),
            "timing": timing,
        }
    facts |= {"words": count_words(work, unit)} if work.counts_words else {}
    inputs = {"duplicates": work.duplicates.content} if work.duplicates else {}
    key, config = (work.dataset, unit.name), unit.digest(work.experiment.data.identity())
    work.manifest.publish(make_record("preprocess/unit", key, config=config, inputs=inputs, files=files, facts=facts))


def count_words(work: Work, unit: Unit) -> int:
    """Words of a unit's source text, as white space divides it; by them perplexities of tokenizers are compared."""
    field, files = work.experiment.data.text_field, work.plan.files
    texts = (text for piece in unit.pieces for text in read_piece(files[piece.name], piece, field))
    return sum(len(text.split()) for text in texts if isinstance(text, str))


def mtimes(unit: Unit, files: dict[str, SourceFile]) -> dict[str, int]:
    """When each file of a unit was changed last, in nanoseconds since 1970."""
    return {piece.name: files[piece.name].mtime_ns for piece in unit.pieces}


def has_other_text(data: Data, unit: Unit, files: dict[str, SourceFile], record: Record) -> bool:
    """Whether a unit's files were touched since they were recorded, and hold other documents now: reads them if so."""
    touched: bool = record.facts["mtimes"] != mtimes(unit, files)
    return touched and source_hashes(data, unit, files) != record.facts["source_sha256"]


def _write(work: Work, unit: Unit, packer: Packer) -> Iterator[FileEntry]:
    """The shard of each split that has documents, and the list of the validation documents."""
    for split, stream in packer.streams.items():
        if stream.tokens:
            path = work.shard(split, unit.name)
            sha256, end_of_text_id = work.tokenizer.sha256, work.tokenizer.end_of_text_id
            facts = ShardFacts(sha256, end_of_text_id, split, unit.name, stream.tokens, stream.documents)
            write_shard(path, facts, stream.blocks(), stream.document_starts())
            _remove_leftovers(path)
            yield work.manifest.entry(path)
    if packer.validation_documents:
        path = work.shard("validation", unit.name).with_suffix(".jsonl")
        lines = [json.dumps({"unit": unit.name, **document}) + "\n" for document in packer.validation_documents]
        write_bytes(path, "".join(lines).encode())
        yield work.manifest.entry(path)


def _offset(work: Work, split: str, unit: Unit, stream: Stream) -> dict[str, int]:
    """Where the tokens begin in a shard's file, so that training maps thousands of shards without opening them."""
    return {"offset": locate_tokens(work.shard(split, unit.name)).offset} if stream.tokens else {}


def _remove_leftovers(shard: Path) -> None:
    """Remove what killed processes left beside a shard; a file that is newer may be another task's at work."""
    for path in shard.parent.glob(f".{shard.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < shard.stat().st_mtime - LEFTOVER_SECONDS:
                path.unlink()
