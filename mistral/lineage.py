"""records of a workspace -> what contradicts what: places, parents, inputs, gaps, twins and drift, one line each.

Each record is judged by what the others say of it, so that a checkpoint of another seed, an edited record or a step
that went missing shows, whoever put it there. docs/formats.md says what cannot be found in this way.
"""

from collections.abc import Iterator
from typing import Any

from mistral.config import Data, Experiment, Seeds
from mistral.datalineage import DATASET_CHECKS
from mistral.dataset import SEAL
from mistral.drift import changes_between, differences, promise
from mistral.extension import contradictions_of_length, last_step, newest_plan, of_any_length, training_of
from mistral.files import digest_of
from mistral.kinds import kind_of
from mistral.manifest import Record
from mistral.records import Records, follows, place, updates_of
from mistral.tensorfiles import MODEL, dtype_of
from mistral.twins import twins
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
        yield from _careful(record, _CHECKS.get(record.kind, _run_of)(records, record))
    for begun in records.of_kind("train/begin"):
        yield from _careful(begun, foreign(begun, experiment))
        yield from _careful(begun, gaps(records, begun, experiment))
        yield from _careful(begun, undeclared_difference(records, begun, experiment))
    yield from twins(records)


def _careful(record: Record, problems: Iterator[str]) -> Iterator[str]:
    """Facts that are not those of the record's kind are a finding as well."""
    try:
        yield from problems
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        yield f"{place(record)}: found facts that are not those of a {record.kind} ({error!r}); restore the record"


def misplaced(records: Records, record: Record) -> Iterator[str]:
    """Files lie where files of their kind belong: a record cannot pass another run's file off as its own."""
    workspace, last = records.workspace, record.key[-1]
    kind = kind_of(record.kind.partition("/")[0], record.key)
    home = kind.home(workspace, record.key).relative_to(workspace.root).as_posix() if kind and kind.home else None
    for entry in record.files:
        if home is None or not entry.path.startswith(f"{home}/"):
            expected = "none" if home is None else f"a file in {home}"
            yield f"{entry.path}: found in the record {'/'.join(record.key)}, expected {expected}"
    if record.kind in STEPS and (step := record.facts["step"]) != step_number(last):
        yield f"{place(record)}: found the facts of step {step}, expected those of step {step_number(last)}"


def _first(records: Records, first: Record) -> Iterator[str]:
    """What the first run shares with its siblings is what was recorded; each run is compared with it."""
    if first.config != digest_of(first.facts["cohort"]):
        yield f"{place(first)}: found another cohort than that of its digest; restore the record"


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
        yield from follows(records, record, role, "train", run, "weights", step_name(before[-1]))
    elif role in record.inputs:
        yield f"{place(record)}: the checkpoint that it descends from is not recorded"
    if (begun := records.get("train", run, "begin")) is None:
        return
    yield from _unknown_drift(records, record)
    if undeclared := changes_between(_conditions(records, record, begun), record.made_by):
        yield f"{place(record)}: made with other software or numerics than recorded, not declared: {undeclared[0]}"
    if kind == "weights":
        yield from _measured(records, record, begun)
    updates, skips = updates_of(record), begun.facts["frozen"]["training"]["precision"] == "fp16"
    if updates > step or (updates < step and not skips):
        yield f"{place(record)}: found {updates} updates of the optimizer at step {step}, expected as many as steps"


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
    yield from follows(records, complete, "weights", "train", run, "weights", step_name(last))
    weights = records.get("train", run, "weights", step_name(last))
    claim = promise(begun, drift_chain(records, weights)) if weights else None
    if claim and (claimed := complete.facts["promise"]) != claim:
        yield f"{place(complete)}: found the promise {claimed!r}, expected {claim!r} by what is recorded of its drift"


def _extend(records: Records, extension: Record) -> Iterator[str]:
    """A longer run follows from its beginning, and keeps all that it was to keep but for its former end."""
    yield from _run_of(records, extension)
    run = extension.key[0]
    yield from follows(records, extension, "begin", "train", run, "begin")
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
    yield from follows(records, drift, "begin", "train", run, "begin")
    yield from _unknown_drift(records, drift)
    begun = records.get("train", run, "begin")
    name = f"{step_name(facts['step'])}-{digest_of(facts['now'])[:8]}"
    before = _conditions(records, drift, begun) if begun else facts["now"]
    if name != drift.key[-1] or (begun and facts["changes"] != changes_between(before, facts["now"])):
        yield f"{place(drift)}: found other changes than its name and the record before it tell; restore the record"


def _given_up(records: Records, given_up: Record) -> Iterator[str]:
    """Weights that were set aside, as they were made again with other bits, are those of its run from a step on."""
    yield from _run_of(records, given_up)
    first = given_up.facts["step"]
    if wrong := [name for name in given_up.facts["weights"] if step_number(name) < first]:
        yield f"{place(given_up)}: found {wrong[0]}, expected steps from {first} on; restore the record"


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
    yield from follows(records, export, "weights", *weights_key)
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


_CHECKS = {  # of all other kinds: that their run has begun, with their config
    **DATASET_CHECKS,
    "cohort/first": _first,
    "train/begin": _begin,
    "train/weights": _checkpoint,
    "train/state": _checkpoint,
    "train/complete": _complete,
    "train/drift": _drift,
    "train/extend": _extend,
    "train/set-aside": _given_up,
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


def undeclared_difference(records: Records, begun: Record, checked: Experiment | None) -> Iterator[str]:
    """Runs of one experiment differ in nothing but their seeds, or tell in what else they differ from the first one.

    A run without weights may have begun a moment ago, and not have compared itself yet.
    """
    experiment, run = begun.facts["experiment"], begun.key[0]
    if not records.steps(run) or (checked and checked.name != experiment):
        return
    if not records.exists("cohort", experiment):
        yield f"{place(begun)}: the first run of its cohort is not recorded, expected cohort/{experiment}.json"
    if (first := records.get("cohort", experiment)) is None:
        return
    name, changes = (
        first.facts["run"],
        differences(_shared(records, first, first.facts["run"]), _shared(records, begun, run)),
    )
    if changes and name not in begun.facts["drift"]:
        yield f"{place(begun)}: differs from {name} in more than the seed, not declared: {'; '.join(changes)}"


def _shared(records: Records, record: Record, run: str) -> Any:
    """What a run has in common with its siblings, as long as it is now."""
    cohort, begun = record.facts["cohort"], records.get("train", run, "begin")
    return of_any_length(cohort, training_of(_plan(records, begun)) if begun else cohort["config"]["training"])


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
