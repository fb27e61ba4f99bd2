"""Fixtures that several test files share."""

import multiprocessing
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from mistral.manifest import Manifest
from mistral.workspace import Workspace


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
