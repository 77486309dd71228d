"""Files on disk: written whole or not at all, by one process at a time, and read without running anything."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import os
import pickle
import pickletools
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class OutputError(UserError):
    """An output may not be written: another run holds it, or it was made with other settings."""


def difference_in_words(earlier: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Which of today's settings an earlier run had otherwise; empty where none."""
    return "; ".join(
        f"{key} was {earlier.get(key, 'not recorded')}, now {value}"
        for key, value in now.items()
        if earlier.get(key) != value
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str, on_bytes: Callable[[int], object] = lambda n_bytes: None) -> str:
    """The digest of a file's content, in hexadecimal; `on_bytes` hears of every block that was read."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under `path` at once: a reader, a crash or a full disk meets the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; the result should be as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the file that was wanted, not the temporary one
            error.filename, error.filename2 = str(path), None
        raise


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, their names first, atomically; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writes to `path` that were killed; to be called by whoever holds its lock."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def save_torch(content: object, path: Path) -> None:
    """``torch.save``, atomically; equal contents give equal bytes."""
    import torch

    # Through a buffer: torch.save would write the file's own name into it.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


class DamagedFileError(ValueError):
    """A file is cut short or of another kind; the message is the cause alone."""


class UnsafeFileError(ValueError):
    """A file holds Python objects that would run code if they were restored; nothing of it was."""


def load_torch(path: Path, mmap: bool = False) -> Any:
    """``torch.load`` with ``weights_only=True`` on the CPU, its many ways to fail told apart.

    Args:
        mmap: map the file where its format allows, so that a large file's unused tensors are never read.

    Raises:
        UnsafeFileError: the file asks for more than tensors and plain containers.
        DamagedFileError: it cannot be parsed.
        OSError: it cannot be opened.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch refuses here both what could run code and what is no pickle at all.
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE) or _names_a_callable(path):
            raise UnsafeFileError(_cause(error)) from error
        raise DamagedFileError(_cause(error)) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise DamagedFileError(_cause(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # what reading a zip that was cut short can end in
            raise
        raise DamagedFileError(_cause(error)) from error


def _names_a_callable(path: Path) -> bool:
    """Whether a bare pickle asks for an object by its module and name; its opcodes are read, not run."""
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            return False
        file.seek(0)
        try:
            return any(opcode.name in ("GLOBAL", "STACK_GLOBAL") for opcode, _, _ in pickletools.genops(file))
        except ValueError:
            return False


def _cause(error: Exception) -> str:
    """The sentence of torch's paragraphs that says what is wrong with the file."""
    text = str(error).strip() or type(error).__name__
    own = re.search(r"WeightsUnpickler error: *(.*)", text)
    cause = re.split(r"\. |\n", own.group(1) if own else text)[0].strip()
    return cause[:120] or "no pickle of tensors"


@contextlib.contextmanager
def exclusive(lock_path: Path, what: str) -> Iterator[None]:
    """Hold the lock file for the block, then remove it; OutputError at once if another process holds it.

    A process that is killed lets go of its lock.
    """
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"another run is writing {what}; wait for it to end, or write elsewhere") from error
    try:
        yield
    finally:
        # Windows removes no open file; there the empty file stays, and does no harm.
        with contextlib.suppress(PermissionError):
            lock_path.unlink(missing_ok=True)
        lock.release()
