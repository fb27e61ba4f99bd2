"""YAML -> frozen, validated Experiment and Cluster, and the digests of the parts that decide a result.

Two files, *what* to train and *where* to run it; each complete in itself. Field names of the model and training
sections are Hugging Face's. mistral/configerrors.py turns what pydantic finds into messages.
"""

import difflib
import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator

from mistral.configerrors import explain
from mistral.errors import ConfigError
from mistral.files import digest_of

NAME = r"^[a-z0-9][a-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Digest = str  # sha256 in hexadecimal


class Section(BaseModel):
    """A part of a config: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


# --- what: the experiment ---------------------------------------------------------------------------------------


class Seeds(Section):
    """The three independent streams of randomness of one run."""

    init: Seed  # initial weights
    data: Seed  # order of the sequences
    dropout: Seed

    @model_validator(mode="before")
    @classmethod
    def _one_number_for_all(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"init": value, "data": value, "dropout": value}
        return value

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
    keys = value.keys() if isinstance(value, dict) else vars(value) if isinstance(value, Section) else ()
    return next((kind for kind in ("files", "package", "hub") if kind in keys), None)


Source = Annotated[
    Annotated[FilesSource, Tag("files")] | Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message="a mapping with one of the keys files, package, hub",
    ),
]


class Data(Section):
    """Which text, and how it becomes tokens. Shards depend on this section and on the text alone."""

    name: Name
    source: Source
    text_field: str = "text"  # of jsonl, parquet and datasets
    tokenizer: str = "gpt2"  # or a folder that holds tokenizer.json, relative to the experiment's file
    validation_fraction: Probability = 0.0005
    detokenizer: Literal["none", "wikitext"] = "none"
    on_bad_document: Literal["stop", "skip"] = "stop"
    unit_megabytes: Positive = 256  # of source text per unit of work

    @model_validator(mode="after")
    def _one_validation_split(self) -> Self:
        if self.brings_validation() and self.validation_fraction:
            raise ValueError(
                f"found validation_fraction {self.validation_fraction} beside a source that brings its own validation "
                "documents, expected validation_fraction: 0; set it to 0, or leave out the source's validation part"
            )
        return self

    def brings_validation(self) -> bool:
        """Whether the source names its own validation documents."""
        source = self.source
        if isinstance(source, FilesSource):
            return bool(source.validation_files)
        return isinstance(source, HubSource) and source.validation_split is not None

    def has_validation(self) -> bool:
        """Whether there is a validation split at all."""
        return self.brings_validation() or self.validation_fraction > 0

    def dataset_name(self) -> str:
        """`<name>-<digest>`: two data sections that differ in anything never share shards."""
        return f"{self.name}-{digest_of(self.model_dump(mode='json'))[:8]}"


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

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"found n_embd {self.n_embd}, which {self.n_head} heads do not divide, expected a multiple of n_head; "
                f"set n_embd to {math.ceil(self.n_embd / self.n_head) * self.n_head}, or choose another n_head"
            )
        return self


class Training(Section):
    """Hyperparameters, in Hugging Face's names where it has one."""

    max_steps: Positive
    global_batch_size: Positive  # sequences per optimizer step
    micro_batch_size: Positive  # sequences per forward pass of one rank
    seq_len: Positive | None = None  # tokens per sequence; the model's n_positions unless given
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    deterministic: bool = True
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.95
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    warmup_steps: Count = 0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    logging_steps: Positive = 50

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        try:
            self.accumulation_steps(1)
        except ConfigError as error:  # pydantic collects ValueErrors only
            raise ValueError(str(error)) from None
        if self.warmup_steps > self.max_steps:
            raise ValueError(
                f"found warmup_steps {self.warmup_steps}, expected at most max_steps = {self.max_steps}; "
                "lower warmup_steps"
            )
        return self

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

    @model_validator(mode="after")
    def _schedule_increases(self) -> Self:
        ends = [until for _, until in self.schedule]
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            raise ValueError(
                f"found a schedule that ends at {ends}, expected each `until` to be above the one before; "
                "sort the [every, until] pairs"
            )
        return self

    def steps(self, max_steps: int) -> tuple[int, ...]:
        """The scheduled steps, ascending: 0, the multiples of each `every` up to its `until`, and the last step."""
        steps, start = [0], 0
        for every, until in self.schedule:
            steps.extend(step for step in range(every, until + 1, every) if step > start)
            start = until
        return (*(step for step in steps if step < max_steps), max_steps)


class Evaluation(Section):
    """When and on how much the loss is measured outside the training split."""

    every_steps: Positive = 1000
    max_sequences: Positive | None = None  # of the validation split; all of it unless given


class Export(Section):
    """Where the exported folders are published."""

    organization: str | None = None


