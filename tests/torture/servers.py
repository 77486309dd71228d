"""A server that does what no server should; it runs in the case's own process."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import requests  # noqa: F401 - loaded once here, not in every case

from common.download.fetch import DownloadError, RetryPolicy, fetch
from tests.torture.harness import Attack, Case, require

HASTY = RetryPolicy(tries=3, backoff_s=0.001, longest_pause_s=0.01, stall_s=0.3, least_rate=20_000)
SIZE = 120_000
MOST_SENT = 40_000_000  # by an endless answer, before the client must have hung up
LONGEST_S = 25.0
END = b"\r\n\r\n"


@dataclass
class Server:
    """Answers each request with the next deed, then as it should.

    Attributes:
        contents: of the file, and what it is changed into.
        deeds: what the next requests meet.
        complete: bodies that were sent without a length, so that the client must take them for whole.
        sent: bytes sent by endless answers.
    """

    contents: tuple[bytes, bytes]
    deeds: list[Deed]
    version: int = 0
    complete: list[bytes] = field(default_factory=list)
    sent: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/archive.tar.gz"

    def serve(self) -> None:
        """Accept connections until the process ends."""
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        """One request, one answer."""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            asked = b""
            while END not in asked:
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                asked += piece
            found = re.search(rb"\r\nRange: bytes=(\d+)-", asked, re.IGNORECASE)
            condition = re.search(rb"\r\nIf-Range: ([^\r]*)", asked, re.IGNORECASE)
            deed = self.deeds.pop(0) if self.deeds else WELL
            answer = Answer(self, connection, int(found[1]) if found else 0)
            if condition and condition[1].decode() != answer.etag and not deed.is_heedless:
                answer.start = 0
            deed.do(answer)


@dataclass
class Answer:
    """A request that is being answered, from byte `start` of the file on."""

    server: Server
    connection: socket.socket
    start: int

    @property
    def etag(self) -> str:
        return f'"{self.server.version}"'

    @property
    def content(self) -> bytes:
        return self.server.contents[self.server.version]

    @property
    def body(self) -> bytes:
        return self.content[self.start :]

    def send(self, *parts: bytes) -> None:
        self.connection.sendall(b"".join(parts))

    def head(self, *lines: str, status: str = "", length: object = "", etag: bool = True) -> None:
        """Status line and headers; a Content-Length, unless it is None."""
        status = status or ("206 Partial Content" if self.start else "200 OK")
        made = [f"HTTP/1.1 {status}", "Connection: close", *lines]
        if etag:
            made.append(f"ETag: {self.etag}")
        if length is not None:
            made.append(f"Content-Length: {len(self.body) if length == '' else length}")
        if self.start and not any(line.startswith("Content-Range") for line in lines):
            made.append(f"Content-Range: bytes {self.start}-{len(self.content) - 1}/{len(self.content)}")
        self.send("\r\n".join(made).encode("latin-1"), END)

    def endless(self, piece: bytes, pause_s: float = 0.0) -> None:
        """Send a piece again and again, until the client hangs up."""
        while self.server.sent < 2 * MOST_SENT:
            self.send(piece)
            self.server.sent += len(piece)
            time.sleep(pause_s)


@dataclass(frozen=True)
class Deed:
    """What a request meets.

    Attributes:
        do: answers it.
        tells: whether a client without a checksum can tell that something is wrong, or nothing is.
        needs_size: whether it must know the file's size for that.
        is_heedless: whether If-Range is ignored.
    """

    name: str
    do: Callable[[Answer], object]
    tells: bool = True
    needs_size: bool = False
    is_heedless: bool = False


def well(answer: Answer) -> None:
    answer.head()
    answer.send(answer.body)


def cut(answer: Answer, share: float = 0.5) -> None:
    answer.head()
    answer.send(answer.body[: int(share * len(answer.body))])


def stall(answer: Answer) -> None:
    answer.head()
    answer.send(answer.body[: len(answer.body) // 3])
    time.sleep(1)


def drip(answer: Answer, piece: int = 1) -> None:
    answer.head()
    for place in range(0, len(answer.body), piece):
        answer.send(answer.body[place : place + piece])
        time.sleep(0.05)


def reset(answer: Answer) -> None:
    answer.head()
    answer.send(answer.body[:1000])
    answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def length(value: str, share: float, answer: Answer) -> None:
    """A Content-Length that is wrong or none, and a part of the body."""
    answer.head(length=value)
    answer.send(answer.body[: int(share * len(answer.body))])


def no_length(share: float, answer: Answer) -> None:
    answer.head(length=None)
    body = answer.body[: int(share * len(answer.body))]
    answer.send(body)
    answer.server.complete.append(answer.content[: answer.start] + body)


def chunked(form: str, answer: Answer) -> None:
    """Chunks, in order or not."""
    body = answer.body
    head = ["Transfer-Encoding: chunked"]
    answer.head(*head, length=len(body) // 2 if form == "with a length" else None)
    half = body[: len(body) // 2]
    first = b"%x" % len(half) + b"\r\n" + half + b"\r\n"
    rest = b"%x" % (len(body) - len(half)) + b"\r\n" + body[len(half) :] + b"\r\n"
    last = b"0\r\n\r\n"
    made = {
        "well": first + rest + last,
        "with a length": first + rest + last,
        "extensions": b"1;"
        + b"x" * 60_000
        + b"\r\n"
        + body[:1]
        + b"\r\n"
        + (b"%x\r\n" % (len(body) - 1))
        + body[1:]
        + b"\r\n"
        + last,
        "no end": first,
        "no last chunk": first + rest,
        "nonsense": first + b"xyz\r\n" + rest,
        "negative": first + b"-5\r\n" + rest + last,
        "huge": first + b"f" * 16 + b"\r\n" + rest,
        "not a number": first + b"0x10\r\n" + rest + last,
        "longer": first + b"%x\r\n" % (len(rest) * 2) + rest,
        "no line ends": first[:-2] + rest[:-2] + b"0",
    }.get(form, b"")
    answer.send(made)
    if form == "endless line":
        answer.endless(b"0" * 10_000)
    if form == "endless trailers":
        answer.send(first, rest, b"0\r\n")
        answer.endless(b"X-A: b\r\n" * 1000)
    if form == "endless small chunks":
        answer.endless(b"1\r\nx\r\n" * 1000)


def part(claim: str, answer: Answer) -> None:
    """A range that is not the one asked for, by its header."""
    size, start = len(answer.content), answer.start
    ranges = {"start": f"{start}", "later": f"{start + 10}", "earlier": f"{max(0, start - 10)}", "end": f"{size - 1}"}
    answer.head(
        f"Content-Range: {claim.format(**ranges, size=size, more=size + 1, less=size // 2)}", status="206 Partial"
    )
    answer.send(answer.body)


def shifted(answer: Answer) -> None:
    """Other bytes than the header says."""
    answer.head()
    answer.send(answer.content[: len(answer.body)])


def whole_as_206(answer: Answer) -> None:
    answer.start = 0
    answer.head(status="206 Partial Content")
    answer.send(answer.content)


def status(line: str, headers: tuple[str, ...], answer: Answer) -> None:
    answer.head(*headers, status=line, length=0)


def page(answer: Answer) -> None:
    answer.start = 0
    text = b"<html>Please sign in</html>"
    answer.head("Content-Type: text/html", length=len(text))
    answer.send(text)


def page_as_file(answer: Answer) -> None:
    """A page that calls itself a file of the size that is wanted: only a checksum tells."""
    answer.start = 0
    answer.head("Content-Type: application/gzip")
    answer.send(b"<html>".ljust(len(answer.content)))


def zipped(answer: Answer) -> None:
    """Compressed on the way, though the client said that it does not want that."""
    answer.start = 0
    packed = gzip.compress(answer.content)
    answer.head("Content-Encoding: gzip", length=len(packed))
    answer.send(packed)


def change(share: float, answer: Answer) -> None:
    """The file becomes another one while it is sent; what follows is the other."""
    cut(answer, share)
    answer.server.version = 1


def raw(content: bytes, answer: Answer) -> None:
    answer.send(content)


def endless(content: bytes, piece: bytes, pause_s: float, answer: Answer) -> None:
    answer.send(content)
    answer.endless(piece, pause_s)


def redirect(to: str, body: bytes, answer: Answer) -> None:
    """Elsewhere, with a body that may have no end."""
    place = to.format(port=answer.server.listener.getsockname()[1], new=time.monotonic_ns())
    ends = "" if body else "Content-Length: 0\r\n"
    answer.send(f"HTTP/1.1 302 Found\r\nConnection: close\r\n{ends}Location: {place}".encode(), END)
    if body:
        answer.endless(body)


OK = b"HTTP/1.1 200 OK\r\n"
WELL = Deed("well", well)
DEEDS = [
    *[Deed(f"cut at {share}", partial(cut, share=share)) for share in (0.0, 0.3, 0.999)],
    *[Deed("stall", stall), Deed("drip", drip), Deed("drip of 100", partial(drip, piece=100)), Deed("reset", reset)],
    *[
        Deed(f"Content-Length {value[:25]}, {share} of the body", partial(length, value, share))
        for value in (
            "-1",
            "-99999",
            "0x10",
            "1e5",
            "abc",
            "9" * 30,
            "1" * 5000,
            "+120000",
            "1, 2",
            "120000, 120000",
            " ",
        )
        for share in (0.5, 1)
    ],
    *[
        Deed(f"Content-Length {value}", partial(length, value, 1), needs_size=True)
        for value in ("0", "5", "10000000", "1_0")
    ],
    *[Deed(f"no length, {share} of the body", partial(no_length, share), needs_size=share < 1) for share in (0.5, 1)],
    *[
        Deed(f"chunks: {form}", partial(chunked, form))
        for form in ("well", "no end", "no last chunk", "nonsense", "huge")
    ],
    *[Deed(f"chunks: {form}", partial(chunked, form)) for form in ("negative", "longer", "no line ends")],
    # Python takes 0x10 for a number, and then takes other bytes for those of the file.
    Deed("chunks: not a number", partial(chunked, "not a number"), tells=False),
    *[Deed(f"chunks: {form}", partial(chunked, form)) for form in ("with a length", "extensions")],
    *[
        Deed(f"chunks: {form}", partial(chunked, form), needs_size=True)
        for form in ("endless line", "endless trailers", "endless small chunks")
    ],
    *[
        Deed(f"Content-Range: {claim}", partial(part, claim), tells="start}-{end}/{size" not in claim)
        for claim in (
            *(
                "bytes {later}-{end}/{size}",
                "bytes {start}-{end}/{more}",
                "bytes {start}-{end}/{less}",
                "bytes */{size}",
            ),
            *("bytes {start}-{end}/*", "bytes 5-4/{size}", "bytes -1-{end}/{size}", "items 0-1/2", "", "bytes 0-0/1"),
            *("bytes {start}-9999999999999999999/99999999999999999999", "bytes ٣-٤/٥".encode().decode("latin-1")),
        )
    ],
    Deed("Content-Range: earlier than what is sent", partial(part, "bytes {earlier}-{end}/{size}"), tells=False),
    *[Deed("other bytes than it says", shifted, tells=False), Deed("206 for everything", whole_as_206)],
    *[
        Deed(f"status {line}", partial(status, line, ()))
        for line in (
            "416 No",
            "204 None",
            "304 Same",
            "404 No",
            "401 No",
            "500 No",
            "503",
            "999 What",
            "100 Go",
            "103 Hints",
        )
    ],
    *[
        Deed(f"429, Retry-After {value[:20]}", partial(status, "429 Slow", (f"Retry-After: {value}",)))
        for value in (
            "0",
            "-5",
            "1000000000",
            "soon",
            "9" * 400,
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "nan",
            "1e3",
            "",
            "Wed, 99 Foo",
        )
    ],
    *[Deed("a page", page), Deed("a page as the file", page_as_file, tells=False), Deed("compressed", zipped)],
    *[Deed("the file changes", partial(change, share)) for share in (0.3, 0.7)],
    Deed("the file changes, heedlessly", partial(change, 0.5), is_heedless=True),
    *[
        Deed(f"answers {content[:40]!r}", partial(raw, content))
        for content in (
            *(
                b"",
                b"\0" * 1000,
                b"\xff\xfe" * 500,
                b"SSH-2.0-x\r\n",
                b"HTTP/1.1\r\n\r\n",
                b"HTTP/1.1 abc OK\r\n\r\n",
                b"\r\n" * 50,
            ),
            *(
                b"HTTP/9.9 200 OK\r\n\r\n",
                b"HTTP/1.1 -200 OK\r\n\r\n",
                b"ICY 200 OK\r\n\r\nx",
                b"HTTP/1.1 20000 OK\r\n\r\n",
            ),
            *(OK + b"X" * 70_000 + END, OK + b": x\r\nno colon\r\n\r\n", OK + b"A: b\r\n" * 200 + b"\r\n", OK),
            *(
                OK + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n0123456789",
                OK + b"Transfer-Encoding: magic\r\n\r\nx",
            ),
            *(
                OK + b"Content-Length: 5\r\nSet-Cookie: " + b"x" * 60_000 + b"\r\n\r\nhello",
                OK + b"ETag: \xff\xe9\r\nContent-Length: 1\r\n\r\n",
            ),
        )
    ],
    *[
        Deed(f"endless {name}", partial(endless, start, piece, pause_s), needs_size=True)
        for name, start, piece, pause_s in (
            ("body", OK + b"\r\n", b"x" * 100_000, 0),
            ("headers", OK, b"X-A: b\r\n" * 1000, 0),
            ("header", OK + b"X-A: ", b"b" * 10_000, 0),
            ("slow header", OK + b"X-A: ", b"b", 0.05),
            ("continuing", b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0),
            ("slow continuing", b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
            ("status line", b"HTTP/1.1 200 ", b"x" * 10_000, 0),
            ("error page", b"HTTP/1.1 503 No\r\n\r\n", b"x" * 100_000, 0),
        )
    ],
    *[
        Deed(f"redirect to {to[:50]}", partial(redirect, to, b""))
        for to in (
            *(
                "http://127.0.0.1:{port}/archive.tar.gz",
                "http://127.0.0.1:{port}/{new}",
                "file:///etc/passwd",
                "",
                "//",
                "#",
            ),
            *(
                "http://127.0.0.1:1/",
                "http://[::1/x",
                "ftp://127.0.0.1/x",
                "http://",
                "data:,x",
                "javascript:0",
                "x" * 60_000,
            ),
            *(
                "http://127.0.0.1:99999/",
                "https://127.0.0.1:{port}/",
                "http://\0/",
                "http://é.invalid/",
                "/%zz",
                "gopher://x",
            ),
        )
    ],
    Deed("redirect to itself with an endless body", partial(redirect, "/again", b"x" * 100_000), needs_size=True),
]


def download(deeds: list[Deed], contents: tuple[bytes, bytes], knows: str, folder: Path) -> None:
    """Fetch the file from the server, and look at what is there."""
    server = Server(contents, list(deeds))
    threading.Thread(target=server.serve, daemon=True).start()
    path, started = folder / "archive.tar.gz", time.monotonic()
    checksum = "sha256:" + hashlib.sha256(contents[0]).hexdigest() if knows == "checksum" else None
    size = None if knows == "nothing" else SIZE
    try:
        fetch(server.url, path, checksum, size, HASTY, most=4 * SIZE)
    except DownloadError:
        require(not path.exists(), "it failed, but the file is there")
        raise
    finally:
        require(time.monotonic() - started < LONGEST_S, f"it took {time.monotonic() - started:.0f} s")
        require(server.sent < MOST_SENT, f"it took {server.sent:,} bytes of an endless answer")
    content = path.read_bytes()
    known = {"checksum": contents[:1], "size": contents, "nothing": (*contents, *server.complete)}[knows]
    require(content in known, f"the file has {len(content)} other bytes: {content[:60]!r}")


def hostile(rng: random.Random, common: Path) -> Iterator[Case]:
    """Each deed alone and again and again, then some in a row."""
    one = rng.randbytes(SIZE)
    contents = (one, rng.randbytes(SIZE))

    def made(deeds: list[Deed], names: str) -> Case:
        known = ["checksum", "checksum"]
        if all(deed.tells for deed in deeds):
            known += ["size"] if any(deed.needs_size for deed in deeds) else ["size", "nothing"]
        knows = rng.choice(known)
        return Case(f"{names}; known: {knows}", partial(download, deeds, contents, knows))

    while True:
        order = rng.sample(DEEDS, len(DEEDS))
        for place, deed in enumerate(order):
            if place % 2:
                times = rng.choice((1, 2, 10))
                yield made([deed] * times, f"{deed.name}, {times} times")
            else:
                row = rng.choices([*DEEDS, *[WELL] * 5, *DEEDS[:6] * 4], k=rng.randint(2, 5))
                yield made(row, ", then ".join(each.name for each in row))


ATTACKS = [
    Attack(
        "hostile servers",
        "answers that are cut, stalled, endless, contradictory, redirected in circles, or not HTTP at all",
        hostile,
        2,
        80,
    )
]
