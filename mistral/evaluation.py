"""network and tokens -> loss, perplexity, accuracy; and the probe that identifies a checkpoint.

A network is a DeepSpeed engine, or a model by itself. Results depend on the number of ranks by rounding only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mistral.ranks import Ranks
from mistral.shards import TokenStream
from mistral.windows import LAST_WORD, Window, WindowSet

PROBE_SEQUENCES = 4
PREFIX_TOKENS = 128  # of the first of them
LARGEST_EXPONENT = 700.0  # e^710 is no float any more


def evaluate(network: Any, stream: TokenStream, batch_size: int, limit: int | None, ranks: Ranks) -> dict[str, float]:
    """Mean loss per target token over the first sequences of a split, and its exponential.

    Every rank makes the same number of forward passes (ZeRO-3 gathers parameters in each): one that has no sequence
    left repeats the first with weight 0.

    Args:
        network: what is measured; left in training mode.
        stream: the split.
        batch_size: sequences per forward pass of one rank.
        limit: how many sequences are used, from the start; None for all.
        ranks: who takes which sequences.
    """
    count = min(len(stream), limit or len(stream))
    total = torch.zeros(2, dtype=torch.float64)
    network.eval()
    with torch.no_grad():
        for start in range(0, count, batch_size * ranks.world_size):
            first = start + ranks.rank * batch_size
            numbers = np.arange(first, min(first + batch_size, count), dtype=np.int64)
            rows = stream.read(numbers if len(numbers) else np.zeros(1, dtype=np.int64))
            input_ids = torch.from_numpy(rows).to(network.device)  # (sequences, seq_len) int64
            loss = network(input_ids=input_ids, labels=input_ids).loss
            total += torch.tensor([float(loss) * len(numbers), len(numbers)], dtype=torch.float64)
    network.train()
    total = sum_over_ranks(total, network.device)
    mean = float(total[0] / total[1])
    return {"loss": mean, "perplexity": perplexity(mean)}


def perplexity(loss: float) -> float:
    """e to the loss."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum a small float64 tensor over all ranks; every rank gets the sum. A process by itself is its own sum."""
    on_device = values.to(device)
    if dist.is_initialized():
        dist.all_reduce(on_device)
    return on_device.cpu()


# --- evaluation sets --------------------------------------------------------------------------------------------


def measure(network: Any, windows: WindowSet, batch_size: int, ranks: Ranks) -> dict[str, float]:
    """Measure a model on an evaluation set.

    Of LAMBADA: `loss` is the mean over `documents` of the last word's loss, the sum over its tokens (as in EleutherAI's
    lm-evaluation-harness); `accuracy` the share of documents of whose last word each token is the most likely one.

    Of WikiText-103: `loss` is the mean over the `tokens` scored; `word_perplexity` is e to their summed loss over
    `words`, the words of the raw text as white space divides it, so that tokenizers can be compared (Megatron-LM does
    the same).

    Args:
        network: what is measured; left in training mode.
        windows: the set.
        batch_size: windows per forward pass of one rank.
        ranks: who takes which windows; all call this together.
    """
    score = score_windows(network, windows.windows, batch_size, ranks)
    if windows.name == LAST_WORD:
        loss, accuracy = score.loss / score.windows, score.right / score.windows
        return {"loss": loss, "perplexity": perplexity(loss), "accuracy": accuracy, "documents": score.windows}
    loss, by_word = score.loss / score.tokens, perplexity(score.loss / max(windows.words, 1))
    return {
        "loss": loss, "perplexity": perplexity(loss), "word_perplexity": by_word,
        "tokens": score.tokens, "words": windows.words,
    }  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Sums over windows."""

    loss: float  # nats, over all scored tokens
    tokens: int  # scored
    right: int  # windows whose scored tokens are each the most likely one
    windows: int


def score_windows(network: Any, windows: Sequence[Window], batch_size: int, ranks: Ranks) -> Score:
    """Score windows on all ranks; each makes the same number of forward passes, as in `evaluate`."""
    total = torch.zeros(4, dtype=torch.float64)
    network.eval()
    with torch.no_grad():
        for start in range(0, len(windows), batch_size * ranks.world_size):
            together = windows[start : start + batch_size * ranks.world_size]
            mine = together[ranks.rank :: ranks.world_size]
            scored = _score_batch(network, mine or together[:1])
            total += scored if mine else 0.0
    network.train()
    loss, *counts = sum_over_ranks(total, network.device).tolist()
    return Score(loss, *map(int, counts))


def _score_batch(network: Any, windows: Sequence[Window]) -> torch.Tensor:
    """(4,) float64: loss, tokens, right and windows of one forward pass.

    Short windows are padded on the right, where no scored token sees it.
    """
    longest = max(len(window.tokens) for window in windows)
    input_ids = torch.zeros(len(windows), longest, dtype=torch.int64)
    for row, window in zip(input_ids, windows, strict=True):
        row[: len(window.tokens)] = torch.from_numpy(window.tokens)
    input_ids = input_ids.to(network.device)  # (windows, longest) int64
    logits = network(input_ids=input_ids).logits  # (windows, longest, vocabulary)
    total = torch.zeros(4, dtype=torch.float64)
    for row, predicted, window in zip(input_ids, logits, windows, strict=True):
        end = len(window.tokens)
        targets, scores = row[window.first : end], predicted[window.first - 1 : end - 1].float()
        losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
        right = bool((scores.argmax(-1) == targets).all())
        total += torch.tensor([float(losses.double().sum()), len(targets), right, 1], dtype=torch.float64)
    return total


# --- the probe --------------------------------------------------------------------------------------------------


def probe_sequences(stream: TokenStream) -> list[list[int]]:
    """The first sequences of a split: the fixed batch on which each checkpoint's loss is recorded."""
    numbers = np.arange(min(PROBE_SEQUENCES, len(stream)), dtype=np.int64)
    rows: list[list[int]] = stream.read(numbers).tolist()
    return rows


def probe_losses(network: Any, sequences: list[list[int]]) -> tuple[float, float]:
    """Mean loss on the probe, and on its beginning, in fp32 and eval mode, without autocast; all ranks must call it.

    The beginning is the first PREFIX_TOKENS of the first sequence; no token of it sees a later one, so that it costs no
    pass of its own here, and an export can be checked with a pass over these tokens alone.

    Args:
        network: with the fp32 weights that are saved (`engine.in_fp32`); left in training mode.
        sequences: (sequences, seq_len) token ids.
    """
    input_ids = torch.tensor(sequences, device=network.device)  # (sequences, seq_len) int64
    network.eval()
    with torch.no_grad():
        output = network(input_ids=input_ids, labels=input_ids)
        beginning = output.logits[0, : PREFIX_TOKENS - 1][: input_ids.shape[1] - 1].float()  # (tokens - 1, vocabulary)
        prefix = torch.nn.functional.cross_entropy(beginning, input_ids[0, 1 : len(beginning) + 1])
    network.train()
    return float(output.loss), float(prefix)
