"""a run and a longer max_steps -> whether the run may go on, and the record of its new length.

The record of a run's beginning freezes its config. A longer `max_steps` changes nothing that was computed as long as it
leaves the learning rates of all steps made so far as they are; a decay with a length of its own (`lr_decay_steps`) does
so. Each new length is a record beside the beginning; the longest one is the run's plan. The weights keep the config
that the run began with.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mistral.config import Training
from mistral.manifest import Manifest, Record, make_record
from mistral.schedule import learning_rate
from mistral.workspace import step_name, step_number

LENGTH = ("max_steps", "lr_decay_steps")  # the keys of the training section that say how long


def plan_of(manifest: Manifest, begun: Record) -> Record:
    """The record that says how long a run is: of its last extension, or of its beginning."""
    run = begun.key[0]
    names = manifest.names("train", (run, "extend"))
    found = [manifest.get("train", (run, "extend", name), "run the same command again") for name in names[-1:]]
    return newest_plan(begun, found)


def newest_plan(begun: Record, extensions: Iterable[Record]) -> Record:
    """The longest of the plans of a run."""
    return max([begun, *extensions], key=last_step)


def last_step(plan: Record) -> int:
    """Where a run ends by a plan."""
    return int(plan.facts["scheduled_steps"][-1])


def training_of(plan: Record) -> dict[str, Any]:
    """The training section of a plan."""
    section: dict[str, Any] = (
        plan.facts["training"] if plan.kind == "train/extend" else plan.facts["frozen"]["training"]
    )
    return section


def with_plan(config: dict[str, Any], plan: Record) -> dict[str, Any]:
    """Frozen sections as they are by a plan."""
    return {**config, "training": training_of(plan)}


def of_any_length(cohort: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What a run shares with its siblings, whose lengths may differ, but not how their learning rates decay."""
    decay = training.get("lr_decay_steps") or training["max_steps"]
    shared = {name: value for name, value in training.items() if name != "max_steps"} | {"lr_decay_steps": decay}
    return {**cohort, "config": {**cohort["config"], "training": shared}}


def steps_made(manifest: Manifest, run: str) -> int | None:
    """The last recorded step of a run; None if nothing of it is recorded, so that it is bound to nothing."""
    names = [name for kind in ("weights", "state") for name in manifest.names("train", (run, kind))]
    return max(map(step_number, names), default=None)


def refusal_of_length(then: dict[str, Any], now: dict[str, Any], steps: int) -> str | None:
    """Why a run may not have another length; None if it may.

    Args:
        then: the training section of its plan.
        now: the one that the experiment has now; differs in the keys of LENGTH alone.
        steps: how many were made.
    """
    if now["max_steps"] < then["max_steps"]:
        return "a run cannot be made shorter"
    if other := first_other_rate(then, now, steps):
        step, old, new = other
        decay = Training.model_validate(then).decay_steps()
        return (
            f"its learning rate was to be zero at step {decay}: step {step} was made with {old:.6g} and would have had "
            f"{new:.6g}, so that the weights would be those of neither length; only a run that begins with a "
            "training.lr_decay_steps above its max_steps can grow, up to that step"
        )
    same = Training.model_validate(then).decay_steps() == Training.model_validate(now).decay_steps()
    return None if same or now["max_steps"] > then["max_steps"] else "its decay is frozen with the rest"


def without_length(frozen: dict[str, Any]) -> dict[str, Any]:
    """Frozen sections but for the keys that say how long."""
    training = {name: value for name, value in frozen["training"].items() if name not in LENGTH}
    return {**frozen, "training": training}


def first_other_rate(then: dict[str, Any], now: dict[str, Any], steps: int) -> tuple[int, float, float] | None:
    """The first step of those made so far that would have had another learning rate, and both rates."""
    old, new = Training.model_validate(then), Training.model_validate(now)
    if old.decay_steps() == new.decay_steps():
        return None
    rates = ((step, learning_rate(old, step - 1), learning_rate(new, step - 1)) for step in range(1, steps + 1))
    return next((found for found in rates if found[1] != found[2]), None)


def contradictions_of_length(begun: Record, extension: Record) -> Iterator[str]:
    """What an extension says that does not fit to the beginning of its run, or to its own name."""
    scheduled, section = extension.facts["scheduled_steps"], extension.facts["training"]
    if step_name(scheduled[-1]) != extension.key[-1] or section["max_steps"] != scheduled[-1]:
        yield f"found the plan of {scheduled[-1]} steps, expected that of its name"
    frozen = begun.facts["frozen"]
    if without_length(frozen) != without_length({**frozen, "training": section}):
        yield "found hyperparameters that the run did not begin with, expected another length only"
    if gone := set(begun.facts["scheduled_steps"][:-1]) - set(scheduled):
        yield f"found a schedule without step {min(gone)}, expected all that the run began with but its former end"


def extend(manifest: Manifest, begun: Record, facts: dict[str, Any]) -> None:
    """Record that a run is longer than it was, and withdraw the record of its end; only the run's owner calls this.

    Args:
        manifest: the records.
        begun: the run's beginning.
        facts: what `begin_facts` gives now.
    """
    run, last = begun.key[0], facts["scheduled_steps"][-1]
    if last > last_step(plan_of(manifest, begun)):
        told = {"training": facts["frozen"]["training"], "scheduled_steps": facts["scheduled_steps"]}
        key, inputs = (run, "extend", step_name(last)), {"begin": begun.content}
        manifest.publish(make_record("train/extend", key, config=begun.config, inputs=inputs, files=[], facts=told))
    complete = manifest.find("train", (run, "complete"))
    if complete is not None and complete.facts.get("steps", last) < last:
        manifest.remove("train", complete.key)
