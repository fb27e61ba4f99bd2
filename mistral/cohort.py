"""one run and its siblings -> proof that they differ in nothing but their seeds, and that a resume changed nothing.

A run begins with a record of its frozen config and of four things that a cohort shares: config, data, software and
numerics. A sibling that differs is refused, and so is a resume with another config; a resume on other software or
hardware is recorded, and ends the bitwise promise from there on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistral.config import Experiment
from mistral.errors import ConfigError, ManifestError
from mistral.extension import (
    extend,
    last_step,
    of_any_length,
    plan_of,
    refusal_of_length,
    steps_made,
    training_of,
    with_plan,
    without_length,
)
from mistral.files import digest_of
from mistral.manifest import Manifest, Record, make_record
from mistral.provenance import software

CONDITIONS = ("software", "numerics")  # what may change between two attempts of a run
ADVICE_FROZEN = (
    "model, data, training (but logging_steps) and the seed are frozen once a run has made its first checkpoint\n"
    "  set them back, or give the experiment another name"
)

# What a run can claim, the strongest first.
SAME_BITS, SAME_BATCHES, CLOSE_NUMBERS = "same bits", "same batches", "close numbers"
DIVISION = ("numerics.world_size:", "numerics.zero_stage:", "numerics.threads:")  # how the work is divided


def identity(experiment: Experiment, seed: str) -> dict[str, Any]:
    """Whose run it is, and the sections that are frozen once it has begun."""
    return {"experiment": experiment.name, "seed": seed, "frozen": experiment.frozen_sections(seed)}


def begin_facts(experiment: Experiment, seed: str, dataset: str, numerics: dict[str, Any]) -> dict[str, Any]:
    """What the record of a run's beginning says.

    Args:
        experiment: the config.
        seed: the seed's name.
        dataset: content digest of the dataset.
        numerics: world size, ZeRO stage, threads, hardware, deterministic switches.
    """
    cohort = {
        "config": experiment.shared_sections(),
        "data": dataset,
        "software": software(),
        "numerics": numerics,
    }
    return {
        **identity(experiment, seed),
        "cohort": cohort,
        "scheduled_steps": list(experiment.scheduled_steps()),
    }


def begin(manifest: Manifest, run: str, facts: dict[str, Any], siblings: list[str], allow_drift: bool) -> Record:
    """Record that a run begins, or check that it goes on as it began.

    Args:
        manifest: the records.
        run: the run's name.
        facts: what `begin_facts` gave.
        siblings: names of the other runs of the experiment.
        allow_drift: record a difference from the siblings instead of refusing it.

    Raises:
        ConfigError: another experiment's run has that name, the frozen config changed, or a sibling differs; shows
            the difference.
        ManifestError: the dataset is not the one that the run began with.
    """
    earlier = manifest.find("train", (run, "begin"))
    if earlier is not None and steps_made(manifest, run) is not None:
        refuse_changes(manifest, earlier, facts)
        refuse_other_schedule(manifest, earlier, facts["scheduled_steps"])
        _refuse_other_data(earlier, facts["cohort"]["data"])
        extend(manifest, earlier, facts)
        return earlier
    drift = {name: lines for name in siblings if (lines := _differs_from(manifest, name, facts["cohort"]))}
    if drift and not allow_drift:
        shown = "\n".join(f"  from {name}:\n" + "\n".join(f"    {line}" for line in drift[name]) for name in drift)
        raise ConfigError(
            f"{run} differs from its siblings in more than the seed:\n{shown}\n"
            "  train it as they were trained, or say --allow-drift to record the difference"
        )
    facts = {**facts, "drift": drift}
    if earlier is not None:
        if not differences(earlier.facts, facts):
            return earlier
        _withdraw(manifest, run)
    config = digest_of(facts["frozen"])
    return manifest.publish(
        make_record(
            "train/begin", (run, "begin"), config=config, inputs={"dataset": facts["cohort"]["data"]}, files=[],
            facts=facts,
        )
    )  # fmt: skip


def _withdraw(manifest: Manifest, run: str) -> None:
    """Take back the record of a beginning that no step followed, which binds nobody."""
    for name in manifest.names("train", (run, "drift")):
        manifest.remove("train", (run, "drift", name))
    manifest.remove("train", (run, "begin"))


def refuse_changes(manifest: Manifest, earlier: Record, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with another config than the run began with; a longer run is none if its past stays as it is.

    Args:
        manifest: the records.
        earlier: the record of the run's beginning.
        facts: what `identity` gives now.

    Raises:
        ConfigError: the run is another experiment's, or its config changed; lists each key with its value then and now.
    """
    then, now = ((whose["seed"], whose["experiment"]) for whose in (earlier.facts, facts))
    if then != now:
        raise ConfigError(
            f"{earlier.key[0]}: found the run of seed {then[0]} of experiment {then[1]}, expected that of seed "
            f"{now[0]} of experiment {now[1]}, which has the same name\n"
            "  rename the seed or the experiment, or use another workspace"
        )
    frozen, now = with_plan(earlier.facts["frozen"], plan_of(manifest, earlier)), facts["frozen"]
    changes, why = differences(frozen, now), ""
    if changes and without_length(frozen) == without_length(now):
        steps = steps_made(manifest, earlier.key[0]) or 0
        refusal = refusal_of_length(frozen["training"], now["training"], steps)
        changes, why = (changes, f"  {refusal}\n") if refusal else ([], "")
    if changes:
        shown = "\n".join(f"  {line}" for line in changes)
        raise ConfigError(
            f"{earlier.key[0]}: the config differs from the one it began with:\n{shown}\n{why}  {ADVICE_FROZEN}"
        )


