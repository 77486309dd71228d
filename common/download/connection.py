"""The answer of a server: its response, then its body in blocks, from a thread that nobody has to wait for."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from common.errors import UserError

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
BLOCK = 1 << 16  # bytes
MOST_REDIRECTS = 20


class DownloadError(UserError):
    """A file cannot be downloaded; the message is one line: the URL or file, the cause, and what to do."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to keep trying a server.

    Attributes:
        tries: give up after this many attempts in a row without a new byte.
        backoff_s: pause after the first of them; each further pause is twice as long.
        longest_pause_s: give up if the server asks for a longer pause.
        stall_s: silence after which a connection counts as broken.
        least_rate: bytes per second; a connection that brings fewer over `stall_s` counts as broken too.
    """

    tries: int = 6
    backoff_s: float = 1.0
    longest_pause_s: float = 120.0
    stall_s: float = 60.0
    least_rate: float = 1_000.0


class RetryableError(Exception):
    """An attempt failed, but another one may succeed; `pause_s` is how long the server asks to wait, and `is_vain` says that
    it failed whatever it brought."""

    def __init__(self, cause: str, pause_s: float | None = None, is_vain: bool = False) -> None:
        super().__init__(cause)
        self.pause_s = pause_s
        self.is_vain = is_vain


def answer(
    session: requests.Session, url: str, headers: dict[str, str], retries: RetryPolicy
) -> Generator[requests.Response | bytes, None, None]:
    """The response to a request, with its redirects followed; then the blocks of its body, as they come.

    Raises:
        RetryableError: it is too slow.
    """
    import requests

    timeout = (min(30, retries.stall_s), retries.stall_s)

    # requests would read the whole body of a redirect into memory.
    session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
    for _ in range(MOST_REDIRECTS):
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if not response.is_redirect:
                yield response
                yield from _blocks(response, retries)
                return
            # As requests does: the headers were decoded as Latin-1.
            location = response.headers["Location"].encode("latin-1").decode("utf-8", errors="replace")
            url = requests.compat.urljoin(response.url, location)
    raise DownloadError(f"{url}: the server redirects more than {MOST_REDIRECTS} times; try later")


def watched(work: Generator[T, None, None], limit_s: float) -> Iterator[T]:
    """The items of `work`, which is done in another thread.

    Raises:
        RetryableError: one takes longer than `limit_s`. A timeout of the connection does not notice a server that sends a byte
            at a time, in a header say. The thread is left to itself: closing its connection would wait for it.
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=16)
    is_left = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_left.is_set():
            with contextlib.suppress(queue.Full):
                items.put((item, error), timeout=0.5)
                return

    def pump() -> None:
        try:
            for item in work:
                put(item, None)
                if is_left.is_set():
                    work.close()
                    return
            put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised in the other thread
            put(None, error)

    threading.Thread(target=pump, name="download", daemon=True).start()
    try:
        while True:
            try:
                item, error = items.get(timeout=limit_s)
            except queue.Empty:
                raise RetryableError("the server's response has stalled", is_vain=True) from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast("T", item)
    finally:
        is_left.set()


def _blocks(response: requests.Response, retries: RetryPolicy) -> Iterator[bytes]:
    """What the server sends, as it comes: an incomplete block would be lost when the connection breaks.

    Raises:
        RetryableError: it is too slow.
    """
    since, received = time.monotonic(), 0
    while block := response.raw.read1(BLOCK, decode_content=False):
        yield block
        received += len(block)
        seconds = time.monotonic() - since
        if seconds > retries.stall_s:
            if received < retries.least_rate * seconds:
                raise RetryableError(f"only {received / seconds:,.0f} bytes per second arrive", is_vain=True)
            since, received = time.monotonic(), 0
