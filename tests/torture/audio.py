"""Audio files that are damaged, cut short, lie in their headers, or are no audio at all."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from common.arrays import Array
from common.datasets.audio import AudioError, audio_duration_s, read_audio
from tests.torture.harness import Attack, Case, mutated, require

UNCOMPRESSED = [
    *[("WAV", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")],
    *[("WAV", kind) for kind in ("IMA_ADPCM", "MS_ADPCM")],
    *[("WAVEX", kind) for kind in ("PCM_16", "PCM_24", "FLOAT")],
    *[(container, "PCM_16") for container in ("RF64", "W64", "AU", "AIFF", "CAF", "NIST", "VOC")],
    *[(container, "FLOAT") for container in ("RF64", "W64", "AU", "AIFF", "CAF")],
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
COMPRESSED = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
RATE = 16_000
MOST_SAMPLES = 20_000_000  # that a file of some kB may become
SIZES = (0, 1, 2, 100, 2**31 - 1, 2**31, 2**31 + 2, 3 * 10**9, 2**32 - 1)
LONG_SIZES = (*SIZES, 2**32, 2**36, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
# What programs write that stream into a pipe: sox 0x7ffff000, arecord 0x80000000, ffmpeg 0xffffffff.
STREAMED = (range(0x7FFFF000, 0x80000025), range(0xFFFFF000, 2**32), range(2**63 - 32, 2**64))


def samples(count: int = 3000, seed: int = 1) -> Array:
    """Noise that 16-bit files hold exactly."""
    return np.random.default_rng(seed).integers(-20_000, 20_000, count).astype(np.int16).astype(np.float32) / 32768


def encoded(container: str, subtype: str, audio: Array, rate: int = RATE) -> bytes:
    """A whole file."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=container, subtype=subtype)
    return file.getvalue()


def read(path: Path, *segment: float | None, rate: int = RATE) -> Array:
    """What `read_audio` gives, or its AudioError; both must be as promised."""
    with contextlib.suppress(AudioError):
        require(0 <= audio_duration_s(path) < float("inf"), "the duration is no number of seconds")
    try:
        waveform = read_audio(path, rate, *segment)
    except AudioError as error:
        require("\n" not in str(error), "the message has several lines")
        raise
    require(waveform.dtype == np.float32 and waveform.ndim == 1, f"it is {waveform.dtype} {waveform.shape}")
    require(0 < len(waveform) <= MOST_SAMPLES, f"it has {len(waveform)} samples")
    require(np.isfinite(waveform).all(), "it holds NaN or infinity")
    return waveform


def must_refuse(read_it: Callable[[], Array]) -> None:
    """The result is AudioError and nothing else."""
    waveform = read_it()
    require(False, f"it was not refused: {len(waveform)} samples")


def written(folder: Path, content: bytes) -> Path:
    (folder / "sound.wav").write_bytes(content)
    return folder / "sound.wav"


def damaged(rng: random.Random, common: Path) -> Iterator[Case]:
    """Every kind of file with some bytes changed, most often in its header."""
    files = {
        (kind, subtype, channels): encoded(kind, subtype, np.tile(samples()[:, None], (1, channels)), 48_000)
        for kind, subtype in (*UNCOMPRESSED, *COMPRESSED)
        for channels in (1, 2)
        if not (kind == "OGG" and channels == 2)
    }

    def run(content: bytes, folder: Path) -> None:
        read(written(folder, content))

    while True:
        for (kind, subtype, channels), content in files.items():
            done = []
            for _ in range(rng.choice((1, 1, 1, 2, 5))):
                last = rng.choice((60, 120, 200, 200, None))
                deed, content = mutated(content or b"\0", rng, 0, last)
                done.append(deed)
            yield Case(f"{kind} {subtype} {channels}: {', '.join(done)}", partial(run, content))


