"""engine and validation sequences -> loss and perplexity; and the probe that identifies a checkpoint."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mistral.engine import Ranks
from mistral.shards import TokenStream

PROBE_SEQUENCES = 4


def evaluate(engine: Any, stream: TokenStream, batch_size: int, limit: int | None, ranks: Ranks) -> dict[str, float]:
    """Mean loss per target token over the first sequences of a split, and its exponential.

    Every rank makes the same number of forward passes (ZeRO-3 gathers parameters in each): one that has no sequence
    left repeats the first with weight 0.

    Args:
        engine: the DeepSpeed engine; left in training mode.
        stream: the split.
        batch_size: sequences per forward pass of one rank.
        limit: how many sequences are used, from the start; None for all.
        ranks: who takes which sequences.
    """
    count = min(len(stream), limit or len(stream))
    total = torch.zeros(2, dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for start in range(0, count, batch_size * ranks.world_size):
            first = start + ranks.rank * batch_size
            numbers = np.arange(first, min(first + batch_size, count), dtype=np.int64)
            rows = stream.read(numbers if len(numbers) else np.zeros(1, dtype=np.int64))
            input_ids = torch.from_numpy(rows).to(engine.device)  # (sequences, seq_len) int64
            loss = engine(input_ids=input_ids, labels=input_ids).loss
            total += torch.tensor([float(loss) * len(numbers), len(numbers)], dtype=torch.float64)
    engine.train()
    total = sum_over_ranks(total, engine.device)
    mean = float(total[0] / total[1])
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum a small float64 tensor over all ranks; every rank gets the sum."""
    on_device = values.to(device)
    dist.all_reduce(on_device)
    return on_device.cpu()


def probe_sequences(stream: TokenStream) -> list[list[int]]:
    """The first sequences of a split: the fixed batch on which each checkpoint's loss is recorded."""
    numbers = np.arange(min(PROBE_SEQUENCES, len(stream)), dtype=np.int64)
    rows: list[list[int]] = stream.read(numbers).tolist()
    return rows


def probe_loss(engine: Any, sequences: list[list[int]]) -> float:
    """Mean loss on the probe in fp32 and eval mode, without autocast; all ranks must call it."""
    input_ids = torch.tensor(sequences, device=engine.device)  # (sequences, seq_len) int64
    engine.eval()
    with torch.no_grad():
        loss = engine.module(input_ids=input_ids, labels=input_ids).loss
    engine.train()
    return float(loss)
