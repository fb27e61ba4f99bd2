"""the sections of an experiment but for its data: frozen models whose fields and checks say what a config may hold.

Field names of the model and training sections are Hugging Face's. mistral/config.py puts the sections together.
"""

import itertools
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mistral.errors import ConfigError
from mistral.section import Check, Count, Positive, Probability, Real, Section, Seed, Whole

MAX_STEPS = 99_999_999  # eight digits, as in the names of checkpoints
Step = Annotated[Whole, Field(gt=0, le=MAX_STEPS)]
MISTRALS_SCHEDULE = ((10, 100), (50, 2000), (100, 20_000), (1000, 400_000))
TAG = re.compile(r"^(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")  # git check-ref-format
LICENSE = r"^[a-z0-9][a-z0-9.+-]*$"
Languages = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")], ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
BRANCH = re.compile(r"^(main|checkpoint-\d+|[0-9a-f]{7,40})$")  # and what is read as a commit


class Seeds(Section):
    """The three independent streams of randomness of one run."""

    init: Seed
    """Seed of the initial weights. [no unit]"""
    data: Seed
    """Seed of the order of the sequences. [no unit]"""
    dropout: Seed
    """Seed of dropout. [no unit]"""

    @model_validator(mode="before")
    @classmethod
    def _one_number_for_all(cls, value: Any) -> Any:
        if isinstance(value, dict | Seeds):
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise PydanticCustomError("seed", "a whole number from 0 to 2^63 - 1, or one each of init, data, dropout")
        return {"init": value, "data": value, "dropout": value}

    def label(self) -> str:
        """`21`, or `21-49-7` where the streams differ; part of the run's name."""
        numbers = [self.init, self.data, self.dropout]
        return str(self.init) if len(set(numbers)) == 1 else "-".join(map(str, numbers))


class Model(Section):
    """GPT-2's shape, in the names of transformers' GPT2Config; the vocabulary is the tokenizer's."""

    n_layer: Positive
    """Number of transformer blocks. [layers]"""
    n_head: Positive
    """Attention heads of each block; they divide n_embd. [heads]"""
    n_embd: Positive
    """Width of the embeddings and of each block. [dimensions]"""
    n_positions: Positive = 1024
    """Longest context of the model. [tokens]"""
    resid_pdrop: Probability = 0.1
    """Dropout at the end of attention and of the MLP. [fraction]"""
    embd_pdrop: Probability = 0.1
    """Dropout of the embeddings. [fraction]"""
    attn_pdrop: Probability = 0.1
    """Dropout of the attention weights. [fraction]"""
    scale_attn_by_inverse_layer_idx: bool = True
    """Divide the attention scores of block i (from 0) by i + 1."""
    reorder_and_upcast_attn: bool = True
    """Compute attention scores in fp32; acts with attn_implementation `eager` only."""
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    """Which code of transformers computes attention."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory and costs time."""

    def checks(self) -> tuple[Check, ...]:
        """The heads divide the width."""
        return (self._uneven_heads,)

    def drops_out(self) -> bool:
        """Whether anything is dropped in training."""
        return bool(self.resid_pdrop or self.embd_pdrop or self.attn_pdrop)

    def _uneven_heads(self) -> str | None:
        if self.n_embd % self.n_head == 0:
            return None
        return (
            f"found n_embd {self.n_embd}, which {self.n_head} heads do not divide, expected a multiple of n_head; "
            f"set n_embd to {math.ceil(self.n_embd / self.n_head) * self.n_head}, or choose another n_head"
        )


