"""Fixtures that several test files share."""

import multiprocessing
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest
from hypothesis import settings

from mistral.manifest import Manifest
from mistral.workspace import Workspace

# The suite gives one answer for one commit, however loaded the machine is; the search for new examples is asked for:
# pytest --hypothesis-profile=search
settings.register_profile("search", max_examples=2000, deadline=None)
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """The manifest of an empty workspace."""
    return Manifest(Workspace(tmp_path / "workspace"))


@pytest.fixture
def fork() -> ForkContext:
    """Processes that cost a millisecond, for tests that start or kill many."""
    return multiprocessing.get_context("fork")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist runs the tests beside a thread of its own; what the tests fork touches none of its locks.
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")
