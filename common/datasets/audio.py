"""Any audio file -> a mono float32 waveform at the encoder's rate. The only module that decodes or resamples."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from common.arrays import Array
from common.errors import UserError

# The rates that recorders and converters use; a header with any other is damaged, and resampling would take gigabytes.
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
# Annotations are rounded to milliseconds or so; an end this far past the file's own is not an error.
SEGMENT_TOLERANCE_S = 0.1
BLOCK_FRAMES = 1 << 20  # decoded at a time, so that memory follows what is there and not what a header claims
# In libsndfile's log: the size that a WAV, RF64, W64, AIFF, AU or SVX file claims, and what it found instead if that is less.
CLAIMED_BYTES = re.compile(r"^\s*(?:data|SSND|BODY|riff|Data [Ss]ize)\s*: (\d+)(?: \(should be (\d+)\))?", re.MULTILINE)
CLAIMED_FRAMES = re.compile(r"^\s*Frames\s*: (\d+)", re.MULTILINE)
LONGEST_S = 1e9  # thirty years
UNKNOWN_FRAMES = 1 << 62  # libsndfile's own number for a length that the header does not tell is larger


class AudioError(UserError):
    """A file cannot be read as audio; the message is one line: the file, then what is wrong."""


def read_audio(path: str | Path, sample_rate: int, start_s: float | None = None, end_s: float | None = None) -> Array:
    """Read a file, or its segment [start_s, end_s), as a mono waveform at `sample_rate`.

    Reads what libsndfile reads: every kind of WAV (PCM 8 to 32 bit, float, double, ADPCM, mu-law, extensible),
    FLAC, Ogg, MP3, AIFF and more, at any rate. Channels are averaged; the rate is converted by soxr at its
    high quality (band-limited), as ``librosa.load(path, sr=sample_rate)`` does.

    Args:
        path: the file.
        sample_rate: in Hz.
        start_s, end_s: in seconds; None: the file's beginning or end. Only this part is read.

    Returns:
        (samples,) float32, nominally in [-1, 1], at least one sample.

    Raises:
        AudioError: the file is missing, empty, broken, truncated or not audio, holds NaN or infinity, or
            does not contain the segment.
    """
    path = Path(path)
    _refuse_special(path)
    try:
        with _open(path) as file:
            file_rate = file.samplerate
            if not MIN_RATE <= file_rate <= MAX_RATE:
                raise AudioError(f"{path}: its header claims {file_rate:,} samples per second; the file is damaged")
            first, last = _segment(file, path, start_s, end_s)
            _refuse_truncated(file, path)
            if first:
                file.seek(first)
            samples = _read_frames(file, None if last is None else last - first)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: {_cause(path, error)}") from error
    if last is not None and len(samples) < last - first:
        raise AudioError(f"{path}: truncated: {len(samples):,} of {last - first:,} samples could be read")
    if not len(samples):
        raise AudioError(f"{path}: holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds NaN or infinite samples")
    with np.errstate(over="ignore"):  # told below
        waveform: Array = samples.mean(axis=1, dtype=np.float32)
    if file_rate != sample_rate:
        try:
            waveform = soxr.resample(waveform, file_rate, sample_rate, quality="HQ")
        except (RuntimeError, ValueError, MemoryError) as error:
            raise AudioError(f"{path}: cannot be resampled from {file_rate:,} Hz ({error})") from error
    if not np.isfinite(waveform).all():
        raise AudioError(
            f"{path}: its samples are too large to average or resample (up to {np.abs(samples).max():.1e})"
        )
    if not len(waveform):
        raise AudioError(f"{path}: only {len(samples)} samples at {file_rate} Hz, too short to resample")
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
    """A (samples,) waveform as if recorded at the lower rate `through_rate` (Hz); its length is unchanged."""
    low = soxr.resample(waveform, sample_rate, through_rate, quality="HQ")
    back = soxr.resample(low, through_rate, sample_rate, quality="HQ")[: len(waveform)]
    return np.pad(back, (0, len(waveform) - len(back)))


def audio_duration_s(path: str | Path) -> float:
    """The duration of a file in seconds, from its header; if that does not tell (streamed FLAC), by decoding it.

    Raises:
        AudioError: the file cannot be opened as audio.
    """
    path = Path(path)
    _refuse_special(path)
    try:
        with _open(path) as file:
            frames = file.frames if file.frames < UNKNOWN_FRAMES else sum(map(len, _blocks(file, None)))
            return float(frames / file.samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path}: {_cause(path, error)}") from error


def _refuse_special(path: Path) -> None:
    """AudioError for a pipe, socket or device, which might never end."""
    if "\0" in str(path):  # libsndfile would open what stands before it
        raise AudioError(f"{path}: is no file's name")
    with contextlib.suppress(OSError):  # told where it is opened
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return
        raise AudioError(f"{path}: is a pipe, socket or device, not a file")


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from one place on. soundfile confirms its place after every read by seeking there, which fails at the
    end of a FLAC file whose header does not tell the right length."""

    def seekable(self) -> bool:
        return False


