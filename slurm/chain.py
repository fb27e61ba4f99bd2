"""a job <-> which link of a chain it is: where a site forbids requeue, several jobs do one task, one after another.

All links have the same name and the dependency `singleton`, so Slurm runs one of them at a time, in the order in which
they were submitted. (`afterany` would start a link beside the running one as soon as one between them is cancelled.)
"""

import os
from dataclasses import dataclass

VARIABLE = "MISTRAL_CHAIN"


@dataclass(frozen=True)
class Link:
    """One job of a chain."""

    chain: str  # the submission that it belongs to
    number: int  # from 0
    links: int  # of the whole chain

    @classmethod
    def here(cls) -> "Link | None":
        """The link that this job is; None in a job that is none, and outside of Slurm."""
        words = os.environ.get(VARIABLE, "").split()
        return cls(words[0], int(words[1]), int(words[2])) if words else None

    def shell_line(self) -> str:
        """What makes a batch script this link."""
        return f'export {VARIABLE}="{self.chain} {self.number} {self.links}"'

    def is_last(self, submitted: int) -> bool:
        """Whether no other goes on after it, of so many that Slurm took."""
        return self.number >= submitted - 1
