"""The annotations and metadata of the data sets, tables of one's own sounds, settings, conditions, notes of downloads."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas  # noqa: F401 - loaded once here, not in every case
import requests  # noqa: F401
import torch
from conftest import write_csv, write_wav
from loopback import serving

from common.config import ExtractConfig, FitConfig, as_yaml, load_config
from common.datasets import Clip
from common.download.fetch import RetryPolicy, fetch
from common.encoder.condition import CONDITION_SIZE, read_condition
from common.errors import UserError
from common.extraction import ClipList
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from own_sounds.sounds import Source
from speaker_recognition import librispeech
from tests.torture.harness import Attack, Case, mutated, require
from urbansound8k_feature_fc import urbansound8k

TOKEN = re.compile(r'"[^"\n]*"|[^\s,|:{}\[\]"]+')
VALUES = (
    *(
        "inf",
        "-inf",
        "nan",
        "1e400",
        "-1",
        "-0.5",
        "0",
        "1e-320",
        "10" * 40,
        "1" * 5000,
        "0x10",
        "1_0",
        "١",
        "²",
        "true",
    ),
    *(
        "",
        " ",
        "''",
        '"',
        '""',
        "\0",
        "a\0b",
        "null",
        "[]",
        "{}",
        '"\\ud800"',
        "=1+1",
        "%s%n",
        "\x1b[2J",
        "\u202e",
        "é音",
    ),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "~",
        "~nobody/x",
        "C:\\x",
        "..\\x",
        ".",
        "..",
        "a/b",
        "x" * 300,
        "x" * 10**6,
    ),
    *("\n", "\r", "\u2028", "#", ";", "$HOME", "a;b", "1.0", "1.5", "train", "test"),
)
OUTSIDE = "secret"  # written beside each data root; no reader has a reason to name it


@dataclass(frozen=True)
class Reader:
    """Something that reads a data set's listing.

    Attributes:
        name: for the table.
        build: lays a small data set out in a folder and returns the files to attack.
        read: that folder -> the data root, and the clips.
        classes: the task's; None: any.
        may_leave: whether a listing may name files anywhere, as one's own tables may.
    """

    name: str
    build: Callable[[Path], list[Path]]
    read: Callable[[Path], tuple[Path, list[Clip]]]
    classes: Sequence[str] | None = None
    may_leave: bool = False


def build_esc50(folder: Path) -> list[Path]:
    rows = [
        (f"{f}-{1000 + f}-A-{t}.wav", f, t, esc50.CLASS_NAMES[t], True, 1000 + f, "A") for f in (1, 5) for t in (0, 10)
    ]
    for row in rows:
        write_wav(folder / "audio" / str(row[0]), seconds=0.02)
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(folder / "meta" / "esc50.csv", columns, rows)
    return [folder / "meta" / "esc50.csv"]


def build_urbansound8k(folder: Path) -> list[Path]:
    columns = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    rows = [(f"{7 + f}-3-0-1.wav", 7 + f, 0.0, 4.0, 1, f, 3, "dog_bark") for f in (1, 2, 10)]
    for row in rows:
        write_wav(folder / "audio" / f"fold{row[5]}" / str(row[0]), seconds=0.02)
    write_csv(folder / "metadata" / "UrbanSound8K.csv", columns, rows)
    return [folder / "metadata" / "UrbanSound8K.csv"]


def build_nsynth(folder: Path) -> list[Path]:
    notes = {}
    for place, family in enumerate(("bass", "vocal", "synth_lead")):
        name = f"{family}_acoustic_{place:03d}-060-100"
        write_wav(folder / "nsynth-train" / "audio" / f"{name}.wav", seconds=0.02)
        notes[name] = {"note": place, "instrument_str": name[:-8], "pitch": 60, "qualities": [0, 1]}
        notes[name] |= {"instrument_family": place, "instrument_family_str": family, "note_str": name}
    (folder / "nsynth-train" / "examples.json").write_text(json.dumps(notes))
    return [folder / "nsynth-train" / "examples.json"]


def build_icbhi(folder: Path) -> list[Path]:
    splits = ""
    for number, split in ((101, "train"), (102, "train"), (103, "test")):
        stem = f"{number}_1b1_Al_sc_Meditron"
        write_wav(folder / f"{stem}.wav", seconds=0.02, rate=4_000)
        (folder / f"{stem}.txt").write_text("0.0\t1.5\t0\t0\n1.5\t2.25\t1\t0\n2.25\t3\t1\t1\n")
        splits += f"{stem}\t{split}\r\n"
    (folder / icbhi.SPLIT_FILE).write_text(splits)
    return [folder / icbhi.SPLIT_FILE, folder / "101_1b1_Al_sc_Meditron.txt", folder / "103_1b1_Al_sc_Meditron.txt"]


def build_speech_commands(folder: Path) -> list[Path]:
    root, test_set = folder / "speech_commands_v0.01", folder / "speech_commands_test_set_v0.01"
    for word in (*speech_commands.COMMANDS, "bed"):
        for speaker in "abc":
            write_wav(root / word / f"0000000{speaker}_nohash_0.wav", seconds=0.01, rate=4_000)
    for name in (*speech_commands.COMMANDS, speech_commands.SILENCE, speech_commands.UNKNOWN):
        write_wav(test_set / name / "0000000c_nohash_0.wav", seconds=0.01, rate=4_000)
    for name in ("running_tap", "white_noise"):
        write_wav(root / speech_commands.NOISE_FOLDER / f"{name}.wav", seconds=2.2, rate=4_000)
    for speaker, name in (("b", "validation_list.txt"), ("c", "testing_list.txt")):
        (root / name).write_text("".join(f"{word}/0000000{speaker}_nohash_0.wav\n" for word in ("yes", "no", "bed")))
    return [root / "validation_list.txt", root / "testing_list.txt"]


def build_librispeech(folder: Path) -> list[Path]:
    for speaker, subset in ((60, "train-clean-100"), (62, "train-clean-100"), (61, "test-clean")):
        write_wav(folder / subset / str(speaker) / "1" / f"{speaker}-1-0000.flac", seconds=0.02, rate=16_000)
    rows = [
        "; comment",
        ";ID  |SEX| SUBSET           |MINUTES| NAME",
        "60   | M | train-clean-100  | 20.18 | |CBW|Simon",
    ]
    rows += ["61   | M | test-clean       |  8.08 | Paul", "62   | F | train-clean-100  | 25.00 | Some Body"]
    (folder / "SPEAKERS.TXT").write_text("\n".join(rows) + "\n")
    return [folder / "SPEAKERS.TXT"]


def build_table(folder: Path) -> list[Path]:
    columns = ("path", "label", "fold", "split", "group", "start", "end")
    rows = [(f"{n}.wav", "ab"[n % 2], n + 1, ("train", "test")[n % 2], f"g{n}", 0.0, 0.01 + n / 1000) for n in range(4)]
    for row in rows:
        write_wav(folder / str(row[0]), seconds=0.02)
    write_csv(folder / "table.csv", columns, rows)
    return [folder / "table.csv"]


def _speech_commands(folder: Path) -> tuple[Path, list[Clip]]:
    root = folder / "speech_commands_v0.01"
    speech_commands.V1.read_clips(root)
    return root, speech_commands.V1_12.read_clips(root)


def _icbhi(folder: Path) -> tuple[Path, list[Clip]]:
    icbhi.read_recordings(folder)
    return folder, icbhi.read_cycles(folder)


TWELVE = (*speech_commands.COMMANDS, speech_commands.SILENCE, speech_commands.UNKNOWN)
READERS = [
    Reader("ESC-50's CSV", build_esc50, lambda root: (root, esc50.read_clips(root)), esc50.CLASS_NAMES),
    Reader(
        "UrbanSound8K's CSV",
        build_urbansound8k,
        lambda root: (root, urbansound8k.read_clips(root)),
        urbansound8k.CLASS_NAMES,
    ),
    Reader("NSynth's JSON", build_nsynth, lambda root: (root, nsynth.read_clips(root, "train")), nsynth.FAMILIES),
    Reader("ICBHI's annotations", build_icbhi, _icbhi, icbhi.CYCLE_CLASSES),
    Reader("Speech Commands' lists", build_speech_commands, _speech_commands, TWELVE),
    Reader(
        "LibriSpeech's speakers",
        build_librispeech,
        lambda root: (root, librispeech.read_clips(root, "train-clean-100")),
    ),
    Reader("tables of one's own", build_table, lambda root: Source(root / "table.csv").read(), may_leave=True),
]


def check_clips(reader: Reader, folder: Path, clips: list[Clip], root: Path) -> None:
    """`Broken` unless the clips are what a task may be given."""
    require(clips, "there are no clips")
    for clip in clips:
        place = os.path.normpath(clip.path)
        base = os.path.realpath(root) if reader.may_leave else os.path.normpath(folder)
        require(place.startswith(base.rstrip("/") + "/"), f"{place!r} is outside")
        require("\0" not in place, "a name with NUL")
        known = isinstance(clip.class_name, str) and clip.class_name
        require(known and clip.class_name in (reader.classes or [clip.class_name]), f"class {clip.class_name!r}")
        require(clip.split in (None, "train", "valid", "test"), f"split {clip.split!r}")
        require(clip.fold is None or 0 <= clip.fold < 2**63, f"fold {str(clip.fold)[:30]}")
        require(clip.group is None or isinstance(clip.group, str), f"group {clip.group!r}")
        start, end = clip.start_s or 0.0, math.nextafter(math.inf, 0) if clip.end_s is None else clip.end_s
        require(0 <= start < end < math.inf, f"segment {clip.start_s} to {clip.end_s}")
    require(ClipList(clips, root, reader.name, reader.classes).fingerprint, "no fingerprint")  # or a refusal


def attacked(text: str, rng: random.Random) -> tuple[str, bytes]:
    """A text file's content, changed as people, programs and attackers do; and what was done."""
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    tokens = list(TOKEN.finditer(text))
    token, value = rng.choice(tokens), rng.choice(VALUES)
    given = json.dumps(value) if token[0].startswith('"') and rng.random() < 0.7 else value
    other = rng.choice(tokens)[0]
    separator = next((each for each in (",", "\t", "|") if each in text), " ")
    extra = [line.rstrip("\r\n") + f"{separator}more\n" for line in lines]
    fewer = [line.rstrip("\r\n").rpartition(separator)[0] + "\n" for line in lines]
    kinds: dict[str, Callable[[], str | bytes]] = {
        f"{token[0][:20]!r} -> {given[:30]!r}": lambda: text[: token.start()] + given + text[token.end() :],
        f"{token[0][:20]!r} -> another's {other[:20]!r}": lambda: text[: token.start()] + other + text[token.end() :],
        f"line {place} doubled": lambda: "".join([*lines[: place + 1], lines[place], *lines[place + 1 :]]),
        f"line {place} missing": lambda: "".join(lines[:place] + lines[place + 1 :]),
        f"line {place} with more": lambda: "".join([*lines[:place], extra[place], *lines[place + 1 :]]),
        f"line {place} with less": lambda: "".join([*lines[:place], fewer[place], *lines[place + 1 :]]),
        f"line {place} after NUL": lambda: "".join([*lines[:place], "\0", *lines[place:]]),
        "a column more": lambda: "".join(extra),
        "a column less": lambda: "".join(fewer),
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-32": lambda: text.encode("utf-32"),
        "UTF-8 with BOM": lambda: text.encode("utf-8-sig"),
        "not UTF-8": lambda: text.encode().replace(token[0].encode(), b"\xff\xe9"),
        "CRLF": lambda: text.replace("\n", "\r\n"),
        "CR": lambda: text.replace("\n", "\r"),
        "one line": lambda: text.replace("\n", " "),
        "twice": lambda: text + text,
        "empty": lambda: "",
        "empty lines": lambda: "\n" * 10_000,
        "zeros": lambda: bytes(10_000),
        "nested": lambda: "[" * 100_000,
        "nested objects": lambda: '{"a":' * 100_000 + "1" + "}" * 100_000,
        "a field of 1 MB": lambda: text[: token.start()] + "9" * 10**6 + text[token.end() :],
        "an open quote": lambda: text[: token.start()] + '"' + text[token.start() :],
    }
    name = rng.choice([*[key for key in kinds if "->" in key] * 8, *kinds])
    if rng.random() < 0.35:
        return mutated(text.encode(), rng)
    made = kinds[name]()
    return name, made.encode("utf-8", "surrogatepass") if isinstance(made, str) else made


