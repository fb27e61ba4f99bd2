"""tensors of a checkpoint -> those of its exported folder: linked, copied or rounded to bf16, and hashed on the way."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mistral.errors import CheckpointError
from mistral.manifest import Record

MODEL = "model.safetensors"
BLOCK_BYTES = 8 << 20


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
    """Write fp32 tensors rounded to bf16, to the nearest and ties to even, under the same names; returns the sha256."""
    import torch
    from safetensors.torch import load_file, save

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source).items()}
    data = memoryview(save(tensors, metadata={"format": "pt"}))
    return _write(target, (data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)))


def _write(target: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Write a new file in one pass, while another thread hashes what is written; returns the sha256."""
    digest = hashlib.sha256()
    with target.open("xb") as file, ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest.update, b"")
        for block in blocks:
            hashed.result()  # one block is held besides the one that is read
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
