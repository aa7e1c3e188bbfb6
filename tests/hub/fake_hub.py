"""A Hub on the loopback interface, in memory, that fails by script. Enough of the Hub's API for push and reload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_loopback"
FOR_EVER = 10**9
FIRST = {".gitattributes": b"*.safetensors filter=lfs\n"}  # what every repository starts with


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]
    parent: str | None


@dataclass
class Repo:
    name: str
    kind: str
    private: bool = False
    refs: dict[str, list[Commit]] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: dict[str, bytes], base: Commit | None) -> Commit:
        parent = base.oid if base else None
        oid = hashlib.sha1(repr((self.name, ref, title, parent, len(self.refs.get(ref, [])))).encode()).hexdigest()
        made = Commit(oid, title, files, parent)
        self.refs.setdefault(ref, []).append(made)
        return made

    def find(self, revision: str) -> Commit | None:
        if revision in self.refs:
            return self.refs[revision][-1]
        return next((c for log in self.refs.values() for c in log if c.oid == revision), None)


@dataclass
class Fault:
    """
    What goes wrong on requests whose route matches: `create`, `info`, `preupload`, `commit`, `branch`, `tree`,
    `resolve`, `validate-yaml`, `discussions`.

    `kind`: a status code; `"timeout"` (no answer); `"reset"` (the connection breaks while the body is sent); `"lost"`
    (done, but the connection breaks before the answer); `"lost_504"` (done, but a gateway answers 504); `"race"` (done
    after somebody else's commit moved the head); `"html"` (503 with a page that is no JSON).
    """

    route: str
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=lambda: {"error": "injected"})


class FakeHub:
    """Start with `with FakeHub() as hub`; `hub.url` is the endpoint."""

    def __init__(self, user: str = "me") -> None:
        self.user = user
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []  # (route, method) in the order they came
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    # --- what tests ask ----------------------------------------------------------------------------------------------

    def fail(self, route: str, kind: int | str, times: int = 1, **kwargs: Any) -> None:
        self.faults.append(Fault(route, kind, times, **kwargs))

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        commit = self.repo(name, kind).find(revision)
        assert commit is not None, f"{name} has no {revision}"
        return {path: content for path, content in commit.files.items() if path != ".gitattributes"}

    def titles(self, name: str, kind: str = "model", revision: str = "main") -> list[str]:
        return [commit.title for commit in self.repo(name, kind).refs[revision]][1:]

    def count(self, route: str) -> int:
        return sum(1 for name, _ in self.requests if name == route)

    def make_repo(self, name: str, kind: str = "model", private: bool = False) -> Repo:
        repo = Repo(name, kind, private)
        repo.commit("main", "initial commit", dict(FIRST), None)
        self.repos[kind, name] = repo
        return repo

    def take_fault(self, route: str) -> Fault | None:
        for fault in self.faults:
            if fnmatch(route, fault.route) and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_hub: FakeHub

    ROUTES = (
        ("create", "POST", r"/api/repos/create"),
        ("whoami", "GET", r"/api/whoami-v2"),
        ("validate-yaml", "POST", r"/api/validate-yaml"),
        ("preupload", "POST", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)"),
        ("commit", "POST", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)"),
        ("branch", "POST", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)"),
        ("tree", "GET", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)(?P<path>/.*)?"),
        ("paths-info", "POST", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)"),
        ("discussions", "GET", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)/discussions"),
        ("info", "GET", r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?"),
        (
            "resolve",
            "GET|HEAD",
            r"/((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
        ),
    )

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _route(self, path: str) -> tuple[str, dict[str, str]] | None:
        for route, methods, pattern in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                return route, {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
        return None

    def _serve(self) -> None:
        hub, url = self.server_hub, urlparse(self.path)
        found = self._route(url.path)
        if found is None:
            hub.unknown.append(f"{self.command} {self.path}")
            self._body()
            return self._error(404, "EntryNotFound")
        route, groups = found
        with hub.lock:
            hub.requests.append((route, self.command))
            fault = hub.take_fault(route)
        kind = fault.kind if fault else None
        if kind == "timeout":
            hub.closing.wait(30)
            return self._break()
        if kind == "reset":
            self.rfile.read(min(16, int(self.headers.get("Content-Length", 0))))
            return self._break()
        body = self._body()
        if fault and isinstance(kind, int):
            return self._answer(kind, fault.body, fault.headers)
        if kind == "html":
            return self._answer(503, b"<html>maintenance</html>", {"Content-Type": "text/html"})
        with hub.lock:
            if kind == "race":
                somebody = hub.repo(groups["repo"], groups["kind"].rstrip("s"))
                head = somebody.refs["main"][-1]
                somebody.commit("main", "somebody else", head.files | {"theirs.txt": b"theirs"}, head)
            try:
                status, value, headers = getattr(self, "_" + route.replace("-", "_"))(
                    groups, body, parse_qs(url.query)
                )
            except _Refused as refusal:
                return self._error(refusal.status, refusal.code)
        if kind == "lost":
            return self._break()
        if kind == "lost_504":
            return self._answer(504, {"error": "gateway"}, {})
        return self._answer(status, value, headers)

    # --- plumbing ----------------------------------------------------------------------------------------------------

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _break(self) -> None:
        """Close with a reset instead of a farewell."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # it holds on to the socket
        self.connection.close()
        self.rfile = self.wfile = _Closed()  # type: ignore[assignment]

    def _answer(self, status: int, value: Any, headers: dict[str, str]) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        for name, text in ({"Content-Type": "application/json"} | headers | {"Content-Length": length}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _authorised(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Unauthorized")

    def _found(self, groups: dict[str, str]) -> tuple[Repo, Commit]:
        kind = groups.get("kind", "models").rstrip("s")
        repo = self.server_hub.repos.get((kind, groups["repo"]))
        if repo is None:
            raise _Refused(404, "RepoNotFound")
        if repo.private:
            self._authorised()
        commit = repo.find(groups.get("rev", "main"))
        if commit is None:
            raise _Refused(404, "RevisionNotFound")
        return repo, commit

    # --- routes: (status, value, headers) ----------------------------------------------------------------------------

    def _create(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        self._authorised()
        asked = json.loads(body)
        owner = asked["organization"] or self.server_hub.user
        if owner != self.server_hub.user:
            raise _Refused(403, "Forbidden")
        name, kind = f"{owner}/{asked['name']}", asked.get("type") or "model"
        url = f"{self.server_hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.server_hub.repos:
            return 409, {"error": "You already created this repo", "url": url}, {}
        self.server_hub.make_repo(name, kind, asked.get("visibility") == "private" or bool(asked.get("private")))
        return 200, {"url": url, "name": name, "id": name}, {}

    def _whoami(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        self._authorised()
        return 200, {"name": self.server_hub.user, "type": "user", "orgs": []}, {}

    def _validate_yaml(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        import yaml

        parts = json.loads(body)["content"].split("---")
        values = yaml.safe_load(parts[1]) if len(parts) > 2 else None
        if isinstance(values, dict):
            return 200, {"errors": [], "warnings": []}, {}
        return 400, {"errors": [{"message": "metadata is no mapping"}], "warnings": []}, {}

    def _preupload(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        self._authorised()
        _, head = self._found(groups)
        files = []
        for file in json.loads(body)["files"]:
            there = head.files.get(file["path"])
            oid = None if there is None else git_hash(there)
            files.append({"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}, {}

    def _commit(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        self._authorised()
        repo, head = self._found(groups)
        files, header = dict(head.files), {}
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                header = item["value"]
            elif item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "deletedFile":
                del files[item["value"]["path"]]
            else:
                raise _Refused(400, f"unknown operation {item['key']}")
        if header.get("parentCommit") not in (None, head.oid):
            raise _Refused(412, "A commit has happened since")
        ref, answer = groups["rev"], {}
        if query.get("create_pr") == ["1"]:
            number = len(repo.pull_requests) + 1
            ref = f"refs/pr/{number}"
            repo.refs[ref] = list(repo.refs["main"])
            repo.pull_requests[number] = header["summary"]
            answer["pullRequestUrl"] = f"{self.server_hub.url}/{repo.name}/discussions/{number}"
        made = repo.commit(ref, header["summary"], files, head)
        url = f"{self.server_hub.url}/{repo.name}/commit/{made.oid}"
        return 200, {"success": True, "commitOid": made.oid, "commitUrl": url, **answer}, {}

    def _branch(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        self._authorised()
        repo, _ = self._found({**groups, "rev": "main"})
        if groups["rev"] in repo.refs:
            return 409, {"error": "Reference already exists"}, {}
        repo.refs[groups["rev"]] = list(repo.refs["main"])
        return 200, {}, {}

    def _tree(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        _, head = self._found(groups)
        folder = groups.get("path", "").strip("/")
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for path, content in head.files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            inner = path[len(folder) + 1 if folder else 0 :]
            parents = inner.split("/")[:-1]
            for depth in range(1, (len(parents) if recursive else min(1, len(parents))) + 1):
                name = "/".join(([folder] if folder else []) + parents[:depth])
                entries[name] = {"type": "directory", "path": name, "oid": git_hash(name.encode()), "size": 0}
            if recursive or not parents:
                entries[path] = {"type": "file", "path": path, "oid": git_hash(content), "size": len(content)}
        if folder and not entries:
            raise _Refused(404, "EntryNotFound")
        return 200, list(entries.values()), {}

    def _paths_info(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        _, head = self._found(groups)
        asked = parse_qs(body.decode()).get("paths", [])
        there = [path for path in asked if path in head.files]
        entries = [
            {"type": "file", "path": p, "oid": git_hash(head.files[p]), "size": len(head.files[p])} for p in there
        ]
        return 200, entries, {}

    def _discussions(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        repo, _ = self._found(groups)
        found = [
            {
                "num": number,
                "title": title,
                "author": {"name": self.server_hub.user},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "isPullRequest": True,
                "repo": {"name": repo.name, "type": repo.kind},
            }
            for number, title in repo.pull_requests.items()
        ]
        return 200, {"discussions": found, "count": len(found), "start": 0}, {}

    def _info(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        repo, head = self._found(groups)
        siblings = [{"rfilename": path, "size": len(content)} for path, content in head.files.items()]
        facts = {"id": repo.name, "private": repo.private, "sha": head.oid, "siblings": siblings, "tags": []}
        return 200, {**facts, "modelId": repo.name, "downloads": 0, "likes": 0, "disabled": False, "gated": False}, {}

    def _resolve(self, groups: dict, body: bytes, query: dict) -> tuple[int, Any, dict]:
        _, head = self._found({"kind": "models", **groups})
        content = head.files.get(groups["path"])
        if content is None:
            raise _Refused(404, "EntryNotFound")
        headers = {"X-Repo-Commit": head.oid, "ETag": f'"{git_hash(content)}"', "Accept-Ranges": "bytes"}
        return (
            200,
            content,
            headers | {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))},
        )


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Closed:
    """What is left of a connection that was reset."""

    closed = True

    def readline(self, *_: object) -> bytes:
        return b""

    def write(self, *_: object) -> int:
        return 0

    def flush(self) -> None:
        """Nothing to flush."""

    def close(self) -> None:
        """Closed already."""