def spoil_place(path: Path, how: str) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)
    elif how != "missing":
        path.symlink_to({"a loop": path.name, "nothing": "/dev/null", "endless": "/dev/zero"}[how])


PLACES = ("missing", "a folder", "a pipe", "a loop", "nothing", "endless")


def listing_cases(reader: Reader, rng: random.Random, common: Path) -> Iterator[Case]:
    """A small data set whose listings are changed."""
    whole = common / "whole"
    files = [path.relative_to(whole) for path in reader.build(whole)]

    def run(name: Path, spoil: Callable[[Path], object], folder: Path) -> None:
        data = folder / "data"
        shutil.copytree(whole, data)
        (folder / OUTSIDE).write_text(OUTSIDE)
        spoil(data / name)
        root, clips = reader.read(data)
        check_clips(reader, data, clips, root)

    yield Case("as it is", partial(run, files[0], lambda path: None))
    for name in files:
        for how in PLACES:
            yield Case(f"{name}: {how}", partial(run, name, partial(spoil_place, how=how)))
    sounds = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".wav", ".flac"))
    for how in ("missing", "a folder", "a pipe", "a loop"):
        name = rng.choice(sounds)
        yield Case(f"{name}: {how}", partial(run, name, partial(spoil_place, how=how)))
    if reader.name.startswith(("ICBHI", "Speech")):
        yield Case("listed on two sides", partial(two_sides, whole, files, reader))
    while True:
        name = rng.choice(files)
        done, content = attacked((whole / name).read_bytes().decode(), rng)
        yield Case(f"{name}: {done}", partial(run, name, lambda path, content=content: path.write_bytes(content)))


