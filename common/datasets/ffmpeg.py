"""What libsndfile cannot read, or whose length it only guesses: decoded by FFmpeg, into a file that libsndfile reads."""

from __future__ import annotations

import re
import tempfile
from typing import IO, TYPE_CHECKING, NamedTuple

import soundfile

from common.errors import UserError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

# What the first frame of an MP3 says: frames and bytes (Xing, Info), or bytes and frames (VBRI).
XING = re.compile(rb"(?:Xing|Info)\0\0\0[\x03\x07\x0b\x0f](?P<frames>.{4})(?P<bytes>.{4})", re.DOTALL)
VBRI = re.compile(rb"VBRI.{6}(?P<bytes>.{4})(?P<frames>.{4})", re.DOTALL)
TOLERANCE_S = 0.2  # a codec's first and last blocks
MOST_PADDING = 1 << 14  # bytes of zeros after a tag
MOST_TAGS = 1 << 8  # bytes of tags after the sound


class DecodingError(UserError):
    """FFmpeg cannot decode it; the message says why, without the file."""


class _Claim(NamedTuple):
    frames: int
    n_bytes: int


def is_mpeg_of_unknown_length(content: IO[bytes], size: int) -> bool:
    """Whether a file of this size is an MP3 that does not say how long it is, or not of all of it; libsndfile would guess."""
    start, frame = _first_frame(content)
    claim = _claim_in(frame)
    is_mpeg = len(frame) > 1 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0
    return is_mpeg and (claim is None or not 0 <= size - start - claim.n_bytes <= MOST_TAGS)


def decode(content: IO[bytes], target: IO[bytes]) -> None:
    """Decode the first audio stream, and all that are joined to it, into a W64 file of float32; DecodingError if it has none, is
    damaged or truncated, or changes its rate or channels."""
    import av

    claim = _claim_in(_first_frame(content)[1])
    content.seek(0)
    try:
        # A playlist would have it read other files, or the network.
        with av.open(
            content, "r", container_options={"protocol_whitelist": "none"}, metadata_errors="ignore"
        ) as container:
            if not container.streams.audio:
                raise DecodingError("holds no audio")
            stream = container.streams.audio[0]
            claimed, packets, output = claim.frames if claim else 0, 0, None
            resampler, duration_s = av.AudioResampler(format="fltp"), _duration_s(container, stream)
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in (part for decoded in packet.decode() for part in resampler.resample(decoded)):
                    samples = frame.to_ndarray().T
                    if output is None:
                        output = soundfile.SoundFile(
                            target, "w", frame.sample_rate, samples.shape[1], format="W64", subtype="FLOAT"
                        )
                    if (frame.sample_rate, samples.shape[1]) != (output.samplerate, output.channels):
                        raise DecodingError("changes its rate or channels on the way")
                    output.write(samples)
    except AssertionError as error:  # of soundfile, where nothing more can be written
        raise DecodingError(
            f"cannot be decoded: there is no room for its samples in {tempfile.gettempdir()}"
        ) from error
    except (av.error.FFmpegError, ValueError) as error:
        raise DecodingError(f"cannot be read as audio ({getattr(error, 'strerror', None) or error})") from error
    if packets < claimed:
        raise DecodingError(f"truncated: {packets:,} of {claimed:,} blocks of samples are there")
    if output is None:
        raise DecodingError("holds no samples (a header without audio)")
    decoded_s = output.tell() / output.samplerate
    if decoded_s < duration_s - TOLERANCE_S:
        raise DecodingError(f"truncated: {decoded_s:.1f} of {duration_s:.1f} s are there")
    output.close()
    target.flush()


def _duration_s(container: InputContainer, stream: AudioStream) -> float:
    """How long a stream is, as its container says; 0 if that says nothing, or only how long all streams are."""
    if container.format.name in ("aac", "amr", "mp3", "ogg"):
        return 0.0  # FFmpeg estimates it from the size
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def _first_frame(content: IO[bytes]) -> tuple[int, bytes]:
    """Where a file's sound starts if it is an MP3, after its tags, and the bytes there."""
    start = 0
    content.seek(start)
    while len(head := content.read(10)) == 10 and head[:3] == b"ID3":  # a tag, whose size has seven bits a byte
        start += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
        start += 10 * bool(head[5] & 0x10)  # its footer
        content.seek(start)
    content.seek(start)
    following = content.read(MOST_PADDING)
    start += len(following) - len(following.lstrip(b"\0"))
    content.seek(start)
    return start, content.read(192)


def _claim_in(frame: bytes) -> _Claim | None:
    """What an MP3 says in its first frame, if anything."""
    tag = XING.search(frame) or VBRI.search(frame)
    return tag and _Claim(*(int.from_bytes(tag[name], "big") for name in ("frames", "bytes")))
