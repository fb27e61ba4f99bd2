"""records of exported checkpoints, and the Hub -> what is missing, too many, swapped or changed there, a line each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool  # whose threads hold no command that is told to stop

from mistral.comparison import Attributes, Expected, contents, renamed
from mistral.manifest import Manifest, Record
from mistral.numbers import counted
from mistral.progress import Progress
from mistral.publishing import MAIN
from mistral.remote import OWN, Hub, Refs, Tree
from mistral.tensorfiles import MODEL

READERS = 4
FEW = 20


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

    def problems(self, repository: str, recorded: Sequence[Record], public: bool | None = None) -> list[str]:
        """What is wrong with the repository of one run, once the Hub's listings have had time to settle.

        Args:
            repository: `ORG/<run>`.
            recorded: the exported checkpoints of the run, by number.
            public: whether everyone could read it when it was published; None if that is not known.

        Raises:
            EnvironmentProblem: the Hub refuses a call, or cannot be reached.
        """
        about = self._hub.about(repository)
        if about is None:
            return [
                f"{repository}: found no repository that may be read, expected one of "
                f"{counted(len(recorded), 'revisions')}; run export --push, or set HF_TOKEN to a token that may read it"
            ]
        problems = [told] if (told := renamed(about, repository)) else []
        problems.extend(seen_otherwise(repository, "repository", about.private, public))
        read = _Reading(repository, {record.key[-1]: record for record in recorded} | {MAIN: recorded[-1]})
        self._progress.start(f"verify {repository}", len(read.wanted), "revisions")
        try:
            compare = partial(self._compare, read)
            return problems + self._hub.settled(f"compare {repository}", compare, _is_settled)
        finally:
            self._progress.finish()

    def _compare(self, read: "_Reading") -> list[str]:
        """What is wrong with the branches and the tag of a repository; lists no commit again that was found right."""
        repository = read.repository
        refs = self._hub.refs(repository) or Refs({}, {})
        problems = list(_misnamed(read, refs.branches))
        if not refs.branches:
            return problems
        attributes = read.attributes = read.attributes or self._attributes(repository, refs)
        heads = {name: refs.branches[name] for name in read.wanted if name in refs.branches}
        asked = {name: commit for name, commit in heads.items() if read.right.get(name) != commit}
        with ThreadPool(READERS) as pool:
            trees = pool.imap(lambda head: self._hub.tree(repository, head[1], head[0]), asked.items())
            for (name, commit), tree in zip(asked.items(), trees, strict=True):
                own = list(self._revision(f"{repository}@{name}", read.wanted[name], tree))
                if contents(tree):
                    own += [
                        f"{repository}@{name}: {told}"
                        for told in attributes.differences(read.wanted[name], tree, commit)
                    ]
                problems += own
                if not own:
                    read.right[name] = commit
                self._progress.advance(name not in read.seen)
                read.seen.add(name)
        if self._tag and MAIN in refs.branches:
            problems += self._tagged(repository, self._tag, refs)
        return problems

    def _attributes(self, repository: str, refs: Refs) -> Attributes:
        root = self._hub.first_commit(repository, refs)
        began = self._hub.tree(repository, root)
        return Attributes(began.get(OWN), root, partial(self._hub.text, repository, OWN))

    def _tagged(self, repository: str, tag: str, refs: Refs) -> Iterator[str]:
        """Whether a tag names the commit of `main`."""
        main = refs.branches[MAIN]
        if tag not in refs.tags:
            yield f"{repository}: found no tag {tag}, expected it on main; run export --push"
        elif (found := self._hub.commit_of(repository, tag)) != main:
            yield (
                f"{repository}: found the tag {tag} on the commit {found}, expected that of main, {main}; remove it on "
                "the Hub and run export --push, or choose another export.tag"
            )

    def _revision(self, place: str, record: Record, tree: Tree) -> Iterator[str]:
        """What is wrong with one branch; first whose model it holds."""
        model = tree[MODEL].sha256 if MODEL in tree else None
        own = self._expected.files(record)[MODEL].sha256
        if model and model != own and (owners := self._owners.get(model)):
            names = " and ".join("/".join(owner.key) for owner in owners)
            yield f"{place}: holds the model of {names}, expected that of {'/'.join(record.key)}"
        if not contents(tree):
            yield f"{place}: found no files, expected those of {record.key[-1]}; run export --push"
            return
        yield from (f"{place}: {problem}" for problem in self._expected.differences(record, tree))


def _is_settled(problems: list[str]) -> bool:
    """Whether there is no reason to look again: what is not listed yet was written a moment ago, so it is little."""
    return not 0 < len(problems) <= FEW


@dataclass
class _Reading:
    """A repository while it is read, once or again: what each branch is to hold, and what was found right."""

    repository: str
    wanted: dict[str, Record]
    right: dict[str, str] = field(default_factory=dict)  # the commit of each branch that holds what it should
    seen: set[str] = field(default_factory=set)
    attributes: Attributes | None = None


def _misnamed(read: _Reading, heads: dict[str, str]) -> Iterator[str]:
    """Branches that are missing, or that no record names."""
    missing = [name for name in read.wanted if name not in heads and name != MAIN]
    if missing:
        yield f"{read.repository}: found no branch {', '.join(missing)}; run export --push"
    if MAIN not in heads:
        last = read.wanted[MAIN].key[-1]
        yield f"{read.repository}: found no branch {MAIN}, expected it to hold {last}; run export --push"
    if extra := sorted(heads.keys() - read.wanted.keys()):
        yield f"{read.repository}: found the branches {', '.join(extra)}, expected recorded steps only; remove them"


def seen_otherwise(name: str, what: str, private: bool, public: bool | None) -> Iterator[str]:
    """Whether others see a repository or a collection than when it was published."""
    if public is not None and private == public:
        found, expected = ("private", "public") if private else ("public", "private")
        again = "run export --push --public" if private else "make it private on the Hub"
        yield (
            f"{name}: found a {found} {what}, expected a {expected} one, as it was published; {again}, or run export "
            "--push to keep it as it is"
        )


def uncollected(
    hub: Hub, organization: str, title: str, repositories: Iterable[str], public: bool | None = None
) -> Iterator[str]:
    """Runs that are not in the collection of their experiment; other items in it are ignored.

    Args:
        hub: the connection.
        organization: whose collection it is.
        title: its title.
        repositories: the runs that were exported.
        public: whether everyone could see it when it was published; None if that is not known.

    Raises:
        EnvironmentProblem: the Hub refuses a call, or cannot be reached.
    """
    wanted = set(repositories)
    found = hub.settled(
        f"compare the collection {title!r}",
        lambda: hub.collection(organization, title),
        lambda found: found is not None and wanted <= found.models,
    )
    if found is None:
        yield (
            f"{organization}: found no collection {title!r} that may be read, expected one of all runs; run export "
            "--push, or set HF_TOKEN to a token that may read it"
        )
        return
    yield from seen_otherwise(found.slug, "collection", found.private, public)
    for repository in sorted(wanted - found.models):
        yield f"{found.slug}: found a collection without {repository}, expected it; run export --push"
