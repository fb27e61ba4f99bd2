"""records of exported checkpoints, and the Hub -> what is missing, too many, swapped or changed there, a line each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mistral.manifest import Manifest, Record
from mistral.progress import Progress
from mistral.publishing import MAIN, Expected
from mistral.remote import Hub, Refs, Tree
from mistral.tensorfiles import MODEL

READERS = 4


class Audit:
    """Compares repositories with records.

    Args:
        hub: the connection.
        manifest: the records.
        cohort: all exported checkpoints of the experiment, to tell which one a branch holds instead of its own.
        progress: receives revisions.
        tag: the name that `main` of each run is to have, if any.
    """

    def __init__(
        self, hub: Hub, manifest: Manifest, cohort: Sequence[Record], progress: Progress, tag: str | None = None
    ) -> None:
        self._hub, self._progress, self._tag = hub, progress, tag
        self._expected = Expected(manifest)
        self._owners: dict[str, list[Record]] = defaultdict(list)
        for record in cohort:
            self._owners[self._expected.files(record)[MODEL].sha256].append(record)

    def problems(self, repository: str, recorded: Sequence[Record]) -> Iterator[str]:
        """What is wrong with the repository of one run.

        Args:
            repository: `ORG/<run>`.
            recorded: the exported checkpoints of the run, by number.

        Raises:
            EnvironmentProblem: the Hub refuses a call, or cannot be reached.
        """
        refs = self._hub.refs(repository)
        if refs is None:
            yield (
                f"{repository}: found no repository that may be read, expected one of {len(recorded)} revisions; run "
                "export --push, or set HF_TOKEN to a token that may read it"
            )
            return
        branches = refs.branches
        expected = {record.key[-1]: record for record in recorded}
        if missing := [name for name in expected if name not in branches]:
            yield f"{repository}: found no branch {', '.join(missing)}; run export --push"
        if extra := sorted(branches.keys() - expected.keys() - {MAIN}):
            yield f"{repository}: found the branches {', '.join(extra)}, expected recorded steps only; remove them"
        wanted = {name: record for name, record in expected.items() if name in branches} | {MAIN: recorded[-1]}
        self._progress.start(f"verify {repository}", len(wanted), "revisions")
        try:
            with ThreadPoolExecutor(READERS) as pool:
                trees = pool.map(lambda name: self._hub.tree(repository, name), wanted)
                for (name, record), tree in zip(wanted.items(), trees, strict=True):
                    yield from self._revision(f"{repository}@{name}", record, tree)
                    self._progress.advance(1)
        finally:
            self._progress.finish()
        if self._tag:
            yield from self._tagged(repository, self._tag, refs)

    def _tagged(self, repository: str, tag: str, refs: Refs) -> Iterator[str]:
        """Whether a tag names the commit of `main`."""
        if tag not in refs.tags:
            yield f"{repository}: found no tag {tag}, expected it on main; run export --push"
        elif (found := self._hub.commit_of(repository, tag)) != refs.branches[MAIN]:
            yield (
                f"{repository}: found the tag {tag} on the commit {found}, expected that of main, "
                f"{refs.branches[MAIN]}; remove it on the Hub and run export --push, or choose another export.tag"
            )

    def _revision(self, place: str, record: Record, tree: Tree) -> Iterator[str]:
        """What is wrong with one branch; first whose model it holds."""
        model = tree[MODEL].sha256 if MODEL in tree else None
        own = self._expected.files(record)[MODEL].sha256
        if model and model != own and (owners := self._owners.get(model)):
            names = " and ".join("/".join(owner.key) for owner in owners)
            yield f"{place}: holds the model of {names}, expected that of {'/'.join(record.key)}"
        if not tree:
            yield f"{place}: found no files, expected those of {record.key[-1]}; run export --push"
            return
        yield from (f"{place}: {problem}" for problem in self._expected.differences(record, tree))


def uncollected(hub: Hub, organization: str, title: str, repositories: Iterable[str]) -> Iterator[str]:
    """Runs that are not in the collection of their experiment; what else is in it is nobody's mistake.

    Args:
        hub: the connection.
        organization: whose collection it is.
        title: its title.
        repositories: the runs that were exported.

    Raises:
        EnvironmentProblem: the Hub refuses a call, or cannot be reached.
    """
    found = hub.collection(organization, title)
    if found is None:
        yield (
            f"{organization}: found no collection {title!r} that may be read, expected one of all runs; run export "
            "--push, or set HF_TOKEN to a token that may read it"
        )
        return
    for repository in repositories:
        if repository not in found.models:
            yield f"{found.slug}: found a collection without {repository}, expected it; run export --push"
