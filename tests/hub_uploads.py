"""A Hugging Face Hub on loopback that is written to: repositories, branches, tags, LFS, commits; and faults."""

import base64
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import unquote, urlparse

import hub_server
from hub_collections import Collections
from hub_server import Reply, as_json, entry

OWN = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    request: str  # a pattern of `POST /api/models/org/run/commit/main`
    what: (
        str  # a status, `drop`, `hang` or `stall`, with `-after` where the work is done all the same; `corrupt`; `deaf`
    )
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"<html>an error page</html>"


@dataclass
class Kill:
    """End a process at one of its requests."""

    pid: int
    request: int  # counted from now
    after: bool  # the work is done, and nobody hears of it


class Hub(hub_server.Hub):
    """Models that are written with one token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token
        self.private: dict[str, bool] = {}
        self.parents: dict[str, str | None] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.collections = Collections()
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.parts: dict[tuple[str, str], bytes] = {}  # of those that arrive in parts, by sha256 and number
        self.part_bytes: int | None = None  # larger files are sent in parts of so many bytes, if it is given
        self.faults: list[Fault] = []
        self.kill: Kill | None = None
        self.sent_by_xet: list[bytes] = []  # the content of files, which is not put together from their pieces
        self.heard = threading.Event()  # ends what is not heard
        self.renamed: dict[str, str] = {}  # `models/<name>`: its new name
        self.lag_after_commit = 0  # how many requests do not see a commit yet
        self.lag = 0
        self.before: dict[str, dict[str, str]] = {}  # branches as those requests see them
        self.refused: dict[str, object] | None = None  # what the LFS batch says of every file
        self.lock = threading.RLock()

    def create(self, repository: str, private: bool) -> None:
        """A repository whose first commit holds no model."""
        self.private[repository] = private
        self.branches[repository] = {"main": self.add(repository, OWN, None)}
        self.tags[repository] = {}

    def add(self, repository: str, files: hub_server.Files, parent: str | None) -> str:
        """A commit that no branch names yet."""
        digest = hashlib.sha1(repr((parent, sorted(files.items()))).encode()).hexdigest()
        self.commits.setdefault(repository, {})[digest] = files
        self.parents[digest] = parent
        return digest

    def find(self, repository: str, revision: str) -> tuple[str, hub_server.Files] | None:
        """The commit that a branch, a tag or its own hash names."""
        return super().find(repository, self.tags.get(repository, {}).get(revision, revision))

    def lag_behind(self, requests: int) -> None:
        """Let the next requests see the branches as they are now, whatever is written meanwhile."""
        self.lag, self.before = requests + 1, {name: dict(branches) for name, branches in self.branches.items()}

    def seen(self, repository: str) -> dict[str, str]:
        """The branches as a request sees them."""
        self.lag -= self.lag > 0
        return self.before[repository] if self.lag else self.branches[repository]

    def put(self, repository: str, branch: str, files: hub_server.Files) -> None:
        """Let a branch hold other files, as somebody else may."""
        self.branches[repository][branch] = self.add(repository, {**OWN, **files}, None)

    def files(self, repository: str) -> dict[str, hub_server.Files]:
        """What each branch holds."""
        branches = self.branches[f"models/{repository}"]
        return {name: self.commits[f"models/{repository}"][commit] for name, commit in sorted(branches.items())}

    def history(self, repository: str, commit: str | None) -> list[str]:
        """A commit and those before it."""
        return [] if commit is None else [commit, *self.history(repository, self.parents[commit])]

    def made(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def fault(self, request: str, deaf: bool = False) -> Fault:
        """What goes wrong with a request; one that is not heard is not even read."""
        for fault in self.faults:
            if fault.times and re.search(fault.request, request) and (fault.what == "deaf") == deaf:
                fault.times -= 1
                return fault
        return Fault(request, "")


class Handler(hub_server.Handler):
    """Answers what huggingface_hub asks when it writes."""

    hub: Hub

    def do_PUT(self) -> None:
        """A large file, or the settings of a repository."""
        if self.hub.fault(f"{self.command} {self.path}", deaf=True).what:
            self.close_connection = True
            self.hub.heard.wait(10)
        else:
            self._answer(body=True, asked=self._read())

    def do_POST(self) -> None:
        """Anything else that writes."""
        self._answer(body=True, asked=self._read())

    def do_PATCH(self) -> None:
        """The settings of a collection."""
        self._answer(body=True, asked=self._read())

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bool, asked: bytes = b"") -> None:
        path = unquote(urlparse(self.path).path)
        with self.hub.lock:
            request = f"{self.command} {path}"
            self.hub.requests.append(request)
            kill, fault = self._killing(), self.hub.fault(request)
            if kill and not kill.after:
                os.kill(kill.pid, signal.SIGKILL)
                return self._drop()
            what, _, after = fault.what.partition("-")
            if what == "corrupt":
                asked = self._corrupted(asked)
            done = not what or after or what == "corrupt"
            reply: Reply = (self._moved(path) or self._work(path, asked)) if done else (0, {}, b"")
            if kill:
                os.kill(kill.pid, signal.SIGKILL)
                return self._drop()
        if what == "drop":
            return self._drop()
        if what == "hang":
            return self._wait()
        if what.isdigit():
            reply = int(what), fault.headers, fault.body
        if what == "stall":  # in the middle of the answer
            self._send((200, {"Content-Length": "1000"}, b'{"a": '), body=True)
            return self._wait()
        self._send(reply, body)

    def _wait(self) -> None:
        """Say nothing until the other side gives up."""
        self.close_connection = True
        while self.connection.recv(65536):
            pass

    def _moved(self, path: str) -> Reply | None:
        """Where a repository is that has a new name now."""
        for old, new in self.hub.renamed.items():
            if path.startswith(f"/api/{old}"):
                return 307, {"Location": f"http://{self.headers['Host']}{self.path.replace(old, new)}"}, b""
        return None

    def _killing(self) -> Kill | None:
        """The kill that is due now."""
        kill = self.hub.kill
        if kill:
            kill.request -= 1
            if kill.request == 0:
                self.hub.kill = None
                return kill
        return None

    def _corrupted(self, asked: bytes) -> bytes:
        """A large file that is cut short; or a commit that takes another large file than it was told to."""
        if self.command == "PUT":
            return asked[:-1]
        other = next(iter(self.hub.objects)).encode()
        return re.sub(rb'(?<="oid": ")[0-9a-f]{64}', other, asked)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _work(self, path: str, asked: bytes) -> Reply:
        parts = path.strip("/").split("/")
        if parts[0] in ("lfs", "v1") or "xet-write-token" in parts:  # the address is the permission
            return self._lfs(parts[1], parts[2:], asked) if parts[0] == "lfs" else self._xet(parts, asked)
        repository = "/".join(parts[1:4])
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if "resolve" in parts:
            return self._file(f"models/{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        if parts[1] == "collections":
            request = (self.command, parts[2:], urlparse(self.path).query)
            return self.hub.collections.answer(request, asked, known)
        if self.command != "GET":
            denied = as_json({"error": "Invalid username or password."}, 401)
            return self._write(repository, parts, asked) if known else denied
        if repository in self.hub.private and (known or not self.hub.private[repository]):
            return self._read_model(repository, parts[4:])
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"

    def _read_model(self, repository: str, rest: list[str]) -> Reply:
        branches = self.hub.seen(repository)
        if rest[:1] == ["tree"] and branches is not self.hub.branches[repository]:
            rest = rest if rest[1] in branches.values() else ["not yet"]
        match rest:
            case ["refs"]:
                refs = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in branches.items()]
                tags = self.hub.tags[repository].items()
                named = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in tags]
                return as_json({"branches": refs, "converts": [], "tags": named})
            case ["commits", branch]:
                about = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}
                return as_json([{"id": c, **about} for c in self.hub.history(repository, branches[branch])])
            case ["tree", revision] if found := self.hub.find(repository, revision):
                return as_json([entry(name, data) for name, data in sorted(found[1].items())])
            case ["revision", revision] if found := self.hub.find(repository, revision):
                name = repository.partition("/")[2]
                return as_json({"_id": "1", "id": name, "sha": found[0], "siblings": [], "tags": []})
            case []:
                name, private = repository.partition("/")[2], self.hub.private[repository]
                return as_json({"_id": "1", "id": name, "private": private, "siblings": [], "tags": []})
        return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "RevisionNotFound"}, b"{}"

    def _write(self, repository: str, parts: list[str], asked: bytes) -> Reply:
        match parts:
            case ["api", "repos", "create"]:
                return self._create(json.loads(asked))
            case ["api", "validate-yaml"]:
                return as_json({"errors": [], "warnings": []})
            case [_, _, "info", "lfs", "objects", "batch"]:
                return self._batch(json.loads(asked))
            case [*_, "commit", branch]:
                return self._commit(repository, branch, [json.loads(line) for line in asked.splitlines()])
        return self._prepare(repository, parts[4:], json.loads(asked))

    def _prepare(self, repository: str, rest: list[str], asked: dict) -> Reply:
        match rest:
            case ["settings"]:
                self.hub.private[repository] = asked["visibility"] == "private"
            case ["branch", branch] if branch in self.hub.branches[repository]:
                return as_json({"error": "Reference already exists"}, 409)
            case ["branch", branch]:
                self.hub.branches[repository][branch] = asked["startingPoint"]
            case ["tag", _] if asked["tag"] in self.hub.tags[repository]:
                return as_json({"error": "Tag reference exists already"}, 409)
            case ["tag", revision]:
                self.hub.tags[repository][asked["tag"]] = self.hub.find(repository, revision)[0]
            case ["preupload", _]:
                modes = [
                    (f["path"], "lfs" if f["path"].endswith(".safetensors") else "regular") for f in asked["files"]
                ]
                return as_json({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes]})
        return as_json({})

    def _create(self, asked: dict) -> Reply:
        name = f"{asked['organization']}/{asked['name']}"
        repository, there = f"models/{name}", {"url": f"http://{self.headers['Host']}/{name}"}
        if repository in self.hub.private:
            return as_json(there | {"error": "You already created this model repo"}, 409)
        self.hub.create(repository, asked["visibility"] == "private")
        return as_json(there)

    def _batch(self, asked: dict) -> Reply:
        """Where to send large files; nowhere if they are there."""
        objects = []
        for wanted in asked["objects"]:
            here = f"http://{self.headers['Host']}/lfs/{wanted['oid']}"
            upload: dict[str, object] = {"href": here}
            if size := self.hub.part_bytes:
                numbers = range(1, -(-wanted["size"] // size) + 1)
                places = {f"{number:05d}": f"{here}/{number:05d}" for number in numbers}
                upload = {"href": f"{here}/complete", "header": {"chunk_size": str(size), **places}}
            actions = {"upload": upload, "verify": {"href": here}}
            if self.hub.refused:
                objects.append({**wanted, "error": self.hub.refused})
                continue
            objects.append(wanted if wanted["oid"] in self.hub.objects else {**wanted, "actions": actions})
        return as_json({"transfer": "multipart" if self.hub.part_bytes else "basic", "objects": objects})

    def _lfs(self, oid: str, rest: list[str], asked: bytes) -> Reply:
        """Take a large file, or a part of one; put parts together; or tell whether a file has arrived whole."""
        if self.command == "PUT" and rest:
            self.hub.parts[oid, rest[0]] = asked
            return 200, {"ETag": f'"{hashlib.md5(asked).hexdigest()}"'}, b""
        if self.command == "PUT":
            self.hub.objects[oid] = asked
        elif rest:
            parts = [(self.hub.parts[oid, f"{p['partNumber']:05d}"], p["etag"]) for p in json.loads(asked)["parts"]]
            if any(etag != f'"{hashlib.md5(part).hexdigest()}"' for part, etag in parts):
                return as_json({"error": "a part differs from its etag"}, 400)
            self.hub.objects[oid] = b"".join(part for part, _ in parts)
        elif hashlib.sha256(self.hub.objects[oid]).hexdigest() != oid:
            del self.hub.objects[oid]
            return as_json({"error": "the sha256 differs"}, 422)
        return as_json({})

    def _xet(self, parts: list[str], asked: bytes) -> Reply:
        """Permit sending files by Xet; take their pieces, and the shard that tells which files they make."""
        if parts[0] == "api":
            there = f"http://{self.headers['Host']}"
            return as_json({"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": there})
        what = parts[1]
        if what == "shards":
            for content in self.hub.sent_by_xet:
                digest = hashlib.sha256(content)
                self.hub.objects[digest.hexdigest()] = content
        known = {"xorbs": {"was_inserted": True}, "shards": {"result": 1}}
        return as_json(known[what]) if what in known else as_json({}, 404)

    def _commit(self, repository: str, branch: str, lines: list[dict]) -> Reply:
        parent = self.hub.branches[repository][branch]
        header = lines.pop(0)["value"]
        if header.get("parentCommit", parent) != parent:
            return as_json({"error": "the branch has moved on"}, 412)
        files = dict(self.hub.commits[repository][parent])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        if self.hub.lag_after_commit:
            self.hub.lag_behind(self.hub.lag_after_commit)
        commit = self.hub.add(repository, files, parent)
        self.hub.branches[repository][branch] = commit
        name = repository.partition("/")[2]
        there = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        return as_json({"commitUrl": there, "commitOid": commit})