def _open(path: Path) -> _Sequential:
    """Open a file. If the header of a WAV claims no audio, as programs leave it that cannot go back to it, there is as much as
    follows."""
    file = _Sequential(os.fsencode(path) if os.name == "posix" else path)  # names may be no UTF-8
    if file.format not in ("WAV", "WAVEX") or file.frames:
        return file
    place = _unfinished_data(path)
    if place is None:
        return file
    file.close()
    return _Sequential(_WithSize(path, place))


def _unfinished_data(path: Path) -> int | None:
    """Where the size of a WAV's data stands if it is 0 and audio follows; None if it does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 12
        while place + 8 < size:
            file.seek(place)
            kind, length, next_kind, next_length = struct.unpack("<4sI4sI", file.read(16).ljust(16, b"\0"))
            if kind == b"data":
                is_chunk = next_kind.isalnum() and place + 16 + next_length <= size
                return None if length or is_chunk else place + 4
            place += 8 + length + length % 2
    return None


class _WithSize(io.RawIOBase):
    """A WAV whose data has another size than its header says: all bits set, which stands for "to the end"."""

    def __init__(self, path: Path, place: int) -> None:
        self._file, self._place = path.open("rb"), place

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()
        count = self._file.readinto(buffer)
        for place in range(max(start, self._place), min(start + count, self._place + 4)):
            buffer[place - start : place - start + 1] = b"\xff"
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _blocks(file: soundfile.SoundFile, count: int | None) -> Iterator[Array]:
    """The next `count` frames (None: all) as (frames, channels) float32, up to BLOCK_FRAMES at a time; fewer if the file ends."""
    left = count
    while left is None or left > 0:
        size = BLOCK_FRAMES if left is None else min(BLOCK_FRAMES, left)
        block: Array = file.read(size, dtype="float32", always_2d=True)
        yield block
        if len(block) < size:
            return
        left = None if left is None else left - size


def _read_frames(file: soundfile.SoundFile, count: int | None) -> Array:
    """The blocks together."""
    blocks = list(_blocks(file, count))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def audio_checksum(path: Path) -> int:
    """A checksum of a file's whole content.

    It is computed once in a process while the file's size and modification time stay as they are: many clips may be
    segments of one file.

    Raises:
        AudioError: the file cannot be opened.
    """
    _refuse_special(path)
    with _opening(path):
        status = path.stat()
        return _checksum(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 20)  # more than any data set here has files: they are read in order, again and again
def _checksum(path: Path, size: int, modified_ns: int) -> int:
    del size, modified_ns  # they only tell files apart
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return int.from_bytes(found.digest(), "little", signed=True)


def sampled_checksum(path: Path) -> int:
    """What earlier versions recorded: a checksum of the file's size, and of 4 kB at its start, middle and end.

    Raises:
        AudioError: the file cannot be opened.
    """
    block = 4096
    _refuse_special(path)
    with _opening(path), path.open("rb") as file:
        size = file.seek(0, 2)
        found = hashlib.blake2b(str(size).encode(), digest_size=8)
        for start in (0, (size - block) // 2, size - block):
            file.seek(max(0, start))
            found.update(file.read(block))
    return int.from_bytes(found.digest(), "little", signed=True)


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """An OSError in the block as an AudioError."""
    try:
        yield
    except OSError as error:
        raise AudioError(
            f"{path}: {'not found' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from error


def _segment(
    file: soundfile.SoundFile, path: Path, start_s: float | None, end_s: float | None
) -> tuple[int, int | None]:
    """The segment as frames [first, last) of the file; `last` is None if the header does not tell the file's length."""
    for value in (start_s, end_s):
        if value is not None and not 0 <= value < LONGEST_S:
            raise AudioError(f"{path}: segment {start_s}-{end_s} s lies outside any audio")
    if file.frames >= UNKNOWN_FRAMES:
        first = round((start_s or 0.0) * file.samplerate)
        last = None if end_s is None else round(end_s * file.samplerate)
        if last is not None and first >= last:
            raise AudioError(f"{path}: segment {start_s}-{end_s} s is empty or reversed")
        return first, last
    duration_s = file.frames / file.samplerate
    if not file.frames:
        raise AudioError(f"{path}: holds no samples (a header without audio)")
    start = 0.0 if start_s is None else start_s
    end = duration_s if end_s is None else end_s
    if not 0 <= start < end:
        raise AudioError(f"{path}: segment {start:.3f}-{end:.3f} s is empty or reversed")
    if end > duration_s + SEGMENT_TOLERANCE_S:
        raise AudioError(f"{path}: segment {start:.3f}-{end:.3f} s ends after the audio ({duration_s:.3f} s)")
    first, last = round(start * file.samplerate), min(round(end * file.samplerate), file.frames)
    if first >= last:
        raise AudioError(f"{path}: segment {start:.3f}-{end:.3f} s holds no samples of the audio ({duration_s:.3f} s)")
    return first, last


