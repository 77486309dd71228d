"""Audio: the same sound from every format and rate; segments; broken files named."""

from __future__ import annotations

import io
import itertools
import os
import struct
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

from common.arrays import Array
from common.datasets.audio import AudioError, audio_checksum, audio_duration_s, read_audio
from tests.support.samples import noise, write_wav

RATE = 32_000
KINDS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAVEX", "PCM_16"),
    ("WAVEX", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
]


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length], other[:length])[0, 1])


@pytest.mark.parametrize(("container", "subtype"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_gives_the_same_sound(container: str, subtype: str, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "sound.bin"  # the content decides, not the name
    samples = np.tile(tone(44_100)[:, None], (1, channels))
    soundfile.write(path, samples, 44_100, format=container, subtype=subtype)
    waveform = read_audio(path, RATE)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - RATE) < 0.05 * RATE  # ADPCM and MP3 come in blocks
    assert correlation(waveform, tone(RATE)) > 0.99


@pytest.mark.parametrize(
    "rate", [4_000, 8_000, 11_024, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]
)
def test_every_rate_keeps_length_pitch_and_level(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(rate), rate, subtype="FLOAT")
    waveform = read_audio(tmp_path / "tone.wav", RATE)
    assert abs(len(waveform) - RATE) <= 1
    middle = slice(RATE // 8, -RATE // 8)
    assert np.abs(waveform[middle] - tone(RATE)[: len(waveform)][middle]).max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "high.wav", tone(96_000, frequency=20_000), 96_000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "high.wav", RATE)[1000:-1000]).max() < 1e-3  # not aliased to 12 kHz


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_decoding_equals_librosa(rate: int, tmp_path: Path) -> None:
    samples = np.stack([noise(1, rate), noise(2, rate)], axis=1)
    soundfile.write(tmp_path / "noise.wav", samples, rate, subtype="PCM_16")
    expected, _ = librosa.load(tmp_path / "noise.wav", sr=RATE, mono=True)
    np.testing.assert_allclose(read_audio(tmp_path / "noise.wav", RATE), expected, atol=1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = np.stack([noise(seed, 5_000) for seed in range(3)], axis=1)
    soundfile.write(tmp_path / "three.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "three.wav", RATE), samples.mean(axis=1), atol=1e-7)


def test_a_segment_is_that_part(tmp_path: Path) -> None:
    samples = noise(1, 3 * RATE)
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    path = tmp_path / "long.wav"
    assert np.array_equal(read_audio(path, RATE, 0.5, 1.25), samples[16_000:40_000])
    assert np.array_equal(read_audio(path, RATE, start_s=2.0), samples[64_000:])
    assert np.array_equal(read_audio(path, RATE, end_s=0.1), samples[:3_200])
    assert np.array_equal(read_audio(path, RATE, 2.5, 3.05), samples[80_000:])  # annotations are rounded


@pytest.mark.parametrize(
    ("start_s", "end_s", "words"),
    [
        (1.0, 1.0, "reversed"),
        (2.0, 1.0, "reversed"),
        (-1.0, 1.0, "outside any audio"),
        (0.0, float("nan"), "outside any audio"),
        (1e308, None, "outside any audio"),
        (0.0, 4.0, "after the audio"),
        (3.01, 3.05, "no samples"),
    ],
)
def test_segments_outside_the_file_are_refused(start_s: float, end_s: float, words: str, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "three.wav", seconds=3.0)
    with pytest.raises(AudioError, match=words):
        read_audio(path, RATE, start_s, end_s)


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "broken.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "zero-length":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind in ("NaN", "infinite"):
        soundfile.write(path, np.array([0.0, np.nan if kind == "NaN" else np.inf]), RATE, subtype="FLOAT")
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is a text file, whatever its name says")
    elif kind == "header only":
        path.write_bytes(write_wav(tmp_path / "whole.wav").read_bytes()[:30])
    elif kind == "too short to resample":
        soundfile.write(path, np.array([0.1]), 192_000)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "not found"),
        ("folder", "folder"),
        ("empty", "empty file"),
        ("zero-length", "no samples"),
        ("NaN", "NaN"),
        ("infinite", "NaN or infinite"),
        ("text", "cannot be read as audio"),
        ("header only", "cannot be read as audio"),
        ("too short to resample", "too short"),
    ],
)
def test_broken_files_are_named_with_the_cause(kind: str, words: str, tmp_path: Path) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(AudioError) as error:
        read_audio(path, RATE)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("container", "subtype"), [kind for kind in KINDS if kind[1] != "DOUBLE"])
