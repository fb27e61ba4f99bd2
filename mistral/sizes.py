"""model and training sections -> parameters and memory, estimated before anything is built."""

import os
from decimal import Decimal
from pathlib import Path

from mistral.sections import Model, Training

GPT2_VOCABULARY = 50_257
LARGEST_VOCABULARY = 2**24  # some sixty times the largest of published models
LARGEST_MEMORY_BYTES = 16 * 10**12  # of one process: a trillion parameters in training
LARGEST_STEP_TOKENS = 10**12  # a thousand times the largest published batch
MOST_LAYERS = 10_000  # ten times the deepest published models
MOST_CHECKPOINTS = 1_000_000
FP32_BYTES = 4
TRAINED_BYTES = 4 * FP32_BYTES  # of a parameter: itself, its gradient, Adam's two moments
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def parameters_of(model: Model, vocabulary: int) -> int:
    """Parameters of GPT-2; the last matrix is that of the embeddings (Radford et al. 2019)."""
    width = model.n_embd
    block = 12 * width * width + 13 * width  # attention, MLP and two layer norms, with their biases
    return (vocabulary + model.n_positions) * width + model.n_layer * block + 2 * width


def training_bytes(parameters: int, logits: int) -> int:
    """Memory of one process that trains by itself: 16 bytes a parameter, and the fp32 logits of a micro-batch."""
    return TRAINED_BYTES * parameters + FP32_BYTES * logits


def least_bytes(parameters: int, training: Training, world_size: int) -> int:
    """Memory that one rank needs at least, whatever else it holds.

    ZeRO 1 and 2 divide Adam's moments among the ranks, ZeRO 3 all of a parameter.
    """
    if training.zero_stage == 0:
        return TRAINED_BYTES * parameters
    if training.zero_stage == 3:
        return TRAINED_BYTES * parameters // world_size
    return (2 * FP32_BYTES + 2 * FP32_BYTES // world_size) * parameters


def host_bytes() -> int:
    """The memory of this machine, or of the control group (container, Slurm job) that this process is in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def count(number: int, unit: str) -> str:
    """`124,439,808 parameters`, `1.2e+21 tokens`."""
    return f"{number:,} {unit}" if number < 10**15 else f"{Decimal(number):.1e} {unit}"


def memory(size: int) -> str:
    """`1.99 GB`, `16 TB`, `3.4e+20 TB`."""
    for unit, bytes_each in (("MB", 10**6), ("GB", 10**9), ("TB", 10**12)):
        if size < 1000 * bytes_each or unit == "TB":
            number = Decimal(size) / bytes_each
            return f"{number:.3g} {unit}" if number < 10**6 else f"{number:.1e} {unit}"
    return f"{size} bytes"