def refuse_other_schedule(manifest: Manifest, earlier: Record, scheduled: Sequence[int]) -> None:
    """Refuse a schedule that leaves out steps that the run began with, or adds some that it has passed.

    Raises:
        ConfigError: lists the steps.
    """
    run = earlier.key[0]
    recorded = {int(name.rpartition("-")[2]) for name in manifest.names("train", (run, "weights"))}
    states = {int(name.rpartition("-")[2]) for name in manifest.names("train", (run, "state"))}
    plan, present = plan_of(manifest, earlier), max(recorded | states, default=0)
    begun = set(plan.facts["scheduled_steps"])
    former_end = {last_step(plan)} if scheduled[-1] > last_step(plan) else set()
    gone = sorted(begun - set(scheduled) - former_end)
    late = sorted(step for step in set(scheduled) - begun - recorded if step <= present)
    for steps, what in ((gone, "without the steps"), (late, "with the steps")):
        if steps:
            shown = ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
            raise ConfigError(
                f"{run}: checkpoints.schedule: found one {what} {shown}, expected the one that the run began with, or "
                f"more steps after its present step {present}\n  set the schedule back, or add later steps only"
            )


def _refuse_other_data(earlier: Record, dataset: str) -> None:
    if earlier.inputs["dataset"] != dataset:
        raise ManifestError(
            f"{earlier.key[0]}: found the dataset {dataset[:12]}, expected {earlier.inputs['dataset'][:12]}, with "
            "which the run began: the corpus was preprocessed again and came out differently\n"
            "  restore the former dataset and its records, or give the experiment another name"
        )


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


def _differs_from(manifest: Manifest, sibling: str, cohort: dict[str, Any]) -> list[str]:
    record = manifest.find("train", (sibling, "begin"))
    if record is None or _is_stale(manifest, record, cohort):
        return []
    theirs = of_any_length(record.facts["cohort"], training_of(plan_of(manifest, record)))
    return differences(theirs, of_any_length(cohort, cohort["config"]["training"]))


def _is_stale(manifest: Manifest, begun: Record, cohort: dict[str, Any]) -> bool:
    """Whether a sibling made no step and has to begin anew, with the config of now, before it can."""
    return steps_made(manifest, begun.key[0]) is None and begun.facts["cohort"]["config"] != cohort["config"]


def differences(then: Any, now: Any, where: str = "") -> list[str]:
    """`training.learning_rate: was 0.0006, is 0.0003`, one line for each leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted(then.keys() | now.keys())
        return [line for key in keys for line in differences(then.get(key), now.get(key), f"{where}.{key}".lstrip("."))]
    return [] if then == now else [f"{where}: was {then!r}, is {now!r}"]
