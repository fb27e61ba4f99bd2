"""sealed evaluation sets -> windows: runs of tokens, of which the last ones are scored given those before them.

WikiText-103 is one continuous text: its documents in order, each without its end-of-text, with a line break between two
where the first does not end with one. A window slides over it. Of LAMBADA each document is a window, whose last word is
scored. The first token of a text has nothing before it and is never scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mistral.config import Experiment
from mistral.dataset import evaluation_record, open_split
from mistral.errors import DataError, ManifestError
from mistral.manifest import Manifest, Record
from mistral.shards import Int64, Tokens, TokenStream, read_document_starts
from mistral.tokens import Tokenizer, read_tokenizer

LAST_WORD = "lambada"  # the set of which last words are scored; of others, every token is
# Characters by which byte-level BPE writes bytes: https://github.com/openai/gpt-2/blob/master/src/encoder.py
SPACE, LINE_BREAK = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"
WHITE_SPACE = frozenset(chr(byte + 256) for byte in b"\t\n\v\f\r ")


@dataclass(frozen=True)
class Window:
    """Consecutive tokens, which fit into the model's context."""

    tokens: Int64  # (n,) int64, at least 2
    first: int  # tokens[first:] are scored, each given all before it in the window; at least 1


@dataclass(frozen=True)
class WindowSet:
    """What a model is measured on."""

    name: str
    windows: list[Window]
    words: int  # of the source's text, as white space divides it


@dataclass(frozen=True)
class TokenKinds:
    """What the text of each token of a vocabulary is like: (vocabulary,) bool each."""

    starts_with_space: npt.NDArray[np.bool_]
    is_blank: npt.NDArray[np.bool_]  # white space only
    ends_line: npt.NDArray[np.bool_]


def open_sets(experiment: Experiment, manifest: Manifest, dataset: Record) -> list[WindowSet]:
    """The windows of an experiment's evaluation sets; they are held in memory.

    Args:
        experiment: its evaluation section names the sets.
        manifest: where they are recorded.
        dataset: the seal of what the model is trained on.

    Raises:
        ManifestError: a set is not prepared, or changed since, or was made with another tokenizer.
        DataError: a set holds nothing to score.
    """
    return [
        open_set(name, one, manifest, evaluation_record(name, one, manifest), dataset)
        for name, one in experiment.evaluation_sets().items()
    ]


def open_set(name: str, experiment: Experiment, manifest: Manifest, seal: Record, dataset: Record) -> WindowSet:
    """The windows of one evaluation set."""
    found, expected = (record.facts["tokenizer_sha256"] for record in (seal, dataset))
    if found != expected:
        raise ManifestError(
            f"{seal.key[0]}: found tokens of the tokenizer {found[:12]}, expected {expected[:12]}, which made "
            f"{dataset.key[0]}\n  remove manifest/preprocess/{seal.key[0]} and data/{seal.key[0]} and preprocess again"
        )
    tokenizer = read_tokenizer(manifest.workspace.tokenizer(seal.key[0]), "reference")
    kinds, seq_len = token_kinds(tokenizer), experiment.seq_len
    texts = documents(open_split(manifest.workspace, seal, "train", seq_len))
    if name == LAST_WORD:
        windows = [window for text in texts if (window := last_word(text, kinds, seq_len))]
    else:
        windows = sliding(joined(texts, kinds, tokenizer.encode(["\n"]).document(0)), seq_len, experiment.stride)
    if not windows:
        raise DataError(
            f"{seal.key[0]}: found nothing to score, expected documents of two words or more; check evaluation.{name}"
        )
    units = [manifest.get("preprocess", (seal.key[0], unit), "run verify") for unit in sorted(seal.inputs)]
    return WindowSet(name, windows, sum(unit.facts["words"] for unit in units))


def token_kinds(tokenizer: Tokenizer) -> TokenKinds:
    """Look at the text of each token of a byte-level BPE."""
    texts = [tokenizer.reference.id_to_token(number) or "" for number in range(tokenizer.vocabulary_size)]
    return TokenKinds(
        starts_with_space=np.array([text.startswith(SPACE) for text in texts]),
        is_blank=np.array([bool(text) and WHITE_SPACE.issuperset(text) for text in texts]),
        ends_line=np.array([text.endswith(LINE_BREAK) for text in texts]),
    )


def documents(stream: TokenStream) -> Iterator[Int64]:
    """(n,) int64 tokens of each document, in order, without the end-of-text after it."""
    for shard in stream.shards:
        tokens = shard.map().astype(np.int64)
        for document in np.split(tokens, read_document_starts(shard.path)[1:]):
            yield document[:-1]


def joined(texts: Iterator[Int64], kinds: TokenKinds, line_break: Tokens) -> Int64:
    """(n,) int64 tokens of one text, with a line break between two documents unless the first ends with one."""
    parts: list[Int64] = []
    for text in texts:
        if parts and not kinds.ends_line[parts[-1][-1:]].any():
            parts.append(line_break.astype(np.int64))
        parts += [text] if len(text) else []
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def sliding(tokens: Int64, seq_len: int, stride: int) -> list[Window]:
    """Windows of at most `seq_len` tokens, each `stride` further; every token but the first is scored once.

    A token is scored in the first window that holds it. The last window ends with the text. The first token of a window
    cannot be scored in it, so that a stride of `seq_len` advances by one token less.
    """
    windows, scored, start = list[Window](), 1, 0
    while scored < len(tokens):
        piece = tokens[start : start + seq_len]
        windows.append(Window(piece, scored - start))
        scored = start + len(piece)
        start = min(start + stride, scored - 1)
    return windows


def last_word(tokens: Int64, kinds: TokenKinds, seq_len: int) -> Window | None:
    """A document up to its last word, which is scored, cut on the left to `seq_len` tokens.

    The word begins at the last token that starts with a space; white space after it does not count. None where there is
    no such word, or nothing before it.
    """
    solid = np.flatnonzero(~kinds.is_blank[tokens])
    end = int(solid[-1]) + 1 if len(solid) else 0
    starts = np.flatnonzero(kinds.starts_with_space[tokens[:end]])
    if not len(starts) or starts[-1] == 0:
        return None
    start = max(0, end - seq_len)
    return Window(tokens[start:end], max(int(starts[-1]) - start, 1))
