"""repositories on the Hugging Face Hub -> their branches and files; commits that are sent once, however often asked.

Each call has a time limit, and is repeated after 429 (when the Hub says), 5xx and dropped connections. A commit whose
answer was lost is looked for before it is sent again. It names the commit that it follows, so that the Hub refuses a
second one.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    get_session,
    hf_hub_url,
)  # fmt: skip
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from mistral.asking import ANSWER_SECONDS, Asking
from mistral.connection import ask_once
from mistral.errors import EnvironmentProblem
from mistral.pace import LONGEST_COMMIT_SECONDS, Pace
from mistral.progress import Progress
from mistral.refusals import seconds_until_retry

OWN = ".gitattributes"  # the Hub puts it into every repository
SLOWEST_BYTES_PER_SECOND = 50_000  # of an upload
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a revision: what the Hub hashed. A large file has a sha256, a small one git's sha1 of a blob."""

    bytes: int
    sha256: str | None
    blob_sha1: str


Tree = dict[str, RemoteFile]  # by path


@dataclass(frozen=True)
class Refs:
    """What a repository names: the newest commit of each branch, and the commit or the tag object of each tag."""

    branches: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class About:
    """What the Hub says of a repository: the name that it has now, and whether only members see it."""

    name: str
    private: bool


@dataclass(frozen=True)
class Collection:
    """A list of repositories that people find under one address."""

    slug: str
    url: str
    private: bool
    models: frozenset[str]  # `ORG/<run>`


@dataclass(frozen=True)
class Change:
    """One commit: the whole content of a branch."""

    repository: str
    branch: str
    parent: str  # the commit that it follows
    files: tuple[Path, ...]  # each goes to the top, under its own name
    removed: tuple[str, ...]


