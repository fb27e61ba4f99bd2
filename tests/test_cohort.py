"""Two seeds of one experiment differ in nothing but their seeds, and a resume changes nothing."""

import contextlib
import itertools
import os

import pytest

from mistral.cohort import begin, begin_facts, publish_begin, stands_in_cohort
from mistral.config import load_experiment
from mistral.drift import Drift, differences, find_drift, record_drift
from mistral.errors import ConfigError, ManifestError
from mistral.manifest import Manifest, make_record
from mistral.workspace import Workspace

NUMERICS = {"world_size": 1, "zero_stage": 1, "threads": 1}


def facts(seed: str, numerics=NUMERICS, overrides=(), dataset="d" * 64):
    return begin_facts(load_experiment("quickstart", overrides), seed, dataset, numerics)


def make_a_step(manifest, run: str, step: int) -> None:
    """Record a state, without one: what binds a run to its config is that there is one."""
    key = (run, "state", f"step-{step:08d}")
    manifest.publish(make_record("train/state", key, config="c", inputs={}, files=[], facts={}))


def test_a_sibling_with_other_numerics_is_refused_or_recorded(manifest):
    begin(manifest, "a", facts("alias"), allow_drift=False)
    other = facts("battlestar", {**NUMERICS, "world_size": 2})
    with pytest.raises(ConfigError, match=r"numerics\.world_size: was 1, is 2"):
        begin(manifest, "b", other, allow_drift=False)
    record = begin(manifest, "b", other, allow_drift=True)
    assert record.facts["drift"] == {"a": ["numerics.world_size: was 1, is 2"]}


TWO_RANKS = {**NUMERICS, "world_size": 2}


def test_a_sibling_that_is_as_the_first_run_needs_no_leave_because_another_one_drifted(manifest):
    begin(manifest, "a", facts("alias"), allow_drift=False)
    begin(manifest, "b", facts("battlestar", TWO_RANKS), allow_drift=True)
    assert begin(manifest, "c", facts("alias"), allow_drift=False).facts["drift"] == {}


def attempt(manifest: Manifest, run: str, numerics: dict, allow_drift: bool = False) -> bool:
    """Whether a run may begin; one that is refused leaves nothing behind."""
    try:
        begin(manifest, run, facts(SEEDS[run], numerics), allow_drift)
    except ConfigError as error:
        assert f"{run} differs from its siblings" in str(error)
        assert manifest.find("train", (run, "begin")) is None
        return False
    return True


SEEDS = {"a": "alias", "b": "battlestar"}
STEPS = {"a": NUMERICS, "b": TWO_RANKS}  # what each of two siblings begins with


ORDERS = [o for o in itertools.permutations("PLpl") if o.index("P") < o.index("L") and o.index("p") < o.index("l")]


@pytest.mark.parametrize("order", ORDERS)
def test_of_two_siblings_that_begin_together_exactly_one_gives_way(manifest, order):
    """P and L are the two steps of a, p and l those of b: each publishes, and then looks."""
    runs, begun, stands = {"p": "b", "P": "a", "l": "b", "L": "a"}, {}, {}
    for step in order:
        run = runs[step]
        if step in "Pp":
            with contextlib.suppress(ConfigError):
                begun[run] = publish_begin(manifest, run, facts(SEEDS[run], STEPS[run]), allow_drift=False)
        elif run in begun:
            stands[run] = stands_in_cohort(manifest, begun[run])
    [first] = [run for run in "ab" if stands.get(run)]
    for _ in range(2):  # whoever was killed between its two steps, or is started again, is told the same
        assert {run: attempt(manifest, run, STEPS[run]) for run in "ab"} == {run: run == first for run in "ab"}
    last = "b" if first == "a" else "a"
    assert attempt(manifest, last, STEPS[last], allow_drift=True)
    assert list(manifest.get("train", (last, "begin"), "").facts["drift"]) == [first]


def test_a_run_with_weights_is_never_withdrawn(manifest):
    """Whatever stands in the cohort's record: what has trained goes on, and verify tells."""
    begun = publish_begin(manifest, "b", facts("battlestar", TWO_RANKS), allow_drift=False)
    weights = make_record("train/weights", ("b", "weights", "step-00000000"), config="c", inputs={}, files=[], facts={})
    manifest.publish(weights)
    begin(manifest, "a", facts("alias"), allow_drift=False)
    assert begin(manifest, "b", facts("battlestar", TWO_RANKS), allow_drift=False) == begun