def cut_short(rng: random.Random, common: Path) -> Iterator[Case]:
    """Every kind of file without its end, which lies in the audio."""
    length = 3011

    def run_exact(content: bytes, folder: Path) -> None:
        must_refuse(lambda: read(written(folder, content)))

    def run_compressed(content: bytes, whole: Array, folder: Path) -> None:
        waveform = read(written(folder, content), rate=48_000)
        same = max(0, len(waveform) - 4000)  # the codec's last blocks overlap with what is not there
        require(len(waveform) <= len(whole), "it is longer than the whole")
        require(np.allclose(waveform[:same], whole[:same], atol=1e-3), "it is not the beginning of the whole")

    files = [
        (kind, subtype, channels, *(encoded(kind, subtype, _channels(seed, channels, length)) for seed in (1, 2)))
        for kind, subtype in UNCOMPRESSED
        for channels in (1, 2)
    ]
    long = [(kind, subtype, encoded(kind, subtype, samples(40_000), 48_000)) for kind, subtype in COMPRESSED]
    wholes = [soundfile.read(io.BytesIO(content), dtype="float32")[0] for _, _, content in long]
    while True:
        for kind, subtype, channels, content, other in files:
            different = [i for i, (a, b) in enumerate(zip(content, other, strict=False)) if a != b]
            place = rng.choice((rng.randint(different[0], different[-1]), different[-1], different[-1] - 1))
            name = f"{kind} {subtype} {channels}: {place} of {len(content)} bytes"
            yield Case(name, partial(run_exact, content[:place]))
        for (kind, subtype, content), whole in zip(long, wholes, strict=True):
            place = rng.randint(200, len(content) - 1)
            name = f"{kind} {subtype}: {place} of {len(content)} bytes"
            yield Case(name, partial(run_compressed, content[:place], whole))


def _channels(seed: int, channels: int, length: int) -> Array:
    return np.stack([samples(length, 10 * seed + channel) for channel in range(channels)], axis=1)


@dataclass(frozen=True)
class Claim:
    """A file whose header says something else than is there; `right` are the waveforms that may be read (none: it must be
    refused), and `must_read` whether refusing it is wrong. With `any_sound` every finite waveform will do."""

    name: str
    content: bytes
    right: tuple[Array, ...] = ()
    must_read: bool = False
    any_sound: bool = False

    def run(self, folder: Path) -> None:
        path = written(folder, self.content)
        if self.any_sound:
            read(path)
            return
        if not self.right:
            must_refuse(lambda: read(path))
            return
        try:
            waveform = read(path)
        except AudioError as error:
            require(not self.must_read, f"it was refused: {error}")
            raise
        lengths = [len(each) for each in self.right]
        require(any(np.array_equal(waveform, each) for each in self.right), f"{len(waveform)} samples, not {lengths}")


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """A chunk of a RIFF file, with a size that may be wrong."""
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


def wav(rng: random.Random) -> Claim:
    """A WAV, all right but for what is said here."""
    audio = samples(rng.choice((1000, 3001)))
    data = (audio * 32768).astype("<i2").tobytes()
    fields = {"tag": 1, "channels": 1, "rate": RATE, "byte rate": 2 * RATE, "align": 2, "bits": 16}
    lies = {
        "tag": (0, 2, 3, 6, 7, 17, 0x31, 0x55, 0xFFFE, 0xFFFF),
        "channels": (0, 2, 3, 255, 1024, 65535),
        "rate": (0, 1, 999, 8000, 10**6, 2**31 - 1, 2**31, 2**32 - 1),
        "byte rate": (0, 1, 2**32 - 1),
        "align": (0, 1, 3, 4, 255, 65535),
        "bits": (0, 1, 8, 12, 15, 24, 32, 64, 65535),
    }
    what = rng.choice(
        ("field", "field", "fields", "size", "size", "size", "riff", "order", "twice", "odd", "short fmt")
    )
    if what in ("field", "fields"):
        for lie in rng.sample(sorted(lies), 1 if what == "field" else 3):
            fields[lie] = rng.choice(lies[lie])
    fmt = chunk(b"fmt ", struct.pack("<HHIIHH", *fields.values()))
    size, riff = rng.choice(SIZES), rng.choice(SIZES)
    chunks = {
        "size": [fmt, chunk(b"data", data, size)],
        "order": [chunk(b"data", data), fmt],
        "twice": [fmt, fmt, chunk(b"data", data), fmt],
        "odd": [fmt, chunk(b"junk", b"x" * rng.choice((1, 3, 77))), chunk(b"data", data)],
        "short fmt": [chunk(b"fmt ", fmt[8:24], rng.choice(SIZES)), chunk(b"data", data)],
    }.get(what, [fmt, chunk(b"data", data)])
    body = b"WAVE" + b"".join(chunks)
    content = chunk(b"RIFF", body, riff if what == "riff" else None)
    name = f"WAV {what} {fields} data size {size} riff size {riff}"
    if what == "size":
        return Claim(name, content, _of_claim(audio, size), must_read=size in (0, 2**32 - 1))
    return Claim(name, content, (audio,), what == "odd", any_sound=what in ("field", "fields", "short fmt"))


