"""An exported folder is ready for use, and is published once whoever else writes it at the same moment."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mistral.manifest import Manifest
from mistral.progress import Silent
from mistral.setaside import look
from pipeline.export import export


def export_in_step(trained, barrier) -> None:
    """What one of several processes does: export when all are ready."""
    torch.set_num_threads(1)  # the threads of torch do not survive a fork
    barrier.wait()
    export(trained.experiment, trained.workspace, Silent())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_exported_model_generates_with_a_cache_and_the_trained_one_is_not_changed(trained):
    from transformers import AutoModelForCausalLM

    run = trained.train("alias", [0])
    before = (trained.workspace.weights(run, 0) / "config.json").read_bytes()
    trained.export()
    folder = trained.workspace.export(run, 0)
    assert json.loads((folder / "config.json").read_bytes()) == {**json.loads(before), "use_cache": True}
    assert json.loads(before)["use_cache"] is False
    assert (trained.workspace.weights(run, 0) / "config.json").read_bytes() == before
    model = AutoModelForCausalLM.from_pretrained(folder)
    read, forward = [], model.transformer.forward
    model.transformer.forward = lambda ids, **options: read.append(ids.shape[1]) or forward(ids, **options)
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert read == [3, 1, 1, 1]  # after the prompt each token is read once


def test_processes_that_export_the_same_checkpoints_all_succeed(trained, fork):
    run, barrier = trained.train("alias"), fork.Barrier(3)
    workers = [fork.Process(target=export_in_step, args=(trained, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert names(trained.workspace.export(run, 0).parent) == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]
    for name in trained.manifest.names("export", (run,)):
        assert trained.manifest.damage(trained.manifest.get("export", (run, name), "")) == []


@pytest.fixture
def race(trained, monkeypatch):
    """Let a second process export the same checkpoint just before the first calls a function of mistral.hub."""
    run = trained.train("alias", [0])

    def race(function: str, target: object) -> Path:
        original, second = getattr(target, function), []

        def late(*arguments, **options):
            if not second:
                second.append(True)
                second.append(trained.export().exported)
            return original(*arguments, **options)

        monkeypatch.setattr(target, function, late)
        assert trained.export().exported == (f"{run}/checkpoint-0",)
        assert second == [True, (f"{run}/checkpoint-0",)]
        return trained.workspace.export(run, 0)

    return race


@pytest.mark.parametrize("function", ["link_or_copy", "model_card", "check_probe", "_take_place", "publish"])
def test_whoever_comes_second_takes_the_folder_of_the_first(trained, race, function):
    from mistral import hub

    folder = race(function, Manifest if function == "publish" else hub)
    assert names(folder.parent) == ["checkpoint-0"]
    record = trained.manifest.get("export", (folder.parent.name, "checkpoint-0"), "")
    assert trained.manifest.damage(record) == []


def test_a_card_that_tells_more_does_not_replace_a_folder_that_may_be_recorded_next(trained, monkeypatch):
    """An evaluation may be logged between two exports of one step: the first card stands."""
    run = trained.train("alias")
    folder = trained.workspace.export(run, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained.export(steps=[4])
    card = folder / "README.md"
    first = card.read_text()
    line = {"step": 4, "evaluation": {"validation": {"loss": 4.25, "perplexity": 70.1}}}
    with trained.workspace.metrics(run).open("a") as file:
        file.write(json.dumps(line) + "\n")
    trained.export(steps=[4])
    assert card.read_text() == first
    record = trained.manifest.get("export", (run, "checkpoint-4"), "")
    assert trained.manifest.damage(record) == []
    trained.manifest.remove("export", (run, "checkpoint-4"))
    shutil.rmtree(folder)
    trained.export(steps=[4])
    assert "4.25" in card.read_text()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_an_unrecorded_folder_with_other_bytes_is_set_aside(trained, monkeypatch, name):
    run = trained.train("alias", [0])
    trained.export()
    folder = trained.workspace.export(run, 0)
    whole = (folder / name).read_bytes()
    trained.manifest.remove("export", (run, "checkpoint-0"))
    (folder / name).write_bytes(whole[:-1])
    trained.export()
    assert (folder / name).read_bytes() == whole
    [aside] = look(trained.workspace, run)
    assert (trained.workspace.root / aside.path / name).read_bytes() == whole[:-1]
    assert names(folder.parent) == ["checkpoint-0", "set-aside"]
