"""Evaluation sets through the commands: prepared with the dataset, measured in training, and again from weights."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from recorded import flip_a_bit
from test_end_to_end import metrics_of, run, snapshot
from test_evaluation import experiment
from test_training import Listener

from mistral.config import Experiment, load_cluster, load_experiment
from mistral.errors import DataError, ManifestError
from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.ranks import Ranks
from mistral.run import Run, summary
from mistral.shards import read_facts
from mistral.tokens import read_tokenizer
from mistral.windows import open_sets
from mistral.workspace import Workspace
from pipeline.context import Context
from pipeline.evaluate import EvaluateSummary, Row, evaluate, tell_changed_sources
from pipeline.preprocess import PreprocessSummary, preprocess
from pipeline.train import dataset_record
from pipeline.verify import verify


def prepare(folder: Path, one: Experiment, name: str = "workspace", **options) -> PreprocessSummary:
    return preprocess(one, Workspace(folder / name), Silent(), **options)


def seal(folder: Path, dataset: str):
    return Manifest(Workspace(folder / "workspace")).find("preprocess", (dataset, "dataset"))


# --- preprocess and verify --------------------------------------------------------------------------------------


def test_sets_are_datasets_of_their_own_and_a_second_run_changes_no_file(tiny):
    one = experiment(tiny)
    prepared = prepare(tiny, one)
    sets = one.evaluation_sets()
    assert list(prepared.evaluation_sets) == ["wikitext103", "lambada"]
    for name, part in prepared.evaluation_sets.items():
        assert part.dataset == sets[name].data.dataset_name() in prepared.as_text()
        shard = Workspace(tiny / "workspace").shard(part.dataset, "train", "00000")
        assert read_facts(shard).tokens == part.facts["splits"]["train"]["tokens"]
        assert part.facts["splits"]["validation"]["tokens"] == 0
    assert json.loads(json.dumps(prepared.to_json()))["evaluation_sets"]["lambada"]["units"] == 1
    before = snapshot(tiny / "workspace")
    again = prepare(tiny, one)
    assert again.evaluation_sets["lambada"].packed_now == 0
    assert snapshot(tiny / "workspace") == before


def test_sets_may_be_added_to_a_dataset_that_is_whole(tiny):
    plain = load_experiment(str(tiny / "tiny.yaml"))
    prepare(tiny, plain)
    sealed = seal(tiny, plain.data.dataset_name())
    one = experiment(tiny)
    advised = rf"run: mistral-pipeline preprocess {tiny}/tiny\.yaml .*--workspace {tiny}/workspace"
    with pytest.raises(ManifestError, match=rf"evaluation\.wikitext103; {advised}"):
        dataset_record(one, Manifest(Workspace(tiny / "workspace")))
    prepared = prepare(tiny, one)
    assert prepared.packed_now == 0
    assert dataset_record(one, Manifest(Workspace(tiny / "workspace"))) == sealed


def test_the_last_task_prepares_the_sets_and_numbers_mean_the_same_without_them(tiny):
    overrides = ("data.unit_megabytes=1", "data.source.files=[corpus/part-0.jsonl, corpus/*.jsonl]")
    plain = load_experiment(str(tiny / "tiny.yaml"), overrides)
    experiment(tiny)
    one = load_experiment(str(tiny / "tiny.yaml"), overrides)
    for task in range(3):
        without = prepare(tiny, plain, "plain", tasks=3, task=task)
        prepared = prepare(tiny, one, tasks=3, task=task)
        assert (prepared.packed_now, prepared.recorded) == (without.packed_now, without.recorded)
        assert bool(prepared.evaluation_sets) == (task == 2)
    assert prepared.evaluation_sets["lambada"].facts["splits"]["train"]["documents"] == 5


def test_a_set_without_text_is_refused_and_a_short_one_is_not(tiny):
    one = experiment(tiny)
    (tiny / "wiki.txt").write_text("So\n")
    prepare(tiny, one)
    empty = experiment(tiny)
    (tiny / "lambada.jsonl").write_text('{"passage": ""}\n')
    with pytest.raises(DataError, match=r"evaluation\.lambada: lambada-\w+: found no text, expected some"):
        prepare(tiny, empty, "empty")


def test_a_set_without_anything_to_score_is_refused(tiny):
    one = experiment(tiny)
    (tiny / "lambada.jsonl").write_text('{"passage": "alone"}\n')
    prepared = prepare(tiny, one)
    manifest = Manifest(Workspace(tiny / "workspace"))
    with pytest.raises(DataError, match=r"found nothing to score(.|\n)*evaluation\.lambada"):
        open_sets(one, manifest, manifest.get("preprocess", (prepared.dataset, "dataset"), ""))


def test_an_error_of_a_set_names_it(tiny):
    one = experiment(tiny)
    (tiny / "wiki.txt").unlink()
    with pytest.raises(DataError, match=r"evaluation\.wikitext103: .*found no file that matches wiki\.txt"):
        prepare(tiny, one)


def test_verify_hashes_the_sets_of_an_experiment(tiny):
    one = experiment(tiny)
    prepared = prepare(tiny, one)
    workspace = Workspace(tiny / "workspace")
    report = verify(workspace, Silent(), one)
    assert report.problems == []
    assert report.records == 2 * 3
    shard = workspace.shard(prepared.evaluation_sets["wikitext103"].dataset, "train", "00000")
    flip_a_bit(shard)
    [problem] = verify(workspace, Silent(), one).problems
    assert problem.startswith(workspace.relative(shard))


def test_a_set_made_with_another_tokenizer_is_refused(tiny):
    one = experiment(tiny)
    prepared = prepare(tiny, one)
    manifest = Manifest(Workspace(tiny / "workspace"))
    dataset = manifest.get("preprocess", (prepared.dataset, "dataset"), "")
    dataset.facts["tokenizer_sha256"] = "0" * 64
    with pytest.raises(ManifestError, match="found tokens of the tokenizer"):
        open_sets(one, manifest, dataset)


def test_rows_of_a_saved_dataset_are_the_lines_of_one_text(tiny):
    """The Hub's WikiText has a line in each row: with its line break, and empty where the line is."""
    rows = ["", " = Gunnery = \n", "", " A gun @-@ deck , or two . \n", " The end"]
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": rows})}).save_to_disk(str(tiny / "wiki"))
    source = "evaluation.wikitext103={source: {hub: wiki, split: test}, detokenizer: wikitext}"
    one = load_experiment(str(tiny / "tiny.yaml"), (source,))
    prepared = prepare(tiny, one)
    manifest, workspace = Manifest(Workspace(tiny / "workspace")), Workspace(tiny / "workspace")
    [found] = open_sets(one, manifest, manifest.get("preprocess", (prepared.dataset, "dataset"), ""))
    tokens = np.concatenate([window.tokens[window.first - (not n) :] for n, window in enumerate(found.windows)])
    text = read_tokenizer(workspace.tokenizer(prepared.dataset)).decode(tokens)
    assert text == " = Gunnery =\n A gun-deck, or two.\n The end"
    assert found.words == len("".join(rows).split())


