"""What libsndfile cannot read, or whose length it only guesses: decoded by FFmpeg, into a file that libsndfile reads."""

from __future__ import annotations

import re
from typing import IO

import soundfile

from common.errors import UserError

# What the first frame of an MP3 says: frames and bytes (Xing, Info), or bytes and frames (VBRI).
XING = re.compile(rb"(?:Xing|Info)\0\0\0[\x03\x07\x0b\x0f](?P<frames>.{4})(?P<bytes>.{4})", re.DOTALL)
VBRI = re.compile(rb"VBRI.{6}(?P<bytes>.{4})(?P<frames>.{4})", re.DOTALL)
TOLERANCE_S = 0.2  # a codec's first and last blocks
MOST_TAGS = 1 << 8  # bytes of tags after the sound


class DecodingError(UserError):
    """FFmpeg cannot decode it; the message says why, without the file."""


def is_mpeg_of_unknown_length(content: IO[bytes], size: int) -> bool:
    """Whether a file of this size is an MP3 that does not say how long it is, or not of all of it. libsndfile takes an estimate, or
    the first of several that are joined, for the whole."""
    start, frame = _first_frame(content)
    claim = _claim_in(frame)
    is_mpeg = len(frame) > 1 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0
    return is_mpeg and (claim is None or not 0 <= size - start - claim["bytes"] <= MOST_TAGS)


def decode(content: IO[bytes], target: IO[bytes]) -> None:
    """Decode the first audio stream, and all that are joined to it, into a W64 file of float32; DecodingError if it has none, is
    damaged or truncated, or changes its rate or channels."""
    import av

    claim = _claim_in(_first_frame(content)[1])
    content.seek(0)
    try:
        with av.open(content, "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise DecodingError("holds no audio")
            stream = container.streams.audio[0]
            claimed, packets, output = claim["frames"] if claim else stream.frames, 0, None
            resampler = av.AudioResampler(format="fltp")
            # Of these, FFmpeg estimates the duration from the size.
            is_estimated = container.format.name in ("aac", "amr", "mp3", "ogg")
            duration_s = 0.0 if is_estimated else (container.duration or 0) / av.time_base
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


def _first_frame(content: IO[bytes]) -> tuple[int, bytes]:
    """Where a file's sound starts if it is an MP3, and the bytes there."""
    content.seek(0)
    head, start = content.read(10), 0
    if head[:3] == b"ID3" and len(head) == 10:  # a tag, whose size has seven bits a byte
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
    content.seek(start)
    return start, content.read(192)


def _claim_in(frame: bytes) -> dict[str, int] | None:
    """How many frames and bytes an MP3 says that it has; None if it says nothing."""
    found = XING.search(frame) or VBRI.search(frame)
    return found and {name: int.from_bytes(value, "big") for name, value in found.groupdict().items()}
