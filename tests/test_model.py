"""Initial weights are a function of the seed and the parameter's name; weight decay acts on matrices only."""

import torch

from mistral.config import load_experiment
from mistral.model import build_model, decay_groups, gpt2_config, initial_weight


def small(layers: int, seed: int):
    model = load_experiment("quickstart", (f"model.n_layer={layers}", "model.n_embd=32")).model
    return build_model(model, gpt2_config(model, 100, 99), seed)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = small(2, 21), small(2, 21), small(2, 49)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (name.endswith("bias") or ".ln_" in name)


def test_a_weight_does_not_depend_on_the_rest_of_the_model():
    shallow, deep = dict(small(2, 21).named_parameters()), dict(small(4, 21).named_parameters())
    name = "transformer.h.0.attn.c_attn.weight"
    assert torch.equal(shallow[name], deep[name])
    assert torch.equal(shallow["transformer.wte.weight"], deep["transformer.wte.weight"])


def test_residual_projections_start_smaller_with_depth():
    shape = torch.Size([200, 200])
    plain = initial_weight(1, "transformer.h.0.mlp.c_fc.weight", shape, 8)
    residual = initial_weight(1, "transformer.h.0.mlp.c_proj.weight", shape, 8)
    assert abs(float(plain.std()) - 0.02) < 0.001
    assert abs(float(residual.std()) - 0.02 / 4) < 0.0005


def test_weight_decay_acts_on_matrices_only():
    decayed, kept = decay_groups(small(2, 21), 0.1)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in kept["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
