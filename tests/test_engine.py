"""Parameters and moments leave and enter an engine whole and by name, in every ZeRO stage; a step is AdamW's."""

import math
import os

import pytest
import torch

from mistral import engine
from mistral.config import Experiment, load_experiment
from mistral.errors import ConfigError, EnvironmentProblem
from mistral.model import build_model, gpt2_config
from mistral.ranks import Ranks

pytestmark = pytest.mark.usefixtures("device")
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
SMALL = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.n_positions=16", "model.resid_pdrop=0",
    "model.embd_pdrop=0", "model.attn_pdrop=0", "training.global_batch_size=8", "training.micro_batch_size=8",
)  # fmt: skip
VOCABULARY = 64
BATCH = torch.randint(0, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(0))  # (sequences, seq_len) int64


def small(*overrides: str) -> Experiment:
    return load_experiment("quickstart", (*SMALL, *overrides))


def network(experiment: Experiment, weights: dict[str, torch.Tensor] | None = None):
    made = build_model(experiment.model, gpt2_config(experiment.model, VOCABULARY, 0), 21)
    made.load_state_dict(weights or {}, strict=False)
    return made


def build(experiment: Experiment, weights: dict[str, torch.Tensor] | None = None):
    return engine.build_engine(network(experiment, weights), experiment, 1)


def train_step(built, experiment: Experiment, factor: float = 1.0) -> float:
    """One optimizer step on BATCH, cut into micro batches; returns the gradient norm."""
    norm = 0.0
    for rows in BATCH.split(experiment.training.micro_batch_size):
        built.backward(built(input_ids=rows, labels=rows).loss * factor)
        norm = engine.step(built, experiment.training)
    return norm


