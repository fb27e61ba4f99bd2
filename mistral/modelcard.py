"""records of a checkpoint -> the README.md of its exported folder; no timestamps, equal input gives equal bytes."""

from dataclasses import dataclass
from typing import Any

from mistral.cohort import CLOSE_NUMBERS, SAME_BATCHES, SAME_BITS, promise
from mistral.config import Experiment
from mistral.manifest import Record

HEADER = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- reproducibility
- training-dynamics
---
"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card is written from."""

    experiment: Experiment
    seed: str
    begun: Record
    weights: Record
    dataset: Record
    metrics: list[dict[str, Any]]  # lines up to the checkpoint's step
    drift: list[Record]  # the changes of software or hardware that the checkpoint descends from


def model_card(facts: CardFacts) -> str:
    """The model card as markdown."""
    run, step = facts.weights.key[0], facts.weights.facts["step"]
    last = facts.experiment.training.max_steps
    sections = [
        f"# {run}, checkpoint {step}\n\nGPT-2 trained from scratch with `mistral-pipeline`, seed `{facts.seed}`, after "
        f"{step:,} of {last:,} steps and {facts.weights.facts['tokens']:,} tokens.",
        "## How to load it\n\n" + _usage(facts, run, step),
        *_rounding(facts),
        "## Measured\n\n" + _measured(facts),
        "## Data\n\n" + _data(facts),
        "## Seeds\n\n" + _table(facts.experiment.seeds[facts.seed].model_dump()),
        "## Architecture\n\n" + _table(facts.experiment.model.model_dump(mode="json")),
        "## Hyperparameters\n\n" + _table(facts.experiment.training.model_dump(mode="json")),
        "## Lineage\n\n" + _lineage(facts),
        "## Software and numerics\n\n" + _software(facts),
        "## Reproducibility\n\n" + _promise(facts),
    ]
    return HEADER + "\n" + "\n\n".join(sections) + "\n"


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| | |\n|---|---|\n{rows}"


def _usage(facts: CardFacts, run: str, step: int) -> str:
    organization = facts.experiment.export.organization
    place = (
        f'"{organization}/{run}", revision="checkpoint-{step}"'
        if organization
        else f'"exports/{run}/checkpoint-{step}"'
    )
    model = f"model = AutoModelForCausalLM.from_pretrained({place})\n"
    if facts.experiment.data.passthrough() is not None:
        ids = "The corpus was token ids: there is no tokenizer."
        return f"```python\nfrom transformers import AutoModelForCausalLM\n\n{model}```\n\n{ids}"
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({place})\n"
    return f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n{model}{tokenizer}```"


def _rounding(facts: CardFacts) -> list[str]:
    """What was lost on the way here, if anything was."""
    if facts.experiment.export.dtype == "fp32":
        return []
    exact = next(entry.sha256 for entry in facts.weights.files if entry.path.endswith(".safetensors"))
    return [
        "## Rounded to bfloat16\n\nThe checkpoint is fp32; these are its weights rounded to bfloat16, to the nearest "
        "and ties to even, so that each is within 2^-8 of itself. What is told below was measured with the weights "
        f"before that, whose file has the sha256 `{exact}`."
    ]


def _measured(facts: CardFacts) -> str:
    steps = [line for line in facts.metrics if "loss" in line]
    evaluations = [line for line in facts.metrics if "evaluation" in line]
    rows: dict[str, Any] = {"probe loss (fp32, fixed sequences)": facts.weights.facts["probe"]["loss"]}
    if steps:
        rows[f"training loss at step {steps[-1]['step']}"] = steps[-1]["loss"]
    if evaluations:
        for text, measures in evaluations[-1]["evaluation"].items():
            for name, value in measures.items():
                rows[f"{text} {name.replace('_', ' ')} at step {evaluations[-1]['step']}"] = value
    return _table(rows)


def _data(facts: CardFacts) -> str:
    data = facts.experiment.data
    splits = facts.dataset.facts["splits"]
    rows = {split: f"{part['documents']:,} documents, {part['tokens']:,} tokens" for split, part in splits.items()}
    rule = (
        "as given by the source"
        if data.brings_validation()
        else f"documents whose sha256, read as a fraction, is below {data.validation_fraction}"
    )
    return _table({"dataset": facts.dataset.key[0], "tokenizer": data.tokenizer, **rows, "validation split": rule})


def _lineage(facts: CardFacts) -> str:
    rows = {"dataset": facts.dataset.content, "weights": facts.weights.content}
    if "parent" in facts.weights.inputs:
        rows["parent checkpoint"] = facts.weights.inputs["parent"]
    if "drift" in facts.weights.inputs:
        rows["change of software or hardware"] = facts.weights.inputs["drift"]
    return _table(rows)


def _software(facts: CardFacts) -> str:
    """What the run began with, what changed while it was trained, and how it differs from its siblings."""
    begun = facts.begun.facts
    parts = [_table(begun["cohort"]["software"] | begun["cohort"]["numerics"])]
    for record in facts.drift:
        parts.append(_changes(f"From step {record.facts['step']:,} on", record.facts["changes"]))
    for sibling, changes in begun["drift"].items():
        parts.append(_changes(f"Compared with `{sibling}`, a run of the same experiment", changes))
    return "\n\n".join(parts)


def _changes(title: str, changes: list[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"- {change}" for change in changes)


PROMISES = {
    SAME_BITS: (
        "The same config, data, software, hardware model, world size and threads give the same bits, also through "
        "interruptions; otherwise the same batches in the same order, and close numbers."
    ),
    SAME_BATCHES: (
        "Training it again gives the same batches in the same order and close numbers, not the same bits: {reason}."
    ),
    CLOSE_NUMBERS: "Training it again gives close numbers, not the same bits: {reason}.",
}


def _promise(facts: CardFacts) -> str:
    claim = promise(facts.begun, facts.drift)
    reason = "the run changed on its way, as listed above" if facts.drift else "its algorithms are not deterministic"
    return f"This checkpoint can claim **{claim}**. " + PROMISES[claim].format(reason=reason)
