"""the sections of an experiment: frozen models whose fields and checks say what a config may hold.

Field names of the model and training sections are Hugging Face's. mistral/config.py puts the sections together.
"""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from mistral.errors import ConfigError
from mistral.files import digest_of


def _no_truth_value(value: Any) -> Any:
    """Refuse `n_layer: true`, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_value", "a number")
    return value


NAME = r"^[a-z0-9][a-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Positive = Annotated[Whole, Field(gt=0)]
Count = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Probability = Annotated[Real, Field(ge=0.0, lt=1.0)]
Check = Callable[[], str | None]  # a check over several values: what is wrong, or None


class Section(BaseModel):
    """A part of a config: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def checks(self) -> tuple[Check, ...]:
        """Checks over several values; each runs as soon as the values that it reads are valid by themselves."""
        return ()

    @model_validator(mode="after")
    def _passes_its_checks(self) -> Self:
        if problems := [problem for check in self.checks() if (problem := check())]:
            raise ValueError("\n".join(problems))
        return self


class Seeds(Section):
    """The three independent streams of randomness of one run."""

    init: Seed  # initial weights
    data: Seed  # order of the sequences
    dropout: Seed

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


class FilesSource(Section):
    """Text files on this file system; globs, relative to the experiment's file."""

    files: tuple[str, ...] = Field(min_length=1)
    validation_files: tuple[str, ...] = ()  # used as they are, instead of a split by hash
    document: Literal["file", "line"] = "file"  # what one document is in .txt and .md


class PackageSource(Section):
    """Text files that come inside an installed Python package; the package itself is never imported."""

    package: str
    glob: str
    document: Literal["file", "line"] = "file"


class HubSource(Section):
    """A dataset of the Hugging Face Hub, or a folder written by `Dataset.save_to_disk`."""

    hub: str
    revision: str = "main"
    config: str | None = None  # the Hub's name of a subset
    split: str = "train"
    validation_split: str | None = None  # used as it is, instead of a split by hash


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "several"
    keys = value.keys() if isinstance(value, dict) else vars(value) if isinstance(value, Section) else ()
    return next((kind for kind in ("files", "package", "hub") if kind in keys), None)


KIND_OF_SOURCE = Discriminator(
    _kind_of_source,
    custom_error_type="source",
    custom_error_message="a mapping with one of the keys files, package, hub",
)
OneSource = (
    Annotated[FilesSource, Tag("files")] | Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")]
)
Source = Annotated[OneSource, KIND_OF_SOURCE]
SeveralSources = Annotated[tuple[Source, ...], Field(min_length=1), Tag("several")]
Sources = Annotated[OneSource | SeveralSources, KIND_OF_SOURCE]  # several are concatenated


def brings_validation(source: Sources) -> bool:
    """Whether a source, or one of several, names its own validation documents."""
    if isinstance(source, tuple):
        return any(map(brings_validation, source))
    if isinstance(source, FilesSource):
        return bool(source.validation_files)
    return isinstance(source, HubSource) and source.validation_split is not None


class Data(Section):
    """Which text, and how it becomes tokens. Shards depend on this section and on the text alone."""

    name: Name
    source: Sources
    text_field: str = "text"  # of jsonl, parquet and datasets
    tokenizer: str = "gpt2"  # or a folder that holds tokenizer.json, relative to the experiment's file
    tokenizer_engine: Literal["fast", "reference"] = "fast"  # the same shards, a hundred times faster or slower
    validation_fraction: Probability = 0.0005
    detokenizer: Literal["none", "wikitext"] = "none"
    on_bad_document: Literal["stop", "skip"] = "stop"
    unit_megabytes: Positive = 256  # of source text per unit of work

    def checks(self) -> tuple[Check, ...]:
        """The validation split has one origin."""
        return (self._validation_overlap,)

    def _validation_overlap(self) -> str | None:
        if not (self.brings_validation() and self.validation_fraction):
            return None
        return (
            f"found validation_fraction {self.validation_fraction} beside a source that brings its own validation "
            "documents, expected validation_fraction: 0; set it to 0, or leave out the source's validation part"
        )

    def sources(self) -> tuple[Source, ...]:
        """The sources, in order."""
        return self.source if isinstance(self.source, tuple) else (self.source,)

    def brings_validation(self) -> bool:
        """Whether a source names its own validation documents."""
        return brings_validation(self.source)

    def has_validation(self) -> bool:
        """Whether there is a validation split at all."""
        return self.brings_validation() or self.validation_fraction > 0

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the shards: all but the tokenizer's engine."""
        return self.model_dump(mode="json", exclude={"tokenizer_engine"})

    def dataset_name(self) -> str:
        """`<name>-<digest>`: two data sections that differ in anything never share shards."""
        return f"{self.name}-{digest_of(self.identity())[:8]}"


class Model(Section):
    """GPT-2's shape, in the names of transformers' GPT2Config; the vocabulary is the tokenizer's."""

    n_layer: Positive
    n_head: Positive
    n_embd: Positive
    n_positions: Positive = 1024
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    scale_attn_by_inverse_layer_idx: bool = True
    reorder_and_upcast_attn: bool = True
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"  # reorder_and_upcast_attn acts in eager only
    gradient_checkpointing: bool = False

    def checks(self) -> tuple[Check, ...]:
        """The heads divide the width."""
        return (self._uneven_heads,)

    def _uneven_heads(self) -> str | None:
        if self.n_embd % self.n_head == 0:
            return None
        return (
            f"found n_embd {self.n_embd}, which {self.n_head} heads do not divide, expected a multiple of n_head; "
            f"set n_embd to {math.ceil(self.n_embd / self.n_head) * self.n_head}, or choose another n_head"
        )


class Training(Section):
    """Hyperparameters, in Hugging Face's names where it has one."""

    max_steps: Positive
    global_batch_size: Positive  # sequences per optimizer step
    micro_batch_size: Positive  # sequences per forward pass of one rank
    seq_len: Positive | None = None  # tokens per sequence; the model's n_positions unless given
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    deterministic: bool = True
    zero_stage: Annotated[Whole, Field(ge=0, le=3)] = 1
    learning_rate: Annotated[Real, Field(gt=0)]
    weight_decay: Annotated[Real, Field(ge=0)] = 0.1
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.95
    adam_epsilon: Annotated[Real, Field(gt=0)] = 1e-8
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    warmup_steps: Count = 0
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    logging_steps: Positive = 50

    def checks(self) -> tuple[Check, ...]:
        """Micro batches fill the batch."""
        return (self._uneven_batch,)

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

    schedule: tuple[tuple[Positive, Positive], ...] = Field(min_length=1)  # [every, until], in steps
    resume_every_steps: Positive = 1000
    resume_every_minutes: Positive | None = None
    keep_resumable: Positive = 2

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

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The scheduled steps, ascending: 0, the multiples of each `every` up to its `until`, and the last step."""
        steps, start = [0], 0
        for every, until in self.schedule:
            first = (start // every + 1) * every
            steps.extend(range(first, min(until, max_steps - 1) + 1, every))
            start = until
        return (*steps, max_steps)


class Export(Section):
    """Where the exported folders are published."""

    organization: str | None = None
