"""An HTTP server on the loopback interface that does what servers, proxies and networks do."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(1).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves `files` by name, or `content` where it has none; `script` holds what the next requests meet, then all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.content = CONTENT
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []  # as asked for
        self.paths: list[str] = []
        self.etag = '"1"'
        self.modified = ""
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is nothing to report."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # or the next request may be sent on a connection that is about to end
        super().end_headers()

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        deed, _, argument = (server.script.pop(0) if server.script else "well").partition(" ")
        if deed.isdecimal():
            self.send_response(int(deed))
            if argument:
                self.send_header("Retry-After", argument)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.files.get(self.path.rpartition("/")[2], server.content)
        if deed == "wrong":
            content = np.random.default_rng(2).bytes(len(content))
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        condition = self.headers.get("If-Range")
        has_changed = condition and condition != (server.etag or server.modified)
        if deed in ("no-ranges", "stuck") or (has_changed and deed != "heedless"):
            start = 0
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if deed == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b"<html></html>")
            return
        if deed == "nonsense":
            self.send_response(302)
            self.send_header("Location", "http://[::1/x")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if deed == "earlier":
            start = max(0, start - 1000)
        self.send_response(206 if start and deed != "range-as-200" else 200)
        if deed == "no-total":
            content = content[: start + 1000]
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/*")
        elif start and deed != "206-bare":
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if deed in ("chunked", "trickle-chunk"):
            self.send_header("Transfer-Encoding", "chunked")
        elif deed not in ("no-length", "whole-without-length"):
            self.send_header("Content-Length", str(len(content) - start))
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if deed == "chunked":
            # The last chunk, of no bytes, never comes.
            self.wfile.write(f"{len(body) // 2:x}\r\n".encode() + body[: len(body) // 2] + b"\r\n")
        elif deed in ("cut", "stuck"):
            self.wfile.write(body[: int(argument or len(body) // 2)])
        elif deed == "no-length":
            self.wfile.write(body[: len(body) // 2])
        elif deed == "trickle-chunk":
            with contextlib.suppress(OSError):
                self.wfile.write(b"5;")
                for _ in range(100):  # the length of the chunk never ends
                    self.wfile.write(b"x")
                    time.sleep(0.01)
        elif deed == "trickle":
            with contextlib.suppress(OSError):
                for byte in body[:100]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.01)
        elif deed == "stall":
            self.wfile.write(body[: int(argument or len(body) // 2)])
            self.wfile.flush()
            time.sleep(1)
        else:
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs for the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
