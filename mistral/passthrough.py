"""corpora that are token ids already: documents checked against the vocabulary, and a tokenizer that passes them on."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mistral.datasections import PassthroughIds
from mistral.documents import Ids
from mistral.errors import DataError
from mistral.files import canonical_json, read_json

FILE = "passthrough.json"  # stands where tokenizer.json would


class WrongIds(ValueError):
    """A document that is no list of ids of the vocabulary."""


def ids_document(values: Any, vocabulary: PassthroughIds) -> Ids:
    """(n,) uint32 ids of a document, without an end-of-text at their end.

    Args:
        values: a list of whole numbers, or an integer array.
        vocabulary: which ids there are.

    Raises:
        WrongIds: an id is not in the vocabulary, or end-of-text stands inside the document.
    """
    ids = np.asarray(values)
    if ids.size == 0:
        return np.zeros(0, dtype=np.uint32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise WrongIds(f"values of type {ids.dtype}, expected whole numbers")
    if ids.min() < 0 or ids.max() >= vocabulary.vocab_size:
        raise WrongIds(f"ids from {ids.min()} to {ids.max()}, expected 0 to {vocabulary.vocab_size - 1}")
    if ids[-1] == vocabulary.end_of_text_id:
        ids = ids[:-1]
    if (ids == vocabulary.end_of_text_id).any():
        raise WrongIds(f"the end-of-text id {vocabulary.end_of_text_id} inside a document, expected it at the end only")
    return ids.astype(np.uint32)


class IdsEngine:
    """An Engine for documents that are ids."""

    def encode(self, texts: list[Any]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """As Engine.encode: ids in a row, and where each document ends."""
        return np.concatenate(texts), np.cumsum([len(ids) for ids in texts], dtype=np.int64)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The numbers themselves: there is no text."""
        return " ".join(map(str, ids)) + " "


def write_passthrough(folder: Path, vocabulary: PassthroughIds) -> None:
    """Write the file that stands for the tokenizer."""
    (folder / FILE).write_bytes(canonical_json(vocabulary.model_dump(mode="json")) + b"\n")


def read_passthrough(folder: Path) -> PassthroughIds:
    """The vocabulary of a folder that `write_passthrough` wrote.

    Raises:
        DataError: the file is not what that wrote.
    """
    try:
        return PassthroughIds(**read_json(folder / FILE))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{folder / FILE}: found no vocabulary that can be read ({error}), expected vocab_size and end_of_text_id\n"
            "  remove the folder and preprocess again"
        ) from error
