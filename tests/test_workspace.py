"""The promise of mistral/workspace.py: no path of a record leaves the workspace."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.errors import PathError
from mistral.workspace import Workspace, step_name, step_number

PARTS = st.sampled_from(["..", ".", "", "a", "b.h5", "...", "..a", "\0", "~", " ", "é", "\ud800", "a" * 300])


@given(st.lists(PARTS, max_size=6).map("/".join) | st.text(st.characters(), max_size=30))
def test_no_text_leads_out_of_the_workspace(text):
    root = Path("/tmp/mistral-no-such-workspace")
    try:
        path = Workspace(root).inside(text)
    except PathError:
        return
    assert os.path.normpath(path) == str(path) != str(root)
    assert path.is_relative_to(root)
    assert ".." not in path.parts


@pytest.mark.parametrize("text", ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/.", "a/", "a\0b", "a/../../etc"])
def test_a_path_that_is_not_plain_is_refused(tmp_path, text):
    with pytest.raises(PathError, match="expected a plain path"):
        Workspace(tmp_path).inside(text)


@pytest.mark.parametrize("moved", ["data", "runs", "exports", "runs/alias-tiny-x21"])
def test_whole_folders_of_the_layout_may_be_links_to_another_disk(tmp_path, moved):
    link = tmp_path / "workspace" / moved
    link.parent.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk")
    (tmp_path / "linked").symlink_to("workspace")  # as the workspace itself may
    for root in (tmp_path / "workspace", tmp_path / "linked"):
        assert Workspace(root).inside(f"{moved}/x/y") == root / moved / "x" / "y"
        Workspace(root).refuse_links(root / moved)


LINKS = [
    "manifest", "jobs", "data/owt-1", "data/owt-1/train", "data/owt-1/train/00017.h5", "exports/alias",
    "runs/alias/checkpoints", "runs/alias/state/step-00000003", "runs/alias/state/step-00000003/state.json", "latest",
]  # fmt: skip


@pytest.mark.parametrize("place", LINKS)
@pytest.mark.parametrize("target", ["/etc", "../../..", "/nowhere", "."])
def test_every_other_link_is_refused_by_name_wherever_it_leads(tmp_path, place, target):
    workspace = Workspace(tmp_path / "a" / "b" / "workspace")
    link = workspace.root / place
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    for path in (place, f"{place}/file"):
        with pytest.raises(
            PathError, match=rf"{link}: found a link, expected(.|\n)*only data, runs, exports and runs/"
        ):
            workspace.inside(path)
    if link.parent != workspace.root:
        with pytest.raises(PathError, match=f"{link}: found a link"):
            workspace.refuse_links(link.parent)


def test_a_link_to_a_disk_that_is_not_mounted_is_told(tmp_path):
    (tmp_path / "runs").symlink_to("/nowhere/runs")
    with pytest.raises(
        PathError, match=r"runs: found a link to /nowhere/runs, which is no folder(.|\n)*mount its file"
    ):
        Workspace(tmp_path).inside("runs/alias-tiny-x21/state")


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "runs").symlink_to("data")
    (tmp_path / "data").symlink_to("runs")
    with pytest.raises(PathError, match="found a link to data"):
        Workspace(tmp_path).inside("runs/file")


@pytest.mark.parametrize("outside", ["../x", "data/../../x", "/etc/passwd"])
def test_a_file_outside_gets_no_relative_path(tmp_path, outside):
    with pytest.raises(PathError):
        Workspace(tmp_path / "workspace").relative(tmp_path / "workspace" / outside)


def test_relative_paths_and_inside_are_inverse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for workspace in (Workspace(tmp_path), Workspace(Path())):
        path = workspace.shard("owt-12345678", "train", "00017")
        assert workspace.relative(path) == "data/owt-12345678/train/00017.h5"
        assert workspace.inside(workspace.relative(path)) == path


@given(st.lists(st.integers(0, 10**8 - 1), max_size=20))
def test_steps_sort_by_number(steps):
    assert sorted(map(step_name, steps)) == [step_name(step) for step in sorted(steps)]
    assert [step_number(step_name(step)) for step in steps] == steps
    assert step_number("checkpoint-1000") == 1000


@pytest.mark.parametrize("name", ["step-abc", "step-", "step-1x", "step-²"])
def test_a_name_without_a_step_is_told_and_no_traceback(name):
    with pytest.raises(PathError, match=f"found the name '{name}' among records(.|\n)*move it elsewhere"):
        step_number(name)
