"""exported folders, by their records -> one repository for each run, one branch for each step, main = the last one.

A branch begins at the repository's first commit, which holds no file, and gets its content in one commit: it is empty
or whole, and serves no other step's model in between. What is there with the recorded hashes is not sent again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mistral.comparison import Attributes, Expected, contents, renamed
from mistral.config import Experiment
from mistral.errors import ConfigError
from mistral.manifest import Manifest, Record
from mistral.pace import Pace
from mistral.progress import Progress
from mistral.receipts import Receipts
from mistral.remote import OWN, About, Change, Collection, Hub, Refs, Tree
from mistral.tensorfiles import MODEL
from mistral.workspace import step_number

MAIN = "main"
FOREIGN = "it is not this program's to change: compare it, then remove it on the Hub and run the same command again"


def repositories(experiment: Experiment, seeds: Iterable[str]) -> dict[str, str]:
    """The repository of each seed.

    Raises:
        ConfigError: no organization is named, or the Hub could not have a repository of that name.
    """
    organization = experiment.export.organization
    if not organization:
        raise ConfigError(
            "export.organization: found none, expected the user or organization of the Hugging Face Hub that the "
            "models belong to\n  add it to the experiment, or give --set export.organization=NAME"
        )
    names = {seed: f"{organization}/{experiment.run_name(seed)}" for seed in seeds}
    for name in names.values():
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ConfigError(
                f"export.organization: found the repository {name}, which the Hub refuses: {error}"
            ) from None
    return names


def revisions(manifest: Manifest, run: str) -> list[Record]:
    """The exported checkpoints of a run, by the number of their step."""
    names = sorted(manifest.names("export", (run,)), key=step_number)
    return [manifest.get("export", (run, name), "run verify") for name in names]


@dataclass(frozen=True)
class Site:
    """One run, and what the Hub has of it before anything is sent."""

    repository: str
    recorded: Sequence[Record]  # by number
    chosen: Sequence[Record]
    about: About | None  # None if there is no such repository
    refs: Refs


@dataclass
class Branches:
    """The branches of one repository while they are filled."""

    repository: str
    heads: dict[str, str]  # the newest commit of each
    root: str  # the commit that all begin at
    attributes: Attributes


@dataclass
class Outcome:
    """What became of the revisions of one run, and what the Hub has of it then."""

    repository: str
    refs: Refs
    private: bool
    pushed: list[str] = field(default_factory=list)
    already: int = 0
    refused: list[str] = field(default_factory=list)


class Publisher:
    """Brings the revisions of runs to the Hub.

    Args:
        hub: the connection.
        manifest: the records.
        pace: when the next commit may be sent.
        progress: receives revisions.
        tag: a name for `main` of each run, if it is to have one.
    """

    def __init__(self, hub: Hub, manifest: Manifest, pace: Pace, progress: Progress, tag: str | None = None) -> None:
        self._hub, self._manifest, self._pace, self._progress, self._tag = hub, manifest, pace, progress, tag
        self._expected = Expected(manifest)
        self._receipts = Receipts(manifest.workspace.receipts())

    def look(self, repository: str, recorded: Sequence[Record], steps: Sequence[int]) -> Site:
        """What the Hub has of one run; changes nothing.

        Args:
            repository: `ORG/<run>`.
            recorded: the exported checkpoints of the run, by number.
            steps: only these steps are to be published; all unless given.

        Raises:
            EnvironmentProblem: the Hub refuses a call, or cannot be reached.
        """
        chosen = [record for record in recorded if not steps or record.facts["step"] in steps]
        about = self._hub.about(repository)
        refs = self._hub.refs(repository) if about else None
        return Site(repository, recorded, chosen, about, refs or Refs({}, {}))

    def unproven(self, site: Site) -> list[Record]:
        """The chosen revisions that are missing on the Hub, or that no receipt tells to be there."""
        return [record for record in site.chosen if not self._is_proven(site.repository, site.refs.branches, record)]

    def _is_proven(self, repository: str, heads: dict[str, str], record: Record, branch: str = "") -> bool:
        """Whether a branch is known to hold a record: its own branch unless another one is named."""
        branch = branch or record.key[-1]
        return self._receipts.proves(self._place(repository, branch), record, heads.get(branch))

    def _place(self, repository: str, branch: str) -> str:
        return f"{self._hub.url(repository)}@{branch}"

    def publish(self, site: Site, public: bool) -> Outcome:
        """Publish one run, whose repository is created unless it is there; `public` opens it for everyone.

        Returns:
            what was done; what was refused leaves `main` as it is.

        Raises:
            EnvironmentProblem: the Hub refuses a call, or cannot be reached.
        """
        private = site.about.private and not public if site.about else not public
        outcome = Outcome(site.repository, site.refs, private)
        if site.about and (told := renamed(site.about, site.repository)):
            outcome.refused.append(told)
            return outcome
        self._progress.start(f"push {site.repository}", len(site.chosen), "revisions")
        try:
            outcome.refs = refs = self._prepare(site, public)
            last = self._last(site, refs.branches)
            if not self.unproven(site) and self._is_proven(site.repository, refs.branches, last, MAIN):
                outcome.already = len(site.chosen)
                self._progress.advance(len(site.chosen))
            else:
                self._fill(outcome, site, last)
            if self._tag and not outcome.refused and last is site.recorded[-1]:
                self._name(outcome, self._tag)
        finally:
            self._progress.finish()
        return outcome

    def _prepare(self, site: Site, public: bool) -> Refs:
        """Let the repository be there and be open if it is to be; returns its branches as they are now."""
        if site.about is None:
            self._hub.create(site.repository, public)
        elif public and site.about.private:
            self._hub.open(site.repository)
        if site.about and MAIN in site.refs.branches and not self.unproven(site):
            return site.refs
        return self._hub.settled(
            f"list the branches of {site.repository}",
            lambda: self._hub.refs(site.repository, created=True) or Refs({}, {}),
            lambda refs: MAIN in refs.branches,
        )

    def _last(self, site: Site, heads: dict[str, str]) -> Record:
        """The last step by number that is on the Hub, or will be."""
        chosen = {record.key for record in site.chosen}
        for record in reversed(site.recorded):
            head = heads.get(record.key[-1])
            if record.key in chosen or self._is_proven(site.repository, heads, record):
                return record
            if head and contents(
                self._hub.tree(site.repository, head, record.key[-1])
            ):  # a kill may have left it empty
                return record
        return site.chosen[-1]

    def _fill(self, outcome: Outcome, site: Site, last: Record) -> None:
        """Let each branch hold what its record says, `main` after all others."""
        repository, heads = site.repository, outcome.refs.branches
        root = self._hub.first_commit(repository, outcome.refs)
        began = self._hub.tree(repository, root)
        if files := contents(began):
            found = f"found {', '.join(sorted(files))} in its first commit, expected none"
            outcome.refused.append(f"{repository}: {found}; {FOREIGN}")
            return
        attributes = Attributes(began.get(OWN), root, partial(self._hub.text, repository, OWN))
        branches = Branches(repository, heads, root, attributes)
        for number, record in enumerate(site.chosen):
            missing = sum(later.key[-1] not in heads for later in site.chosen[number:])
            self._progress.expect(self._pace.seconds_until(missing + 1 if missing else 0))  # and main
            self._revision(outcome, branches, record)
            self._progress.advance(1)
        if not outcome.refused:
            self._main(outcome, branches, site.recorded, last)

    def _differences(self, branches: Branches, record: Record, tree: Tree, commit: str) -> list[str]:
        own = branches.attributes.differences(record, tree, commit)
        return [*self._expected.differences(record, tree), *own]

    def _revision(self, outcome: Outcome, branches: Branches, record: Record) -> None:
        """Let a branch hold what its record says; one that holds something else is refused."""
        repository, branch = branches.repository, record.key[-1]
        head = branches.heads.get(branch)
        if self._is_proven(repository, branches.heads, record):
            outcome.already += 1
            return
        tree = self._hub.tree(repository, head, branch) if head and head != branches.root else {}
        problems = self._differences(branches, record, tree, head) if head and contents(tree) else []
        if problems:
            outcome.refused += [f"{repository}@{branch}: {problem}" for problem in problems]
            outcome.refused.append(f"  {FOREIGN}")
        elif head and contents(tree):
            self._receipts.write(self._place(repository, branch), record, head)
            outcome.already += 1
        elif damage := self._manifest.damage(record):
            outcome.refused += damage
        else:
            if head is None:
                self._hub.create_branch(repository, branch, branches.root)
            self._commit(outcome, branches, record, branch, ())

    def _main(self, outcome: Outcome, branches: Branches, recorded: Sequence[Record], last: Record) -> None:
        """Let `main` hold the last revision, unless it holds a later one, or what is no revision of the run."""
        repository, head = branches.repository, branches.heads.get(MAIN)
        if self._is_proven(repository, branches.heads, last, MAIN):
            return
        tree = self._hub.tree(repository, head, MAIN) if head else {}
        if head and not self._differences(branches, last, tree, head):
            self._receipts.write(self._place(repository, MAIN), last, head)
            return
        steps = {self._expected.files(record)[MODEL].sha256: record.facts["step"] for record in recorded}
        found = contents(tree)
        step = steps.get(found[MODEL].sha256 or "") if MODEL in found else None
        if step is not None and step > last.facts["step"]:
            return
        if found and step is None:
            outcome.refused.append(f"{repository}@{MAIN}: found the model of no revision; {FOREIGN}")
        elif head and (problems := branches.attributes.differences(last, tree, head)):
            outcome.refused += [f"{repository}@{MAIN}: {problem}; {FOREIGN}" for problem in problems]
        elif damage := self._manifest.damage(last):
            outcome.refused += damage
        else:
            if head is None:
                self._hub.create_branch(repository, MAIN, branches.root)
            self._commit(outcome, branches, last, MAIN, sorted(found.keys() - self._expected.files(last).keys()))

    def _name(self, outcome: Outcome, tag: str) -> None:
        """Let a tag name what `main` holds; one that names another commit is refused, as it may have been cited."""
        repository, main = outcome.repository, outcome.refs.branches[MAIN]
        if outcome.refs.tags.get(tag) == main:
            return
        if tag not in outcome.refs.tags:
            self._hub.create_tag(repository, tag, main)
        outcome.refs.tags[tag] = found = self._hub.commit_of(repository, tag)
        if found != main:
            outcome.refused.append(
                f"{repository}: found the tag {tag} on the commit {found}, expected that of main, {main}; {FOREIGN}, "
                "or choose another export.tag"
            )

    def _commit(
        self, outcome: Outcome, branches: Branches, record: Record, branch: str, removed: Sequence[str]
    ) -> None:
        """Send a revision, and see that what arrived is what was recorded."""
        repository = branches.repository
        files = tuple(self._manifest.workspace.inside(entry.path) for entry in record.files)
        parent = branches.heads.get(branch, branches.root)
        differences = partial(self._differences, branches, record)
        change = Change(repository, branch, parent, files, tuple(removed))
        commit = self._hub.commit(change, self._pace, lambda tree, commit: not differences(tree, commit))
        tree = self._hub.settled(
            f"compare {repository}@{branch}",
            lambda: self._hub.tree(repository, commit, branch),
            lambda tree: not differences(tree, commit),
        )
        if problems := differences(tree, commit):
            outcome.refused += [f"{repository}@{branch}: {problem}" for problem in problems]
            return
        branches.heads[branch] = commit
        self._receipts.write(self._place(repository, branch), record, commit)
        outcome.pushed.append(branch)


def collect(hub: Hub, experiment: Experiment, repositories: Iterable[str], public: bool) -> Collection | None:
    """Let the collection of the experiment, if it is to have one, hold all its published runs.

    Args:
        hub: the connection.
        experiment: whose collection it is; `export.collection` is its title.
        repositories: the published runs; what else is in the collection stays there.
        public: whether everyone may see it.

    Raises:
        EnvironmentProblem: the Hub refuses a call, or cannot be reached.
    """
    title, organization = experiment.export.collection, experiment.export.organization
    if not title or not organization:
        return None
    found = hub.create_collection(organization, title, public)
    for repository in repositories:
        if repository not in found.models:
            hub.add_to_collection(found.slug, repository)
    return found