def two_sides(whole: Path, files: list[Path], reader: Reader, folder: Path) -> None:
    """A recording that is listed for training and for testing must not be taken for either."""
    data = folder / "data"
    shutil.copytree(whole, data)
    first, last = data / files[0], data / files[1 if reader.name.startswith("Speech") else 0]
    line = first.read_text().splitlines()[0]
    last.write_text(last.read_text() + line.replace("train", "test") + "\n")
    reader.read(data)
    require(False, "it was not noticed")


def settings(rng: random.Random, common: Path) -> Iterator[Case]:
    """The user's own YAML."""
    lines = [line for line in as_yaml().splitlines() if line and not line.startswith("#")]
    keys = [line.partition(":")[0] for line in lines]
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    nasty = (
        *(
            "!!python/object/apply:os.system [touch pwned]",
            "!!python/name:os.system",
            "!!binary '!'",
            "!!int x",
            "!!float x",
        ),
        *(
            "2001-99-99",
            "2001-01-01",
            "1:99:99",
            "0o17",
            "0b2",
            ".inf",
            "-.nan",
            "1" * 5000,
            "1e99999",
            "9" * 400,
            "*x",
        ),
        *(
            "&x [*x]",
            "&x {a: *x}",
            "{[]: 1}",
            "<<: 1",
            "{<<: *x}",
            "~nosuchuser/x",
            '"a\\0b"',
            "@",
            "`",
            "%",
            "|",
            ">-",
        ),
        *(
            "!!set {a}",
            "!!omap [a]",
            "!!timestamp x",
            "!!null x",
            "true",
            "[1, 2]",
            "{a: 1}",
            "x" * 10**5,
            "'\n",
            "'a'",
        ),
        *(
            "2001-01-01T99:99:99Z",
            "!!str",
            "! a",
            "-0",
            "1_000",
            "[nan]",
            "[0.5, 1e400]",
            "hf:../x",
            "random:-1",
            "zero",
        ),
    )
    wholes = [
        "[" * 100_000,
        "{a: " * 10_000,
        "- " * 10_000,
        laughs,
        "a\n---\nb",
        "---\n...\n---",
        "%YAML 9.9\n---\na: 1",
    ]
    wholes += [
        "",
        "#",
        "- 1",
        "x",
        "!!python/object/new:os.system [true]",
        "\t",
        "? " * 3000,
        "*x",
        "!<tag> a",
        "null: 1",
    ]

    def run(content: bytes, folder: Path) -> None:
        os.chdir(folder)
        (folder / "own.yaml").write_bytes(content)
        for kind in (ExtractConfig, FitConfig):
            config = load_config(kind, folder / "task.yaml", folder / "own.yaml")
            require(kind.model_validate(config.model_dump()) == config, "it is not valid")
            paths = [str(value) for value in config.model_dump().values() if isinstance(value, (Path, str))]
            require(not any("\0" in path for path in paths), "a path or a text with NUL")
        require([path.name for path in folder.iterdir()] == ["own.yaml"], "code was run")

    def misplaced(how: str, folder: Path) -> None:
        (folder / "own.yaml").touch()
        spoil_place(folder / "own.yaml", how)
        load_config(FitConfig, folder / "task.yaml", folder / "own.yaml")

    for whole in wholes:
        yield Case(f"{whole[:30]!r}, {len(whole)} letters", partial(run, whole.encode()))
    for how in ("missing", "a folder", "a loop", "nothing"):
        yield Case(f"the file is {how}", partial(misplaced, how))
    while True:
        for _ in range(3):
            key, value = rng.choice(keys), rng.choice((*nasty, *VALUES))
            content = f"{key}: {value}\n" if rng.random() < 0.8 else f"{key}: 1\n{key}: {value}\n{value}: {key}\n"
            yield Case(f"{content[:60]!r}", partial(run, content.encode("utf-8", "replace")))
        done, content = attacked("\n".join(lines) + "\n", rng)
        yield Case(done, partial(run, content))


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file with a header of one's own."""
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + content