class Hub:
    """A connection to the Hub.

    Args:
        token: of a user who may write; None to read what is public.
        progress: is told of waiting.
    """

    def __init__(self, token: str | None, progress: Progress) -> None:
        ask_once()
        self._token: str | bool = token or False  # False: no token of another place
        self._api = HfApi(token=self._token, library_name="mistral-pipeline")
        self._asking = Asking(token, progress)

    def settled(self, what: str, read: Callable[[], Answer], right: Callable[[Answer], bool]) -> Answer:
        """Read what was written a moment ago; while it is not right, again, as the Hub's listings may lag behind."""
        return self._asking.settled(what, read, right)

    def url(self, repository: str) -> str:
        """Where people find a repository."""
        return f"{self._api.endpoint}/{repository}"

    def about(self, repository: str) -> About | None:
        """What the Hub says of a repository; None if there is none, or none that may be seen."""
        what = f"ask for {repository}"
        info = self._if_there(lambda: self._asking.ask(what, lambda: self._api.model_info(repository)))
        return About(str(info.id), bool(info.private)) if info else None

    def create(self, repository: str, public: bool) -> None:
        """Create a repository, private unless `public`; one that is there stays as it is."""

        def create() -> None:
            try:
                self._api.create_repo(repository, private=not public)
            except HfHubHTTPError as error:
                if error.response.status_code != 409 or seconds_until_retry(error, 1) is not None:
                    raise

        self._asking.ask(f"create {repository}", create)

    def open(self, repository: str) -> None:
        """Let everyone read a repository."""
        what = f"make {repository} public"
        self._asking.ask(what, lambda: self._api.update_repo_settings(repository, private=False, repo_type="model"))

    def refs(self, repository: str, created: bool = False) -> Refs | None:
        """Branches and tags; None if there is no such repository, or none that may be seen.

        Args:
            repository: `ORG/<run>`.
            created: it was created a moment ago, so it is there, though the Hub may need some time to know it.
        """
        what = f"list the branches of {repository}"
        refs = self._if_there(
            lambda: self._asking.ask(what, lambda: self._api.list_repo_refs(repository), fresh=created)
        )
        if refs is None:
            return None
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        return Refs(branches, {tag.name: tag.target_commit for tag in refs.tags})

    def _if_there(self, ask: Callable[[], Answer]) -> Answer | None:
        """An answer about a repository; None if there is no such repository."""
        try:
            return ask()
        except EnvironmentProblem as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            raise

    def commit_of(self, repository: str, revision: str) -> str:
        """The commit that a branch or a tag that is there names; of a tag that is an object, the one behind it."""
        what = f"ask for {repository} at {revision}"
        info = self._asking.ask(what, lambda: self._api.model_info(repository, revision=revision), fresh=True)
        return str(info.sha)

    def tree(self, repository: str, commit: str, branch: str = "its first commit") -> Tree:
        """The files of a commit that is there; messages name the branch that it is the newest commit of."""
        return self._asking.ask(f"list {repository} at {branch}", lambda: self._tree(repository, commit), fresh=True)

    def _tree(self, repository: str, revision: str) -> Tree:
        entries = self._api.list_repo_tree(repository, recursive=True, revision=revision)
        return {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        }

    def text(self, repository: str, path: str, commit: str) -> str:
        """A small text file of a commit."""

        def read() -> str:
            url = hf_hub_url(repository, path, revision=commit)
            response = get_session().get(url, headers=build_hf_headers(token=self._token))
            hf_raise_for_status(response)
            return response.text

        return self._asking.ask(f"read {path} of {repository} at {commit}", read)

    def first_commit(self, repository: str, refs: Refs) -> str:
        """The commit that a repository began with, before there were any files.

        Raises:
            EnvironmentProblem: the Hub refuses the call, or the repository has no branch.
        """
        branch = "main" if "main" in refs.branches else next(iter(refs.branches), None)
        if branch is None:
            raise EnvironmentProblem(
                f"{self.url(repository)}: found a repository without any branch, expected main\n"
                "  remove the repository on the Hub, and run the same command again"
            )
        list_commits = partial(self._api.list_repo_commits, repository, revision=branch)
        return self._asking.ask(f"list the commits of {repository}", lambda: list_commits()[-1].commit_id)

    def create_branch(self, repository: str, branch: str, commit: str) -> None:
        """Let a branch begin at a commit; one that is there stays as it is."""
        self._asking.ask(
            f"create the branch {branch} of {repository}",
            lambda: self._api.create_branch(repository, branch=branch, revision=commit, exist_ok=True),
        )

    def create_tag(self, repository: str, tag: str, commit: str) -> None:
        """Name a commit; a tag that is there stays where it is."""
        self._asking.ask(
            f"create the tag {tag} of {repository}",
            lambda: self._api.create_tag(repository, tag=tag, revision=commit, exist_ok=True),
        )

    def collection(self, organization: str, title: str) -> Collection | None:
        """The collection of an organization that has a title; None if there is none, or none that may be seen."""
        what = f"look for the collection {title!r} of {organization}"
        return self._asking.ask(what, lambda: self._find_collection(organization, title))

    def _find_collection(self, organization: str, title: str) -> Collection | None:
        slugs = [one.slug for one in self._api.list_collections(owner=organization) if one.title == title]
        own = sorted(slug for slug in slugs if slug.partition("/")[0].lower() == organization.lower())
        return self._collection(own[0]) if own else None

    def _collection(self, slug: str) -> Collection:
        """All of a collection: a list of collections tells of a few members only."""
        found = self._api.get_collection(slug)
        models = frozenset(item.item_id for item in found.items if item.item_type == "model")
        return Collection(found.slug, found.url, found.private, models)

    def create_collection(self, organization: str, title: str, public: bool) -> Collection:
        """Create a collection, private unless `public`; one that is there is made public if it is to be."""

        def create() -> Collection:  # also after a lost answer: it is looked for first
            found = self._find_collection(organization, title)
            if found is None:
                made = self._api.create_collection(title, namespace=organization, private=not public, exists_ok=True)
                found = self._collection(made.slug)
            if public and found.private:
                self._api.update_collection_metadata(found.slug, private=False)
            return found

        return self._asking.ask(f"create the collection {title!r} of {organization}", create)

    def add_to_collection(self, slug: str, repository: str) -> None:
        """Add a repository; one that is there is left alone."""
        self._asking.ask(
            f"add {repository} to the collection {slug}",
            lambda: self._api.add_collection_item(slug, repository, "model", exists_ok=True),
        )

    def commit(self, change: Change, pace: Pace, landed: Callable[[Tree, str], bool]) -> str:
        """Make one commit; returns its id.

        Args:
            change: what it holds.
            pace: says when.
            landed: whether the files of a commit are what this one makes of them.
        """
        attempts = itertools.count()
        what = f"commit to the branch {change.branch} of {change.repository}"

        def made() -> str | None:
            head = self._api.list_repo_refs(change.repository).branches
            newest = {branch.name: branch.target_commit for branch in head}.get(change.branch, change.parent)
            there = newest != change.parent and landed(self._tree(change.repository, newest), newest)
            return newest if there else None

        def send() -> str:
            if next(attempts) and (commit := self._asking.watch(what, made)):  # the answer was lost, the commit was not
                return commit
            operations = list(_operations(change))
            self._upload(change, operations)
            with pace.turn():
                return self._asking.watch(what, partial(self._send, change, operations), LONGEST_COMMIT_SECONDS)

        def send_or_find() -> str:
            try:
                return send()
            except HfHubHTTPError as error:  # it arrived twice, and was refused the second time
                if error.response.status_code not in (409, 412) or seconds_until_retry(error, 1) is not None:
                    raise
                commit = self._asking.settled(
                    what, partial(self._asking.watch, what, made), lambda commit: commit is not None
                )
                if commit is None:
                    raise
                return commit

        return self._asking.retry(what, send_or_find)

    def _upload(self, change: Change, operations: list[CommitOperationAdd | CommitOperationDelete]) -> None:
        """Send the large files of a commit, so that the commit itself is short."""
        added = [one for one in operations if isinstance(one, CommitOperationAdd)]
        size = sum(one.upload_info.size for one in added)
        upload = partial(
            self._api.preupload_lfs_files, change.repository, added, revision=change.branch, free_memory=False
        )
        what = f"send {size / 1e6:,.1f} MB for the branch {change.branch} of {change.repository}"
        self._asking.watch(what, upload, ANSWER_SECONDS + size / SLOWEST_BYTES_PER_SECOND)

    def _send(self, change: Change, operations: list[CommitOperationAdd | CommitOperationDelete]) -> str:
        done = self._api.create_commit(
            change.repository, operations, revision=change.branch, parent_commit=change.parent,
            commit_message=f"{change.repository.partition('/')[2]} {change.branch}",
        )  # fmt: skip
        return str(done.oid)


def _operations(change: Change) -> Iterable[CommitOperationAdd | CommitOperationDelete]:
    yield from (CommitOperationDelete(name) for name in change.removed)
    yield from (CommitOperationAdd(path.name, path) for path in change.files)
