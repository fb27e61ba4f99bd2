"""exported folder, record of its checkpoint -> the loss that transformers computes with it, and whether it is the same.

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


def check_probe(folder: Path, weights: Record, attention: str, dtype: str) -> dict[str, float]:
    """Load an exported folder as its users will, and compare its loss with the one that training recorded.

    Args:
        folder: what was exported.
        weights: the record of its checkpoint.
        attention: the implementation of attention that the run was trained with.
        dtype: `fp32` or `bf16`, of the exported tensors; the loss is computed in fp32 whatever they are.

    Returns:
        the `recorded` and the `exported` loss, and the `tolerance` that they agree within, of the recorded one.

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
    loss = require_probe(model, weights, tolerance)
    return {"recorded": weights.facts["probe"]["loss"], "exported": loss, "tolerance": tolerance}


def require_probe(model: Any, weights: Record, tolerance: float) -> float:
    """Compare the loss of a model with the one that training recorded for the checkpoint; returns it.

    Raises:
        CheckpointError: they differ by more than the tolerance, relative to the recorded one.
    """
    probe = weights.facts["probe"]
    loss = mean_loss(model, probe["sequences"])
    if not abs(loss - probe["loss"]) <= tolerance * abs(probe["loss"]):  # a NaN is refused as well
        raise CheckpointError(
            f"found probe loss {loss}, expected {probe['loss']} as recorded in training, within {tolerance:.1g} of it; "
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