def conditions(rng: random.Random, common: Path) -> Iterator[Case]:
    """Files in place of a condition."""
    size = CONDITION_SIZE
    good = np.random.default_rng(0).standard_normal(size)

    def saved(content: object) -> bytes:
        file = io.BytesIO()
        if isinstance(content, np.ndarray):
            np.save(file, content, allow_pickle=True)
        else:
            torch.save(content, file)
        return file.getvalue()

    def header(shape: str, kind: str = "<f8") -> str:
        return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"

    def run(content: bytes, ending: str, is_right: bool, folder: Path) -> None:
        path = folder / f"condition{ending}"
        path.write_bytes(content)
        values, name = read_condition(path)
        require(values is not None and values.shape == (size,) and values.dtype == torch.float64, "no 512 numbers")
        require(torch.isfinite(values).all() and name.startswith("sha256:"), "no numbers")
        require(not is_right or np.allclose(values.numpy(), good, atol=1e-2), "other numbers")

    def placed(how: str, ending: str, folder: Path) -> None:
        (folder / f"condition{ending}").touch()
        spoil_place(folder / f"condition{ending}", how)
        read_condition(folder / f"condition{ending}")

    kinds = (">f8", "<f4", ">f4", "<f2", "longdouble")
    arrays = [good.astype(kind) for kind in kinds] + [good[None], good[:, None, None], np.asfortranarray(good[None])]
    others = [
        np.array(["x"] * size),
        good.astype(object),
        good.astype("c16"),
        good.astype("i8"),
        good > 0,
        good[:3],
        good[:0],
    ]
    others += [
        good * np.inf,
        good * np.nan,
        np.array(1.0),
        good.view([("a", "f8")]),
        np.array([None] * size),
        good.view("M8[s]"),
    ]
    tensor = torch.from_numpy(good)
    kept = [tensor, tensor.float(), tensor.half(), tensor.bfloat16(), tensor[None], tensor.clone().requires_grad_()]
    kept += [torch.nn.Parameter(tensor.clone()), tensor.flip(0).clone().flip(0), torch.stack([tensor, tensor], 1)[:, 0]]
    refused = [
        tensor.to_sparse(),
        tensor.to("meta"),
        tensor.to(torch.complex64),
        tensor.int(),
        [1.0] * size,
        {"x": tensor},
    ]
    refused += [
        None,
        "x",
        1.0,
        tensor.float().to(torch.float8_e4m3fn),
        torch.zeros(1).expand(10**12),
        torch.Size([size]),
    ]
    refused += [torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8), os.system]
    claims = (
        "(10**12,)",
        "(1000000000000,)",
        "(-512,)",
        "(-1,)",
        "(512, -1)",
        "(2**70,)",
        "(0, 10)",
        "512",
        "(512.0,)",
        "('a',)",
    )
    claims += (
        "(1000000, 1000000, 1000000)",
        "(4611686018427387904, 4)",
        f"({'1, ' * 100}512)",
        "None",
        "(" * 500,
        "(512,)",
    )
    headers = [npy(header(claim), good.tobytes()) for claim in claims]
    headers += [
        npy(header("(512,)", kind), good.tobytes()) for kind in ("|O", "<f8000", "<U1000000000", "|V8", "<f0", "x" * 99)
    ]
    headers += [
        npy("{" * 60_000),
        npy("1" * 65_000),
        npy("", version=b"\3\0"),
        npy(header("(512,)"), version=b"\x09\0"),
    ]
    headers += [
        npy("'a'*10**9\n"),
        npy(header("(512,)"), good.tobytes()[:-1]),
        b"\x93NUMPY\2\0\xff\xff\xff\xff{",
        b"",
        b"x",
    ]
    texts = [b"0.1\n" * size, b"PK\3\4", b"\x80\4\x95", b"\x80\2.", bytes(10_000), b"(" * 10**5 + b"."]
    listed = [(".npy", saved(each), True) for each in arrays] + [(".pt", saved(each), True) for each in kept]
    listed += [(".npy", saved(each), False) for each in others] + [(".pt", saved(each), False) for each in refused]
    listed += [(rng.choice((".npy", ".npy", ".pt")), each, False) for each in headers]
    listed += [(ending, each, False) for each in texts for ending in (".npy", ".pt")]
    rng.shuffle(listed)
    for number, (ending, content, is_right) in enumerate(listed):
        name = f"{number}: {ending} {content[:110]!r}"
        yield Case(name, partial(run, content, ending, is_right))
    for how in PLACES:
        for ending in (".npy", ".pt"):
            yield Case(f"{how}{ending}", partial(placed, how, ending))
    while True:
        ending, content, _ = rng.choice(listed)
        done, made = mutated(content or b"x", rng, 0, rng.choice((130, None)))
        yield Case(f"{ending} {content[:60]!r}: {done}", partial(run, made, ending, False))


