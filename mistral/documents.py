"""what readers give: blocks of a source, parsed later into documents; a document that cannot be used is a Bad."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Bad:
    """A document that cannot be used: why, what was found, and where it stands (asked for only if somebody is told)."""

    reason: str
    found: str
    where: Callable[[], str]


Ids = npt.NDArray[np.uint32]  # (n,): a document of a corpus that is token ids already
Document = str | Ids | Bad


@dataclass(frozen=True)
class Block:
    """Some documents of a piece, read but not parsed, so that parsing may happen in another thread.

    `source_bytes` is its share of the source, for progress; `held_bytes` is what it keeps in memory.
    """

    source_bytes: int
    held_bytes: int
    parse: Callable[[], list[Document]]
