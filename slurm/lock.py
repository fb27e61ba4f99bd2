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
        with contextlib.nullcontext() if _is_locked(descriptor, workspace) else _lease(workspace, folder):
            yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, workspace: Workspace) -> bool:
    """Take the kernel's lock; False if the file system has none.

    Raises:
        EnvironmentProblem: another process has it.
    """
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
        return False
    return True


@contextlib.contextmanager
def _lease(workspace: Workspace, jobs: Path) -> Iterator[None]:
    folder = jobs / ".submitting.leases"
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