@pytest.mark.parametrize("change", ["longer", "touched"])
def test_a_changed_file_of_a_set_is_refused_with_advice_that_works_and_evaluate_says_what_it_measures(tiny, change):
    one = experiment(tiny)
    prepared = prepare(tiny, one)
    text = (tiny / "wiki.txt").read_text()
    (tiny / "wiki.txt").write_text(text + "more\n" if change == "longer" else text.swapcase())
    with pytest.raises(
        ManifestError, match=r"evaluation\.wikitext103: .*the source differs(.|\n)*another name"
    ) as refused:
        prepare(tiny, one)
    assert "data.name" not in str(refused.value)
    said = Listener()
    tell_changed_sources(Context(one, load_cluster("local"), Workspace(tiny / "workspace"), said))
    [warning] = said.said
    assert warning.startswith("WARNING: evaluation.wikitext103 is measured on the recorded tokens of wikitext103-")
    (tiny / "wiki.txt").rename(tiny / "newer.txt")  # what the advice says
    named = "evaluation.wikitext103.source.files=[newer.txt]"
    newer = load_experiment(str(tiny / "tiny.yaml"), ("training.seq_len=16", named))
    again = prepare(tiny, newer)
    assert again.evaluation_sets["wikitext103"].dataset != prepared.evaluation_sets["wikitext103"].dataset
    said = Listener()
    tell_changed_sources(Context(newer, load_cluster("local"), Workspace(tiny / "workspace"), said))
    assert said.said == []


