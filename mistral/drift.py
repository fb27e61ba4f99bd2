"""two moments of a run -> how software, hardware or config differ, the record of that, and what the run can claim."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mistral.errors import ManifestError
from mistral.files import digest_of
from mistral.manifest import Manifest, Record, make_record

CONDITIONS = ("software", "numerics")  # what may change between two attempts of a run

# What a run can claim, the strongest first.
SAME_BITS, SAME_BATCHES, CLOSE_NUMBERS = "same bits", "same batches", "close numbers"
DIVISION = ("numerics.world_size:", "numerics.zero_stage:", "numerics.threads:")  # how the work is divided


def promise(begun: Record, drift: Iterable[Record]) -> str:
    """What a run can claim.

    Same bits: nothing changed while it was trained, and its algorithms are deterministic. Same batches: the work was
    divided in another way, or the algorithms are not deterministic. Close numbers: it went on with other software or
    hardware.

    Args:
        begun: the record of its beginning.
        drift: the records of what changed.
    """
    changes = [change for record in drift for change in record.facts["changes"]]
    if not all(change.startswith(DIVISION) for change in changes):
        return CLOSE_NUMBERS
    return SAME_BATCHES if changes or not begun.facts["frozen"]["training"]["deterministic"] else SAME_BITS


def changes_between(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How software and numerics differ; what `now` does not hold is not compared."""
    return [line for name in CONDITIONS if name in now for line in differences(then[name], now[name], name)]


@dataclass(frozen=True)
class Drift:
    """How a run goes on: `content` of the last drift record that it descends from, None if it has none."""

    content: str | None
    changes: tuple[str, ...] = ()


def record_drift(manifest: Manifest, begun: Record, facts: dict[str, Any], step: int, former: str | None) -> Drift:
    """Record that a run goes on with other software or hardware than before.

    The checkpoints that follow name this record among their inputs, and states hand it on.

    Args:
        manifest: the records.
        begun: the run's beginning.
        facts: what `begin_facts` gives now.
        step: where the run goes on.
        former: the drift that the state at `step` names.

    Raises:
        ManifestError: the record of the former drift is gone.
    """
    run = begun.key[0]
    now = {name: facts["cohort"][name] for name in CONDITIONS}
    then = find_drift(manifest, run, former).facts["now"] if former else begun.facts["cohort"]
    changes = changes_between(then, now)
    if not changes:
        return Drift(former)
    key = (run, "drift", f"step-{step:08d}-{digest_of(now)[:8]}")
    inputs = {"begin": begun.content} | ({"drift": former} if former else {})
    told = {"step": step, "changes": changes, "now": now}
    record = manifest.publish(make_record("train/drift", key, config=begun.config, inputs=inputs, files=[], facts=told))
    return Drift(record.content, tuple(changes))


def find_drift(manifest: Manifest, run: str, content: str) -> Record:
    """The record of a change of software or hardware.

    Raises:
        ManifestError: it is not there.
    """
    for name in manifest.names("train", (run, "drift")):
        record = manifest.find("train", (run, "drift", name))
        if record is not None and record.content == content:
            return record
    raise ManifestError(
        f"{run}: found no record of the drift {content[:12]} under manifest/train/{run}/drift, expected the one that "
        "its states name; restore it"
    )


def drift_of(manifest: Manifest, checkpoint: Record) -> list[Record]:
    """The changes of software or hardware that a checkpoint descends from, in their order.

    Raises:
        ManifestError: one of them is not recorded.
    """
    drift: list[Record] = []
    content = checkpoint.inputs.get("drift")
    while content:
        drift.insert(0, find_drift(manifest, checkpoint.key[0], content))
        content = drift[0].inputs.get("drift")
    return drift


def differences(then: Any, now: Any, where: str = "") -> list[str]:
    """`training.learning_rate: was 0.0006, is 0.0003`, one line for each leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        return [line for key in keys for line in differences(then.get(key), now.get(key), f"{where}.{key}".lstrip("."))]
    return [] if then == now else [f"{where}: was {then!r}, is {now!r}"]
