"""step -> learning rate: linear warm-up, then linear or cosine decay, which reaches zero at lr_decay_steps."""

import math

from mistral.config import Training


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of one update.

    Args:
        training: peak rate, warm-up, shape and length of the decay.
        step: updates done before this one, from 0; the first update already has a rate above 0.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / (training.decay_steps() - training.warmup_steps)
    if training.lr_scheduler_type == "cosine":
        return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.learning_rate * (1.0 - progress)