def _of_claim(audio: Array, claimed: int) -> tuple[Array, ...]:
    """What may be read of a 16-bit file whose header claims so many bytes of audio."""
    if claimed <= 2 * len(audio):  # players that know it better read on
        return audio[: max(0, claimed) // 2], audio
    return (audio,) if any(claimed in values for values in STREAMED) else ()


# container -> what is before a size, how far it is, how it is packed, and by how much it is larger than the audio
FIELDS = {
    "RF64": (b"ds64", 16, "<Q", 0),
    "W64": (b"data\xf3\xac", 16, "<Q", 24),
    "AU": (b".snd", 8, ">I", 0),
    "AIFF": (b"SSND", 4, ">I", 8),
    "CAF": (b"data", 4, ">Q", 4),
}


def container(rng: random.Random) -> Claim:
    """Another container with a lie about the bytes of audio."""
    audio, kind = samples(), rng.choice(sorted(FIELDS))
    tag, offset, packed, extra = FIELDS[kind]
    content = encoded(kind, "PCM_16", audio)
    place = content.find(tag) + offset
    claimed = rng.choice(SIZES if packed[1] == "I" else LONG_SIZES)
    made = content[:place] + struct.pack(packed, claimed) + content[place + struct.calcsize(packed) :]
    right = (audio,) if claimed in range(2**32 - extra, 2**32) else _of_claim(audio, claimed - extra)
    return Claim(f"{kind} claims {claimed}", made, right)


def flac(rng: random.Random) -> Claim:
    """A FLAC with a lie in its STREAMINFO."""
    audio = samples(rng.choice((3000, 20_000)))
    content = bytearray(encoded("FLAC", "PCM_16", audio))
    if rng.random() < 0.5:
        claimed = rng.choice((0, 1, 100, len(audio) - 1, len(audio) + 1, 2 * len(audio), 2**31, 2**32, 2**36 - 1))
        content[21] = content[21] & 0xF0 | claimed >> 32
        content[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
        right = (audio[: claimed or len(audio)],) if claimed <= len(audio) else ()
        return Claim(f"FLAC claims {claimed} of {len(audio)}", bytes(content), right, must_read=not claimed)
    first = rng.randrange(4, 42)
    content[first : first + 2] = rng.choice((b"\0\0", b"\xff\xff", b"\x80\0", b"\0\1", rng.randbytes(2)))
    return Claim(f"FLAC {content[first : first + 2].hex()} at {first}", bytes(content), any_sound=True)


def numbers(rng: random.Random) -> Claim:
    """Floating-point samples that are none, or larger than any sound."""
    audio, subtype = samples().astype(np.float64), rng.choice(("FLOAT", "DOUBLE"))
    value = rng.choice((np.nan, np.inf, -np.inf, 3e38, -3.4e38, 1e300, 5e-324, 1e-45))
    audio[rng.randrange(len(audio)) :: rng.choice((1, 2, 7, 10_000))] = value
    rate = rng.choice((RATE, 8_000, 44_100))
    with np.errstate(over="ignore"):
        content = encoded(rng.choice(("WAV", "AIFF", "W64", "CAF")), subtype, np.tile(audio[:, None], (1, 2)), rate)
        is_finite = np.isfinite(np.float32(value))
    return Claim(f"{subtype} with {value} at {rate} Hz", content, any_sound=bool(is_finite))


def lying(rng: random.Random, common: Path) -> Iterator[Case]:
    """Headers that contradict what is there, and parts that are not there."""
    makers = (wav, wav, container, flac, numbers, segment)
    while True:
        for make in makers:
            case = make(rng)
            yield case if isinstance(case, Case) else Case(case.name, case.run)


def segment(rng: random.Random) -> Case:
    """A part of a file, from times that may be none."""
    audio, kind = samples(), rng.choice(("WAV", "FLAC", "streamed FLAC", "AIFF", "CAF"))
    content = bytearray(encoded(kind.rpartition(" ")[2], "PCM_16", audio))
    if kind == "streamed FLAC":
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    duration = len(audio) / RATE
    inside = (0.0, 0.05, 0.1, duration, rng.uniform(0, duration))
    times = (*inside, *inside, None, float("nan"), float("inf"), -1.0, -1e-9, 1e-9, 5e-324, 1e9, 1e308, duration + 0.05)
    start, end = rng.choice((*times, -float("inf"))), rng.choice(times)
    first, last = 0.0 if start is None else start, duration if end is None else end
    is_there = 0 <= first < last <= duration
    right = audio[round(first * RATE) : round(last * RATE)] if is_there else audio[:0]
    if 0 <= first < duration < last <= duration + 0.1:  # within the tolerance
        right = audio[round(first * RATE) :]

    def run(folder: Path) -> None:
        path = written(folder, bytes(content))
        if not len(right):
            must_refuse(lambda: read(path, start, end))
        try:
            waveform = read(path, start, end)
        except AudioError as error:
            require(not is_there, f"it was refused: {error}")
            raise
        require(np.array_equal(waveform, right), f"{len(waveform)} samples, which are not the {len(right)} of the part")

    return Case(f"{kind} of {duration} s from {start} to {end}", run)


def not_audio(rng: random.Random, common: Path) -> Iterator[Case]:
    """What is found in place of audio files."""
    sound = encoded("WAV", "PCM_16", samples())

    def refused(make: Callable[[Path], Path], folder: Path) -> None:
        path = make(folder)
        must_refuse(lambda: read(path))

    def holding(content: bytes) -> Callable[[Path], Path]:
        return lambda folder: written(folder, content)

    def linked(target: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "link.wav").symlink_to(target)
            return folder / "link.wav"

        return make

    def special(make_it: Callable[[Path], object]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            make_it(folder / "it.wav")
            return folder / "it.wav"

        return make

    def unreadable(folder: Path) -> Path:
        path = written(folder, sound)
        path.chmod(0)
        if os.geteuid() == 0:  # who may read everything
            folder.parent.chmod(0o711)
            os.seteuid(65534)
        return path

    def sparse(path: Path) -> None:
        path.touch()
        os.truncate(path, 2**40)

    def named(name: bytes, folder: Path) -> None:
        path = folder / os.fsdecode(name)
        path.write_bytes(sound)
        require(np.array_equal(read(path), samples()), "other samples")

    things: dict[str, Callable[[Path], Path]] = {
        "empty": holding(b""),
        "text": holding(b"this is a text file\n" * rng.randrange(1, 1000)),
        "a web page": holding(b"<!DOCTYPE html><html></html>"),
        "zeros": holding(bytes(100_000)),
        "ones": holding(b"\xff" * 100_000),
        "a folder": special(Path.mkdir),
        "a pipe": special(os.mkfifo),
        "a socket": special(lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))),
        "a file of 1 TB of nothing": special(sparse),
        "unreadable": unreadable,
        "missing": lambda folder: folder / "missing.wav",
        "below a file": lambda folder: written(folder, sound) / "sound.wav",
        "a name of 300 letters": lambda folder: folder / ("x" * 300 + ".wav"),
        "a path of 5,000 letters": lambda folder: folder / ("x/" * 2500 + ".wav"),
        "NUL in the name": lambda folder: folder / "a\0b.wav",
        "newline in the name of a text": lambda folder: special(lambda path: path.write_text("no"))(folder).rename(
            folder / "a\nb.wav"
        ),
        **{
            f"a link to {to}": linked(to) for to in ("/dev/zero", "/dev/null", "/dev/stdin", "nowhere", "link.wav", ".")
        },
    }
    names = (b"a\nb.wav", b"\xff\xfe\x80.wav", "größe 音.wav".encode(), b"a b'\"$(x).wav", b"-.wav", b"%d%s%n.wav")
    cases = [
        *(Case(name, partial(refused, make)) for name, make in things.items()),
        *(Case(f"named {name!r}", partial(named, name)) for name in names),
    ]
    rng.shuffle(cases)
    yield from cases
    endings = (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"ID3\4", b"\xff\xfb\x90\0", b"RF64", b"riff", b"")
    while True:
        content = rng.choice(endings) + rng.randbytes(rng.choice((0, 1, 10, 40, 1000, 20_000)))
        yield Case(f"noise after {content[:4]!r}, {len(content)} bytes", lambda folder, c=content: _any(folder, c))


def _any(folder: Path, content: bytes) -> None:
    """Noise may be sound to a decoder that looks for frames; then it is one in order."""
    read(written(folder, content))


ATTACKS = [
    Attack(
        "damaged audio",
        "bits flipped, pieces cut, zeroed or doubled in 25 kinds of audio files",
        damaged,
        2,
        1000,
        has_answer=False,
    ),
    Attack("audio cut short", "audio files that end within the audio", cut_short, 2, 1000),
    Attack(
        "headers that lie",
        "audio files and parts of them that are not what they claim",
        lying,
        2,
        1000,
        has_answer=False,
    ),
    Attack(
        "not audio files",
        "text, folders, pipes, devices, links, noise and strange names",
        not_audio,
        2,
        1000,
        has_answer=False,
    ),
]
