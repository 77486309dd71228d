"""An HTTP server on the loopback interface that fails as servers and networks do."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(1).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves `files` by name, or `content`. `script` holds the faults of the next requests: a
    status, ``silence``, ``cut N`` (it ends after N bytes), ``range N`` (no more than N bytes)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.content = CONTENT
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []  # as asked for
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.has_ranges = True
        self.has_length = True
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server  # HTTP/1.0: every response ends its connection

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        fault, _, argument = (server.script.pop(0) if server.script else "").partition(" ")
        content = server.files.get(self.path.rpartition("/")[2], server.content)
        if fault == "silence":
            time.sleep(1)
        start, end, status = 0, len(content), 200
        if asked and server.has_ranges:
            start, status = int(re.sub(r"\D", "", asked)), 206
        if fault == "range":
            end = start + int(argument)
        span, body = f"{start}-{end - 1}", content[start:end]
        if fault.isdecimal():
            status, body = int(fault), b""
        elif start and start >= len(content):
            status, span, body = 416, "*", b""
        self.send_response(status)
        if status in (206, 416):
            self.send_header("Content-Range", f"bytes {span}/{len(content)}")
        if server.has_length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: int(argument)] if fault == "cut" else body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs for the block."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
