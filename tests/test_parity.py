"""Each export is shown to be the same model: once on the whole probe, and then on its beginning, which costs little."""

import pytest
import torch
from recorded import PREFIX
from test_training import train

from mistral import hub
from mistral.errors import Findings


def probes(trained, run: str) -> dict[str, dict]:
    names = trained.manifest.names("export", (run,))
    return {name: trained.manifest.get("export", (run, name), "").facts["probe"] for name in names}


def parts(trained, run: str) -> list[str]:
    return [probe["part"] for probe in probes(trained, run).values()]


def test_the_whole_probe_is_computed_once_for_a_run_and_its_beginning_for_the_others(trained):
    for seed in ("alias", "battlestar"):
        run = trained.train(seed)
        trained.export(seeds=[seed])
        found = probes(trained, run)
        assert [(probe["part"], probe["tokens"]) for probe in found.values()] == [
            ("whole", 32), ("prefix", PREFIX), ("prefix", PREFIX),
        ]  # fmt: skip
        for name, probe in found.items():
            weights = trained.manifest.get("train", (run, "weights", f"step-0000000{name[-1]}"), "").facts["probe"]
            assert probe["recorded"] == (weights if probe["part"] == "whole" else weights["prefix"])["loss"]
            assert probe["exported"] == pytest.approx(probe["recorded"], rel=probe["tolerance"])


def test_another_dtype_or_other_software_is_shown_on_the_whole_probe_again(trained, monkeypatch):
    run = trained.train("alias")
    trained.export()
    trained.choose(dtype="bf16")
    trained.export()
    assert parts(trained, run) == ["whole", "prefix", "prefix"]
    trained.manifest.remove("export", (run, "checkpoint-4"))
    with monkeypatch.context() as patch:
        patch.setattr(hub, "software", lambda: {"transformers": "99"})
        trained.export()
    assert parts(trained, run) == ["whole", "prefix", "whole"]


def test_a_checkpoint_whose_record_tells_no_beginning_is_shown_on_the_whole_probe(trained):
    trained.records_prefix = False
    run = trained.train("alias")
    trained.export()
    assert parts(trained, run) == ["whole"] * 3


@pytest.mark.parametrize("step", [0, 4])
def test_another_loss_is_refused_on_either_part(trained, step):
    run = trained.train("alias", probe_error={step: 1e-3})
    with pytest.raises(Findings, match=f"{run}/checkpoint-{step}: found probe loss"):
        trained.export()
    assert f"checkpoint-{step}" not in trained.manifest.names("export", (run,))


def test_training_records_the_loss_on_the_beginning_of_the_probe(make_run):
    from mistral.model import load_model

    run = make_run("training.max_steps=2")
    train(run)
    probe = run.manifest.get("train", (run.name, "weights", "step-00000002"), "").facts["probe"]
    network = load_model(run.manifest.workspace.weights(run.name, 2), run.experiment.model).eval()
    input_ids = torch.tensor([probe["sequences"][0][: probe["prefix"]["tokens"]]])
    with torch.no_grad():
        loss = float(network(input_ids=input_ids, labels=input_ids).loss)
    assert probe["prefix"] == {"tokens": 32, "loss": pytest.approx(loss, rel=1e-5)}  # all of a short sequence