class Experiment(Section):
    """What to train."""

    name: Name
    seeds: dict[Name, Seeds] = Field(min_length=1)
    data: Data
    model: Model
    training: Training
    checkpoints: Checkpoints
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _context_fits(self) -> Self:
        if self.seq_len > self.model.n_positions:
            raise ValueError(
                f"found training.seq_len {self.seq_len}, expected at most model.n_positions = "
                f"{self.model.n_positions}; shorten seq_len or raise n_positions"
            )
        return self

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""
        return self.training.seq_len or self.model.n_positions

    def run_name(self, seed: str) -> str:
        """`alias-gpt2-small-x21`."""
        return f"{seed}-{self.name}-x{self.seeds[seed].label()}"

    def scheduled_steps(self) -> tuple[int, ...]:
        """The steps whose weights are kept for good, ascending."""
        return self.checkpoints.steps(self.training.max_steps)

    def path(self, relative: str) -> Path:
        """A path of the config: relative ones are relative to the experiment's file."""
        return self._folder / relative

    def frozen_sections(self, seed: str) -> dict[str, Any]:
        """What may not change once the run of `seed` has begun."""
        return {**self.shared_sections(), "seed": self.seeds[seed].model_dump(mode="json")}

    def shared_sections(self) -> dict[str, Any]:
        """What every run of the cohort has in common: model, data, and training but for its logging."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", exclude={"logging_steps"}),
        }


# --- where: the cluster -----------------------------------------------------------------------------------------


class ArrayStage(Section):
    """Resources of one task of preprocess or export."""

    tasks: Positive = 1
    cpus_per_task: Positive = 1
    memory_gigabytes: Positive = 8
    minutes: Positive = 60
    array_width: Positive = 8  # tasks that may run at a time


class TrainStage(Section):
    """Resources of one training run."""

    nodes: Positive = 1
    ranks_per_node: Positive = 1
    gpus_per_node: Count = 0
    cpus_per_rank: Positive = 1
    threads_per_rank: Positive = 1
    memory_gigabytes: Positive = 16
    minutes: Positive = 1440
    array_width: Positive = 1
    max_attempts_without_progress: Positive = 3

    def world_size(self) -> int:
        """Ranks of one run."""
        return self.nodes * self.ranks_per_node


class Stages(Section):
    """Resources of the three stages."""

    preprocess: ArrayStage = ArrayStage()
    train: TrainStage = TrainStage()
    export: ArrayStage = ArrayStage()


class Cluster(Section):
    """Where to run."""

    name: Name
    executor: Literal["local", "slurm"]
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    extra: dict[str, str | int | bool] = {}  # other sbatch options
    setup: tuple[str, ...] = ()  # shell lines before each task: modules, a virtual environment
    stages: Stages = Stages()


# --- loading ----------------------------------------------------------------------------------------------------

AnyConfig = TypeVar("AnyConfig", Experiment, Cluster)


def load_experiment(name_or_path: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment by path, or by bare name from ./conf/experiments and the installed conf.

    Args:
        name_or_path: `gpt2-small`, or a path to a YAML file.
        overrides: `training.max_steps=100`, applied before validation.

    Raises:
        ConfigError: lists every problem at once.
    """
    path = find_config(name_or_path, "experiments")
    experiment = _load(Experiment, path, overrides)
    experiment._folder = path.absolute().parent
    return experiment


def load_cluster(name_or_path: str) -> Cluster:
    """Read a cluster file by path, or by bare name from ./conf/clusters and the installed conf.

    Raises:
        ConfigError: lists every problem at once.
    """
    return _load(Cluster, find_config(name_or_path, "clusters"), ())


def find_config(name_or_path: str, kind: Literal["experiments", "clusters"]) -> Path:
    """The YAML file that a name or a path means.

    Raises:
        ConfigError: names the files that exist.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        if Path(name_or_path).is_file():
            return Path(name_or_path)
        raise ConfigError(f"{kind[:-1]} {name_or_path}: found no such file, expected a YAML file; check the path")
    folders = [Path("conf") / kind, *installed_conf(kind)]
    for folder in folders:
        if (folder / f"{name_or_path}.yaml").is_file():
            return folder / f"{name_or_path}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    close = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"{kind[:-1]} {name_or_path}: found no such name in conf/{kind}, expected one of {', '.join(known)}{hint}"
        "\n  give one of these names, or the path of a YAML file"
    )


def installed_conf(kind: str) -> list[Path]:
    """The conf folder of the installed package, or of the checkout it was installed from."""
    package = Path(__file__).parent
    return [folder / kind for folder in (package / "conf", package.parent / "conf") if folder.is_dir()]


def _load(model: type[AnyConfig], path: Path, overrides: tuple[str, ...]) -> AnyConfig:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: found text that is not YAML, expected a YAML mapping; mend it:\n  {error}"
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: found {type(raw).__name__}, expected a YAML mapping; see conf/ for examples")
    for override in overrides:
        _override(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError:
        raise ConfigError(explain(raw, model, str(path))) from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: found no KEY=VALUE, expected e.g. --set training.max_steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {override}: found a value that is not YAML; quote it, e.g. --set 'a.b=\"x\"'"
        ) from None
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {override}: found that {parent} is a single value, expected a section; see --help"
            )
    if isinstance(value, str):  # YAML 1.1 reads 6e-4 as text
        value = _number(value)
    place[last] = value


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def to_yaml(experiment: Experiment) -> str:
    """The resolved config, as it is kept in the workspace."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
