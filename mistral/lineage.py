"""records of a workspace -> what contradicts what: places, parents, inputs, gaps, twins and drift, one line each.

Each record is judged by what the others say of it, so that a checkpoint of another seed, an edited record or a step
that went missing shows, whoever put it there. docs/formats.md says what cannot be found in this way.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from mistral.cohort import changes_between, differences, promise
from mistral.config import Data, Experiment, Seeds
from mistral.dataset import SEAL
from mistral.extension import contradictions_of_length, last_step, newest_plan, of_any_length, training_of
from mistral.files import digest_of
from mistral.manifest import Record
from mistral.records import Records, place
from mistral.tensorfiles import MODEL, dtype_of
from mistral.workspace import step_name, step_number

STEPS = ("train/weights", "train/state", "export/checkpoint")


def contradictions(records: Records, experiment: Experiment | None = None) -> Iterator[str]:
    """Everything that contradicts something else.

    Args:
        records: what lies in the manifest.
        experiment: whose runs they are, and whose schedule they must have kept; the recorded ones unless given.
    """
    for record in filter(None, records.found.values()):
        yield from _careful(record, misplaced(records, record))
        yield from _careful(record, _CHECKS.get(record.kind, _nothing)(records, record))
    for begun in records.of_kind("train/begin"):
        yield from _careful(begun, foreign(begun, experiment))
        yield from _careful(begun, gaps(records, begun, experiment))
    for first, second in itertools.combinations(records.of_kind("train/begin"), 2):
        yield from _careful(second, undeclared_difference(records, first, second))
    yield from twins(records)


def _careful(record: Record, problems: Iterator[str]) -> Iterator[str]:
    """Facts that are not those of the record's kind are a finding as well."""
    try:
        yield from problems
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield f"{place(record)}: found facts that are not those of a {record.kind} ({error!r}); restore the record"


def _nothing(records: Records, record: Record) -> Iterator[str]:
    yield from ()


def misplaced(records: Records, record: Record) -> Iterator[str]:
    """Files lie where files of their kind belong: a record cannot pass another run's file off as its own."""
    workspace, name, last = records.workspace, record.key[0], record.key[-1]
    homes = {
        "preprocess/unit": lambda: workspace.dataset(name),
        "preprocess/dataset": lambda: workspace.dataset(name),
        "train/weights": lambda: workspace.weights(name, step_number(last)),
        "train/state": lambda: workspace.state(name, step_number(last)),
        "export/checkpoint": lambda: workspace.export(name, step_number(last)),
    }
    if record.kind in homes:
        home = homes[record.kind]().relative_to(workspace.root).as_posix()
        for entry in record.files:
            if not entry.path.startswith(f"{home}/"):
                yield f"{entry.path}: found in the record {'/'.join(record.key)}, expected a file in {home}"
    if record.kind in STEPS and (step := record.facts["step"]) != step_number(last):
        yield f"{place(record)}: found the facts of step {step}, expected those of step {step_number(last)}"


def _follows(records: Records, record: Record, name: str, stage: str, *key: str) -> Iterator[str]:
    """An input of a record is the content of the record that should be there."""
    other, found = records.get(stage, *key), record.inputs.get(name)
    if other is not None and found != other.content:
        expected = f"{other.content[:12]}, the content of {stage}/{'/'.join(key)}"
        yield f"{place(record)}: its {name} is {str(found)[:12]}, expected {expected}"
    if not records.exists(stage, *key):
        yield f"{place(record)}: made from {stage}/{'/'.join(key)}, which is not recorded"


def _dataset(records: Records, seal: Record) -> Iterator[str]:
    """The units of a dataset are those that it was sealed with."""
    dataset = seal.key[0]
    recorded = {key[1] for stage, key in records.found if stage == "preprocess" and key[0] == dataset and len(key) == 2}
    for unit in sorted({*seal.inputs, *recorded} - {SEAL}):
        yield from _follows(records, seal, unit, "preprocess", dataset, unit)


