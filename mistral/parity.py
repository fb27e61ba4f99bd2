"""exported folder, record of its checkpoint -> the loss that transformers computes with it, and whether it is the same.

Tensors are proven by their hash, or bit by bit where they were rounded (tensorfiles.py). What is left to show is that
transformers computes the same model with the folder's config: on the whole probe once for each config of a run, and for
all other checkpoints on the beginning of the probe, whose loss training records as well.

fp32 tensors give the loss that training recorded, but for the order of sums: 1e-5 of it, and 1e-4 with eager attention.

bf16 has 8 bits of precision: rounding to the nearest moves a weight by at most half a unit in the last of them, 2^-8 of
itself. If all weights of the last matrix moved by that much the same way, each logit would, and so would a loss that is
far from that of chance. So 2^-8 of the loss is what rounding may change; errors that point anywhere change far less
(docs/benchmarks.md has measured numbers). This only has to show that the folder is read as the same model: that its
tensors are the rounded ones is compared bit for bit (tensorfiles.py).
"""

import math
from pathlib import Path
from typing import Any

from mistral.errors import CheckpointError
from mistral.manifest import Record

TOLERANCE = {"sdpa": 1e-5, "eager": 1e-4}  # relative, of the probe loss
ROUNDING = 2.0**-8  # of bf16, relative


def check_probe(folder: Path, weights: Record, attention: str, dtype: str, whole: bool = True) -> dict[str, Any]:
    """Load an exported folder as its users will, and compare its loss with the one that training recorded.

    Args:
        folder: what was exported.
        weights: the record of its checkpoint.
        attention: the implementation of attention that the run was trained with.
        dtype: `fp32` or `bf16`, of the exported tensors; the loss is computed in fp32 whatever they are.
        whole: whether the whole probe is computed; else its beginning, where training has recorded that.

    Returns:
        the `recorded` and the `exported` loss of a `part` of the probe, `whole` or `prefix`, its `tokens`, and the
        `tolerance` that they agree within, of the recorded one.

    Raises:
        CheckpointError: they differ.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress goes through the reporter
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=attention
    )
    tolerance = TOLERANCE[attention] if dtype == "fp32" else ROUNDING
    whole = whole or "prefix" not in weights.facts["probe"]
    recorded, sequences = probe_of(weights, whole)
    loss = require_loss(model, sequences, recorded, tolerance)
    tokens, part = sum(map(len, sequences)), "whole" if whole else "prefix"
    return {"recorded": recorded, "exported": loss, "tolerance": tolerance, "part": part, "tokens": tokens}


def probe_of(weights: Record, whole: bool) -> tuple[float, list[list[int]]]:
    """The recorded loss of a checkpoint's probe, or of its beginning, and the sequences that it was computed on."""
    probe = weights.facts["probe"]
    if whole:
        return probe["loss"], probe["sequences"]
    return probe["prefix"]["loss"], [probe["sequences"][0][: probe["prefix"]["tokens"]]]


def require_probe(model: Any, weights: Record, tolerance: float) -> float:
    """Compare the loss of a model with the one that training recorded for the checkpoint; returns it.

    Raises:
        CheckpointError: they differ by more than the tolerance, relative to the recorded one.
    """
    recorded, sequences = probe_of(weights, whole=True)
    return require_loss(model, sequences, recorded, tolerance)


def require_loss(model: Any, sequences: list[list[int]], recorded: float, tolerance: float) -> float:
    """As `require_probe`, for given sequences."""
    loss = mean_loss(model, sequences)
    if not abs(loss - recorded) <= tolerance * abs(recorded):  # a NaN is refused as well
        raise CheckpointError(
            f"found probe loss {loss}, expected {recorded} as recorded in training, within {tolerance:.1g} of it; "
            "the weights are not those of this checkpoint, or transformers computes another model: run verify"
        )
    return loss


def mean_loss(model: Any, sequences: list[list[int]]) -> float:
    """Mean loss of a model over sequences of the same length, in eval mode."""
    import torch

    model.eval()
    model.loss_type = "ForCausalLM"
    losses = []
    with torch.no_grad():
        for sequence in sequences:  # one by one: the logits of all of them would be GBs
            input_ids = torch.tensor([sequence])  # (1, seq_len) int64
            losses.append(float(model(input_ids=input_ids, labels=input_ids, use_cache=False).loss))
    return math.fsum(losses) / len(losses)