def _refuse_truncated(file: soundfile.SoundFile, path: Path) -> None:
    """AudioError if the header promises more than is there: libsndfile silently reads what there is, and says so only in its
    log. (MATLAB, IRCAM, PVF and PAF files do not tell; a truncated one is read as a shorter clip.)"""
    log = file.extra_info
    length = re.search(r"^Length : (\d+)", log, re.MULTILINE)
    there = int(length[1]) if length else path.stat().st_size
    if file.format == "CAF":
        _refuse_truncated_caf(path)
    for match in CLAIMED_BYTES.finditer(log):
        promised, present = int(match[1]), int(match[2] or there)
        if promised > present and not _is_streamed(promised):
            raise AudioError(f"{path}: truncated: {present:,} of {promised:,} bytes of audio are there")
    frames = [int(number) for number in CLAIMED_FRAMES.findall(log)]
    if file.format == "NIST":
        frames = [int(number) for number in re.findall(rb"sample_count -i (\d{1,18})\b", _start_of(path))]
    for promised in frames:
        if promised > file.frames and not _is_streamed(promised):
            raise AudioError(f"{path}: truncated: {file.frames:,} of {promised:,} samples are there")
    if "Seems to be a truncated file" in log:
        raise AudioError(f"{path}: truncated")


def _refuse_truncated_caf(path: Path) -> None:
    """libsndfile does not notice where only a few bytes are missing."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        place = 8
        while place + 12 <= size:
            file.seek(place)
            kind, length = struct.unpack(">4sq", file.read(12))
            if length < 0:  # to the end of the file
                return
            if kind == b"data" and place + 12 + length > size:
                raise AudioError(f"{path}: truncated: {size - place - 12:,} of {length:,} bytes of audio are there")
            place += 12 + length


def _is_streamed(size: int) -> bool:
    """Whether a header's size stands for "not known", as programs that write to a pipe leave it: all bits set in 32 or 64 bits,
    or close below, since some round down to whole samples; or 2 GiB, or close below."""
    return any(top - (1 << 16) <= size <= top for top in (1 << 31, (1 << 32) - 1)) or size >= (1 << 63) - 4096


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _cause(path: Path, error: Exception) -> str:
    try:
        if not path.exists():
            return "not found"
        if path.is_dir():
            return "is a folder, not an audio file"
        if not path.stat().st_size:
            return "empty file (0 bytes)"
    except OSError as problem:
        return f"cannot be opened ({problem.strerror})"
    # libsndfile repeats the path in front of its message.
    return f"cannot be read as audio ({str(getattr(error, 'error_string', error)).strip().rstrip('.')})"