def _begin(records: Records, begun: Record) -> Iterator[str]:
    """A run began with the config, the name and the dataset that its record claims."""
    run, facts, frozen = begun.key[0], begun.facts, begun.facts["frozen"]
    if begun.config != digest_of(frozen):
        yield f"{place(begun)}: found frozen sections with another digest than its config; restore the record"
    name = f"{facts['seed']}-{facts['experiment']}-x{Seeds.model_validate(frozen['seed']).label()}"
    if name != run:
        yield f"{place(begun)}: found the run {name}, expected {run}, the name of its place"
    if facts["cohort"]["config"] != {name: value for name, value in frozen.items() if name != "seed"}:
        yield f"{place(begun)}: found another config for the cohort than for the run; restore the record"
    dataset = Data.model_validate(frozen["data"]).dataset_name()
    seals = [seal.content for seal in records.of_kind("preprocess/dataset") if seal.key[0] == dataset]
    unreadable = any(key[-1] == SEAL for (stage, key), record in records.found.items() if record is None)
    if begun.inputs.get("dataset") not in seals and not unreadable:
        known = ", ".join(content[:12] for content in seals) or "none"
        found = str(begun.inputs.get("dataset"))[:12]
        yield f"{place(begun)}: its dataset is {found}, expected the recorded one of its data section: {known}"


def _run_of(records: Records, record: Record) -> Iterator[str]:
    """A record belongs to the run as it began."""
    run = record.key[0]
    begun = records.get("train", run, "begin")
    if not records.exists("train", run, "begin"):
        yield f"{place(record)}: the beginning of the run is not recorded"
    if begun is None:
        return
    if record.kind != "export/checkpoint" and record.config != begun.config:
        yield f"{place(record)}: belongs to another config than {run} began with"
    if record.kind in STEPS and record.inputs.get("dataset") != begun.inputs.get("dataset"):
        yield f"{place(record)}: belongs to another dataset than {run} began with"


def _checkpoint(records: Records, record: Record) -> Iterator[str]:
    """A checkpoint belongs to its run, follows from the one before, and was made as the run says that it was."""
    yield from _run_of(records, record)
    run, kind, name = record.key
    step, role = step_number(name), "parent" if kind == "weights" else "weights"
    before = [other for other in records.steps(run) if other < step or (kind == "state" and other == step)]
    if before:
        yield from _follows(records, record, role, "train", run, "weights", step_name(before[-1]))
    elif role in record.inputs:
        yield f"{place(record)}: the checkpoint that it descends from is not recorded"
    if (begun := records.get("train", run, "begin")) is None:
        return
    yield from _unknown_drift(records, record)
    if undeclared := changes_between(_conditions(records, record, begun), record.made_by):
        yield f"{place(record)}: made with other software or numerics than recorded, not declared: {undeclared[0]}"
    if kind == "weights":
        yield from _measured(records, record, begun)


def _measured(records: Records, weights: Record, begun: Record) -> Iterator[str]:
    """Tokens are those of the step, and the probe is the same batch all along."""
    frozen, facts = begun.facts["frozen"], weights.facts
    sequence = frozen["training"]["seq_len"] or frozen["model"]["n_positions"]
    tokens = facts["step"] * frozen["training"]["global_batch_size"] * sequence
    if facts["tokens"] != tokens:
        yield f"{place(weights)}: found {facts['tokens']} tokens, expected {tokens} at step {facts['step']}"
    first = records.of_kind("train/weights", weights.key[0])[0]
    if facts["probe"]["sequences"] != first.facts["probe"]["sequences"]:
        yield f"{place(weights)}: found another probe batch than in {first.key[-1]}; restore the record"


def _complete(records: Records, complete: Record) -> Iterator[str]:
    """A complete run ends with the weights of its last step, and claims what it can."""
    yield from _run_of(records, complete)
    run = complete.key[0]
    if (begun := records.get("train", run, "begin")) is None:
        return
    last, ends = complete.facts["steps"], [last_step(plan) for plan in (begun, *records.of_kind("train/extend", run))]
    if last not in ends:
        yield f"{place(complete)}: found {last} steps, expected {' or '.join(map(str, ends))}"
    yield from _follows(records, complete, "weights", "train", run, "weights", step_name(last))
    weights = records.get("train", run, "weights", step_name(last))
    claim = promise(begun, drift_chain(records, weights)) if weights else None
    if claim and (claimed := complete.facts["promise"]) != claim:
        yield f"{place(complete)}: found the promise {claimed!r}, expected {claim!r} by what is recorded of its drift"


