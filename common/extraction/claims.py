"""Which process does which part, without talking: a claim is a file beside the parts that its owner renews.

Works on a network disk: creating a file is exclusive there too, and ages are told by the file system's own clock. Two
processes that nevertheless make the same part write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from common.files import OutputError

RENEW_S = 10.0
STALE_S = 60.0  # a claim not renewed for so long is of a process that was killed
SUFFIX = ".claim"


class Claims:
    """The claims of one process in a folder; a context, at whose end they are released.

    Args:
        folder: where the parts are.
        identity: a checksum of the settings that they are made with.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self._held: set[Path] = set()
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._renew, name="claims", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for path in list(self._held):
            self._remove(path)

    def take(self, name: str) -> bool:
        """Claim what is called `name`; False if another process has, and lives.

        Raises:
            OutputError: that process works with different settings.
        """
        path = self.folder / (name + SUFFIX)
        content = {"identity": self.identity, "host": platform.node(), "process": os.getpid()}
        for _ in range(10):
            with contextlib.suppress(FileExistsError):
                with path.open("x") as file:
                    json.dump(content, file)
                with self._lock:
                    self._held.add(path)
                return True
            if self._is_alive(path):
                return False
            path.unlink(missing_ok=True)
        return False

    def release(self, name: str) -> None:
        """Give up a claim."""
        self._remove(self.folder / (name + SUFFIX))

    def others(self) -> list[str]:
        """The names that other living processes claim."""
        return [path.name[: -len(SUFFIX)] for path in alive_claims(self.folder) if path not in self._held]

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def _is_alive(self, path: Path) -> bool:
        if not is_alive(path):
            return False
        owner = _owner(path)
        if owner and owner["identity"] != self.identity:
            raise OutputError(
                f"process {owner['process']} on {owner['host']} is writing {self.folder} with different settings; wait for it "
                "to end, or write elsewhere"
            )
        return True

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with self._lock:
                for path in self._held:
                    with contextlib.suppress(OSError):  # removed by one who took this process for dead
                        os.utime(path)


def alive_claims(folder: Path) -> list[Path]:
    """The claims in a folder whose owners live."""
    return [path for path in sorted(folder.glob("*" + SUFFIX)) if is_alive(path)]


def is_alive(path: Path) -> bool:
    """Whether the owner of a claim still renews it; at once False if it was a process of this machine that has ended."""
    owner = _owner(path)
    if owner and owner["host"] == platform.node() and not _is_running(int(owner["process"])):
        return False
    try:
        return _now(path.parent) - path.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return False


def _owner(path: Path) -> dict[str, str | int]:
    """What a claim says of its owner; empty while it is being written, or if it is damaged."""
    try:
        owner = json.loads(path.read_bytes())
        return owner if isinstance(owner, dict) and owner.keys() >= {"identity", "host", "process"} else {}
    except (OSError, ValueError):
        return {}


def _is_running(process: int) -> bool:
    if sys.platform == "win32":  # where signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def _now(folder: Path) -> float:
    """The time by the clock of the file system; by this machine's where nothing can be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".tmp") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