def test_two_processes_that_begin_at_once_never_both_begin_and_never_both_give_way(manifest, fork):
    begin_facts(load_experiment("quickstart"), "alias", "d" * 64, NUMERICS)  # what is learnt once, before the forks
    for turn in range(20):
        place = Manifest(Workspace(manifest.workspace.root / str(turn)))
        barrier = fork.Barrier(2)

        def be(run: str, place: Manifest = place, barrier=barrier) -> None:
            barrier.wait()
            os._exit(attempt(place, run, STEPS[run]))

        processes = [fork.Process(target=be, args=(run,)) for run in "ab"]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(process.exitcode for process in processes) == [0, 1]
        [name] = [run for run in "ab" if place.find("train", (run, "begin"))]
        assert place.get("cohort", ("quickstart",), "").facts["run"] == name


def test_a_changed_frozen_key_is_refused_with_the_difference_and_a_free_one_is_not(manifest):
    begin(manifest, "a", facts("alias"), allow_drift=False)
    make_a_step(manifest, "a", 0)
    begin(manifest, "a", facts("alias", overrides=("training.logging_steps=1",)), allow_drift=False)
    with pytest.raises(ConfigError, match=r"training\.learning_rate: was 0\.003, is 0\.1"):
        begin(manifest, "a", facts("alias", overrides=("training.learning_rate=0.1",)), allow_drift=False)


def with_schedule(schedule: str):
    return facts("alias", overrides=(f"checkpoints.schedule={schedule}",))


def test_a_schedule_may_only_be_extended_beyond_the_present_step(manifest):
    """The quickstart has 120 steps; the run stands at step 40."""
    begin(manifest, "a", with_schedule("[[20, 120]]"), allow_drift=False)
    make_a_step(manifest, "a", 40)
    begin(manifest, "a", with_schedule("[[20, 40], [10, 120]]"), allow_drift=False)
    with pytest.raises(ConfigError, match=r"found one without the steps 20, 60, 100(.|\n)*set the schedule back"):
        begin(manifest, "a", with_schedule("[[40, 120]]"), allow_drift=False)
    with pytest.raises(
        ConfigError,
        match=r"found one with the steps 10, 30, (.|\n)*present step 40\n  set the schedule back, or add later",
    ):
        begin(manifest, "a", with_schedule("[[10, 120]]"), allow_drift=False)


def test_a_dataset_that_came_out_differently_is_refused(manifest):
    begin(manifest, "a", facts("alias"), allow_drift=False)
    make_a_step(manifest, "a", 0)
    for allow_drift in (False, True):
        with pytest.raises(ManifestError, match=r"found the dataset eeeeeeeeeeee, expected dddddddddddd(.|\n)*restore"):
            begin(manifest, "a", facts("alias", dataset="e" * 64), allow_drift)


def test_a_resume_on_other_numerics_is_recorded_once(manifest):
    begun = begin(manifest, "a", facts("alias"), allow_drift=False)
    assert record_drift(manifest, begun, facts("alias"), 5, None) == Drift(None)
    assert manifest.names("train", ("a", "drift")) == []
    other = facts("alias", {**NUMERICS, "threads": 2})
    drift = record_drift(manifest, begun, other, 5, None)
    assert drift.changes == ("numerics.threads: was 1, is 2",)
    assert record_drift(manifest, begun, other, 5, None) == drift
    [name] = manifest.names("train", ("a", "drift"))
    record = manifest.get("train", ("a", "drift", name), "")
    assert (record.content, record.inputs) == (drift.content, {"begin": begun.content})


def test_a_resume_is_compared_with_what_its_state_was_made_with(manifest):
    begun = begin(manifest, "a", facts("alias"), allow_drift=False)
    other = facts("alias", {**NUMERICS, "threads": 2})
    first = record_drift(manifest, begun, other, 5, None)
    assert record_drift(manifest, begun, other, 10, first.content) == Drift(first.content), "nothing changed since"
    back = record_drift(manifest, begun, facts("alias"), 10, first.content)
    assert back.changes == ("numerics.threads: was 2, is 1",)
    record = find_drift(manifest, "a", back.content)
    assert record.inputs == {"begin": begun.content, "drift": first.content}
    with pytest.raises(ManifestError, match=r"found no record of the drift ffffffffffff(.|\n)*restore it"):
        record_drift(manifest, begun, other, 15, "f" * 64)


def test_differences_name_each_leaf():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: was 2, is 3"]
