"""Files on disk: written atomically, by one process at a time, and read without running code from them."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import re
import secrets
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from common.errors import UserError, first_problem

CHECKSUM = "checksum"  # the key of a JSON file's checksum
ODD_LETTERS = "backslashreplace"  # those of file names that are not UTF-8
Model = TypeVar("Model", bound=BaseModel)
PROJECT_ROOT = Path(__file__).resolve().parent.parent


class OutputError(UserError):
    """An output cannot be written, or may not."""


class DamagedFileError(ValueError):
    """A file is truncated or of another format; the message is only the cause."""


class UnsafeFileError(ValueError):
    """A file holds Python objects that would run code if they were unpickled; nothing was unpickled."""


def describe_difference(earlier: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The settings that differ from an earlier run's, in words; empty if none do. What follows from settings, such as a recipe, only
    if it differs by itself."""
    different = [key for key, value in now.items() if earlier.get(key) != value]
    settings = [key for key in different if not isinstance(now[key], Mapping)] or different
    return "; ".join(f"{key} was {earlier.get(key, 'not recorded')}, now {now[key]}" for key in settings)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unwritable(path: Path) -> None:
    """OutputError if a file cannot be written there, found out by writing an empty one beside it."""
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the file to write: {path / 'features.pt'}")
        temporary = _temporary_of(_target_of(path))
        temporary.touch()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; give another place") from error
    temporary.unlink(missing_ok=True)  # a run beside this one may have cleaned up


def _target_of(path: Path) -> Path:
    """The file to write where `path` may be a link; OutputError if that is a device or a pipe: root would replace it."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OutputError(f"{path} is a pipe, socket or device, not a file; give the name of a file")
    return target


def _temporary_of(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, or to the file that it links to, atomically: even after a crash or on a full disk, it is the
    old file or the new one."""
    target = _target_of(path)
    temporary = _temporary_of(target)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the target, not the temporary file
            error.filename, error.filename2 = str(path), None
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of killed writes to `path`; the caller must hold the path's lock."""
    path = Path(os.path.realpath(path))
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, text: str) -> None:
    """Write a JSON object atomically, with the checksum of its content as one more key."""
    content = json.loads(text)
    content[CHECKSUM] = _json_checksum(content)
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors=ODD_LETTERS))


def read_json(path: Path) -> bytes:
    """The JSON object that `write_json` has written; if its content has changed since, that is said. DamagedFileError if it
    is not a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"it is not JSON: {str(error)[:80]}") from error
    if not isinstance(content, dict):
        raise DamagedFileError("it is not a JSON object")
    checksum = content.pop(CHECKSUM, None)
    if checksum is not None and checksum != _json_checksum(content):
        print(f"note: {path} has changed since it was written: it was edited or damaged", file=sys.stderr)
    return json.dumps(content, ensure_ascii=False).encode(errors=ODD_LETTERS)


def read_record(path: Path, kind: type[Model], error_of: Callable[[str], UserError]) -> Model:
    """The record that `write_json` has written; if it is damaged, or not of this kind, what `error_of` makes of the cause."""
    try:
        return kind.model_validate_json(read_json(path))
    except ValueError as error:
        raise error_of(first_problem(error)) from error


def _json_checksum(content: Mapping[str, object]) -> str:
    """Of the values, not of the layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, header first, atomically; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode(errors=ODD_LETTERS))


def spreadsheet_cell(value: object) -> object:
    """A value for a file that people open in a spreadsheet, which would run a text such as ``=A1`` as a formula."""
    is_formula = isinstance(value, str) and re.match(r"[=+\-@\t\r]", value)
    return f"'{value}" if is_formula else value


def save_torch(content: object, path: Path) -> None:
    """``torch.save``, atomically; equal contents give equal bytes."""
    import torch

    buffer = io.BytesIO()  # torch.save would write a file's own name into it
    torch.save(_interned(content), buffer)
    write_atomically(path, buffer.getbuffer())


def _interned(content: Any) -> Any:
    """The same, with one object for equal texts: a pickle tells one that occurs twice from two that are equal."""
    if isinstance(content, str):
        return sys.intern(content)
    if isinstance(content, Mapping):
        return {_interned(key): _interned(value) for key, value in content.items()}
    return type(content)(map(_interned, content)) if isinstance(content, (list, tuple)) else content


def load_torch(path: Path, mmap: bool = False, checks: bool = True) -> Any:
    """``torch.load`` with ``weights_only=True`` on the CPU; with `mmap` the unused tensors of a large zip are never read.
    UnsafeFileError: the file holds more than tensors and plain containers; DamagedFileError: it cannot be parsed, or (with
    `checks`) a checksum in the zip is wrong, which torch does not look at; OSError: it cannot be opened."""
    import torch

    with path.open("rb") as file:  # OSError, before others can be taken for damage
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        if checks and is_zip:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise DamagedFileError(f"its part {damaged} does not have the checksum that was written with it")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # zipfile, pickle and torch raise many kinds
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which reading a truncated zip can raise
            raise
        # torch raises UnpicklingError both for content that could run code and for files that are not pickles.
        is_unsafe = re.search("unsupported (global|class)", str(error), re.IGNORECASE)
        raise (UnsafeFileError if is_unsafe else DamagedFileError)(_cause(error)) from error


def _cause(error: Exception) -> str:
    """The one sentence of torch's long message that says what is wrong with the file."""
    text = str(error).strip() or type(error).__name__
    said = re.search(r"WeightsUnpickler error: *(.*)", text)
    cause = re.split(r"\. |\n", said.group(1) if said else text)[0].strip()
    return cause[:120] or "not a pickle of tensors"


@contextlib.contextmanager
def exclusive(lock_path: Path, what: str) -> Iterator[None]:
    """Hold the lock file for the block, then remove it; OutputError at once if another process holds it, and lives."""
    from filelock import FileLock, Timeout  # a fifth of what --help takes

    lock = FileLock(lock_path)
    for attempt in range(10):
        try:  # which makes the folder
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            raise OutputError(f"another run is writing {what}; wait for it to end, or write elsewhere") from error
        except FileNotFoundError:  # another run has ended, and removed the folder
            if attempt == 9:
                raise
    try:
        yield
    finally:
        # Windows cannot remove an open file; there the empty file stays, which does no harm.
        with contextlib.suppress(PermissionError):
            lock_path.unlink(missing_ok=True)
        lock.release()
