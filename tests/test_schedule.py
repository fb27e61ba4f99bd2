"""The learning rate rises linearly, falls as asked, and is above zero in every update."""

import itertools

import pytest

from mistral.config import load_experiment
from mistral.schedule import learning_rate


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_rate_peaks_after_the_warm_up_and_never_reaches_zero(shape):
    training = load_experiment(
        "quickstart",
        ("training.max_steps=100", "training.warmup_steps=10", f"training.lr_scheduler_type={shape}"),
    ).training
    rates = [learning_rate(training, step) for step in range(100)]
    assert rates[0] == pytest.approx(training.learning_rate / 10)
    assert rates[9] == rates[10] == training.learning_rate == max(rates)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert min(rates) > 0


def test_a_run_shorter_than_its_warm_up_only_rises():
    training = load_experiment("quickstart", ("training.max_steps=5", "training.warmup_steps=10")).training
    rates = [learning_rate(training, step) for step in range(5)]
    assert rates == sorted(rates)