def _extend(records: Records, extension: Record) -> Iterator[str]:
    """A longer run follows from its beginning, and keeps all that it was to keep but for its former end."""
    yield from _run_of(records, extension)
    run = extension.key[0]
    yield from _follows(records, extension, "begin", "train", run, "begin")
    if begun := records.get("train", run, "begin"):
        for problem in contradictions_of_length(begun, extension):
            yield f"{place(extension)}: {problem}; restore the record"


def _plan(records: Records, begun: Record) -> Record:
    """How long a run is now."""
    return newest_plan(begun, records.of_kind("train/extend", begun.key[0]))


def _drift(records: Records, drift: Record) -> Iterator[str]:
    """A change of software or hardware follows from the beginning or the change before, and tells what differs."""
    yield from _run_of(records, drift)
    run, facts = drift.key[0], drift.facts
    yield from _follows(records, drift, "begin", "train", run, "begin")
    yield from _unknown_drift(records, drift)
    begun = records.get("train", run, "begin")
    name = f"{step_name(facts['step'])}-{digest_of(facts['now'])[:8]}"
    before = _conditions(records, drift, begun) if begun else facts["now"]
    if name != drift.key[-1] or (begun and facts["changes"] != changes_between(before, facts["now"])):
        yield f"{place(drift)}: found other changes than its name and the record before it tell; restore the record"


def _unknown_drift(records: Records, record: Record) -> Iterator[str]:
    """A change of software or hardware that a record names is recorded."""
    run, named = record.key[0], record.inputs.get("drift")
    if named is None or named in [drift.content for drift in records.of_kind("train/drift", run)]:
        return
    if not any(key[:2] == (run, "drift") for (_, key), drift in records.found.items() if drift is None):  # unreadable
        yield f"{place(record)}: its drift is {named[:12]}, which is not recorded"


def drift_chain(records: Records, record: Record) -> list[Record]:
    """The recorded changes of software or hardware that a record descends from, in their order."""
    known = {drift.content: drift for drift in records.of_kind("train/drift", record.key[0])}
    chain: list[Record] = []
    while (named := (chain[0] if chain else record).inputs.get("drift")) in known:
        chain.insert(0, known[named])
    return chain


def _conditions(records: Records, record: Record, begun: Record) -> Any:
    """Software and numerics that a record descends from."""
    chain = drift_chain(records, record)
    return chain[-1].facts["now"] if chain else begun.facts["cohort"]


def _export(records: Records, export: Record) -> Iterator[str]:
    """An exported folder holds the tensors of its checkpoint and the tokenizer of its dataset.

    Tensors that were rounded to bf16 have another hash, and are compared one by one (evidence.py).
    """
    yield from _run_of(records, export)
    weights_key = ("train", export.key[0], "weights", step_name(step_number(export.key[-1])))
    yield from _follows(records, export, "weights", *weights_key)
    seals = [seal for seal in records.of_kind("preprocess/dataset") if seal.content == export.inputs.get("dataset")]
    sources = [source for source in (records.get(*weights_key), *seals) if source is not None]
    sent = {entry.path.rpartition("/")[2]: entry.sha256 for entry in export.files}
    for source in sources:
        for entry in source.files:
            folder, _, name = entry.path.rpartition("/")
            wanted = (name == MODEL and dtype_of(export) == "fp32") or folder.endswith("/tokenizer")
            if wanted and (found := sent.get(name)) != entry.sha256:
                expected = f"{entry.sha256[:12]}, that of {place(source)}"
                yield f"{place(export)}: its {name} is {str(found)[:12]}, expected {expected}"


