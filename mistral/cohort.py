"""one run and its siblings -> proof that they differ in nothing but their seeds, and that a resume changed nothing.

A run begins with a record of its frozen config and of four things that a cohort shares: config, data, software and
numerics. The first run of an experiment decides what they are. A sibling that differs is refused, and so is a resume
with another config; a resume on other software or hardware is recorded, and ends the bitwise promise from there on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mistral.config import Experiment
from mistral.drift import differences
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

ADVICE_FROZEN = (
    "model, data, training (but logging_steps) and the seed are frozen once a run has made its first checkpoint\n"
    "  set them back, or give the experiment another name"
)


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


def begin(manifest: Manifest, run: str, facts: dict[str, Any], allow_drift: bool) -> Record:
    """Record that a run begins, or check that it goes on as it began.

    Args:
        manifest: the records.
        run: the run's name.
        facts: what `begin_facts` gave.
        allow_drift: record a difference from the first run of the experiment instead of refusing it.

    Raises:
        ConfigError: another experiment's run has that name, the frozen config changed, or the run differs from its
            siblings; shows the difference.
        ManifestError: the dataset is not the one that the run began with.
    """
    begun = manifest.find("train", (run, "begin"))
    if begun is not None and steps_made(manifest, run) is not None:
        refuse_changes(manifest, begun, facts)
        refuse_other_schedule(manifest, begun, facts["scheduled_steps"])
        refuse_other_data(begun, facts["cohort"]["data"])
        extend(manifest, begun, facts)
        stands_in_cohort(manifest, begun)  # records the cohort if nothing has
        return begun
    if begun is not None and differences({**begun.facts, "drift": {}}, {**facts, "drift": {}}):
        _withdraw(manifest, begun)
        begun = None
    if begun is None:
        _refuse_lost_beginning(manifest, run)
        begun = publish_begin(manifest, run, facts, allow_drift)
    if stands_in_cohort(manifest, begun):
        return begun
    manifest.remove("train", begun.key)
    return begin(manifest, run, facts, allow_drift)


def _withdraw(manifest: Manifest, begun: Record) -> None:
    """Withdraw the record of the beginning of a run that has no checkpoint."""
    run = begun.key[0]
    for name in manifest.names("train", (run, "drift")):
        manifest.remove("train", (run, "drift", name))
    manifest.remove("train", begun.key)


def _refuse_lost_beginning(manifest: Manifest, run: str) -> None:
    """Do not begin a run again that has recorded checkpoints.

    Raises:
        ManifestError: it has some, and only the record of its beginning is gone.
    """
    if any(manifest.names("train", (run, kind)) for kind in ("weights", "state")):
        raise ManifestError(
            f"{manifest.path('train', (run, 'begin'))}: found no record, expected one, as checkpoints of {run} are "
            "recorded; nothing was changed\n  restore this record from a copy, or give the seed another name"
        )


def publish_begin(manifest: Manifest, run: str, facts: dict[str, Any], allow_drift: bool) -> Record:
    """Record that a run begins, and how it differs from the first run of its cohort, if there is one already.

    Raises:
        ConfigError: it differs, and that is not allowed.
    """
    first, drift = binding_first(manifest, facts["experiment"], facts["cohort"]), {}
    if first is None and (stale := find_first(manifest, facts["experiment"])):
        manifest.remove_record(stale)
    if first and (lines := differences_in_cohort(manifest, first, facts["cohort"])):
        drift = {first.facts["run"]: lines}
        if not allow_drift:
            raise _drifted(run, drift)
    return manifest.publish(
        make_record(
            "train/begin", (run, "begin"), config=digest_of(facts["frozen"]),
            inputs={"dataset": facts["cohort"]["data"]}, files=[], facts={**facts, "drift": drift},
        )
    )  # fmt: skip


def stands_in_cohort(manifest: Manifest, begun: Record) -> bool:
    """Whether a run that has begun is the first of its cohort, is as that one is, or has recorded how it differs.

    Siblings that begin together may not see each other's beginnings. So each of them, once it has begun and before its
    first step, tries to publish the one record of the cohort: link(2) lets exactly one of them succeed, and all
    compare themselves with that one.
    """
    experiment, cohort = begun.facts["experiment"], begun.facts["cohort"]
    facts = {"run": begun.key[0], "cohort": cohort}
    record = make_record("cohort/first", (experiment,), config=digest_of(cohort), inputs={}, files=[], facts=facts)
    first = find_first(manifest, experiment) or manifest.publish_first(record)
    return first.facts["run"] in begun.facts["drift"] or not differences_in_cohort(manifest, first, cohort)


def require_in_cohort(manifest: Manifest, begun: Record) -> None:
    """Compare a run once more with the first of its cohort, right before it saves its first weights.

    Until then the first run may be replaced by one with another config, as nothing binds it.

    Raises:
        ConfigError: the run differs, and has not recorded how; nothing of it was saved.
    """
    if not stands_in_cohort(manifest, begun):
        first = find_first(manifest, begun.facts["experiment"]) or begun
        raise _drifted(
            begun.key[0], {first.facts["run"]: differences_in_cohort(manifest, first, begun.facts["cohort"])}
        )


def find_first(manifest: Manifest, experiment: str) -> Record | None:
    """The record of the first run of an experiment, with which its siblings are compared; None if none has begun."""
    return manifest.find("cohort", (experiment,))


def binding_first(manifest: Manifest, experiment: str, cohort: Mapping[str, Any]) -> Record | None:
    """The first run of an experiment, unless its config is another one and no run of the experiment has made a step."""
    first = find_first(manifest, experiment)
    if first is None or first.facts["cohort"]["config"] == cohort["config"]:
        return first
    folder = manifest.workspace.manifest() / "train"
    for run in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        begun = manifest.find("train", (run, "begin"))
        if begun and begun.facts["experiment"] == experiment and steps_made(manifest, run) is not None:
            return first
    return None


def differences_in_cohort(manifest: Manifest, first: Record, cohort: dict[str, Any]) -> list[str]:
    """How a run differs from the first one of its cohort in more than its seed and its length."""
    begun = manifest.find("train", (first.facts["run"], "begin"))
    training = training_of(plan_of(manifest, begun)) if begun else first.facts["cohort"]["config"]["training"]
    now = of_any_length(cohort, cohort["config"]["training"])
    return differences(of_any_length(first.facts["cohort"], training), now)


def refuse_known_drift(manifest: Manifest, experiment: str, run: str, known: Mapping[str, Any]) -> None:
    """Refuse a run that would begin with something else than the first of its cohort, as far as is known beforehand.

    Args:
        manifest: the records.
        experiment: the experiment's name.
        run: the run's name.
        known: some of `config`, `data`, `software` and `numerics`, and of the last one some of its entries.

    Raises:
        ConfigError: shows what differs.
    """
    first = binding_first(manifest, experiment, known) if "config" in known else find_first(manifest, experiment)
    if first is None:
        return
    then, numerics = first.facts["cohort"], known.get("numerics", {})
    now = {**then, **known, "numerics": {name: numerics.get(name, was) for name, was in then["numerics"].items()}}
    if lines := differences_in_cohort(manifest, first, now):
        raise _drifted(run, {first.facts["run"]: lines})


def _drifted(run: str, drift: dict[str, list[str]]) -> ConfigError:
    shown = "\n".join(f"  from {name}:\n" + "\n".join(f"    {line}" for line in drift[name]) for name in drift)
    return ConfigError(
        f"{run} differs from its siblings in more than the seed:\n{shown}\n"
        "  train it as they were trained, or say --allow-drift to record the difference"
    )


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


def refuse_other_configs(manifest: Manifest, experiment: Experiment, seeds: Iterable[str]) -> None:
    """Refuse to read runs of an experiment by another config than they made their steps with.

    Raises:
        ConfigError: as `refuse_changes`.
    """
    for seed in seeds:
        begun = manifest.find("train", (experiment.run_name(seed), "begin"))
        if begun and steps_made(manifest, begun.key[0]) is not None:
            refuse_changes(manifest, begun, identity(experiment, seed))


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


def refuse_other_data(earlier: Record, dataset: str) -> None:
    """Refuse to go on with another dataset than the run began with.

    Args:
        earlier: the record of the run's beginning.
        dataset: content digest of the dataset now.

    Raises:
        ManifestError: it is another one.
    """
    if earlier.inputs["dataset"] != dataset:
        raise ManifestError(
            f"{earlier.key[0]}: found the dataset {dataset[:12]}, expected {earlier.inputs['dataset'][:12]}, with "
            "which the run began: the corpus was preprocessed again and came out differently\n"
            "  restore the former dataset and its records, or give the experiment another name"
        )
