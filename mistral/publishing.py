"""exported folders, by their records -> one repository for each run, one branch for each step, main = the last one.

A branch begins at the repository's first commit, which holds no file, and gets its content in one commit: it is empty
or whole, and serves no other step's model in between. What is there with the recorded hashes is not sent again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mistral.config import Experiment
from mistral.errors import ConfigError
from mistral.manifest import FileEntry, Manifest, Record
from mistral.pace import Pace
from mistral.progress import Progress
from mistral.remote import Change, Collection, Hub, Refs, RemoteFile, Tree
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


class Expected:
    """What the records say that a revision holds; remembers the hashes of small files that many revisions share."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._blobs: dict[str, str] = {}

    def files(self, record: Record) -> dict[str, FileEntry]:
        """The files of a revision, by their paths in the repository."""
        return {entry.path.rpartition("/")[2]: entry for entry in record.files}

    def differences(self, record: Record, tree: Tree) -> list[str]:
        """What differs between a record and what the Hub has, one line a file."""
        files = self.files(record)
        problems = [f"{name}: missing" for name in sorted(files.keys() - tree.keys())]
        problems += [f"{name}: found a file that is not recorded" for name in sorted(tree.keys() - files.keys())]
        for name in sorted(files.keys() & tree.keys()):
            problems += self._difference(name, files[name], tree[name])
        return problems

    def _difference(self, name: str, entry: FileEntry, found: RemoteFile) -> list[str]:
        if found.sha256 is not None:
            expected, hashed, kind = entry.sha256, found.sha256, "sha256"
        elif found.bytes != entry.bytes:
            return [f"{name}: found {found.bytes} bytes, expected {entry.bytes}"]
        else:
            blob = self._blob_sha1(entry)
            if blob is None:
                return [f"{name}: cannot be compared, as {entry.path} is not the recorded file; restore it"]
            expected, hashed, kind = blob, found.blob_sha1, "git sha1"
        return [] if expected == hashed else [f"{name}: found {kind} {hashed[:12]}, expected {expected[:12]}"]

    def _blob_sha1(self, entry: FileEntry) -> str | None:
        """git's hash of a recorded file, which the Hub tells for small ones; None if the file is not as recorded."""
        if entry.sha256 not in self._blobs:
            path = self._manifest.workspace.inside(entry.path)
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                return None
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
            self._blobs[entry.sha256] = blob.hexdigest()
        return self._blobs[entry.sha256]


@dataclass
class Outcome:
    """What became of the revisions of one run."""

    repository: str
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

    def publish(self, repository: str, recorded: Sequence[Record], steps: Sequence[int], public: bool) -> Outcome:
        """Publish one run.

        Args:
            repository: `ORG/<run>`; created unless it is there.
            recorded: the exported checkpoints of the run, by number.
            steps: only these steps; all unless given.
            public: whether everyone may read it.

        Returns:
            what was done; what was refused leaves `main` as it is.

        Raises:
            EnvironmentProblem: the Hub refuses a call, or cannot be reached.
        """
        outcome = Outcome(repository)
        chosen = [record for record in recorded if not steps or record.facts["step"] in steps]
        self._progress.start(f"push {repository}", len(chosen), "revisions")
        try:
            self._hub.create(repository, public)
            refs, root = self._hub.refs(repository) or Refs({}, frozenset()), self._hub.first_commit(repository)
            heads = refs.branches
            if files := self._hub.tree(repository, root):
                found = f"found {', '.join(sorted(files))} in its first commit, expected none"
                outcome.refused.append(f"{repository}: {found}; {FOREIGN}")
                return outcome
            for record in chosen:
                self._revision(outcome, record, heads.get(record.key[-1]), root)
                self._progress.advance(1)
            if not outcome.refused:
                there = {*heads, *(record.key[-1] for record in chosen)}
                last = [record for record in recorded if record.key[-1] in there][-1]
                self._main(outcome, recorded, last, heads[MAIN])
                if self._tag and not outcome.refused and last is recorded[-1]:
                    self._name(outcome, self._tag, there=self._tag in refs.tags)
        finally:
            self._progress.finish()
        return outcome

    def _revision(self, outcome: Outcome, record: Record, head: str | None, root: str) -> None:
        """Let a branch hold what its record says; one that holds something else is refused."""
        repository, branch = outcome.repository, record.key[-1]
        tree = self._hub.tree(repository, branch) if head else {}
        problems = self._expected.differences(record, tree)
        if not problems:
            outcome.already += 1
        elif tree:
            outcome.refused += [f"{repository}@{branch}: {problem}" for problem in problems]
            outcome.refused.append(f"  {FOREIGN}")
        elif damage := self._manifest.damage(record):
            outcome.refused += damage
        else:
            if head is None:
                self._hub.create_branch(repository, branch, root)
            self._commit(outcome, record, branch, head or root, ())

    def _main(self, outcome: Outcome, recorded: Sequence[Record], last: Record, head: str) -> None:
        """Let `main` hold the last revision, unless what it holds is no revision of the run."""
        tree = self._hub.tree(outcome.repository, MAIN)
        problems = self._expected.differences(last, tree)
        own = {self._expected.files(record)[MODEL].sha256 for record in recorded}
        if not problems:
            return
        if tree and (MODEL not in tree or tree[MODEL].sha256 not in own):
            outcome.refused.append(f"{outcome.repository}@{MAIN}: found the model of no revision; {FOREIGN}")
        elif damage := self._manifest.damage(last):
            outcome.refused += damage
        else:
            extra = sorted(tree.keys() - self._expected.files(last).keys())
            self._commit(outcome, last, MAIN, head, extra)

    def _name(self, outcome: Outcome, tag: str, *, there: bool) -> None:
        """Let a tag name what `main` holds; one that names another commit is refused, as it may have been cited."""
        repository = outcome.repository
        main = self._hub.commit_of(repository, MAIN)
        if not there:
            self._hub.create_tag(repository, tag, main)
        if (found := self._hub.commit_of(repository, tag)) != main:
            outcome.refused.append(
                f"{repository}: found the tag {tag} on the commit {found}, expected that of main, {main}; {FOREIGN}, "
                "or choose another export.tag"
            )

    def _commit(self, outcome: Outcome, record: Record, branch: str, head: str, removed: Sequence[str]) -> None:
        """Send a revision, and see that what arrived is what was recorded."""
        files = tuple(self._manifest.workspace.inside(entry.path) for entry in record.files)
        change = Change(outcome.repository, branch, head, files, tuple(removed))
        self._hub.commit(change, self._pace, lambda tree: not self._expected.differences(record, tree))
        problems = self._expected.differences(record, self._hub.tree(outcome.repository, branch))
        if problems:
            outcome.refused += [f"{outcome.repository}@{branch}: {problem}" for problem in problems]
        else:
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