_CHECKS = {
    "preprocess/dataset": _dataset,
    "train/begin": _begin,
    "train/weights": _checkpoint,
    "train/state": _checkpoint,
    "train/complete": _complete,
    "train/drift": _drift,
    "train/extend": _extend,
    "export/checkpoint": _export,
}


# --- over many records ------------------------------------------------------------------------------------------


def foreign(begun: Record, experiment: Experiment | None) -> Iterator[str]:
    """A run belongs to the experiment that is checked."""
    if experiment and begun.facts["experiment"] != experiment.name:
        yield (
            f"{place(begun)}: found a run of experiment {begun.facts['experiment']}, expected {experiment.name}: both "
            "have a run of that name; rename one, or use another workspace"
        )


def gaps(records: Records, begun: Record, experiment: Experiment | None) -> Iterator[str]:
    """A run holds every scheduled step that it has passed, by the schedule it began with and by the experiment's."""
    run = begun.key[0]
    complete, plan = records.get("train", run, "complete"), _plan(records, begun)
    unreadable = complete is None and records.exists("train", run, "complete")
    passed = [complete.facts["steps"]] if complete else [last_step(plan)] if unreadable else []
    reached = max([*passed, *records.steps(run), *records.steps(run, "state")], default=-1)
    asked = experiment.scheduled_steps() if experiment else ()
    scheduled = {*plan.facts["scheduled_steps"], *(asked if asked and asked[-1] >= last_step(plan) else ())}
    how = "complete" if passed else f"at step {reached}"
    for step in sorted(scheduled - set(records.steps(run))):
        if step <= reached:
            yield f"{run}: {how}, but its scheduled step {step} is not recorded"


def undeclared_difference(records: Records, first: Record, second: Record) -> Iterator[str]:
    """Runs of one experiment differ in nothing but their seeds, or one of them tells in what else."""
    if first.facts["experiment"] != second.facts["experiment"]:
        return
    declared = second.key[0] in first.facts["drift"] or first.key[0] in second.facts["drift"]
    began = all(records.steps(run) or records.steps(run, "state") for run in (first.key[0], second.key[0]))
    one, other = (of_any_length(run.facts["cohort"], training_of(_plan(records, run))) for run in (first, second))
    changes = differences(one, other) if began else []
    if changes and not declared:
        yield f"{place(second)}: differs from {first.key[0]} in more than the seed, not declared: {'; '.join(changes)}"


def twins(records: Records) -> Iterator[str]:
    """Two steps of a run, or two runs of other seeds, that have the same weights or states."""
    seen: dict[str, list[Record]] = {}
    for record in (*records.of_kind("train/weights"), *records.of_kind("train/state")):
        for entry in record.files:
            if entry.path.endswith(f"/{MODEL}") or entry.path.endswith("/state.safetensors"):
                others = seen.setdefault(entry.sha256, [])
                twin = next((other for other in others if _must_differ(records, other, record)), None)
                if twin:
                    yield f"{entry.path}: holds the same weights as {'/'.join(twin.key)}"
                others.append(record)


def _must_differ(records: Records, first: Record, second: Record) -> bool:
    """Steps of a run do; runs do after step 0 if their seeds of weights or of order differ."""
    if first.key[0] == second.key[0]:
        return True
    begun = [records.get("train", record.key[0], "begin") for record in (first, second)]
    seeds = [record.facts.get("frozen", {}).get("seed", {}) for record in begun if record]
    later = step_number(first.key[-1]) > 0
    return later and len(seeds) == 2 and any(seeds[0].get(s) != seeds[1].get(s) for s in ("init", "data"))


def promises(records: Records) -> dict[str, str]:
    """What each run can claim, by the changes that its checkpoints descend from."""
    claims = {}
    for begun in records.of_kind("train/begin"):
        run = begun.key[0]
        made = [*records.of_kind("train/weights", run), *records.of_kind("train/state", run)]
        drift = {change.key: change for record in made for change in drift_chain(records, record)}
        try:
            claims[run] = promise(begun, drift.values())
        except (AttributeError, KeyError, TypeError):  # facts that are not a beginning's or a change's: told already
            continue
    return claims