def test_truncated_files_are_refused(container: str, subtype: str, tmp_path: Path) -> None:
    """As an interrupted download or unpacking leaves them; half of the sound is not the sound."""
    path = tmp_path / "cut"
    soundfile.write(path, noise(1, 44_100), 44_100, format=container, subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError):
        read_audio(path, RATE)


@pytest.mark.parametrize("container", ["RF64", "W64", "AU", "VOC", "SVX", "NIST", "AVR", "MPC2K", "CAF"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_containers_of_which_libsndfile_reads_what_is_left(container: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    soundfile.write(path, noise(1, 44_100), 44_100, format=container, subtype="PCM_16")
    content = path.read_bytes()
    assert len(read_audio(path, 44_100)) == 44_100
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(AudioError):
        read_audio(path, RATE)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x7FFFEFFF, 0x80000000, 0])
def test_a_streamed_wav_whose_header_does_not_know_its_length(size: int, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "piped.wav", seconds=0.5)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path, RATE)) == RATE // 2
    whole = write_wav(tmp_path / "whole.wav", seconds=0.5)
    np.testing.assert_array_equal(read_audio(path, RATE, 0.1, 0.3), read_audio(whole, RATE, 0.1, 0.3))


def test_a_wav_without_audio_has_none(tmp_path: Path) -> None:
    """What follows its data is another chunk, not audio that its header does not know of."""
    path = write_wav(tmp_path / "empty.wav", seconds=0.5)
    header = bytearray(path.read_bytes()[:44])
    header[40:44] = bytes(4)
    for rest in (b"", b"LIST" + (6).to_bytes(4, "little") + b"INFOxx"):
        path.write_bytes(bytes(header) + rest)
        with pytest.raises(AudioError, match="holds no samples"):
            read_audio(path, RATE)


def test_a_caf_that_lacks_a_few_bytes_is_truncated(tmp_path: Path) -> None:
    """libsndfile reads it as a shorter clip. Chunks of a CAF are not padded to even sizes."""
    path = tmp_path / "cut.caf"
    soundfile.write(path, noise(1, 4_410), 44_100, format="CAF", subtype="PCM_16")
    content = path.read_bytes()
    start, end = content.find(b"free") + 4, content.find(b"data")
    size = int.from_bytes(content[start : start + 8], "big") - 1
    odd = content[:start] + size.to_bytes(8, "big") + content[start + 8 : end - 1] + content[end:]
    for whole in (content, odd):
        path.write_bytes(whole)
        assert len(read_audio(path, 44_100)) == 4_410
        path.write_bytes(whole[:-2])
        with pytest.raises(AudioError, match="truncated"):
            read_audio(path, 44_100)


@pytest.mark.parametrize("before", [b"", b"LIST\x03\0\0\0abc\0"], ids=["", "a chunk of odd size"])
@pytest.mark.parametrize("audio", [b"\x01\x02" * 500, b"abcd\xff\xff\xff\x7f" * 100])
def test_a_wav_of_a_recorder_cut_off_is_read(before: bytes, audio: bytes, tmp_path: Path) -> None:
    """Its header claims no audio; what follows is no chunk, even where it begins as one would."""
    path = write_wav(tmp_path / "cut.wav", seconds=0.5)
    header = path.read_bytes()[:36] + before + b"data"
    path.write_bytes(header + bytes(4) + audio)
    expected = np.frombuffer(audio, "<i2") / np.float32(1 << 15)
    np.testing.assert_array_equal(read_audio(path, RATE), expected)
    path.write_bytes(header + bytes(4))
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(path, RATE)


def test_a_rate_that_no_recorder_has_is_damage(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "fast.wav", seconds=0.5)
    content = bytearray(path.read_bytes())
    content[24:28] = (50_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(AudioError, match="its header claims 50,000,000 samples per second"):
        read_audio(path, RATE)


def test_any_file_name_is_read(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "name.wav", seconds=0.5)
    if os.name == "posix":
        path = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))  # not UTF-8
    assert len(read_audio(path, RATE)) == RATE // 2


