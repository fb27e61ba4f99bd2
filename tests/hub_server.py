"""A Hugging Face Hub on loopback, as far as fetching needs one: repositories of files, at commits, over HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]
Reply = tuple[int, dict[str, str], bytes]  # status, headers, body


class Hub:
    """Repositories by `datasets/<name>` or `models/<name>`; each has one commit per set of files, the last is main."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}  # where there are others than main
        self.requests: list[str] = []

    def commit(self, repository: str, files: Files) -> str:
        """Add a commit; returns its hash."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits.setdefault(repository, {})[digest] = files
        return digest

    def find(self, repository: str, revision: str) -> tuple[str, Files] | None:
        """The commit that a revision names, and its files."""
        commits = self.commits.get(repository, {})
        last = list(commits)[-1] if revision == "main" and commits else revision
        name = self.branches.get(repository, {}).get(revision, last)
        return (name, commits[name]) if name in commits else None


class Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Information about a repository, a listing, or a file."""
        self._answer(body=True)

    def do_POST(self) -> None:
        """Information about some paths."""
        length = int(self.headers.get("Content-Length", 0))
        self._answer(body=True, asked=self.rfile.read(length).decode())

    def _answer(self, body: bool, asked: str = "") -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self._send(self._reply(path.strip("/").split("/"), asked), body)

    def _send(self, reply: Reply, body: bool) -> None:
        """Send a status, headers, and a body if that is asked for."""
        status, headers, data = reply
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _reply(self, parts: list[str], asked: str) -> Reply:
        if parts[0] == "api" and parts[1] in ("datasets", "models"):
            return self._api("/".join(parts[1:4]), parts[4:], asked)
        if "resolve" in parts:
            at = parts.index("resolve")
            kind = [] if parts[0] == "datasets" else ["models"]
            return self._file("/".join([*kind, *parts[:at]]), parts[at + 1], "/".join(parts[at + 2 :]))
        return 404, {}, b"{}"

    def _api(self, repository: str, rest: list[str], asked: str) -> Reply:
        revision = "/".join(rest[1:2]) or "main"
        found = self.hub.find(repository, revision)
        if found is None:
            code = "RevisionNotFound" if repository in self.hub.commits else "RepoNotFound"
            return 404, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        commit, files = found
        if rest[:1] == ["tree"]:
            return as_json(_listing("/".join(rest[2:]), files))
        if rest[:1] == ["paths-info"]:
            return as_json([entry(name, data) for name, data in sorted(files.items()) if name in unquote(asked)])
        siblings = [{"rfilename": name} for name in sorted(files)]
        name = repository.partition("/")[2]
        return as_json({"_id": "1", "id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _file(self, repository: str, revision: str, name: str) -> Reply:
        found = self.hub.find(repository, revision)
        if found is None or name not in found[1]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "EntryNotFound"}, b""
        data = found[1][name]
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": found[0]}, data


def as_json(value: object, status: int = 200) -> Reply:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the Hub lists it: with git's hash of a blob, or the sha256 of a large file."""
    body = {"type": "file", "path": name, "size": len(data)}
    if name.endswith(".safetensors"):
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {**body, "oid": "0" * 40, "lfs": large}
    return {**body, "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def _listing(folder: str, files: Files) -> list[dict[str, object]]:
    """What stands in a folder, by name: files, and folders of files."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, object]] = {}
    for name, data in sorted(files.items()):
        if name.startswith(prefix):
            first, slash, _ = name.removeprefix(prefix).partition("/")
            path = prefix + first
            entries[path] = {"type": "directory", "path": path, "oid": "0" * 40} if slash else entry(path, data)
    return list(entries.values())


@contextmanager
def serving(hub: Hub, handler: type[Handler] = Handler) -> Iterator[str]:
    """Serve a hub; gives the address for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
