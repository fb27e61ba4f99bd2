"""Absurd sizes are refused before anything is read or built, with the parameters and the memory that they mean."""

import re
import shutil
import time

import pytest
from attempts import Case
from test_config import FOUND_EXPECTED_ADVICE, changed, load, problems_of  # noqa: F401  # a fixture

from mistral import sizes
from mistral.config import Checkpoints, load_experiment
from mistral.model import build_model, gpt2_config

TRAINED, IDS = {"train": {"vocab_size": 10**9}}, {"passthrough": {"vocab_size": 10**30, "end_of_text_id": 0}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"model__n_layer": 10**9},
            ["model.n_layer: found 1,000,000,000 layers", "872,000,402,584 parameters", "takes 14.0 TB of memory"],
        ),
        ({"model__n_embd": 10**6}, ["model: found that", "24,050,349,000,000 parameters", "385 TB", "at most 16 TB"]),
        ({"model__n_embd": 10**30}, ["2.4e+61 parameters"]),
        (
            {"data__tokenizer": TRAINED},
            ["1,000,000,000 tokens", "8,000,002,272 parameters", "takes 640 GB of memory", "at most 16,77"],
        ),
        ({"data__tokenizer": IDS}, ["1.0e+30 tokens", "8.0e+30 parameters", "EB of memory"]),
        ({"training__global_batch_size": 10**30}, ["training.global_batch_size: found 6.4e+31 tokens in each", "MB"]),
        ({"training__micro_batch_size": 10**9, "training__global_batch_size": 10**9}, ["model: found that", "TB"]),
        ({"training__max_steps": 10**8}, ["training.max_steps: found 100000000, expected less than or equal"]),
        ({"training__max_steps": 10**7, "checkpoints__schedule": [[1, 10**9]]}, ["found 10,000,001 steps", "MB each"]),
    ],
    ids=str,
)
def test_an_absurd_size_is_refused_with_its_parameters_and_memory(load, changes, parts):  # noqa: F811
    start = time.process_time()
    problems = problems_of(load, changed(**changes))
    assert time.process_time() - start < 1
    [problem] = [problem for problem in problems if parts[0] in problem]
    assert FOUND_EXPECTED_ADVICE.match(problem)
    assert [part for part in parts if part not in problem] == []


def test_the_estimate_counts_the_parameters_of_the_model_that_is_built():
    model = load_experiment("quickstart").model
    built = build_model(model, gpt2_config(model, 512, 0), 1)
    assert sizes.parameters_of(model, 512) == sum(parameter.numel() for parameter in built.parameters())


def test_a_schedule_is_counted_without_making_it():
    for schedule in (((10, 100), (50, 2000)), ((3, 7), (5, 11)), ((1, 10**15),), ((7, 7),)):
        for last in (1, 6, 7, 10, 11, 12, 100, 101, 5000):
            checkpoints = Checkpoints(schedule=schedule)
            assert checkpoints.count(last) == len(checkpoints.steps(last)), (schedule, last)


def test_zero_divides_what_a_rank_holds():
    training = load_experiment("quickstart").training
    least = [sizes.least_bytes(10, training.model_copy(update={"zero_stage": stage}), 4) for stage in range(4)]
    assert least == [160, 100, 100, 40]


def test_a_model_larger_than_the_machine_is_refused_before_anything_is_built_or_recorded(packed, tmp_path):
    """The config may be meant for another machine, so this one says no only when it is told to train it."""
    shutil.copytree(packed / "workspace", tmp_path / "workspace")
    larger = ("model.n_layer=9000", "model.n_embd=2048")
    case = Case(packed / "tiny.yaml", tmp_path / "workspace", overrides=larger, seconds=30.0)
    said = case.train(code=1)
    assert re.search(r"found 453,2\d\d,\d{3},\d{3} parameters, which need 7.25 TB of memory", said)
    assert case.manifest.names("train", (case.run_name,)) == []