def streamed(path: Path, samples: int, claimed: int) -> Path:
    """A FLAC file of noise whose STREAMINFO claims another number of samples; 0: unknown, as streaming programs write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(0, samples), 16_000)
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | claimed >> 32
    content[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("samples", [40_000, 1_100_000])  # more than a block too
def test_flac_of_unknown_length_is_read_to_its_end(samples: int, tmp_path: Path) -> None:
    path = streamed(tmp_path / "streamed.flac", samples, claimed=0)
    known = streamed(tmp_path / "known.flac", samples, claimed=samples)
    np.testing.assert_array_equal(read_audio(path, 16_000), read_audio(known, 16_000))
    assert audio_duration_s(path) == audio_duration_s(known) == samples / 16_000
    np.testing.assert_array_equal(read_audio(path, 16_000, 0.5, 1.25), read_audio(known, 16_000, 0.5, 1.25))
    np.testing.assert_array_equal(read_audio(path, 16_000, 2.0), read_audio(known, 16_000, 2.0))
    with pytest.raises(AudioError, match=r"truncated: .* samples could be read"):
        read_audio(path, 16_000, 1.0, 1000.0)
    with pytest.raises(AudioError, match="empty or reversed"):
        read_audio(path, 16_000, 2.0, 1.0)


@pytest.mark.parametrize("claimed", [2**36 - 1, 2**33, 80_000])
def test_flac_that_claims_more_than_it_holds_fails_alone(claimed: int, tmp_path: Path) -> None:
    """Without the memory that it claims."""
    path = streamed(tmp_path / "greedy.flac", 40_000, claimed)
    with pytest.raises(AudioError, match=rf"greedy\.flac: truncated: 40,000 of {claimed:,} samples"):
        read_audio(path, 16_000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_a_pipe_in_place_of_a_clip_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.wav")
    for call in (lambda: read_audio(tmp_path / "clip.wav", 16_000), lambda: audio_checksum(tmp_path / "clip.wav")):
        with pytest.raises(AudioError, match=r"clip\.wav: is a pipe, socket or device, not a file"):
            call()
    with pytest.raises(AudioError, match="is a pipe"):
        audio_duration_s(tmp_path / "clip.wav")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_finite_samples_that_overflow_fail_alone(rate: int, tmp_path: Path) -> None:
    """In the mean of the channels, or in the resampling."""
    samples = np.full((rate, 2), 3e38, np.float32) * np.where(np.arange(rate) % 50 < 25, 1, -1)[:, None].astype(
        np.float32
    )
    soundfile.write(tmp_path / "loud.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"loud\.wav: its samples are too large to average or resample"):
        read_audio(tmp_path / "loud.wav", 16_000)


@pytest.mark.parametrize("claimed", [0x80010000, 0x90000000, 0xFFFE0000])
def test_a_wav_that_claims_gigabytes_is_truncated(claimed: int, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "cut.wav", seconds=0.5)
    content = bytearray(path.read_bytes())
    content[40:44] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"truncated: 32,000 of {claimed:,} bytes of audio are there"):
        read_audio(path, RATE)


def test_a_streamed_w64_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "piped.w64"
    soundfile.write(path, noise(1, RATE), RATE, format="W64", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[16:24] = ((1 << 63) - 1).to_bytes(8, "little")
    path.write_bytes(content)
    assert len(read_audio(path, RATE)) == RATE


def mp3(samples: Array, rate: int, mode: str = "CONSTANT") -> bytes:
    """An MP3 with a tag that tells its length, as LAME writes it."""
    content = io.BytesIO()
    with soundfile.SoundFile(
        content, "w", rate, samples.shape[1], format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode
    ) as file:
        file.write(samples)
    return content.getvalue()


def without_tag(content: bytes) -> bytes:
    """An MP3 without its first frame, which holds the tag."""
    is_first_version = (content[1] >> 3) & 3 == 3
    kbits = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    if not is_first_version:
        kbits = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    rates = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
    rate = rates[(content[1] >> 3) & 3][(content[2] >> 2) & 3]
    size = (144 if is_first_version else 72) * 1000 * kbits[(content[2] >> 4) - 1] // rate + ((content[2] >> 1) & 1)
    return content[size:]


@pytest.mark.parametrize(
    "rates",
    [(16_000, 44_100), pytest.param((8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 48_000), marks=pytest.mark.slow)],
    ids=["two rates", "the others"],
)
def test_an_mp3_is_read_to_its_end_whatever_it_says_of_its_length(rates: tuple[int, ...], tmp_path: Path) -> None:
    """libsndfile stops early in about a third of those without a tag, and after the first of two that are joined."""
    for rate, mode, channels, seconds in itertools.product(
        rates, ("CONSTANT", "VARIABLE", "AVERAGE"), (1, 2), (0.3, 5.01)
    ):
        count = round(rate * seconds) + 77
        samples = 0.3 * noise(rate, count * channels).reshape(-1, channels)
        content = mp3(samples, rate, mode)
        frame = 1152 if rate >= 32_000 else 576
        for name, variant, expected in (
            ("whole", content, count),
            ("tags after it", content + b"TAG" + bytes(125), count),
            ("without its tag", without_tag(content), count),
            ("two joined", content + content, 2 * count),
        ):
            path = tmp_path / f"{name}.mp3"
            path.write_bytes(variant)
            read = len(read_audio(path, rate))
            assert expected <= read <= expected + (0 if variant.startswith(content) and name[0] != "t" else 6 * frame)
            assert round(audio_duration_s(path) * rate) == read
            if name == "whole":
                path.write_bytes(content[: len(content) * 2 // 3])
                with pytest.raises(AudioError, match="truncated"):
                    read_audio(path, rate)


def test_joined_ogg_files_are_read_to_the_end(tmp_path: Path) -> None:
    for subtype, rate in (("VORBIS", 16_000), ("OPUS", 48_000)):
        parts = [io.BytesIO() for _ in range(3)]
        for seed, part in enumerate(parts):
            soundfile.write(part, 0.3 * noise(seed, 2 * rate), rate, format="OGG", subtype=subtype)
        path = tmp_path / "joined.ogg"
        path.write_bytes(b"".join(part.getvalue() for part in parts))
        assert 6 * rate <= len(read_audio(path, rate)) <= 6.1 * rate


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"), [("m4a", "aac", 44_100), ("webm", "libopus", 48_000), ("mka", "libmp3lame", 32_000)]
)
def test_what_libsndfile_does_not_know_is_read_by_ffmpeg(suffix: str, codec: str, rate: int, tmp_path: Path) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.float32)
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    waveform = read_audio(path, rate)
    assert abs(len(waveform) - 2 * rate) < 0.1 * rate
    spectrum = np.abs(np.fft.rfft(waveform))
    assert abs(spectrum.argmax() * rate / len(waveform) - 440) < 2
    np.testing.assert_array_equal(read_audio(path, rate, 0.5, 1.0), waveform[rate // 2 : rate])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(AudioError, match=r"clip\.\w+: (truncated|cannot be read)"):
        read_audio(path, rate)


def test_what_is_no_sound_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.m4a").write_text("not a sound, but a text\n" * 50)
    image = io.BytesIO()
    Figure().savefig(image, format="png")
    (tmp_path / "cover.mp3").write_bytes(image.getvalue())
    for name in ("notes.m4a", "cover.mp3"):
        with pytest.raises(AudioError, match=rf"{name}: (cannot be read as audio|holds no)"):
            read_audio(tmp_path / name, 16_000)


def test_a_wav_whose_size_has_wrapped_is_refused(tmp_path: Path) -> None:
    """Of 149 hours, libsndfile reads the 10 s that the header still tells."""
    path, size = tmp_path / "long.wav", (1 << 32) + 80_000
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", (size + 36) % 2**32) + b"WAVE")
        file.write(
            b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8) + b"data" + struct.pack("<I", size % 2**32)
        )
        file.truncate(44 + size)  # takes no room on the disk
    for call in (lambda: read_audio(path, 8000), lambda: audio_duration_s(path)):
        with pytest.raises(
            AudioError, match=r"tells less than there is.*ffmpeg -ignore_length 1 -i long\.wav long\.w64"
        ):
            call()


def test_the_sound_of_a_video_may_be_shorter_than_its_picture(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = tmp_path / f"video.{suffix}"
        with av.open(str(path), "w") as container:
            picture, sound = (
                container.add_stream("mpeg4", rate=10),
                container.add_stream("aac", rate=16_000, layout="mono"),
            )
            picture.width = picture.height = 64
            for _ in range(30):  # 3 s
                for packet in picture.encode(
                    av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                ):
                    container.mux(packet)
            frame = av.AudioFrame.from_ndarray(0.1 * noise(1, 32_000)[None], format="fltp", layout="mono")  # 2 s
            frame.rate = 16_000
            for packet in (*sound.encode(frame), *sound.encode(None), *picture.encode(None)):
                container.mux(packet)
        assert abs(len(read_audio(path, 16_000)) - 32_000) < 3_000


def test_a_playlist_opens_nothing_else(tmp_path: Path) -> None:
    write_wav(tmp_path / "sound.wav", seconds=0.5)
    playlists = {
        "a.m4a": "ffconcat version 1.0\nfile sound.wav\n",
        "b.m4a": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsound.wav\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError):
            read_audio(tmp_path / name, 16_000)


def test_an_mp3_with_tags_and_padding_is_read_to_its_end(tmp_path: Path) -> None:
    content = without_tag(mp3(0.3 * noise(1, 80_000)[:, None], 16_000))
    tag = b"ID3\x04\0\0" + bytes((0, 0, 1, 0)) + bytes(128)
    for before in (tag, tag + tag, tag + bytes(300)):
        path = tmp_path / "tagged.mp3"
        path.write_bytes(before + content * 2)
        assert len(read_audio(path, 16_000)) >= 160_000
    path.write_bytes(b"ID3")
    with pytest.raises(AudioError):
        read_audio(path, 16_000)
