"""Who asks for a step that is not there is told which ones are near it, and is never sent to train in vain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.config import load_cluster
from mistral.errors import ManifestError
from mistral.progress import Silent
from pipeline.context import Context
from pipeline.evaluate import recorded_checkpoints
from pipeline.generate import newest_export
from pipeline.steps import nearest


@given(st.sets(st.integers(0, 200)), st.integers(0, 200))
def test_the_nearest_steps_stand_on_both_sides_of_the_one_asked_for(steps, wanted):
    found = nearest(steps, wanted)
    assert found == sorted(found)
    for side in ([step for step in steps if step < wanted], [step for step in steps if step > wanted]):
        there = [step for step in found if step in side]
        assert len(there) == min(3, len(side))
        assert all(abs(step - wanted) <= abs(other - wanted) for step in there for other in set(side) - set(there))


def test_a_step_that_is_not_scheduled_is_answered_with_the_recorded_ones_near_it(trained):
    trained.train("alias")
    context = Context(trained.experiment, load_cluster("local"), trained.workspace, Silent())
    told = r"(.|\n)*step 3 is not in checkpoints.schedule; recorded near it: 0, 2, 4$"
    with pytest.raises(ManifestError, match=f"found no weights of alias-tiny-x21 step 3, {told}"):
        recorded_checkpoints(context, ["alias"], [3])
    with pytest.raises(ManifestError, match=f"found no weights of alias-tiny-x21/checkpoint-3, {told}"):
        trained.export(steps=[3])
    trained.export(steps=[0, 2])
    with pytest.raises(ManifestError, match=r"exported steps 0, 2, expected 3\n  give --step 0 or 2$"):
        newest_export(context, "alias", 3)


def test_only_a_scheduled_step_is_answered_with_train(trained):
    context = Context(trained.experiment, load_cluster("local"), trained.workspace, Silent())
    with pytest.raises(ManifestError, match=r"step 3 is not in checkpoints.schedule; scheduled near it: 0, 2, 4$"):
        recorded_checkpoints(context, ["alias"], [3])
    trained.train("alias", [0, 2])
    with pytest.raises(
        ManifestError, match=r"no weights of alias-tiny-x21 step 4, expected them to be recorded\n  run: "
    ):
        recorded_checkpoints(context, ["alias"], [4])
