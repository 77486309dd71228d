"""Which process does which part, without talking: a claim is a file beside the parts that its owner renews. Works on a network
disk: creating a file is exclusive there too, and the file system's clock tells ages. Two processes that nevertheless make the
same part write the same bytes."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

from pydantic import BaseModel

from common.files import OutputError

RENEW_S = 10.0
STALE_S = 60.0  # a claim not renewed for so long is of a process that was killed
SUFFIX = ".claim"


class _Owner(BaseModel):
    """What a claim says: a checksum of the settings that its process works with, and which process that is."""

    identity: str
    host: str
    process: int


class Claims:
    """The claims of one process in a folder; a context, at whose end they are released."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._me = _Owner(identity=identity, host=platform.node(), process=os.getpid())
        self._held: set[Path] = set()
        self._ended = threading.Event()

    def __enter__(self) -> Claims:
        threading.Thread(target=self._renew, name="claims", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        for path in self._held:
            path.unlink(missing_ok=True)

    def take(self, name: str) -> bool:
        """Claim what is called `name`; False if another process has, and lives; OutputError if its settings differ."""
        path = self.folder / (name + SUFFIX)
        if path.exists():
            if not is_alive(path):
                path.unlink(missing_ok=True)
            elif (owner := _owner(path)) and owner.identity != self._me.identity:
                raise OutputError(
                    f"process {owner.process} on {owner.host} is writing {self.folder} with different settings; wait for it "
                    "to end, or write elsewhere"
                )
        try:
            with path.open("x") as file:
                file.write(self._me.model_dump_json())
        except FileExistsError:
            return False
        self._held.add(path)
        return True

    def release(self, name: str) -> None:
        path = self.folder / (name + SUFFIX)
        self._held.discard(path)
        path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            for path in tuple(self._held):  # while others are taken and released
                with contextlib.suppress(OSError):  # released, or removed by one who took this process for dead
                    os.utime(path)


def alive_claims(folder: Path) -> list[Path]:
    """The claims in a folder whose owners live."""
    return [path for path in sorted(folder.glob("*" + SUFFIX)) if is_alive(path)]


def is_alive(path: Path) -> bool:
    """Whether the owner of a claim still renews it; at once False if it was a process of this machine that has ended."""
    owner = _owner(path)
    try:
        if owner and owner.host == platform.node() and sys.platform != "win32":  # where signal 0 ends a process
            with contextlib.suppress(PermissionError):  # of another user
                os.kill(owner.process, 0)
        return _now(path.parent) - path.stat().st_mtime < STALE_S
    except (ProcessLookupError, FileNotFoundError):
        return False


def _owner(path: Path) -> _Owner | None:
    """None while the claim is being written, or if it is damaged."""
    try:
        return _Owner.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _now(folder: Path) -> float:
    """The time by the clock of the file system; by this machine's where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
