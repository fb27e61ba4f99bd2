"""YAML -> frozen, validated Experiment and Cluster, and the digests of the parts that decide a result.

Two files, *what* to train and *where* to run it; each complete in itself. mistral/sections.py and datasections.py have
the sections of an experiment, clusters.py those of a cluster; mistral/yamltext.py reads the files, and
mistral/configerrors.py turns what is wrong into one message.
"""

import difflib
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from mistral import sizes
from mistral.clusters import ArrayStage, Cluster, Stages, TrainStage
from mistral.configerrors import explain
from mistral.datasections import Data, FilesSource, HubSource, PackageSource, TrainedTokenizer
from mistral.errors import ConfigError
from mistral.evaluationsets import STRIDE_TOKENS, Evaluation
from mistral.section import Check, Name, Section
from mistral.sections import Checkpoints, Export, Model, Seeds, Training
from mistral.yamltext import override, read_yaml, write_yaml

__all__ = [
    "ArrayStage",
    "Checkpoints",
    "Cluster",
    "Data",
    "Evaluation",
    "Experiment",
    "Export",
    "FilesSource",
    "HubSource",
    "Model",
    "PackageSource",
    "Seeds",
    "Stages",
    "TrainStage",
    "TrainedTokenizer",
    "Training",
    "find_config",
    "load_cluster",
    "load_experiment",
    "to_yaml",
]

# --- what: the experiment ---------------------------------------------------------------------------------------


