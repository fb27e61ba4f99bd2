"""The promises of packing.py: a full disk is told as one."""

import resource

import numpy as np
import pytest

from mistral.errors import StorageError
from mistral.packing import SPILL_BYTES, Part, Stream
from mistral.tokens import Encoded


def part(tokens: int) -> Part:
    """One document of so many tokens."""
    return Part(Encoded(np.zeros(tokens, "<u2"), np.array([tokens])), [b"1" * 32], [tokens])


def test_a_spill_that_fails_on_a_full_disk_is_told_once(tmp_path):
    """A limit on the size of files stands in for the disk: what was not written is still there when the file closes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stream = Stream(tmp_path, np.dtype("<u2"))
    stream.append(part(300))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            stream.append(part(SPILL_BYTES // 2))
        stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
