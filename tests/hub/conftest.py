"""A server that speaks the hub's protocol, as huggingface_hub calls it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_good"
LARGE = (".safetensors", ".hdf5", ".parquet", ".mp4")
PLACE = re.compile(r"/(?:api/)?(?:(datasets|models)/)?([\w.-]+/[\w.-]+)(?:/(.*))?")


class Repository:
    """Files by name, as the newest commit has them."""

    def __init__(self, files: dict[str, bytes], card: dict | None = None) -> None:
        self.files, self.card = dict(files), card or {}
        self.private = False
        self.lies: dict[str, bytes] = {}  # what is sent instead of a file
        self.cut: set[str] = set()  # files whose connection breaks half-way, once
        self.barred: set[str] = set()  # files that are refused
        self.commits: list[dict] = []

    @property
    def sha(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def tree(self) -> list[dict]:
        rows = []
        for name, content in self.files.items():
            row = {"type": "file", "path": name, "size": len(content), "oid": git(content)}
            if name.endswith(LARGE):
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            rows.append(row)
        return [*rows, *({"type": "directory", "path": each, "oid": "0" * 40} for each in self.folders())]

    def folders(self) -> set[str]:
        return {name.rpartition("/")[0] for name in self.files if "/" in name}


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and range of every request."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, kind: str, name: str, files: dict[str, bytes], card: dict | None = None) -> Repository:
        return self.repositories.setdefault((kind, name), Repository(files, card))

    def gets(self) -> list[str]:
        """Files that were sent."""
        return [
            path.rpartition("/resolve/")[2].partition("/")[2]
            for how, path, _ in self.asked
            if how == "GET" and "/resolve/" in path
        ]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path, request.headers.get("Range")))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        allowed = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return say(request, {"errors": [], "warnings": []})
        if path.startswith("/upload/"):
            self.uploads[path.removeprefix("/upload/")] = body
            return say(request, {})
        if request.command == "POST" and not allowed:
            return fail(request, 401, None)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.add("models", name, {}).private = wanted.get("visibility") == "private"
            return say(request, {"url": f"{self.url}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return say(request, {"transfer": "basic", "objects": objects})
        kind, name, rest = PLACE.fullmatch(path).groups()
        found = self.repositories.get((kind or "models", name))
        if found is None or (found.private and not allowed):
            return fail(request, 404 if allowed else 401, "RepoNotFound")
        what, _, more = (rest or "").partition("/")
        if what in ("", "revision"):
            if more not in ("", "main", found.sha):
                return fail(request, 404, "RevisionNotFound")
            about = {"id": name, "sha": found.sha, "siblings": [], "private": found.private, "cardData": found.card}
            return say(request, about)
        if what == "tree":
            return say(request, found.tree())
        if what == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return say(request, {"files": modes})
        if what == "commit":
            self.commit(found, [json.loads(line) for line in body.splitlines()])
            return say(request, {"commitUrl": f"{self.url}/{name}/commit/{found.sha}", "commitOid": found.sha})
        assert what == "resolve", path
        return self.send(request, found, more.partition("/")[2])

    def commit(self, repository: Repository, lines: list[dict]) -> None:
        repository.commits.append(lines[0]["value"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.uploads[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del repository.files[value["path"]]

    def send(self, request: BaseHTTPRequestHandler, found: Repository, name: str) -> None:
        if name in found.barred:
            return fail(request, 403, "GatedRepo")
        if name not in found.files:
            return fail(request, 404, "EntryNotFound")
        right = found.files[name]
        content, start = found.lies.get(name, right), 0
        if request.headers.get("Range"):
            start = int(re.match(r"bytes=(\d+)-", request.headers["Range"])[1])
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", found.sha)
        large = name.endswith(LARGE)
        request.send_header("ETag", f'"{hashlib.sha256(right).hexdigest() if large else git(right)}"')
        request.send_header("Content-Length", str(len(content) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if request.command == "HEAD":
            return None
        if name in found.cut:
            found.cut.remove(name)
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
            return None
        request.wfile.write(content[start:])
        return None


def say(request: BaseHTTPRequestHandler, value: object) -> None:
    body = json.dumps(value).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def fail(request: BaseHTTPRequestHandler, status: int, code: str | None) -> None:
    request.send_response(status)
    if code:
        request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub, empty, and an empty cache; nobody is logged in."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS, whose protocol is short
    for name, place in {"HF_HUB_CACHE": "cache", "HF_TOKEN_PATH": "token"}.items():
        monkeypatch.setattr(constants, name, str(tmp_path / place))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
