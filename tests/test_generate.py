"""Text is generated from the step that is asked for, and the same call gives the same text."""

import re

import pytest

from mistral.config import load_cluster
from mistral.errors import CheckpointError, ManifestError
from mistral.progress import Silent
from pipeline.context import Context
from pipeline.generate import generate, newest_export


@pytest.fixture
def context(trained) -> Context:
    trained.train("alias")
    return Context(trained.experiment, load_cluster("local"), trained.workspace, Silent())


def test_the_last_exported_step_by_number_unless_one_is_given(trained, context):
    trained.export(steps=[4])
    trained.export(steps=[0, 2])  # later by the clock
    assert newest_export(context, "alias", None).name == "checkpoint-4"
    assert newest_export(context, "alias", 2).name == "checkpoint-2"
    assert newest_export(context, "alias", 0).name == "checkpoint-0"
    with pytest.raises(ManifestError, match=r"found exported steps 0, 2, 4, expected 3\n  give --step 2 or 4"):
        newest_export(context, "alias", 3)


def test_nothing_exported_is_told(context):
    for step in (None, 4):
        with pytest.raises(ManifestError, match="alias-tiny-x21: found exported steps none, expected"):
            newest_export(context, "alias", step)


def test_the_same_call_gives_the_same_text_and_another_seed_another(trained, context):
    trained.export(steps=[4])
    folder = newest_export(context, "alias", None)
    first = generate(folder, "To be", 12, 0.8, seed=21)
    assert first.startswith("To be")
    assert len(first) > len("To be")
    assert generate(folder, "To be", 12, 0.8, seed=21) == first
    assert generate(folder, "To be", 12, 0.8, seed=22) != first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_export_is_refused_with_its_file_and_the_way_out(trained, context, name):
    trained.export(steps=[4])
    path = trained.workspace.export("alias-tiny-x21", 4) / name
    data = path.read_bytes()
    path.unlink()  # a link to the checkpoint's own file, which stays whole
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=rf"{name}: found \d+ bytes, expected (.|\n)*then run: mistral-pipeline"):
        newest_export(context, "alias", None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '"vocab_size": 1' + "0" * 30),
        ("config.json", "[" * 100_000 + "]" * 100_000),
        ("tokenizer.json", "[" * 100_000 + "]" * 100_000),
        ("tokenizer.json", "{}"),
    ],
    ids=["vocabulary", "deep", "deep tokenizer", "no tokenizer"],
)
def test_a_model_that_cannot_be_loaded_is_told_without_a_traceback(trained, context, name, text):
    trained.export(steps=[4])
    folder = newest_export(context, "alias", None)
    if text.startswith('"'):
        text = re.sub(r'"vocab_size": \d+', text, (folder / name).read_text())
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match="found no model that transformers can load"):
        generate(folder, "KING.", 3, 0.8, seed=1)


@pytest.mark.parametrize("prompt", ["", "KING.", "To be, or not to be, that is the question. " * 5])
def test_a_prompt_of_any_length_is_continued(trained, context, prompt):
    """The model of the test sees 16 tokens; the longest prompt has some hundred."""
    trained.export(steps=[4])
    text = generate(newest_export(context, "alias", None), prompt, 3, 0.8, seed=1)
    assert text.startswith(prompt)


def test_tokens_are_drawn_as_a_plain_computation_says(trained, context):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mistral.randomness import torch_seed

    trained.export(steps=[4])
    folder = newest_export(context, "alias", None)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, generator = [0, *tokenizer("KING.")["input_ids"]], torch.Generator().manual_seed(torch_seed(8, "sample"))
    for _ in range(5):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(
            int(torch.multinomial(torch.exp(logits / 0.5) / torch.exp(logits / 0.5).sum(), 1, generator=generator))
        )
    assert 0 not in ids[1:], "the seed is one that does not end the text"
    assert generate(folder, "KING.", 5, 0.5, seed=8) == tokenizer.decode(ids[1:])


def test_text_ends_with_the_document(trained, context, monkeypatch):
    """End-of-text is not shown, and nothing follows it."""
    import torch

    trained.export(steps=[4])
    folder, drawn = newest_export(context, "alias", None), iter([40, 41, 0, 42])
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: torch.tensor([[next(drawn)]]))
    text = generate(folder, "KING.", 50, 0.8, seed=1)
    assert next(drawn) == 42
    assert text.startswith("KING.")
    assert "endoftext" not in text
