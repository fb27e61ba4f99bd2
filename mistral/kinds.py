"""stage and key of a record -> its kind, and the folder of its files: the one table of the records that there are.

The manifest publishes no others, verify takes no other file for a record, and docs/formats.md lists the same rows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mistral.workspace import Workspace, step_number

Home = Callable[[Workspace, tuple[str, ...]], Path]
PARTS = {
    "unit": r"\d+",
    "step": r"step-\d{8}",
    "digest": r"[0-9a-f]{8}",
    "number": r"(?:0|[1-9]\d*)",
}  # what a placeholder stands for; any other one is a plain name


@dataclass(frozen=True)
class Kind:
    """One kind of record.

    `place` is its key below the stage; `home` gives the folder that holds the record's files, and is None if there are
    none.
    """

    name: str
    place: str
    home: Home | None = None

    @property
    def stage(self) -> str:
        """`train` of `train/weights`."""
        return self.name.partition("/")[0]


KINDS = (
    Kind("preprocess/hashes", "<dataset>/hashes-<unit>", lambda workspace, key: workspace.hashes(key[0])),
    Kind("preprocess/duplicates", "<dataset>/duplicates", lambda workspace, key: workspace.hashes(key[0])),
    Kind("preprocess/unit", "<dataset>/<unit>", lambda workspace, key: workspace.dataset(key[0])),
    Kind("preprocess/dataset", "<dataset>/dataset", lambda workspace, key: workspace.dataset(key[0])),
    Kind("cohort/first", "<experiment>"),
    Kind("train/begin", "<run>/begin"),
    Kind("train/drift", "<run>/drift/<step>-<digest>"),
    Kind(
        "train/weights", "<run>/weights/<step>", lambda workspace, key: workspace.weights(key[0], step_number(key[2]))
    ),
    Kind("train/state", "<run>/state/<step>", lambda workspace, key: workspace.state(key[0], step_number(key[2]))),
    Kind("train/set-aside", "<run>/set-aside/<step>-<digest>"),
    Kind("train/extend", "<run>/extend/<step>"),
    Kind("train/complete", "<run>/complete"),
    Kind("export/checkpoint", "<run>/checkpoint-<number>", lambda w, key: w.export(key[0], step_number(key[1]))),
)


def _pattern(kind: Kind) -> re.Pattern[str]:
    place = re.sub(r"<(\w+)>", lambda found: PARTS.get(found[1], "[^/]+"), kind.place)
    return re.compile(f"{kind.stage}/{place}")


PATTERNS = [(_pattern(kind), kind) for kind in KINDS]


def kind_of(stage: str, key: tuple[str, ...]) -> Kind | None:
    """The kind of the record that belongs in a place; None if none does."""
    place = "/".join((stage, *key))
    return next((kind for pattern, kind in PATTERNS if pattern.fullmatch(place)), None)
