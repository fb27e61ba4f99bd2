"""tensors of a checkpoint -> those of its exported folder: linked, copied or rounded to bf16, and hashed on the way."""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mistral.errors import CheckpointError
from mistral.manifest import Record

MODEL = "model.safetensors"
BLOCK_BYTES = 1 << 20  # stays in the processor's cache until it is hashed and written
BF16_BYTES = 2
ONE_THREAD = 32_768  # numbers; torch divides more of them among threads, which hash and write at this time


def dtype_of(export: Record) -> str:
    """`fp32` or `bf16`: the tensors of an exported folder; those of before there was a choice are fp32."""
    dtype: str = export.facts.get("dtype", "fp32")
    return dtype


def link_or_copy(source: Path, target: Path) -> str | None:
    """The same bytes under another name: linked on one file system, copied across two.

    Returns:
        the sha256 of what was copied; None of a link.
    """
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb", buffering=0) as file:
            return _write(target, iter(lambda: file.read(BLOCK_BYTES), b""))
    return None


def write_rounded(source: Path, target: Path) -> str:
    """Write fp32 tensors rounded to bf16, to the nearest and ties to even, under the same names; returns the sha256.

    The bytes are those that safetensors writes, without all of them in memory at once.
    """
    from safetensors import safe_open

    with safe_open(source, "pt") as exact:
        names = sorted(exact.keys())
        shapes = {name: exact.get_slice(name).get_shape() for name in names}
        rounded = _rounded_blocks(map(exact.get_tensor, names))
        return _write(target, itertools.chain([_bf16_header(shapes)], rounded))


def _bf16_header(shapes: dict[str, list[int]]) -> bytes:
    """The beginning of a file of bf16 tensors that follow each other in the order of their names.

    Source: https://huggingface.co/docs/safetensors, Format: the length of a JSON object, the object, spaces up to a
    multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + BF16_BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _rounded_blocks(tensors: Iterable[Any]) -> Iterator[memoryview]:
    """fp32 tensors in a row as bytes of bf16; each block's buffer is reused two blocks later."""
    import torch

    size = BLOCK_BYTES // BF16_BYTES
    buffers = itertools.cycle([torch.empty(size, dtype=torch.bfloat16) for _ in range(2)])
    for tensor in tensors:
        for block in tensor.reshape(-1).split(size):
            rounded = next(buffers)[: len(block)]
            for part, exact in zip(torch.split(rounded, ONE_THREAD), torch.split(block, ONE_THREAD), strict=True):
                part.copy_(exact)
            yield rounded.view(torch.int16).numpy().data.cast("B")


def _write(target: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Write a new file in one pass, while another thread hashes what is written; returns the sha256.

    The caller must double-buffer: a block is hashed while the next one is produced.
    """
    digest = hashlib.sha256()
    with target.open("xb") as file, ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest.update, b"")
        for block in blocks:
            hashed.result()
            hashed = hasher.submit(digest.update, block)
            file.write(block)
    return digest.hexdigest()


def other_than_rounded(source: Path, rounded: Path) -> Iterator[str]:
    """Names of tensors that are not, bit for bit, those of a checkpoint rounded to bf16.

    Args:
        source: the fp32 tensors.
        rounded: what should be the same, rounded.
    """
    import torch
    from safetensors import safe_open

    with safe_open(source, "pt") as exact, safe_open(rounded, "pt") as found:
        names = set(exact.keys())
        yield from sorted(names ^ set(found.keys()))
        for name in sorted(names & set(found.keys())):
            expected, tensor = exact.get_tensor(name).to(torch.bfloat16), found.get_tensor(name)
            same = tensor.dtype == expected.dtype and tensor.shape == expected.shape
            if not same or not torch.equal(tensor.view(torch.int16), expected.view(torch.int16)):
                yield name


def require_rounded(source: Path, rounded: Path) -> None:
    """Compare what was written with the checkpoint, bit for bit.

    Raises:
        CheckpointError: some tensors are not the checkpoint's, rounded.
    """
    if wrong := list(other_than_rounded(source, rounded)):
        raise CheckpointError(
            f"{rounded.name}: found other tensors than the checkpoint's rounded to bf16 ({', '.join(wrong[:5])}), "
            "expected the same bits; run the same command again, and check the disk if it says so again"
        )
