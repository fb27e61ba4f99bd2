"""A run may grow as long as the learning rates of the steps it has made stay as they are, and is bound by its first."""

import pytest
from test_cohort import facts, make_a_step
from test_training import recorded, train

from mistral.cohort import begin
from mistral.config import load_experiment
from mistral.errors import ConfigError
from mistral.manifest import Manifest
from pipeline.train import is_complete
from pipeline.verify import verify

SHORT, LONG = "training.max_steps=5", "training.max_steps=9"
DECAY = "training.lr_decay_steps=12"


def problems(run) -> list[str]:
    from mistral.progress import Silent

    return verify(run.manifest.workspace, Silent()).problems


def weights_of(run, step: int) -> str:
    record = run.manifest.get("train", (run.name, "weights", f"step-{step:08d}"), "")
    return next(entry.sha256 for entry in record.files if entry.path.endswith(".safetensors"))


def test_a_finished_run_with_a_longer_decay_is_extended_and_has_the_bits_of_one_that_was_long_from_the_start(make_run):
    short = make_run(SHORT, DECAY)
    train(short)
    assert is_complete(short.experiment, "alias", short.manifest)
    assert problems(short) == []
    long = make_run(LONG, DECAY)
    assert not is_complete(long.experiment, "alias", long.manifest)
    said = train(long)
    assert said == ["alias-tiny-x21: going on from step 5"]
    assert is_complete(long.experiment, "alias", long.manifest)
    assert recorded(long, "weights") == [0, 2, 4, 5, 8, 9]
    assert long.manifest.get("train", (long.name, "complete"), "").facts["steps"] == 9
    straight = make_run(LONG, DECAY, "name=straight")
    train(straight)
    assert [weights_of(long, step) for step in (8, 9)] == [weights_of(straight, step) for step in (8, 9)]
    sibling = make_run(LONG, DECAY, seed="battlestar")  # begins with the present length
    train(sibling)
    assert problems(long) == []
    with pytest.raises(ConfigError, match=r"max_steps: was 9, is 5(.|\n)*a run cannot be made shorter"):
        is_complete(short.experiment, "alias", short.manifest)


def test_a_kill_between_the_new_length_and_the_former_end_is_mended(make_run, monkeypatch):
    train(make_run(SHORT, DECAY))
    long = make_run(LONG, DECAY)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            train(long)
    assert long.manifest.names("train", (long.name, "extend")) == ["step-00000009"]
    assert problems(long) == []
    assert not is_complete(long.experiment, "alias", long.manifest)
    train(long)
    assert problems(long) == []
    assert long.manifest.get("train", (long.name, "complete"), "").facts["steps"] == 9


def test_verify_finds_a_step_that_the_longer_run_should_have_kept(make_run):
    train(make_run(SHORT, DECAY))
    long = make_run(LONG, DECAY)
    train(long)
    long.manifest.remove("train", (long.name, "weights", "step-00000008"))
    assert any("its scheduled step 8 is not recorded" in problem for problem in problems(long))
    [name] = long.manifest.names("train", (long.name, "extend"))
    long.manifest.remove("train", (long.name, "extend", name))
    assert any("found 9 steps, expected 5" in problem for problem in problems(long))


@pytest.mark.parametrize(
    ("before", "after", "made", "why"),
    [
        ((), ("training.max_steps=200",), 120, r"zero at step 120: step 12 was made with .* and would have had"),
        ((), ("training.max_steps=200",), 10, None),  # still in the warm-up
        ((), ("training.max_steps=200", "training.lr_decay_steps=120"), 10, "expected max_steps = 200 or more"),
        (("training.lr_decay_steps=300",), ("training.max_steps=200", "training.lr_decay_steps=300"), 120, None),
        (("training.lr_decay_steps=300",), ("training.max_steps=200",), 120, "lr_decay_steps: was 300, is None"),
        ((), ("training.lr_decay_steps=120",), 120, None),  # the same, in other words
        ((), ("training.lr_decay_steps=300",), 10, "its decay is frozen with the rest"),
        ((), ("training.max_steps=200", "training.weight_decay=0"), 10, "weight_decay: was 0.1, is 0.0"),
        (("training.max_steps=130",), (), 10, "a run cannot be made shorter"),
    ],
)
def test_a_run_grows_only_if_no_learning_rate_that_it_has_used_would_change(manifest, before, after, made, why):
    """The quickstart has 120 steps, of which 10 warm up."""
    begin(manifest, "a", facts("alias", overrides=before), allow_drift=False)
    make_a_step(manifest, "a", made)
    if why is None:
        begin(manifest, "a", facts("alias", overrides=after), allow_drift=False)
        begin(manifest, "a", facts("alias", overrides=after), allow_drift=False)
        with pytest.raises(ConfigError, match=r"was 0\.003, is 1\.0"):
            begin(manifest, "a", facts("alias", overrides=(*after, "training.learning_rate=1")), allow_drift=False)
        return
    with pytest.raises(ConfigError, match=why):
        begin(manifest, "a", facts("alias", overrides=after), allow_drift=False)
    assert manifest.names("train", ("a", "extend")) == []


def test_a_run_that_never_made_a_step_does_not_freeze_its_name(manifest):
    first = begin(manifest, "a", facts("alias"), allow_drift=False)
    assert begin(manifest, "a", facts("alias"), allow_drift=False) == first
    other = facts("alias", overrides=("training.learning_rate=1", "checkpoints.schedule=[[7, 70]]"), dataset="e" * 64)
    again = begin(manifest, "a", other, allow_drift=False)
    assert again.facts["frozen"]["training"]["learning_rate"] == 1
    assert manifest.find("train", ("a", "begin")) == again
    sibling = facts("battlestar", overrides=("training.learning_rate=2",))  # the one that never made a step must follow
    begin(manifest, "b", sibling, allow_drift=False)
    make_a_step(manifest, "b", 0)
    with pytest.raises(ConfigError, match="a differs from its siblings in more than the seed"):
        begin(manifest, "a", other, allow_drift=False)
    experiment = load_experiment("quickstart", ("training.learning_rate=3",))
    assert not is_complete(experiment, "alias", manifest)
