"""Any audio file -> a mono float32 waveform. The only module that decodes or resamples."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import struct
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from common.arrays import Array
from common.datasets.containers import Member
from common.datasets.ffmpeg import DecodingError, decode, is_mpeg_of_unknown_length
from common.errors import UserError

# The rates of recorders and converters; any other is damage, and resampling would take gigabytes.
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
SEGMENT_TOLERANCE_S = 0.1  # annotations are rounded, so a segment may end this far past the audio
LONGEST_S = 1e9  # thirty years
BLOCK_FRAMES = 1 << 20  # decoded at a time: memory follows what is there, not what a header claims
MOST_RIFF = 1 << 32  # bytes that the header of a WAV can tell
UNKNOWN_FORMAT = 1  # libsndfile's error
UNKNOWN_FRAMES = 1 << 62  # libsndfile's number for an unknown length is larger
# In libsndfile's log: what a header claims, and what it found instead if that is less.
CLAIMED_BYTES = r"^\s*(?:data|SSND|BODY|riff|Data [Ss]ize)\s*: (\d+)(?: \(should be (\d+)\))?"
CLAIMED_FRAMES = r"^\s*(?:Frames\s*:|sample_count -i) (\d+)"
DECODING: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # by FFmpeg; others wait for the same file
Seconds = float | None
Chunk = tuple[bytes, int, int]  # name, size in bytes, place of its content


class AudioError(UserError):
    """A file cannot be read as audio; the message is one line: the file, then what is wrong."""


def read_audio(path: str | Path, sample_rate: int, start_s: Seconds = None, end_s: Seconds = None) -> Array:
    """Read a file, or what a container holds of it, or only its segment [start_s, end_s), as a mono waveform at `sample_rate` (Hz).

    Reads what libsndfile reads (every kind of WAV, FLAC, Ogg, MP3, AIFF and more) or else FFmpeg (M4A, WebM, WMA and more, the
    sound of videos too). Channels are averaged; soxr converts the rate, as ``librosa.load(path, sr=sample_rate)`` does.

    Returns:
        (samples,) float32, nominally in [-1, 1], at least one sample.

    Raises:
        AudioError: the file is missing, empty, broken, truncated or not audio, holds NaN or infinity, or does not contain the
            segment.
    """
    path = Path(path)
    with _reading(path) as source, _open(source) as file:
        rate = file.samplerate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise AudioError(f"{path}: its header claims {rate:,} samples per second")
        first, last = _segment(file, path, start_s, end_s)
        if not file.is_decoded:
            _refuse_truncated(file, source)
        if first:
            file.seek(first)
        blocks = list(_blocks(file, last - first))
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    count = len(samples)
    if count < last - first < UNKNOWN_FRAMES:
        raise AudioError(f"{path}: truncated: {count:,} of {last - first:,} samples could be read")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    with np.errstate(over="ignore"):  # told below
        waveform = resample(samples.mean(axis=1, dtype=np.float32), rate, sample_rate)
    if not np.isfinite(waveform).all():
        peak = np.abs(samples).max()
        raise AudioError(f"{path}: its samples are too large to average or resample ({peak:.1e})")
    if not len(waveform):
        raise AudioError(f"{path}: {count} samples at {rate} Hz are too short to resample")
    return waveform


def resample(waveform: Array, from_rate: int, to_rate: int) -> Array:
    """A (samples,) waveform at another rate, by soxr at its high quality, as `read_audio` does."""
    if from_rate == to_rate:
        return waveform
    if not MIN_RATE <= from_rate <= MAX_RATE:
        raise ValueError(f"sample_rate {from_rate:,} is not one of audio; give it in Hz")
    resampled: Array = soxr.resample(waveform, from_rate, to_rate, quality="HQ")
    return resampled


def limit_bandwidth(waveform: Array, sample_rate: int, through_rate: int) -> Array:
    """A (samples,) waveform as if recorded at the lower `through_rate` (Hz); as long as before."""
    low = soxr.resample(waveform, sample_rate, through_rate, quality="HQ")
    back = soxr.resample(low, through_rate, sample_rate, quality="HQ")[: len(waveform)]
    return np.pad(back, (0, len(waveform) - len(back)))


def audio_duration_s(path: str | Path) -> float:
    """The duration in seconds, from the header or by decoding; AudioError if it is not audio."""
    path = Path(path)
    with _reading(path) as source, _open(source) as file:
        is_known = file.frames < UNKNOWN_FRAMES
        frames = file.frames if is_known else sum(map(len, _blocks(file, UNKNOWN_FRAMES)))
        return float(frames / file.samplerate)


def audio_checksum(path: Path) -> int:
    """A checksum of a file's whole content, kept while its size and modification time stay, since many clips may be segments of
    one file; AudioError if it cannot be opened."""
    with _reading(path) as source:
        if source.content is not None:
            return _digest(io.BytesIO(source.content))
        status = path.stat()
        return _checksum(path, status.st_size, status.st_mtime_ns)


def changed_files(paths: Sequence[Path], checksums: Sequence[int]) -> list[Path]:
    """The files whose content has changed since they had these checksums, or that cannot be opened any more."""

    def checksum_of(path: Path) -> int | None:
        try:
            return audio_checksum(path)
        except (AudioError, OSError):
            return None

    files = list(dict.fromkeys(paths))
    # Reading and hashing leave Python to other threads.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        now = dict(zip(files, threads.map(checksum_of, files), strict=True))
    return list(dict.fromkeys(path for path, before in zip(paths, checksums, strict=True) if now[path] != before))


@functools.lru_cache(maxsize=1 << 20)  # more than a data set has files, which are read in turn
def _checksum(path: Path, size: int, modified_ns: int) -> int:
    del size, modified_ns  # they only tell files apart
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: io.BufferedIOBase) -> int:
    digest = hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=8))
    return int.from_bytes(digest.digest(), "little", signed=True)


@dataclass(frozen=True)
class _Source:
    """Where a file's bytes are: on disk, or read already out of a container."""

    path: Path
    size: int
    content: bytes | None = None

    def open(self) -> BinaryIO:
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_Source]:
    """The source of a file. What the system or libsndfile says about it becomes an AudioError."""
    try:
        member = Member.of(path)
        if member is None:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise AudioError(f"{path}: is a folder, not an audio file")
            if not stat.S_ISREG(status.st_mode):  # it might never end
                raise AudioError(f"{path}: is a pipe, socket or device, not a file")
            source = _Source(path, status.st_size)
        else:
            content = member.read()
            source = _Source(path, len(content), content)
        if not source.size:
            raise AudioError(f"{path}: empty file (0 bytes)")
        yield source
    except OSError as error:
        is_missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        cause = "not found" if is_missing else f"cannot be opened ({error.strerror or error})"
        raise AudioError(f"{path}: {cause}") from error
    except DecodingError as error:
        raise AudioError(f"{path}: {error}") from error
    except RuntimeError as error:
        cause = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise AudioError(f"{path}: cannot be read as audio ({cause})") from error


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read in order. soundfile would seek to its position after every read, which fails at the end of a FLAC
    file whose header does not tell the right length."""

    is_decoded = False  # by FFmpeg, from another format

    def seekable(self) -> bool:
        return False


class _Unfinished(io.FileIO):
    """A WAV of a recorder that was cut off: the size of its data, at `place`, becomes the largest: to the end of the file."""

    place = 0

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        for place in range(max(start, self.place), min(start + count, self.place + 4)):
            buffer[place - start : place - start + 1] = b"\xff"
        return count


def _open(source: _Source) -> _Sequential:
    """Open a file, decoded by FFmpeg if libsndfile would guess its length or does not know the format. If the header of a WAV
    claims no audio, its recorder was cut off, and there is as much as follows. AudioError if its size has wrapped at 4 GB."""
    path, content = source.path, source.content
    name = os.fsencode(path) if os.name == "posix" else path  # names may not be UTF-8
    with source.open() as opened:
        if is_mpeg_of_unknown_length(opened, source.size):
            return _open_decoded(source)
    try:
        file = _Sequential(name if content is None else io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        if error.code != UNKNOWN_FORMAT:
            raise
        return _open_decoded(source)
    if "Junk after the last page" in file.extra_info:  # of an Ogg file: another one is joined to it
        file.close()
        return _open_decoded(source)
    if file.format not in ("WAV", "WAVEX") or (file.frames and source.size < MOST_RIFF):
        return file
    chunks = _chunks(source, 12, "<4sI", padded_to=2)
    size, place = next((chunk[1:] for chunk in chunks if chunk[0] == b"data"), (1, 0))
    next_name, next_size, next_place = next(chunks, (b"", 0, 0))
    if source.size - place - size > MOST_RIFF - (1 << 16):
        advice = f"it is longer than 4 GB; convert it: ffmpeg -ignore_length 1 -i {path.name} {path.stem}.w64"
        raise AudioError(f"{path}: its header tells less than there is: {advice}")
    if size or place >= source.size or (next_name.isalnum() and next_place + next_size <= source.size):
        return file  # it is empty: nothing follows, or another chunk
    file.close()
    if content is not None:
        return _Sequential(io.BytesIO(content[: place - 4] + b"\xff" * 4 + content[place:]))
    unfinished = _Unfinished(path)  # a map in memory would print the errors of seeks beyond its end
    unfinished.place = place - 4
    return _Sequential(unfinished)


def _open_decoded(source: _Source) -> _Sequential:
    if source.content is None:
        with DECODING[source.path]:
            decoded = _decoded(source.path, source.size, source.path.stat().st_mtime_ns)
        file = _Sequential(os.fsencode(decoded.name))  # while it is held: other threads may let it go
    else:
        target = io.BytesIO()
        decode(io.BytesIO(source.content), target)
        file = _Sequential(io.BytesIO(target.getvalue()))
    file.is_decoded = True
    return file


@functools.lru_cache(maxsize=4)  # of a long recording, every window is read by itself
def _decoded(path: Path, size: int, modified_ns: int) -> tempfile._TemporaryFileWrapper[bytes]:
    del size, modified_ns
    target = tempfile.NamedTemporaryFile(suffix=".w64")  # noqa: SIM115 - deleted once it is forgotten
    with path.open("rb") as file:
        decode(file, target)
    return target


def _chunks(source: _Source, start: int, header: str, padded_to: int) -> Iterator[Chunk]:
    """The chunks of a RIFF or CAF file, up to one of unknown size."""
    size, length = 0, struct.calcsize(header)
    with source.open() as file:
        while size >= 0 and start + length <= source.size:
            file.seek(start)
            name, size = struct.unpack(header, file.read(length))
            yield name, size, start + length
            start += length + size + -size % padded_to


def _blocks(file: soundfile.SoundFile, count: int) -> Iterator[Array]:
    """The next `count` frames as (frames, channels) float32; fewer if the file ends."""
    while count > 0:
        size = min(BLOCK_FRAMES, count)
        block: Array = file.read(size, dtype="float32", always_2d=True)
        yield block
        count = count - size if len(block) == size else 0


def _segment(file: _Sequential, path: Path, start_s: Seconds, end_s: Seconds) -> tuple[int, int]:
    """The segment as frames [first, last) of the file."""
    if any(value is not None and not 0 <= value < LONGEST_S for value in (start_s, end_s)):
        raise AudioError(f"{path}: segment {start_s}-{end_s} s lies outside any audio")
    if not file.frames:
        raise AudioError(f"{path}: holds no samples (a header without audio)")
    duration_s = file.frames / file.samplerate
    start, end = start_s or 0.0, duration_s if end_s is None else end_s
    first, last = round(start * file.samplerate), min(round(end * file.samplerate), file.frames)
    segment = f"{path}: segment {start:.3f}-{end:.3f} s"
    if start >= end:
        raise AudioError(f"{segment} is empty or reversed")
    if end > duration_s + SEGMENT_TOLERANCE_S:
        raise AudioError(f"{segment} ends after the audio ({duration_s:.3f} s)")
    if first >= last:
        raise AudioError(f"{segment} holds no samples of the audio ({duration_s:.3f} s)")
    return first, last


def _refuse_truncated(file: _Sequential, source: _Source) -> None:
    """AudioError if the header promises more than is there: libsndfile says so only in its log."""
    log, size, path = file.extra_info, source.size, source.path
    if file.format == "NIST":  # libsndfile does not log its header
        with source.open() as header:
            log += header.read(4096).decode("latin-1")
    sizes = re.findall(CLAIMED_BYTES, log, re.MULTILINE)
    claims = [(int(claim), int(present or size), "bytes of audio") for claim, present in sizes]
    for claim in re.findall(CLAIMED_FRAMES, log, re.MULTILINE):
        claims.append((int(claim), file.frames, "samples"))
    if file.format == "CAF":  # libsndfile does not notice where a few bytes are missing
        for name, claim, place in _chunks(source, 8, ">4sq", padded_to=1):
            claims += [(claim, size - place, "bytes of audio")] if name == b"data" else []
    for claim, present, unit in claims:
        if claim > present and not _is_streamed(claim):
            raise AudioError(f"{path}: truncated: {present:,} of {claim:,} {unit} are there")
    if "Seems to be a truncated file" in log:
        raise AudioError(f"{path}: truncated")


def _is_streamed(size: int) -> bool:
    """Whether a size stands for "not known", as programs that write to a pipe leave it: all bits set in 32 or 64 bits, or
    2 GiB, or a little less, rounded down to whole samples."""
    tops = (1 << 31, (1 << 32) - 1)
    return any(top - (1 << 16) <= size <= top for top in tops) or size >= (1 << 63) - 4096
