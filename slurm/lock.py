"""a workspace -> the right to submit jobs into it, which one process has at a time.

The kernel's lock (flock) ends with its process. Where the file system has none, a lease (mistral/lease.py) takes its
place: a file that is made with link(2) and names its owner, so that one whose process has ended does not count.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mistral import lease
from mistral.errors import EnvironmentProblem, LeaseError
from mistral.files import make_folder
from mistral.workspace import Workspace
from pipeline import local
from slurm.submissions import jobs_folder

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """Keep other processes from submitting into this workspace.

    Raises:
        EnvironmentProblem: another process is submitting, or may be.
    """
    folder = jobs_folder(workspace, "train").parent
    descriptor = os.open(folder / ".submitting", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        with _lease(workspace, folder / ".submitting.leases") if _cannot_lock(descriptor, workspace) else _nothing():
            yield
    finally:
        os.close(descriptor)


def _cannot_lock(descriptor: int, workspace: Workspace) -> bool:
    """Take the kernel's lock; True if the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EnvironmentProblem(
            f"{workspace.root}: found that another process submits jobs of this workspace at this moment\n"
            "  wait for it, then run the same command again"
        ) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return True
    return False


_nothing = contextlib.nullcontext


@contextlib.contextmanager
def _lease(workspace: Workspace, folder: Path) -> Iterator[None]:
    make_folder(folder)
    try:
        held = lease.acquire(folder, local.process_owner(), local.is_alive)
    except LeaseError as error:
        owner = lease.describe(lease.holder(folder) or {})
        raise EnvironmentProblem(
            f"{workspace.root}: found that {owner} submits jobs of this workspace, or may, as its file system has no "
            f"flock\n  wait for it; if that process has ended, remove {folder}, then run the same command again"
        ) from error
    try:
        yield
    finally:
        held.release()
