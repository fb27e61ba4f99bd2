"""model and training sections -> parameters and memory, estimated before anything is built."""

import os
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mistral.sections import Checkpoints, Model, Training

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
    """`1.99 GB`, `16 TB`, `3.4e+20 EB`."""
    for power, unit in enumerate(("MB", "GB", "TB", "PB", "EB")):
        number = Decimal(size) / 10 ** (6 + 3 * power)
        if number < 999:
            return f"{number:.3g} {unit}"
    return f"{number:.1e} {unit}"


# --- what no config may ask for ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What decides how large a model and its training are."""

    model: Model
    training: Training
    checkpoints: Checkpoints
    vocabulary: int  # tokens
    seq_len: int  # tokens

    def parameters(self) -> int:
        """Parameters of the model."""
        return parameters_of(self.model, self.vocabulary)

    def memory_bytes(self) -> int:
        """Memory of one process that trains by itself: parameters, and the fp32 logits of a micro-batch."""
        logits = self.training.micro_batch_size * self.seq_len * self.vocabulary
        return TRAINED_BYTES * self.parameters() + FP32_BYTES * logits

    def told(self) -> str:
        """`the model has 124,439,808 parameters and training takes 8.58 GB of memory`."""
        has = count(self.parameters(), "parameters")
        return f"the model has {has} and training takes {memory(self.memory_bytes())} of memory"


def _large_vocabulary(size: Size) -> str | None:
    if size.vocabulary <= LARGEST_VOCABULARY:
        return None
    return (
        f"data.tokenizer: found a vocabulary of {count(size.vocabulary, 'tokens')}, with which {size.told()}, expected "
        f"at most {LARGEST_VOCABULARY:,} tokens; lower vocab_size"
    )


def _many_layers(size: Size) -> str | None:
    if size.model.n_layer <= MOST_LAYERS:
        return None
    found = count(size.model.n_layer, "layers")
    return f"model.n_layer: found {found}, with which {size.told()}, expected at most {MOST_LAYERS:,}; lower it"


def _large_model(size: Size) -> str | None:
    if size.memory_bytes() <= LARGEST_MEMORY_BYTES or _many_layers(size) or _large_vocabulary(size):
        return None  # or told already
    return (
        f"model: found that {size.told()}, expected at most {memory(LARGEST_MEMORY_BYTES)}; lower n_layer, n_embd, "
        "n_positions, the vocabulary or training.micro_batch_size"
    )


def _large_step(size: Size) -> str | None:
    tokens = size.training.global_batch_size * size.seq_len
    if tokens <= LARGEST_STEP_TOKENS:
        return None
    return (
        f"training.global_batch_size: found {count(tokens, 'tokens')} in each optimizer step, while {size.told()}, "
        f"expected at most {LARGEST_STEP_TOKENS:,} tokens in a step; lower it"
    )


def _endless_schedule(size: Size) -> str | None:
    number = size.checkpoints.count(size.training.max_steps)
    if number <= MOST_CHECKPOINTS:
        return None
    return (
        f"checkpoints.schedule: found {number:,} steps whose weights are kept, of "
        f"{memory(FP32_BYTES * size.parameters())} each, expected at most {MOST_CHECKPOINTS:,}; raise the numbers of "
        "`every`"
    )


CHECKS = (_large_vocabulary, _many_layers, _large_model, _large_step, _endless_schedule)