class Experiment(Section):
    """What to train."""

    name: Name
    """What the experiment is called; part of the name of each of its runs."""
    folder: str | None = None
    """Where relative paths start; the folder of the experiment's file unless given."""
    seeds: Mapping[Name, Seeds] = Field(min_length=1)
    """The runs: a name and a seed for each, one number for all three streams of randomness, or a section. [no unit]"""
    data: Data
    """Which text, and how it becomes tokens."""
    model: Model
    """Shape of the model."""
    training: Training
    """Hyperparameters."""
    checkpoints: Checkpoints = Checkpoints()
    """What is kept of a run."""
    evaluation: Evaluation = Evaluation()
    """When, and on what, the model is measured."""
    export: Export = Export()
    """What is exported, and where it is published."""

    _folder: Path = PrivateAttr(default=Path())
    _arguments: tuple[str, ...] = PrivateAttr(default=())  # of the command line: where it was read from, and --set

    def checks(self) -> tuple[Check, ...]:
        """Sequences fit into the model's context, and leave no gap between the windows of an evaluation."""
        own = (
            self._equal_seeds,
            self._long_sequences,
            self._nothing_to_predict,
            self._long_stride,
            self._texts_for_ids,
        )
        return (*own, *(functools.partial(self._of_size, check) for check in sizes.CHECKS))

    def _equal_seeds(self) -> str | None:
        """Two runs with the same streams are the same run; without dropout its stream decides nothing."""
        streams = ("init", "data", "dropout") if self.model.drops_out() else ("init", "data")
        first: dict[tuple[int, ...], str] = {}
        for name, seeds in self.seeds.items():
            numbers = tuple(getattr(seeds, stream) for stream in streams)
            if (other := first.setdefault(numbers, name)) != name:
                return (
                    f"seeds.{name}: found {', '.join(f'{s} {n}' for s, n in zip(streams, numbers, strict=True))}, as "
                    f"seeds.{other} has, which would train the same run twice, expected another number in one of them; "
                    "change a number, or leave one of the two seeds out"
                )
        return None

    def _long_sequences(self) -> str | None:
        if self.seq_len <= self.model.n_positions:
            return None
        return (
            f"training.seq_len: found {self.seq_len}, expected at most model.n_positions = {self.model.n_positions}; "
            "shorten seq_len or raise n_positions"
        )

    def _nothing_to_predict(self) -> str | None:
        if self.seq_len > 1:
            return None
        return (
            "training.seq_len: found sequences of 1 token, expected 2 or more, as a token is predicted from those "
            "before it; raise seq_len and n_positions"
        )

    def _long_stride(self) -> str | None:
        if self.stride <= self.seq_len:
            return None
        return (
            f"evaluation.stride: found {self.stride}, expected at most {self.seq_len}, the tokens of a sequence; "
            "lower the stride, or leave it out"
        )

    def _texts_for_ids(self) -> str | None:
        if self.data.passthrough() is None or not self.evaluation.chosen():
            return None
        return (
            f"evaluation: found {', '.join(self.evaluation.chosen())} beside a corpus of token ids, expected no text, "
            "as there is no tokenizer for it; leave the evaluation sets out"
        )

    def _of_size(self, check: Callable[[sizes.Size], str | None]) -> str | None:
        return check(self.size())

    def size(self) -> sizes.Size:
        """How large the model and its training are; with GPT-2's vocabulary where the tokenizer is not known yet."""
        vocabulary = self.data.vocabulary() or sizes.GPT2_VOCABULARY
        return sizes.Size(self.model, self.training, self.checkpoints, vocabulary, self.seq_len)

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""
        return self.training.seq_len or self.model.n_positions

    @property
    def stride(self) -> int:
        """Tokens by which the window of an evaluation advances."""
        return self.evaluation.stride or min(STRIDE_TOKENS, self.seq_len)

    def evaluation_sets(self) -> dict[str, "Experiment"]:
        """This experiment with each of its evaluation sets as its data: they are prepared as any other dataset is."""
        sets = self.evaluation.data(self.data)
        return {name: self.model_copy(update={"data": data}) for name, data in sets.items()}

    def dataset_names(self) -> list[str]:
        """The dataset that it trains on, and its evaluation sets."""
        return [one.data.dataset_name() for one in (self, *self.evaluation_sets().values())]

    def run_name(self, seed: str) -> str:
        """`alias-gpt2-small-x21`."""
        return f"{seed}-{self.name}-x{self.seeds[seed].label()}"

    def choose_seeds(self, names: Sequence[str] = ()) -> list[str]:
        """The named seeds, or all of them, in config order.

        Raises:
            ConfigError: names the seeds that exist.
        """
        if unknown := [name for name in names if name not in self.seeds]:
            raise ConfigError(
                f"--seed: found {', '.join(unknown)}, expected seeds of {self.name}: {', '.join(self.seeds)}; "
                "name one of these"
            )
        return [seed for seed in self.seeds if not names or seed in names]

    def scheduled_steps(self) -> tuple[int, ...]:
        """The steps whose weights are kept for good, ascending."""
        return self.checkpoints.steps(self.training.max_steps)

    def path(self, relative: str) -> Path:
        """A path of the config: relative ones start from its `folder`."""
        return self._folder / relative

    def command(self, command: str, workspace: Path, *options: str) -> str:
        """What to type, in whatever folder, to do the next thing with this experiment, as messages tell it."""
        arguments = [command, *(self._arguments or (self.name,)), *options, "--workspace", str(workspace)]
        return shlex.join(["mistral-pipeline", *arguments])

    def frozen_sections(self, seed: str) -> dict[str, Any]:
        """What may not change once the run of `seed` has begun."""
        return {**self.shared_sections(), "seed": self.seeds[seed].model_dump(mode="json")}

    def shared_sections(self) -> dict[str, Any]:
        """What every run of the cohort has in common: model, data, and training but for its logging."""
        free = {"logging_steps"} | ({"lr_decay_steps"} if self.training.lr_decay_steps is None else set())
        return {
            "data": self.data.identity(),
            "model": self.model.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", exclude=free),
        }


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
    experiment._folder = path.absolute().parent / (experiment.folder or "")
    bare = path.absolute().parent in installed_conf("experiments")
    experiment._arguments = (path.stem if bare else str(path.absolute()), *set_options(overrides))
    return experiment


def set_options(overrides: tuple[str, ...]) -> list[str]:
    """Overrides as the command line takes them."""
    return [part for assignment in overrides for part in ("--set", assignment)]


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
    raw = read_yaml(path)
    for assignment in overrides:
        override(raw, assignment)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(raw, model, error, str(path))) from None


def to_yaml(config: Experiment | Cluster) -> str:
    """The resolved config, as it is kept in the workspace: wherever it lies, it names the same files and dataset."""
    place = {"folder": str(config._folder)} if isinstance(config, Experiment) else {}
    return write_yaml(config.model_dump(mode="json") | place)