# --- train and evaluate -----------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_one_process_measures_recorded_weights_as_two_ranks_did_in_training(tiny):
    options = ("--seed", "alias", "--set", "training.max_steps=4")
    prepare(tiny, experiment(tiny))
    run(tiny, "train", *options, "--set", "evaluation.every_steps=2", ranks=2)
    found = {line["step"]: line["evaluation"] for line in metrics_of(tiny, "alias-tiny-x21") if "evaluation" in line}
    assert list(found) == [2, 4]
    assert list(found[4]) == ["validation", "wikitext103", "lambada"]

    weights = tiny / "workspace/runs/alias-tiny-x21/checkpoints/step-00000002/model.safetensors"
    flip_a_bit(weights)
    output, errors = run(tiny, "evaluate", *options, "--json", code=3)
    assert "found 1 checkpoint that cannot be measured:\n  alias-tiny-x21, step 2: found" in errors
    rows = {row["step"]: row["evaluation"] for row in json.loads(output)}
    assert list(rows) == [0, 4], "one that is damaged holds nobody back"
    assert list(rows[4]) == list(found[4])
    for text, measures in found[4].items():
        assert rows[4][text] == pytest.approx(measures, rel=1e-5)
        assert rows[0][text] != rows[4][text]


def test_what_was_measured_is_a_table(tiny):
    measures = {"validation": {"loss": 1.5, "perplexity": 4.48}, "lambada": {"loss": 3.0, "accuracy": 0.25}}
    lines = EvaluateSummary([Row("alias", 4, measures)], []).as_text().splitlines()
    assert [line.split() for line in lines] == [
        ["seed", "step", "text", "loss", "perplexity", "word_perplexity", "accuracy"],
        ["alias", "4", "validation", "1.5000", "4.48", "-", "-"],
        ["alias", "4", "lambada", "3.0000", "-", "-", "0.2500"],
    ]


def test_a_model_card_tells_what_was_measured(trained):
    run_name = trained.train("alias")
    measures = {"validation": {"loss": 5.5}, "wikitext103": {"word_perplexity": 30.5}, "lambada": {"accuracy": 0.25}}
    with trained.workspace.metrics(run_name).open("a") as file:
        file.write(json.dumps({"step": 4, "evaluation": measures}) + "\n")
    trained.export()
    card = (trained.workspace.export(run_name, 4) / "README.md").read_text()
    assert "| validation loss at step 4 | 5.5 |" in card
    assert "| wikitext103 word perplexity at step 4 | 30.5 |" in card
    assert "| lambada accuracy at step 4 | 0.25 |" in card


def test_a_run_without_a_validation_split_ends_with_its_sets_alone(trained):
    run_name = trained.train("alias")
    lines = [{"step": 4, "loss": 5.0, "timing": {"tokens_per_second": 9.0}}, {"step": 4, "evaluation": {"lambada": {}}}]
    trained.workspace.metrics(run_name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = Run(
        trained.experiment, "alias", trained.manifest, trained.dataset, Ranks(), threads=1, device=torch.device("cpu")
    )
    begun, weights = (
        trained.manifest.get("train", (run_name, *key), "") for key in (["begin"], ["weights", "step-00000004"])
    )
    assert summary(finished, begun, weights)["validation_loss"] is None


def test_a_step_that_is_not_recorded_is_refused(tiny):
    one, workspace = load_experiment(str(tiny / "tiny.yaml")), Workspace(tiny / "workspace")
    context = Context(one, load_cluster(str(tiny / "ranks1.yaml")), workspace, Silent())
    advised = rf"run: mistral-pipeline train {tiny}/tiny\.yaml --workspace {tiny}/workspace$"
    with pytest.raises(ManifestError, match=rf"found no weights of any step(.|\n)*{advised}"):
        evaluate(context, ["alias"], [])
    with pytest.raises(ManifestError, match="found no weights of alias-tiny-x21 step 3, alias-tiny-x21 step 5"):
        evaluate(context, ["alias"], [5, 3])
