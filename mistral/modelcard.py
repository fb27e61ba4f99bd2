"""records of a checkpoint -> the README.md of its exported folder; no timestamps, equal input gives equal bytes."""

from dataclasses import dataclass
from typing import Any

from mistral.config import Data, Experiment, Export, TrainedTokenizer
from mistral.drift import CLOSE_NUMBERS, SAME_BATCHES, SAME_BITS, promise
from mistral.manifest import Record
from mistral.yamltext import write_yaml

TAGS = ("gpt2", "reproducibility", "training-dynamics")
SCALED_SINCE = "5.6"  # of transformers: https://github.com/huggingface/transformers/issues/44380


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
        f"{step:,} of {last:,} steps and {facts.weights.facts['tokens']:,} tokens. {_licence(facts.experiment.export)}",
        "## How to load it\n\n" + _usage(facts, run, step),
        *_rounding(facts),
        "## Measured\n\n" + _measured(facts),
        "## Data\n\n" + _data(facts),
        "## Seeds\n\n" + _table(facts.experiment.seeds[facts.seed].model_dump()),
        "## Architecture\n\n" + _table(facts.experiment.model.model_dump(mode="json")),
        "## Hyperparameters\n\n" + _table(_hyperparameters(facts.experiment)),
        "## Lineage\n\n" + _lineage(facts),
        "## Software and numerics\n\n" + _software(facts),
        "## Reproducibility\n\n" + _promise(facts),
    ]
    return _front_matter(facts.experiment.export) + "\n" + "\n\n".join(sections) + "\n"


def _front_matter(export: Export) -> str:
    """What the Hub reads: only what is known of licence and language."""
    known: dict[str, Any] = {"language": list(export.language)} if export.language else {}
    known |= {"license": export.license} if export.license else {}
    known |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(TAGS)}
    return f"---\n{write_yaml(known)}---\n"


def _licence(export: Export) -> str:
    """Licence and language as those who trained the model state them."""
    licence = f"Licence: {export.license}." if export.license else "No licence is stated."
    language = f"Language: {', '.join(export.language)}." if export.language else "No language is stated."
    return f"{licence} {language}"


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items())
    return f"| | |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    """A value as YAML and people write it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value).replace("|", "\\|").replace("\n", " ")


def _hyperparameters(experiment: Experiment) -> dict[str, Any]:
    """The training section, with the lengths that other keys decide where it leaves them out."""
    training = experiment.training
    decided = {"seq_len": experiment.seq_len, "lr_decay_steps": training.decay_steps()}
    return training.model_dump(mode="json") | decided


def _tokenizer(data: Data) -> str:
    """Where the tokens come from."""
    if isinstance(data.tokenizer, TrainedTokenizer):
        size, text = data.tokenizer.train.vocab_size, data.tokenizer.train.megabytes
        return f"byte-level BPE of {size:,} tokens, trained on up to {text:,} MB of the training documents"
    if ids := data.passthrough():
        return f"none: the corpus is token ids below {ids.vocab_size:,}, and {ids.end_of_text_id} ends a document"
    return f"`{data.tokenizer}`"


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
        code = f"```python\nfrom transformers import AutoModelForCausalLM\n\n{model}```\n\n{ids}"
    else:
        tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({place})\n"
        code = f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n{model}{tokenizer}```"
    return f"{code}\n\n{_versions(facts, place)}"


def _versions(facts: CardFacts, place: str) -> str:
    """Which versions of transformers compute this model.

    Those with sdpa attention for GPT-2 and before 5.6 leave the scale of each layer out, without a word
    (transformers#44380); their eager attention has it. The first layer is divided by 1.
    """
    trained = f"It was trained with transformers {facts.begun.facts['cohort']['software']['transformers']}."
    if not facts.experiment.model.scale_attn_by_inverse_layer_idx or facts.experiment.model.n_layer == 1:
        return trained
    return (
        f"{trained} **transformers {SCALED_SINCE} or newer is needed for this code**: earlier versions ignore "
        "`scale_attn_by_inverse_layer_idx` in their default attention and compute another model without saying so "
        "([transformers#44380](https://github.com/huggingface/transformers/issues/44380)). With an earlier version, "
        "ask for eager attention:\n\n```python\n"
        f'model = AutoModelForCausalLM.from_pretrained({place}, attn_implementation="eager")\n```'
    )


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
    return _table({"dataset": facts.dataset.key[0], "tokenizer": _tokenizer(data), **rows, "validation split": rule})


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
