"""The promises of packing.py: a full disk is told as one."""

from pathlib import Path

import numpy as np
import pytest

from mistral import packing
from mistral.errors import StorageError
from mistral.tokens import Encoded


def test_a_spill_that_fails_on_a_full_disk_is_told_once(tmp_path, monkeypatch):
    part = packing.Part(Encoded(np.zeros(300, "<u2"), np.array([300])), [b"1" * 32], [300])
    with Path("/dev/full").open("wb") as full:
        monkeypatch.setattr(packing, "SPILL_BYTES", 200)
        monkeypatch.setattr(packing.tempfile, "TemporaryFile", lambda dir: full)
        stream = packing.Stream(tmp_path, np.dtype("<u2"))
        with pytest.raises(StorageError, match="cannot write"):
            for _ in range(100):
                stream.append(part)
        stream.close()
        assert full.closed