def notes(rng: random.Random, common: Path) -> Iterator[Case]:
    """The note beside a half-finished download: what it says must not decide what the file becomes."""
    content = rng.randbytes(50_000)
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    retries = RetryPolicy(tries=3, backoff_s=0.001, longest_pause_s=0.01, stall_s=1, least_rate=1)
    note = {"url": "URL", "etag": '"1"', "modified": "", "validator": '"1"', "total": len(content)}

    def run(spoil: Callable[[Path, str], object], there: bytes, folder: Path) -> None:
        with serving() as server:
            server.content = content
            part = folder / "file.part"
            part.write_bytes(there)
            spoil(folder / "file.part.json", server.url)
            try:
                fetch(server.url, folder / "file", checksum, retries=retries)
            except UserError:
                require(not (folder / "file").exists(), "an incomplete file has the final name")
                raise
        require((folder / "file").read_bytes() == content, "another content")

    def put(made: bytes, path: Path, url: str) -> None:
        path.write_bytes(made.replace(b"URL", url.encode()))

    def misplaced(how: str, path: Path, url: str) -> None:
        path.touch()
        spoil_place(path, how)

    for how in PLACES:
        yield Case(f"the note is {how}", partial(run, partial(misplaced, how), content[:1000]))
    while True:
        there = rng.choice((content[:1000], content, content + b"more", b"", b"other" * 100, b"x" * len(content)))
        changed = dict(note)
        for key in rng.sample(sorted(note), rng.choice((0, 1, 1, 2))):
            numbers = (-1, 0, 1, len(there), 2**63, 10**400, 1.5, None, True, [], {}, float("inf"))
            changed[key] = rng.choice((*numbers, *VALUES, "a\r\nX: y", 'W/"1"', "x" * 10**5))
        done, made = str(changed)[:150], json.dumps(changed).encode()
        if rng.random() < 0.4:
            done, made = attacked(json.dumps(note), rng)
        yield Case(f"{len(there)} bytes are there, {done}", partial(run, partial(put, made), there))


ATTACKS = [
    *[
        Attack(
            reader.name,
            "fields, lines, bytes and encodings changed, files missing or in the wrong place",
            partial(listing_cases, reader),
            2,
            has_answer=False,
        )
        for reader in READERS
    ],
    Attack(
        "settings",
        "settings files in YAML that are wrong, endless, nested, or would run code",
        settings,
        2,
        has_answer=False,
    ),
    Attack(
        "conditions",
        "conditions of other types and sizes, damaged, or with headers that lie",
        conditions,
        2,
        400,
        has_answer=False,
    ),
    Attack("notes of downloads", "damaged and forged notes beside half-finished downloads", notes, 2),
]
