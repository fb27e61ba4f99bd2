"""fp16 from training to verify, on a CPU: DeepSpeed's half parameters, fp32 weights and loss scale are those of a GPU.

DeepSpeed and this program refuse fp16 on a CPU, where it is slow. torch computes it there all the same, so that with
both checks taken away the code that a GPU runs is run; only its kernels are not.
"""

import shutil
from pathlib import Path

import attempts
import pytest
import torch
from attempts import Case, Fate, differing, outcome

from mistral import ranks
from mistral.config import Model
from mistral.evaluation import probe_losses
from mistral.model import load_model
from mistral.progress import Silent
from pipeline.export import export
from pipeline.verify import verify

SETTINGS = (
    "training.precision=fp16",
    "training.max_steps=6",
    "checkpoints.schedule=[[3, 6]]",
    "training.learning_rate=0.05",
)


def be_child_with_fp16(*arguments) -> None:
    """Be one rank, as `attempts.be_child`, on a machine whose processor does fp16.

    The loss scale is so large at first that the first three steps overflow and are skipped.
    """
    from deepspeed.accelerator import get_accelerator

    from mistral import engine

    type(get_accelerator()).is_fp16_supported = lambda self: True
    engine.require_device = ranks.require_device = lambda *_: None
    config_of = engine.deepspeed_config

    def with_a_large_scale(*arguments) -> dict:
        config = config_of(*arguments)
        return config | {"fp16": config["fp16"] | {"initial_scale_power": 20}}

    engine.deepspeed_config = with_a_large_scale
    attempts.be_child(*arguments)


@pytest.mark.parametrize(("stage", "world_size"), [(1, 1), (2, 2), (3, 2)])
def test_fp16_keeps_the_bits_and_its_probe_is_the_loss_of_the_weights_that_are_saved(
    packed, tmp_path, monkeypatch, stage, world_size
):
    monkeypatch.setattr(attempts, "be_child", be_child_with_fp16)
    overrides = (*SETTINGS, f"training.zero_stage={stage}")
    cases = [Case(packed / "tiny.yaml", tmp_path / name, world_size, overrides) for name in ("undisturbed", "killed")]
    for case in cases:
        shutil.copytree(packed / "workspace", case.root)
    undisturbed, killed = cases
    undisturbed.train()
    killed.die(*[Fate(at_step=5)] * world_size)
    assert "going on from step 3" in killed.train()
    assert differing(outcome(undisturbed), outcome(killed)) == []
    assert [record_of(killed, step).facts["updates"] for step in (0, 3, 6)] == [0, 0, 3]
    for step in (0, 3, 6):
        assert probe_of(killed, step) == loss_of_saved_weights(killed, step)
    done = export(killed.experiment, killed.workspace, Silent(), seeds=["alias"])
    assert len(done.exported) == 3
    report = verify(killed.workspace, Silent())
    assert (report.problems, report.promises) == ([], {killed.run_name: "same bits"})


def probe_of(case: Case, step: int) -> float:
    return record_of(case, step).facts["probe"]["loss"]


def record_of(case: Case, step: int):
    return case.manifest.get("train", (case.run_name, "weights", f"step-{step:08d}"), "")


def loss_of_saved_weights(case: Case, step: int) -> float:
    """In fp32 and in one batch, as training computes it."""
    torch.set_num_threads(1)
    model: Model = case.experiment.model
    folder: Path = case.workspace.weights(case.run_name, step)
    return probe_losses(load_model(folder, model), record_of(case, step).facts["probe"]["sequences"])[0]
