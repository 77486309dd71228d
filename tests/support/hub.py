"""The parts of the Hugging Face hub that fetching a data set needs, on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode(), usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves `files` (revision -> name -> content) of the data set ``owner/name``."""

    daemon_threads = True

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.fetched: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def of(self, revision: str) -> dict[str, bytes] | None:
        return next((files for name, files in self.files.items() if revision in (name, commit_of(name))), None)

    def commit(self, revision: str) -> str:
        return next(commit_of(name) for name in self.files if revision in (name, commit_of(name)))


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, _, rest = path.partition("/api/datasets/owner/name/")
        if not api and rest:
            kind, _, revision = rest.partition("/")
            files = self.server.of(revision)
            if files is None:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif kind == "tree":
                sizes = {name: len(content) for name, content in files.items()}
                tree = [{"type": "file", "path": name, "size": size, "oid": "1"} for name, size in sizes.items()]
                self._answer(200, json.dumps(tree).encode())
            else:
                about = {
                    "id": "owner/name",
                    "sha": self.server.commit(revision),
                    "siblings": [{"rfilename": name} for name in files],
                }
                self._answer(200, json.dumps(about).encode())
            return
        _, _, rest = path.partition("/datasets/owner/name/resolve/")
        revision, _, name = rest.partition("/")
        content = (self.server.of(revision) or {}).get(name)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound" if not rest else "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.fetched.append(name)
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit(revision)})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """The hub, for the block."""
    server = Hub(files)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
