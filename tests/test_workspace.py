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


def test_a_link_to_a_folder_outside_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(PathError, match="a link takes out"):
        Workspace(tmp_path / "workspace").inside("data/shard.h5")


def test_a_link_to_a_file_outside_is_refused(tmp_path):
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "file").symlink_to("../outside")
    with pytest.raises(PathError, match="a link takes out"):
        Workspace(tmp_path / "workspace").inside("file")


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("target", ["/etc", "../../../..", "/nowhere"])
def test_a_link_out_of_the_workspace_is_refused_wherever_it_stands(tmp_path, depth, target):
    parts = ["data", "set", "shard.h5"]
    link = tmp_path.joinpath("a", "b", "workspace", *parts[: depth + 1])
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(PathError, match="a link takes out"):
        Workspace(tmp_path / "a" / "b" / "workspace").inside("/".join(parts))


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(PathError):
        Workspace(tmp_path).inside("a/file")


def test_a_workspace_may_itself_be_a_link_and_hold_links_within(tmp_path):
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "disk" / "latest").symlink_to("data")
    (tmp_path / "workspace").symlink_to("disk")
    assert Workspace(tmp_path / "workspace").inside("latest/x") == tmp_path / "workspace" / "latest" / "x"


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
