"""The promises of mistral/randomness.py: randomness is a value, and one function touches global generators."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mistral.randomness import generator, seed_dropout, stream_key, torch_seed

ROOT = Path(__file__).parent.parent
OWN_GENERATOR = ("generator.", "torch.Generator(")
GLOBAL_SEEDS = {"manual_seed", "manual_seed_all", "seed_all", "set_rng_state", "seed", "set_seed"}


def test_streams_are_frozen():
    """Values of version 0.1.0: a run that was begun must go on with the same numbers."""
    assert stream_key(21, "order", 0) == 239229986692348842454823539762100852805
    assert torch_seed(21, "dropout", 3, 1, 0) == 6991314289029423814
    assert generator(49, "weights", "wte").bit_generator.random_raw(2).tolist() == [
        2939736945772946251,
        549899500212638115,
    ]


NAMES = st.tuples(
    st.integers(0, 2**63 - 1), st.sampled_from(["order", "dropout", "init"]), st.lists(st.integers(0, 99))
)


@given(NAMES, NAMES)
def test_different_names_give_different_streams(one, other):
    keys = [stream_key(seed, purpose, *indices) for seed, purpose, indices in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(NAMES)
def test_seeds_fit_into_torch(name):
    seed, purpose, indices = name
    assert 0 <= torch_seed(seed, purpose, *indices) < 2**63


def test_a_stream_does_not_depend_on_how_often_another_was_used():
    alone = generator(1, "init", 5).random(4)
    generator(1, "init", 4).random(1000)
    assert np.array_equal(generator(1, "init", 5).random(4), alone)


def dropped(seed: int, step: int, micro_step: int, rank: int) -> torch.Tensor:
    seed_dropout(seed, step, micro_step, rank)
    return torch.nn.functional.dropout(torch.ones(256), 0.5)  # (256,) float32


def test_dropout_is_a_function_of_seed_step_micro_step_and_rank():
    first = dropped(7, 3, 1, 0)
    torch.rand(17)
    assert torch.equal(dropped(7, 3, 1, 0), first)
    for other in ((8, 3, 1, 0), (7, 4, 1, 0), (7, 3, 2, 0), (7, 3, 1, 1)):
        assert not torch.equal(dropped(*other), first)


def sources() -> list[Path]:
    folders = ("mistral", "pipeline", "slurm")
    return [p for folder in folders for p in (ROOT / folder).rglob("*.py") if p.name != "randomness.py"]


def global_seeding(tree: ast.AST) -> list[str]:
    """Calls and imports that seed a generator which others share."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in GLOBAL_SEEDS:
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "numpy", "random"):
            found += [alias.name for alias in node.names if alias.name in GLOBAL_SEEDS]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "set_seed":
            found.append("set_seed")
    return [name for name in found if not name.startswith(OWN_GENERATOR)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_no_other_module_seeds_a_global_generator(path):
    assert global_seeding(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.manual_seed(1)",
        "torch.cuda.manual_seed_all(1)",
        "np.random.seed(1)",
        "random.seed(1)",
        "from torch import manual_seed",
        "transformers.set_seed(1)",
        "torch.random.set_rng_state(x)",
    ],
)
def test_global_seeding_is_found(text):
    assert global_seeding(ast.parse(text))
