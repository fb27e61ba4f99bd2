"""Evaluations equal a plain, independent computation: transformers, one token at a time."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from mistral.config import Experiment, load_experiment
from mistral.dataset import open_split
from mistral.evaluation import evaluate, measure, score_windows
from mistral.manifest import Manifest
from mistral.model import build_model, gpt2_config
from mistral.progress import Silent
from mistral.ranks import Ranks
from mistral.windows import WindowSet, open_sets
from mistral.workspace import Workspace
from pipeline.preprocess import preprocess

SETS = """
evaluation:
  stride: %d
  wikitext103: {source: {files: [wiki.txt], document: line}, detokenizer: none}
  lambada: {source: {files: [lambada.jsonl]}, text_field: passage}
"""
LINES = ["= Gunnery =", "A gun @-@ deck , or two .", "The naïve \N{DEGREE SIGN} reader", "ends here"] * 3
PASSAGES = [
    "To be, or not to be, that is the question",
    "KING. What say you to the Lord of Northumberland",
    "alone",
    "Now is the winter of our discontent made glorious summer by this sun of York",
    "Two words",
]


def experiment(tiny: Path, stride: int = 5) -> Experiment:
    text = (tiny / "tiny.yaml").read_text(encoding="utf-8").partition("evaluation:")[0]
    (tiny / "tiny.yaml").write_text(text + SETS % stride, encoding="utf-8")
    (tiny / "wiki.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    (tiny / "lambada.jsonl").write_text("".join(json.dumps({"passage": text}) + "\n" for text in PASSAGES))
    return load_experiment(str(tiny / "tiny.yaml"), ("training.seq_len=16",))


@pytest.fixture
def network(tiny) -> GPT2LMHeadModel:
    """Weights that prefer some tokens to others; the initial ones hardly do."""
    model = experiment(tiny).model
    built = build_model(model, gpt2_config(model, 512, 0), seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(8)
    return built.eval()


def window_sets(tiny: Path, one: Experiment) -> dict[str, WindowSet]:
    summary = preprocess(one, Workspace(tiny / "workspace"), Silent())
    manifest = Manifest(Workspace(tiny / "workspace"))
    found = open_sets(one, manifest, manifest.get("preprocess", (summary.dataset, "dataset"), ""))
    return {windows.name: windows for windows in found}


def log_probabilities(network: GPT2LMHeadModel, context: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(torch.tensor([context])).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("stride", [1, 5, 15, 16])
def test_perplexity_is_that_of_each_token_given_what_its_window_holds(tiny, network, stride):
    windows = window_sets(tiny, experiment(tiny, stride))["wikitext103"]
    found = measure(network, windows, 4, Ranks())
    ids = AutoTokenizer.from_pretrained(tiny / "tokenizer")("\n".join(LINES))["input_ids"]
    losses = []
    for place in range(1, len(ids)):
        first = max(0, -(-(place - 15) // min(stride, 15)) * min(stride, 15))
        losses.append(-float(log_probabilities(network, ids[first:place])[ids[place]]))
    words = len("\n".join(LINES).split())
    assert found["tokens"] == len(ids) - 1
    assert found["words"] == words
    assert found["loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(math.fsum(losses) / words), rel=1e-4)


def test_a_last_word_is_guessed_if_each_of_its_tokens_is(tiny, network):
    windows = window_sets(tiny, experiment(tiny))["lambada"]
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    made_up = [passage for passage in PASSAGES if " " in passage]
    losses, right = [], []
    for passage in made_up:
        rest, word = (
            tokenizer(passage.rpartition(" ")[0])["input_ids"],
            tokenizer(" " + passage.split()[-1])["input_ids"],
        )
        context = (rest + word)[-16 : -len(word)]
        loss, guessed = 0.0, True
        for token in word:
            scores = log_probabilities(network, context)
            loss, guessed = loss - float(scores[token]), guessed and int(scores.argmax()) == token
            context = [*context, token]
        losses.append(loss)
        right.append(guessed)
    found = measure(network, windows, 2, Ranks())
    assert found["documents"] == len(made_up) == 4
    assert found["loss"] == pytest.approx(math.fsum(losses) / 4, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(math.fsum(losses) / 4), rel=1e-4)
    assert found["accuracy"] == sum(right) / 4


def test_accuracy_counts_whole_words_only(tiny, network):
    """A model that always says the first token of a word guesses words of one token, and no others."""
    windows = window_sets(tiny, experiment(tiny))["lambada"].windows
    targets = [window.tokens[window.first :].tolist() for window in windows]
    assert len({len(target) for target in targets}) > 1
    answers = iter([target[0] for target in targets])

    class Parrot:
        device = torch.device("cpu")
        eval = train = lambda self: self

        def __call__(self, input_ids: torch.Tensor) -> object:
            scores = torch.nn.functional.one_hot(torch.tensor(next(answers)), 512).float()
            return type("Output", (), {"logits": scores.expand(*input_ids.shape, 512)})

    score = score_windows(Parrot(), windows, 1, Ranks())
    assert score.right == sum(len(set(target)) == 1 for target in targets)
    assert score.windows == 4


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_windows_and_their_sums_are_those_of_one(tiny, network, world_size):
    windows = window_sets(tiny, experiment(tiny))["wikitext103"].windows
    whole = score_windows(network, windows, 3, Ranks())
    parts = [score_windows(network, windows, 3, Ranks(rank, rank, world_size)) for rank in range(world_size)]
    assert sum(part.tokens for part in parts) == whole.tokens
    assert sum(part.windows for part in parts) == whole.windows == len(windows)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-6)
    shares = [part.windows for part in parts]
    assert max(shares) - min(shares) <= 1


def test_a_text_shorter_than_a_window_is_measured(tiny, network):
    one = experiment(tiny)
    (tiny / "wiki.txt").write_text("KING. So\n")
    windows = window_sets(tiny, one)["wikitext103"]
    found = measure(network, windows, 4, Ranks())
    [window] = windows.windows
    ids = torch.from_numpy(window.tokens)[None]
    with torch.no_grad():
        assert found["loss"] == pytest.approx(float(network.eval()(ids, labels=ids).loss), rel=1e-6)
    assert found["tokens"] == ids.shape[1] - 1 < 15


def test_validation_can_be_measured_without_a_process_group(tiny, network):
    one = experiment(tiny)
    summary = preprocess(one, Workspace(tiny / "workspace"), Silent())
    seal = Manifest(Workspace(tiny / "workspace")).get("preprocess", (summary.dataset, "dataset"), "")
    stream = open_split(Workspace(tiny / "workspace"), seal, "validation", 16)
    rows = torch.from_numpy(stream.read(torch.arange(6).numpy()))
    with torch.no_grad():
        expected = float(network(rows, labels=rows).loss)
    assert evaluate(network, stream, 4, 6, Ranks())["loss"] == pytest.approx(expected, rel=1e-6)
