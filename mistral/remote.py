"""repositories on the Hugging Face Hub -> their branches and files; commits that are sent once, however often asked.

Each call is made again after 429 (when the Hub says), 5xx and dropped connections. A commit that may have landed is
looked for before it is sent again, and names the commit that it follows, so that the Hub refuses it a second time.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

from mistral.errors import EnvironmentProblem
from mistral.pace import Pace
from mistral.progress import Progress

ATTEMPTS = 8
LONGEST_BACK_OFF_SECONDS = 60.0
OWN = ".gitattributes"  # the Hub puts it into every repository
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a revision: what the Hub hashed. A large file has a sha256, a small one git's sha1 of a blob."""

    bytes: int
    sha256: str | None
    blob_sha1: str


Tree = dict[str, RemoteFile]  # by path, without the Hub's own file


@dataclass(frozen=True)
class Refs:
    """What a repository names: the newest commit of each branch, and its tags."""

    branches: dict[str, str]
    tags: frozenset[str]


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
        disable_progress_bars()  # progress goes through the reporter
        self._api = HfApi(token=token or False, library_name="mistral-pipeline")  # False: no token of another place
        self._progress = progress

    def url(self, repository: str) -> str:
        """Where people find a repository."""
        return f"{self._api.endpoint}/{repository}"

    def create(self, repository: str, public: bool) -> None:
        """Create a repository, private unless `public`; one that is there is made public if it is to be."""

        def create() -> None:
            self._api.create_repo(repository, private=not public, exist_ok=True)
            if public and self._api.model_info(repository).private:
                self._api.update_repo_settings(repository, private=False, repo_type="model")

        self._ask(f"create {repository}", create)

    def refs(self, repository: str) -> Refs | None:
        """Branches and tags; None if there is no such repository, or none that may be seen."""
        try:
            refs = self._ask(f"list the branches of {repository}", lambda: self._api.list_repo_refs(repository))
        except EnvironmentProblem as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            raise
        branches = {branch.name: branch.target_commit for branch in refs.branches}
        return Refs(branches, frozenset(tag.name for tag in refs.tags))

    def commit_of(self, repository: str, revision: str) -> str:
        """The commit that a branch or a tag names; of a tag that is an object of its own, the one behind it."""
        what = f"ask for {repository} at {revision}"
        return str(self._ask(what, lambda: self._api.model_info(repository, revision=revision)).sha)

    def tree(self, repository: str, revision: str) -> Tree:
        """The files of a branch or commit."""
        return self._ask(f"list {repository} at {revision}", lambda: self._tree(repository, revision))

    def _tree(self, repository: str, revision: str) -> Tree:
        entries = self._api.list_repo_tree(repository, recursive=True, revision=revision)
        return {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile) and entry.path != OWN
        }

    def first_commit(self, repository: str) -> str:
        """The commit that a repository began with, before there were any files."""
        commits = self._ask(f"list the commits of {repository}", lambda: self._api.list_repo_commits(repository))
        return commits[-1].commit_id

    def create_branch(self, repository: str, branch: str, commit: str) -> None:
        """Let a branch begin at a commit; one that is there stays as it is."""
        self._ask(
            f"create the branch {branch} of {repository}",
            lambda: self._api.create_branch(repository, branch=branch, revision=commit, exist_ok=True),
        )

    def create_tag(self, repository: str, tag: str, commit: str) -> None:
        """Name a commit; a tag that is there stays where it is."""
        self._ask(
            f"create the tag {tag} of {repository}",
            lambda: self._api.create_tag(repository, tag=tag, revision=commit, exist_ok=True),
        )

    def collection(self, organization: str, title: str) -> Collection | None:
        """The collection of an organization that has a title; None if there is none, or none that may be seen."""
        what = f"look for the collection {title!r} of {organization}"
        return self._ask(what, lambda: self._find_collection(organization, title))

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

        return self._ask(f"create the collection {title!r} of {organization}", create)

    def add_to_collection(self, slug: str, repository: str) -> None:
        """Add a repository; one that is there is left alone."""
        self._ask(
            f"add {repository} to the collection {slug}",
            lambda: self._api.add_collection_item(slug, repository, "model", exists_ok=True),
        )

    def commit(self, change: Change, pace: Pace, landed: Callable[[Tree], bool]) -> None:
        """Make one commit.

        Args:
            change: what it holds.
            pace: says when.
            landed: whether a tree is what the commit makes of it.
        """
        attempts = itertools.count()

        def has_landed() -> bool:
            return landed(self._tree(change.repository, change.branch))

        def send() -> None:
            if next(attempts) and has_landed():  # the answer was lost, the commit was not
                return
            pace.wait(self._progress.say)
            try:
                self._api.create_commit(
                    change.repository, _operations(change), revision=change.branch, parent_commit=change.parent,
                    commit_message=f"{change.repository.partition('/')[2]} {change.branch}",
                )  # fmt: skip
            except HfHubHTTPError as error:  # it arrived twice, and was refused the second time
                if error.response.status_code not in (409, 412) or not has_landed():
                    raise

        self._ask(f"commit to the branch {change.branch} of {change.repository}", send)

    def _ask(self, what: str, call: Callable[[], Answer]) -> Answer:
        """Make a call until it is answered.

        Raises:
            EnvironmentProblem: the Hub refuses it, or did not answer in any of the attempts.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return call()
            except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
                seconds = seconds_until_retry(error, attempt)
                if seconds is None or attempt == ATTEMPTS:
                    raise EnvironmentProblem(_refused(what, error, attempt)) from error
                reason = _reason(error)
            self._progress.say(f"{what}: {reason}; attempt {attempt + 1} of {ATTEMPTS} in {seconds:.0f} s")
            time.sleep(seconds)


def _operations(change: Change) -> Iterable[CommitOperationAdd | CommitOperationDelete]:
    yield from (CommitOperationDelete(name) for name in change.removed)
    yield from (CommitOperationAdd(path.name, path) for path in change.files)


def seconds_until_retry(error: Exception, attempt: int) -> float | None:
    """How long to wait before a call is made again; None if that would give the same answer."""
    back_off = min(2.0 ** (attempt - 1), LONGEST_BACK_OFF_SECONDS)
    response = _response(error)
    if response is not None and (response.status_code == 429 or response.status_code >= 500):
        return max(_asked_for(response), back_off)
    if isinstance(error, RuntimeError):  # an upload within a commit: it is given a fresh address
        return back_off
    dropped = isinstance(error, httpx2.TransportError | json.JSONDecodeError)  # or a page instead of an answer
    return back_off if dropped and response is None else None


def _response(error: BaseException) -> httpx2.Response | None:
    """The Hub's answer behind an error: libraries wrap it into errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return cause.response
        cause = cause.__cause__
    return None


def _asked_for(response: httpx2.Response) -> float:
    """Seconds that the Hub asks to wait: Retry-After (RFC 9110, 10.2.3: seconds or a date), or until its limit ends."""
    header = response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(response.headers)
    try:
        return float(header) if header.isdigit() else parsedate_to_datetime(header).timestamp() - time.time()
    except ValueError:
        return float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0


def _reason(error: Exception) -> str:
    """`429 Too Many Requests`, or the name of an error that no answer is behind."""
    response = _response(error)
    if response is not None:
        return f"the Hub answered {response.status_code} {response.reason_phrase}"
    cause = error.__cause__ or error
    return f"{type(cause).__name__} {cause}".partition("\n")[0]


def _refused(what: str, error: Exception, attempts: int) -> str:
    response = _response(error)
    advice = "run the same command again: what is published is not sent again"
    if response is not None and response.status_code in (401, 403):
        advice = "set HF_TOKEN to a token that may write to the organization (docs/publishing.md)"
    told = response.headers.get("X-Error-Message") if response is not None else None
    tries = f", after {attempts} attempts" if attempts > 1 else ""
    return f"cannot {what}: {_reason(error)}{f' ({told})' if told else ''}{tries}\n  {advice}"
