"""weights whose record is gone, later records that name its content -> the same record again.

The content digest of a record covers the hashes of its files and the digest of the weights before it, and the records
that follow name it. So a record that is made again from the files is right if a later record names its content.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mistral.drift import find_drift
from mistral.manifest import Manifest, Record, make_record, with_maker
from mistral.records import updates_of
from mistral.tensorfiles import MODEL
from mistral.workspace import step_name, step_number

FILES = ("config.json", MODEL)


def proven(manifest: Manifest, run: str, steps: Sequence[int]) -> list[Record]:
    """The records of some steps of a run, made again as far as later records prove them; their facts are not whole.

    Args:
        manifest: the other records.
        run: the run's name.
        steps: scheduled steps whose weights have no record.

    Raises:
        StorageError: a file cannot be read.
    """
    begun = manifest.find("train", (run, "begin"))
    if begun is None or not manifest.names("train", (run, "weights")):  # from which the facts are taken
        return []
    named, found, pending = set(_named(manifest, run)), list[Record](), list[Record]()
    for step in sorted(steps):
        before = _before(manifest, run, step, [*found, *pending])
        candidates = list(_candidates(manifest, begun, step, before)) if before or step == 0 else []
        right = [record for record in candidates if record.content in named]
        if right:
            found += [*pending, right[0]]  # as its content is made of those before it
        pending = [] if right or not candidates else [*pending, candidates[0]]
    return found


def _named(manifest: Manifest, run: str) -> Iterator[str]:
    """Content of weights that the records of a run name."""
    kinds = (
        ("train", (run, "weights"), "parent"),
        ("train", (run, "state"), "weights"),
        ("train", (run, "set-aside"), "weights"),
        ("export", (run,), "weights"),
    )
    for stage, key, role in kinds:
        for name in manifest.names(stage, key):
            record = manifest.find(stage, (*key, name))
            if record is not None and role in record.inputs:
                yield record.inputs[role]
    complete = manifest.find("train", (run, "complete"))
    if complete is not None:
        yield complete.inputs["weights"]


def _before(manifest: Manifest, run: str, step: int, made: Sequence[Record]) -> Record | None:
    """The weights before a step: a record that was just made again, or one that is there."""
    names = [name for name in manifest.names("train", (run, "weights")) if step_number(name) < step]
    recorded = manifest.find("train", (run, "weights", names[-1])) if names else None
    return max((one for one in (recorded, *made) if one), key=lambda one: one.facts["step"], default=None)


def _candidates(manifest: Manifest, begun: Record, step: int, before: Record | None) -> Iterator[Record]:
    """The record that the files of a step give, under each change of software or hardware that it may descend from."""
    run, workspace = begun.key[0], manifest.workspace
    folder = workspace.weights(run, step)
    paths = [folder / name for name in FILES]
    if not all(path.is_file() for path in paths):
        return
    files = [manifest.entry(path) for path in paths]
    first = before.inputs.get("drift") if before else None
    drifts = [manifest.find("train", (run, "drift", name)) for name in manifest.names("train", (run, "drift"))]
    for drift in dict.fromkeys([first, None, *(record.content for record in drifts if record)]):
        inputs = {"dataset": begun.inputs["dataset"]}
        inputs |= {"drift": drift} if drift else {}
        inputs |= {"parent": before.content} if before else {}
        key = (run, "weights", step_name(step))
        yield make_record("train/weights", key, config=begun.config, inputs=inputs, files=files, facts={"step": step})


def restore(manifest: Manifest, run: str, record: Record) -> Record:
    """Publish a proven record, with facts like those of its neighbours; the loss on the probe is computed again.

    Args:
        manifest: where it goes.
        run: the run's name.
        record: what `proven` gave.

    Raises:
        ManifestError: the beginning of the run, or a change that the weights descend from, is not recorded.
    """
    begun = manifest.get("train", (run, "begin"), "restore it")
    first = manifest.names("train", (run, "weights"))[0]
    neighbour = manifest.get("train", (run, "weights", first), "run the same command again")
    step, frozen = record.facts["step"], begun.facts["frozen"]
    sequence = frozen["training"]["seq_len"] or frozen["model"]["n_positions"]
    sequences = neighbour.facts["probe"]["sequences"]
    facts = {
        "step": step,
        "tokens": step * frozen["training"]["global_batch_size"] * sequence,
        "updates": _updates(manifest, run, record),
        "probe": {"loss": _loss(manifest, run, step, frozen, sequences), "sequences": sequences},
        "logging_steps": neighbour.facts["logging_steps"],
        "newest_state": _newest_state(manifest, run, step),
        "restored": True,
    }
    drift = record.inputs.get("drift")
    conditions = find_drift(manifest, run, drift).facts["now"] if drift else begun.facts["cohort"]
    maker = {**record.made_by, "software": conditions["software"], "numerics": conditions["numerics"]}
    return manifest.publish(with_maker(record, facts, maker))


def _updates(manifest: Manifest, run: str, record: Record) -> int:
    """Updates of the optimizer by the step of a record: what a state of that step says, or weights with the same files.

    fp16 skips some, which leaves the weights as they are; every other precision updates in each step.
    """
    step, sha256 = record.facts["step"], {entry.sha256 for entry in record.files}
    state = manifest.find("train", (run, "state", step_name(step)))
    if state is not None:
        return updates_of(state)
    for name in manifest.names("train", (run, "weights")):
        other = manifest.find("train", (run, "weights", name))
        if other is not None and {entry.sha256 for entry in other.files} == sha256:
            return updates_of(other)
    return int(step)


def _newest_state(manifest: Manifest, run: str, step: int) -> int | None:
    """The newest state by a step as far as is known, else the oldest one since: that there was one is what counts."""
    names = manifest.names("train", (run, "weights"))
    after = [manifest.find("train", (run, "weights", name)) for name in names if step_number(name) > step][:1]
    states = [step_number(name) for name in manifest.names("train", (run, "state"))]
    known = [*states, *(one.facts.get("newest_state") for one in after if one)]
    earlier = [number for number in known if number is not None and number < step]
    return max(earlier) if earlier else min(states, default=None)


def _loss(manifest: Manifest, run: str, step: int, frozen: dict[str, Any], sequences: list[list[int]]) -> float:
    """The loss of the weights on the probe, in fp32 on this machine."""
    from mistral.config import Model
    from mistral.model import load_model
    from mistral.parity import mean_loss

    model = load_model(manifest.workspace.weights(run, step), Model.model_validate(frozen["model"]))
    return mean_loss(model, sequences)