def everything(built) -> dict[str, torch.Tensor]:
    return engine.gather_weights(built, keep=True) | engine.gather_moments(built, keep=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@STAGES
def test_weight_decay_moves_matrices_only(stage):
    experiment = small(f"training.zero_stage={stage}", "training.weight_decay=0.5")
    before = {name: value.detach().clone() for name, value in network(experiment).named_parameters()}
    built = build(experiment, before)
    engine.set_learning_rate(built, 0.1)
    train_step(built, experiment, factor=0.0)  # no gradient: all that moves is decay
    after = engine.gather_weights(built, keep=True)
    for name, value in before.items():
        expected = value * (1 - 0.1 * 0.5) if value.ndim == 2 else value
        assert torch.allclose(after[name], expected, rtol=1e-6, atol=0), name


@STAGES
def test_moments_of_both_groups_leave_and_enter_an_engine_with_the_same_bits(stage):
    experiment = small(f"training.zero_stage={stage}")
    built = build(experiment)
    for _ in range(3):
        train_step(built, experiment)
    saved = everything(built)
    names = [name for name, _ in network(experiment).named_parameters()]
    assert saved.keys() == {prefix + name for prefix in ("", "exp_avg/", "exp_avg_sq/") for name in names}
    assert all(saved[f"{key}/{name}"].any() for key in engine.MOMENTS for name in names), "both parameter groups"
    assert engine.optimizer_steps(built) == 3

    resumed = build(experiment, {name: saved[name] for name in names})
    engine.restore(resumed, saved.__getitem__, 3, {})
    assert same(everything(resumed), saved)
    assert engine.optimizer_steps(resumed) == 3
    assert train_step(resumed, experiment) == train_step(built, experiment)
    assert same(everything(resumed), everything(built)), "and the next step is the same"


def test_a_state_of_one_zero_stage_enters_another():
    first = build(small("training.zero_stage=3"))
    train_step(first, small())
    saved = everything(first)
    for stage in (0, 1, 2):
        other = build(small(f"training.zero_stage={stage}"), engine.gather_weights(first, keep=True))
        engine.restore(other, saved.__getitem__, 1, {})
        assert same(everything(other), saved)


@STAGES
def test_accumulated_micro_batches_give_what_one_batch_gives(stage):
    found = []
    for micro_batch_size in (8, 2):
        experiment = small(f"training.zero_stage={stage}", f"training.micro_batch_size={micro_batch_size}")
        built = build(experiment)
        norm = train_step(built, experiment)
        assert engine.optimizer_steps(built) == 1
        found.append((norm, everything(built)))
    (one_norm, one), (four_norm, four) = found
    assert four_norm == pytest.approx(one_norm, rel=1e-5)
    for name in one:
        if name.startswith("exp_avg/"):
            assert torch.allclose(one[name], four[name], rtol=1e-4, atol=1e-8), name


@STAGES
def test_the_norm_is_that_before_clipping_and_the_step_that_after(stage):
    norms, moments = [], []
    for limit in (0.01, 1000.0):
        experiment = small(f"training.zero_stage={stage}", f"training.max_grad_norm={limit}")
        built = build(experiment)
        norms.append(train_step(built, experiment))
        averages = [value for name, value in everything(built).items() if name.startswith("exp_avg/")]
        moments.append(math.sqrt(sum(float(value.square().sum()) for value in averages)) / (1 - 0.9))
    assert norms[0] == norms[1] > 0.1
    assert moments[0] == pytest.approx(0.01, rel=1e-3)
    assert moments[1] == pytest.approx(norms[1], rel=1e-4)


@STAGES
def test_the_learning_rate_reaches_both_groups(stage):
    experiment = small(f"training.zero_stage={stage}", "training.weight_decay=0")
    built = build(experiment)
    before = engine.gather_weights(built, keep=True)
    engine.set_learning_rate(built, 0.25)
    train_step(built, experiment)
    after = engine.gather_weights(built, keep=True)
    for name in ("transformer.wpe.weight", "transformer.h.0.mlp.c_fc.bias"):
        assert float((after[name] - before[name]).abs().max()) == pytest.approx(0.25, rel=1e-3)  # Adam's first step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@STAGES
def test_initial_weights_are_not_rounded(precision, stage):
    experiment = small(f"training.precision={precision}", f"training.zero_stage={stage}")
    expected = {name: value.detach().clone() for name, value in network(experiment).named_parameters()}
    assert same(engine.gather_weights(build(experiment), keep=True), expected)


def test_what_is_gathered_is_a_copy_and_ranks_that_do_not_keep_it_get_nothing():
    experiment = small()
    built = build(experiment)
    before = engine.gather_weights(built, keep=True)
    copy = {name: value.clone() for name, value in before.items()}
    train_step(built, experiment)
    assert same(before, copy)
    assert engine.gather_weights(built, keep=False) == engine.gather_moments(built, keep=False) == {}


def test_deepspeed_compiles_nothing():
    import deepspeed

    build(small())
    assert vars(deepspeed.ops)["__compatible_ops__"] == {"deepspeed_shm_comm": False}


def test_the_deepspeed_dict_says_what_the_config_says():
    training = small("training.global_batch_size=64", "training.precision=bf16", "training.max_grad_norm=0.5").training
    config = engine.deepspeed_config(training, 2)
    assert config["train_batch_size"] == 64
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    assert "bf16" not in config, "DeepSpeed's own mode rounds the weights"
    with pytest.raises(ConfigError, match="use a multiple of 24"):
        engine.deepspeed_config(training, 3)


def test_fp16_is_scaled_and_needs_zero_and_a_gpu(monkeypatch):
    training = small("training.precision=fp16", "training.zero_stage=2").training
    assert engine.deepspeed_config(training, 1)["fp16"]["enabled"]
    with pytest.raises(ConfigError, match=r"found 0 with precision fp16, expected 1, 2 or 3.*set zero_stage to 1"):
        small("training.precision=fp16", "training.zero_stage=0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match="found fp16 on a CPU, expected fp32 or bf16"):
        engine.connect(Ranks(), training, needs_gpu=False)
    with pytest.raises(EnvironmentProblem, match=r"found no GPU, expected one for each rank.*\n.*gpus_per_node: 0"):
        engine.connect(Ranks(), small().training, needs_gpu=True)


def test_ranks_are_those_of_the_environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == Ranks(0, 0, 1)
    monkeypatch.setattr(os, "environ", {"RANK": "5", "WORLD_SIZE": "8"})
    assert Ranks.from_environment() == Ranks(5, 5, 8)
    monkeypatch.setattr(os, "environ", {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"})
    assert Ranks.from_environment() == Ranks(5, 1, 8)