class Training(Section):
    """Hyperparameters, in Hugging Face's names where it has one."""

    max_steps: Step
    """Length of a run; it may grow later where lr_decay_steps is given and longer. [optimizer steps]"""
    global_batch_size: Positive = 512
    """Batch of one optimizer step, over all ranks; a multiple of micro_batch_size x ranks. [sequences]"""
    micro_batch_size: Positive = 16
    """Batch of one forward pass of one rank. [sequences]"""
    seq_len: Positive | None = None
    """Length of a training sequence; the model's n_positions unless given. [tokens]"""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the matrix products; weights, gradients' sums and moments stay in fp32."""
    deterministic: bool = True
    """Use algorithms that give the same bits each time."""
    zero_stage: Annotated[Whole, Field(ge=0, le=3)] = 1
    """DeepSpeed's ZeRO stage: what is divided among the ranks. [no unit]"""
    learning_rate: Annotated[Real, Field(gt=0)] = 6e-4
    """Peak learning rate, reached at the end of the warm-up. [no unit]"""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.1
    """AdamW's weight decay, of matrices and embeddings. [no unit]"""
    adam_beta1: Probability = 0.9
    """AdamW's decay of the first moment. [fraction per step]"""
    adam_beta2: Probability = 0.95
    """AdamW's decay of the second moment. [fraction per step]"""
    adam_epsilon: Annotated[Real, Field(gt=0)] = 1e-8
    """AdamW's epsilon. [no unit]"""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """Shape of the learning rate's decay to zero after the warm-up."""
    lr_decay_steps: Step | None = None
    """The step at which the learning rate would be zero; max_steps unless given, and never below. [optimizer steps]"""
    warmup_steps: Annotated[Count, Field(le=MAX_STEPS)] = 0
    """Length of the linear warm-up of the learning rate. [optimizer steps]"""
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm. [no unit]"""
    logging_steps: Positive = 50
    """Steps from one line of metrics.jsonl to the next. [optimizer steps]"""

    def checks(self) -> tuple[Check, ...]:
        """Micro batches fill the batch; fp16 has fp32 weights to save; the learning rate is above zero."""
        return (self._uneven_batch, self._fp16_without_zero, self._short_decay)

    def decay_steps(self) -> int:
        """The step at which the learning rate would be zero."""
        return self.lr_decay_steps or self.max_steps

    def _short_decay(self) -> str | None:
        if self.decay_steps() >= self.max_steps:
            return None
        return (
            f"training.lr_decay_steps: found {self.lr_decay_steps}, expected max_steps = {self.max_steps} or more, as "
            "nothing is learned at a rate of zero; raise it, or lower max_steps"
        )

    def _fp16_without_zero(self) -> str | None:
        if self.precision != "fp16" or self.zero_stage:
            return None
        return (
            "training.zero_stage: found 0 with precision fp16, expected 1, 2 or 3, whose fp32 weights can be saved; "
            "set zero_stage to 1"
        )

    def _uneven_batch(self) -> str | None:
        try:
            self.accumulation_steps(1)
        except ConfigError as error:
            return str(error)
        return None

    def accumulation_steps(self, world_size: int) -> int:
        """Micro steps per optimizer step.

        Raises:
            ConfigError: the ranks do not divide the global batch, so that another batch would be trained.
        """
        steps, rest = divmod(self.global_batch_size, self.micro_batch_size * world_size)
        if rest or not steps:
            each = self.micro_batch_size * world_size
            raise ConfigError(
                f"training.global_batch_size: found {self.global_batch_size}, expected a multiple of micro_batch_size "
                f"x ranks = {self.micro_batch_size} x {world_size} = {each}; use a multiple of {each}, or change "
                "micro_batch_size or the number of ranks"
            )
        return steps


class Checkpoints(Section):
    """Which steps are kept for good, and how often the full training state is saved."""

    schedule: tuple[tuple[Positive, Positive], ...] = Field(default=MISTRALS_SCHEDULE, min_length=1)
    """Steps whose weights are kept for good, as pairs [every, until]; 0 and the last step are kept as well. [optimizer
    steps]"""
    resume_every_steps: Positive = 1000
    """Steps from one full training state, from which a run can go on, to the next. [optimizer steps]"""
    resume_every_minutes: Positive | None = None
    """Save a state after so much time as well. [minutes]"""
    keep_resumable: Positive = 2
    """How many of the newest states are kept. [states]"""

    def checks(self) -> tuple[Check, ...]:
        """The schedule goes forward, and every part of it holds a step."""
        return (self._unsorted_schedule, self._empty_part)

    def _unsorted_schedule(self) -> str | None:
        ends = [until for _, until in self.schedule]
        if all(earlier < later for earlier, later in itertools.pairwise(ends)):
            return None
        return (
            f"found a schedule that ends at {ends}, expected each `until` to be above the one before; "
            "sort the [every, until] pairs"
        )

    def _empty_part(self) -> str | None:
        swapped = [[every, until] for every, until in self.schedule if every > until]
        if not swapped:
            return None
        return f"found {swapped} in the schedule, expected [every, until] with every <= until; swap the two numbers"

    def count(self, max_steps: int) -> int:
        """How many steps `steps` holds, without making them."""
        ends = [0, *(min(until, max_steps - 1) for _, until in self.schedule)]
        return 2 + sum(
            max(0, until // every - start // every)
            for (every, _), (start, until) in zip(self.schedule, itertools.pairwise(ends), strict=True)
        )

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The scheduled steps, ascending: 0, the multiples of each `every` up to its `until`, and the last step."""
        steps, start = [0], 0
        for every, until in self.schedule:
            first = (start // every + 1) * every
            steps.extend(range(first, min(until, max_steps - 1) + 1, every))
            start = until
        return (*steps, max_steps)


class Export(Section):
    """What the exported folders hold, and where they are published."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the exported tensors; the weights of training are kept in fp32."""
    organization: str | None = None
    """Who publishes the models on the Hub: the name before the slash of each repository."""
    license: Annotated[str, Field(pattern=LICENSE, max_length=64)] | None = None
    """Licence of the models, as the Hub writes it (`apache-2.0`); model cards say so if none is given."""
    language: Languages = ()
    """Language of the corpus, as a code of ISO 639 (`en`), or a list; model cards say so if none is given."""
    commits_per_hour: Positive = 120
    """How fast models are published; the Hub allows about 128. [commits per hour]"""
    tag: Annotated[str, Field(max_length=64)] | None = None
    """A name for `main` of each published run, such as v1.0."""
    collection: Annotated[str, Field(min_length=1)] | None = None
    """Title of a collection on the Hub that holds all runs."""

    def checks(self) -> tuple[Check, ...]:
        """A tag is a name of git's that no branch has."""
        return (self._unfit_tag,)

    def _unfit_tag(self) -> str | None:
        if self.tag is None or (TAG.match(self.tag) and not BRANCH.match(self.tag)):
            return None
        return (
            f"export.tag: found {self.tag!r}, expected a name such as v1.0 (letters, digits, '.', '_' and '-', with a "
            "letter or a digit at both ends, and no '..') that no branch (main, checkpoint-N) or commit can have; "
            "choose another one"
        )
