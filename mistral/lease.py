"""one owner per run: fenced files lease-<n> in a folder, each made with link(2) from a complete file.

The highest n owns the run; older files stay, so that no number is ever used twice. A file `lease-<n>.released` says
that its owner left in order. The owner checks n before each commit, so one that was paused and superseded finds out
before it can write.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.errors import LeaseError
from mistral.files import canonical_json, publish_bytes, read_json

LEASE = re.compile(r"^lease-(\d{8})(\.released)?$")
LAST_NUMBER = 99_999_999
Owner = dict[str, Any]  # {"kind": "local", host, boot_id, pid, start_time} or {"kind": "slurm", job, restart}


@dataclass(frozen=True)
class Lease:
    """The right to write into one run."""

    folder: Path
    number: int

    def check(self) -> None:
        """Make sure that this process still owns the run.

        Raises:
            LeaseError: another one has taken it over.
        """
        newest = _newest(self.folder)
        if newest != self.number:
            owner = _owner(self.folder, newest)
            raise LeaseError(
                f"{self.folder}: another process took this run over ({describe(owner)}), expected lease {self.number} "
                f"and found {newest}; this process leaves it alone"
            )

    def release(self) -> None:
        """Say that the owner has left in order; keeps the number, so that it is never used again."""
        publish_bytes(self.folder / f"lease-{self.number:08d}.released", b"")


def acquire(folder: Path, owner: Owner, is_alive: Callable[[Owner], bool | None], steal: bool = False) -> Lease:
    """Take the run's lease.

    Args:
        folder: where the lease files lie.
        owner: who asks.
        is_alive: whether a former owner still runs; None if that cannot be known from here.
        steal: take the lease from an owner of whom that is not known.

    Raises:
        LeaseError: another process owns the run, or may own it.
    """
    newest = _newest(folder)
    if newest >= LAST_NUMBER:
        raise LeaseError(
            f"{folder / f'lease-{newest:08d}'}: found the last number that a lease can have, expected one "
            "counted from 1\n  make sure that no process trains this run, then remove that file"
        )
    former = holder(folder)
    if former is not None:
        alive = _still_owns(former, owner, is_alive)
        if alive:
            raise LeaseError(
                f"{folder.name} is being trained already, by {describe(former)}; expected no other owner\n"
                "  wait for it, or stop it first"
            )
        if alive is None and not steal:
            raise LeaseError(
                f"{folder.name} was last trained by {describe(former)}, and whether that process still runs cannot be "
                "seen from here\n  make sure that it has ended, then run again with --steal-lease"
            )
    lease = Lease(folder, newest + 1)
    if not publish_bytes(folder / f"lease-{lease.number:08d}", canonical_json(owner) + b"\n"):
        raise LeaseError(f"{folder.name}: another process took the lease at the same moment; it trains this run")
    return lease


def holder(folder: Path) -> Owner | None:
    """Who holds the newest lease of a run; empty if its file is damaged, None if nobody does."""
    newest = _newest(folder)
    if not newest or (folder / f"lease-{newest:08d}.released").exists():
        return None
    return _owner(folder, newest)


def _still_owns(former: Owner, new: Owner, is_alive: Callable[[Owner], bool | None]) -> bool | None:
    if not former:  # its file was damaged
        return None
    return False if superseded_by(former, new) else is_alive(former)


def superseded_by(former: Owner, new: Owner) -> bool:
    """Whether `new` is a later start of the same Slurm job, or a later job of the same chain: the former has ended."""
    if not former.get("kind") == new.get("kind") == "slurm":
        return False
    if former.get("job") == new.get("job"):
        return int(new["restart"]) > int(former["restart"])
    return new.get("chain") is not None and former.get("chain") == new["chain"] and new["link"] > former["link"]


def describe(owner: Owner) -> str:
    """`process 4711 on node7` or `Slurm job 12_3, restart 1`."""
    if not owner:
        return "an unknown process"
    if owner.get("kind") == "slurm":
        return f"Slurm job {owner.get('job')}, restart {owner.get('restart')}"
    return f"process {owner.get('pid')} on {owner.get('host')}"


def _newest(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return max((int(match[1]) for path in folder.iterdir() if (match := LEASE.match(path.name))), default=0)


def _owner(folder: Path, number: int) -> Owner:
    try:
        owner = read_json(folder / f"lease-{number:08d}")
    except (FileNotFoundError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}
