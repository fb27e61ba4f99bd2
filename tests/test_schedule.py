"""The learning rate rises linearly, falls as asked, and is above zero in every update."""

import itertools

import pytest

from mistral.config import load_experiment
from mistral.errors import ConfigError
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


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_decay_with_a_length_of_its_own_gives_the_same_rates_to_runs_of_any_length(shape):
    common = ("training.warmup_steps=10", f"training.lr_scheduler_type={shape}", "training.lr_decay_steps=100")
    short, long = (load_experiment("quickstart", (*common, f"training.max_steps={n}")).training for n in (40, 100))
    rates = [learning_rate(short, step) for step in range(40)]
    assert rates == [learning_rate(long, step) for step in range(40)]
    assert min(rates[10:]) > 0.5 * short.learning_rate
    with pytest.raises(ConfigError, match=r"training\.lr_decay_steps: found 100, expected max_steps = 101 or more"):
        load_experiment("quickstart", (*common, "training.max_steps=101"))


def test_a_run_shorter_than_its_warm_up_only_rises():
    training = load_experiment("quickstart", ("training.max_steps=5", "training.warmup_steps=10")).training
    rates = [learning_rate(training, step) for step in range(5)]
    assert rates == sorted(rates)
