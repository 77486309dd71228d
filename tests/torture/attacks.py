"""The table of attacks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pickle
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads_helpers import SIZE

from common.features import FeatureSet
from tests.torture.commands import (
    ARCHIVED,
    CLASSIFY,
    COMPRESSED,
    CONDITION,
    DATA_SETS,
    DOWNLOAD,
    EMBED,
    EXTRACT,
    FORMATS,
    PREDICT,
    SHARDS,
    SUMMARIZE,
    UNPACK,
    WEIGHTS,
    file_server,
    pack,
)
from tests.torture.runner import (
    INTERRUPTED,
    Attack,
    CannotRunError,
    Case,
    Ended,
    Verdict,
    interrupt_at,
    read_rows,
    require,
)

# Interruptions

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DISK_ERRORS = (errno.ENOSPC, errno.EIO)


def interrupted_while_writing(case: Case) -> Verdict:
    """Interrupt some runs just before they change a file."""
    for _ in range(case.rng.choice((1, 1, 1, 2, 4))):
        operation = case.rng.randint(1, case.undisturbed.operations)
        main = case.rng.choice(case.command.mains)
        if case.rng.random() < 0.6:
            number = case.rng.choice(SIGNALS)
            case.did(f"{number.name} at operation {operation}")
            interrupt: Callable[[], object] = partial(_signal_itself, number)
        else:
            code = case.rng.choice(DISK_ERRORS)
            case.did(f"{errno.errorcode[code]} at operation {operation}")
            interrupt = partial(_fail, code)
        case.start(main, partial(interrupt_at, operation, interrupt)).wait(*_interrupted_statuses())
    return case.finish_the_same()


def _signal_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def _fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def _interrupted_statuses() -> tuple[int, ...]:
    return INTERRUPTED, *(-number for number in SIGNALS)


def killed_at_random_times(case: Case) -> Verdict:
    """Send signals to running processes."""
    for _ in range(case.rng.randint(1, 3)):
        number, pause_s = case.rng.choice(SIGNALS), case.rng.uniform(0, 0.15)
        case.did(f"{number.name} after {pause_s:.3f} s")
        scripts = [case.start(main) for main in case.command.mains]
        time.sleep(pause_s)
        for script in scripts:
            script.kill(number)
        for script in scripts:
            script.wait(*_interrupted_statuses())
    return case.finish_the_same()


def several_processes(case: Case) -> Verdict:
    """Write one output with several processes."""
    scripts = []
    for _ in range(case.rng.randint(2, 4)):
        scripts.append(case.start(case.rng.choice(case.command.mains)))
        time.sleep(case.rng.uniform(0, 0.05))
    for script in scripts:
        script.wait()
    return case.finish_the_same()


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[], None]]:
    """Mount a small file system; what is yielded makes it large."""
    libc, place = ctypes.CDLL(None), os.fsencode(folder)
    folder.mkdir()
    if libc.mount(b"tmpfs", place, b"tmpfs", 0, options.encode()):
        raise CannotRunError("mounting a small file system needs root")
    remount = 32
    try:
        yield lambda: libc.mount(b"tmpfs", place, b"tmpfs", remount, b"size=100m,nr_inodes=10000")
    finally:
        libc.umount2(place, 2)


def full_disk(case: Case) -> Verdict:
    """Run with room for a part of the bytes, or of the files; then with enough."""
    files = case.undisturbed.files
    size = round(sum(map(len, files.values())) * case.rng.uniform(0, 1.2) / 4096 + 1) * 4
    options = f"size={size}k,nr_inodes=10000"
    if case.rng.random() < 0.4:
        options = f"size=100m,nr_inodes={case.rng.randint(2, len(files) + 6)}"
    case.did(options)
    with small_disk(case.out, options) as enlarge:
        case.start(case.command.mains[0]).wait()
        enlarge()
        return case.finish_the_same()


def broken_connection(case: Case) -> Verdict:
    """Break the connection; at times, kill the download while it waits."""
    server, is_killed = file_server(), case.rng.random() < 0.7
    server.ranges.clear()
    for _ in range(case.rng.randint(1, 2)):
        server.script = [f"{case.rng.choice(('cut', 'stall'))} {case.rng.randint(1_000, 50_000)}"]
        case.did(server.script[0])
        script = case.start(case.command.mains[0])
        if is_killed:
            number = case.rng.choice(SIGNALS)
            case.did(number.name)
            wait_for_output(case)
            script.kill(number)
        script.wait(*_interrupted_statuses())
    server.script.clear()
    require(is_killed or any(server.ranges), "it began again instead of asking for the rest")
    return case.finish_the_same()


def wait_for_output(case: Case) -> None:
    """Wait until a process has written something, half a second at most."""
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        if any(path.is_file() and path.stat().st_size for path in case.out.glob("*")):
            return
        time.sleep(0.005)


# Damage

Change = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def zero(content: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(content)), rng.choice((8, 512, 4096))
    piece = content[place : place + length]
    return content[:place] + bytes(len(piece)) + content[place + length :]


def drop(content: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(content)), rng.choice((1, 8, 512))
    return content[:place] + content[place + length :]


CHANGES: tuple[Change, ...] = (flip, flip, flip, truncate, zero, drop)


def damage(case: Case, path: Path, changes: tuple[Change, ...] = CHANGES) -> None:
    """Change a file as failing disks and broken copies do."""
    change = case.rng.choice(changes)
    case.did(f"{change.__name__} in {path.name}")
    path.write_bytes(change(path.read_bytes(), case.rng))


def damaged_file(case: Case, patterns: tuple[str, ...]) -> Verdict:
    """Damage a file that the command reads."""
    damage(case, case.pick(*patterns))
    return case.finish_the_same_or_refuse()


def damaged_record(case: Case) -> Verdict:
    """Damage a JSON file beside the results: what it is used for must be right, or the file is named."""
    path = case.pick("results/*.json")
    damage(case, path)
    ended = case.finish()
    if ended.is_refused:
        return Verdict.REFUSED
    if path.name in ended.printed:
        return Verdict.ACCEPTED
    return case.require_same()


def damaged_unfinished_extraction(case: Case) -> Verdict:
    """Run one shard, then damage what it left for the other."""
    case.start(case.command.mains[0]).wait()
    return damaged_file(case, ("out/**/*",))


def damaged_unfinished_download(case: Case) -> Verdict:
    """Kill a download in its middle, then damage what it left."""
    file_server().script = [f"stall {case.rng.randint(1_000, 50_000)}"]
    script = case.start(case.command.mains[0])
    wait_for_output(case)
    script.kill(signal.SIGKILL)
    script.wait(-signal.SIGKILL)
    file_server().script.clear()
    return damaged_file(case, ("out/**/*",))


def damaged_archive(case: Case) -> Verdict:
    """Serve a damaged archive that has no known checksum."""
    file = case.command.name
    case.did(file)
    change = case.rng.choice(CHANGES)
    case.did(change.__name__)
    file_server().files[file] = change(pack(file, ARCHIVED), case.rng)
    ended = case.finish()
    if ended.is_refused:
        return Verdict.REFUSED
    for name, content in ARCHIVED.items():
        require((case.out / "unpacked" / name).read_bytes() == content, f"other content in {name}")
    return Verdict.SAME


def unsafe_archive(case: Case) -> Verdict:
    """Serve an archive with a member that would be written elsewhere."""
    file, folder = case.command.name, case.folder
    links = {"top/link": case.rng.choice(("../..", str(folder), "../../archives.yaml"))}
    members: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
        name: ({name: b"escaped"}, {})
        for name in ("../escaped", "top/../../../escaped", f"{folder}/escaped", "../../archives.yaml")
    }
    members["a link"] = {}, links
    members["a file behind a link"] = {"top/link/escaped": b"escaped"}, links
    name = case.rng.choice(sorted(members))
    case.did(name)
    files, links = members[name]
    file_server().files[file] = pack(file, {**ARCHIVED, **files}, links)
    table = (folder / "archives.yaml").read_bytes()
    ended = case.finish()
    require(ended.is_refused, "it was not refused")
    require((folder / "archives.yaml").read_bytes() == table, "a file beside the output was replaced")
    require(not any(folder.rglob("escaped")), "it was written")
    return Verdict.REFUSED


# Code and wrong content


class Executes:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def code(case: Case, patterns: tuple[str, ...]) -> Verdict:
    """Put a pickle that runs code in the place of a file."""
    path, sign = case.pick(*patterns), case.folder / "executed"
    value: Any = Executes(sign)
    values = {"itself": value, "in a list": [value], "as a key": {value: 1}, "as features": {"features": value}}
    place = case.rng.choice(sorted(values))
    form = case.rng.choice(("torch", "torch, legacy", "pickle"))
    case.did(f"{place}, {form}, in {path.name}")
    if path.suffix == ".yaml":
        path.write_text(f"seed: !!python/object/apply:os.system ['touch {sign}']\n")
    elif path.suffix == ".npy":
        np.save(path, np.array([value] * 512, dtype=object), allow_pickle=True)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(values[place], protocol=2))
    else:
        torch.save(values[place], path, _use_new_zipfile_serialization=form == "torch")
    ended = case.finish()
    require(not sign.exists(), "code was run")
    return Verdict.REFUSED if ended.is_refused else case.require_same()


def code_in_unfinished_work(case: Case) -> Verdict:
    """Put code into the rows that one shard left for the other."""
    case.start(case.command.mains[0]).wait()
    return code(case, ("out/**/*.pt",))


WRONG: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "text": lambda: "x",
    "a number": lambda: -1,
    "an empty list": list,
    "names": lambda: ["a", "b"],
    "numbers as names": lambda: [1, 2.5, None],
    "no rows": lambda: torch.zeros(0, SIZE),
    "few rows": lambda: torch.zeros(3, SIZE),
    "three dimensions": lambda: torch.zeros(48, 2, 2),
    "NaN": lambda: torch.full((48, SIZE), torch.nan),
    "huge numbers": lambda: torch.full((48, SIZE), 3e38) * torch.randn(48, SIZE).sign(),
    "negative labels": lambda: -torch.arange(48) - 2,
    "large labels": lambda: torch.full((48,), 10**15),
    "a class for every clip": lambda: torch.arange(48),
}


def wrong_content(case: Case, patterns: tuple[str, ...]) -> Verdict:
    """Replace one entry of a file: a refusal, or finite results."""
    path = case.pick(*patterns)
    content: dict[str, Any] = torch.load(path, weights_only=True)
    key, name = case.rng.choice(sorted(content)), case.rng.choice(sorted(WRONG))
    case.did(f"{name} as {key}")
    torch.save({**content, key: WRONG[name]()}, path)
    if case.finish().is_refused:
        return Verdict.REFUSED
    for table in case.out.glob("predict*.csv"):
        cells = [cell for row in read_rows(table) for cell in row.values()]
        require(not {"nan", "inf", "-inf"} & set(cells), f"{table.name} is not finite")
    for record in case.out.glob("result.json"):
        (protocol, *_) = json.loads(record.read_bytes())["protocols"].values()
        for kind, head in protocol["heads"].items():
            require(0 <= head["mean"]["accuracy"] <= 100, f"accuracy of {kind}")
    return Verdict.ACCEPTED


def wrong_weights(case: Case) -> Verdict:
    """Change one tensor of the encoder's weights: all are needed, as they are."""
    path = case.folder / "weights.ckpt"
    tensors: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    name = case.rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    ways = {
        "missing": {},
        "renamed": {f"{name}_": tensor},
        "of another shape": {name: tensor[None]},
        "NaN": {name: torch.full_like(tensor, torch.nan)},
        "of whole numbers": {name: tensor.int()},
    }
    way = case.rng.choice(sorted(ways))
    case.did(f"{name} {way}")
    torch.save({**tensors, **ways[way]}, path)
    ended = case.finish()
    require(ended.is_refused, "it was not refused")
    require(name in ended.printed, "the tensor is not named")
    return Verdict.REFUSED


# Audio


def require_others_the_same(case: Case, ended: Ended, spoiled: set[str]) -> set[str]:
    """Every clip has its row or is named as failed, and only spoiled ones differ; returns those that failed."""
    features, whole = (FeatureSet.load(folder / "features.pt") for folder in (case.out, case.undisturbed.folder))
    listed = case.out / "features.pt.failed.csv"
    failed = {row["clip_id"] for row in read_rows(listed)} if listed.exists() else set()
    rows = dict(zip(features.clip_ids, features.features, strict=True))
    require(not failed & rows.keys(), "a clip has failed and has a row")
    require(failed | rows.keys() == set(whole.clip_ids), "a clip is neither in the features nor named as failed")
    require(features.meta["counts"]["failed"] == len(failed), "failed clips are not counted")
    for name in failed:
        require(re.search(f"failed: .*{re.escape(name)}", ended.printed), f"{name} is not named as failed")
    for name, row in zip(whole.clip_ids, whole.features, strict=True):
        require(name in spoiled or (name in rows and torch.equal(rows[name], row)), f"other numbers for {name}")
    require(features.features.isfinite().all(), "embeddings are not finite")
    return failed


def spoiled_audio(case: Case, spoil: Callable[[Case, Path], None]) -> tuple[Ended, set[str]]:
    """Spoil one to three files and embed all."""
    spoiled = set(case.rng.sample(sorted(FORMATS), case.rng.randint(1, 3)))
    for name in sorted(spoiled):
        spoil(case, case.folder / "data" / name)
    return case.finish(), spoiled


def damaged_audio(case: Case) -> Verdict:
    """Damage anywhere, or in the header: each file fails alone, or is another sound."""

    def spoil(case: Case, path: Path) -> None:
        if case.rng.random() < 0.5:
            damage(case, path)
            return
        content = path.read_bytes()
        case.did(f"header of {path.name}")
        path.write_bytes(flip(zero(content[:60], case.rng), case.rng)[:60] + content[60:])

    ended, spoiled = spoiled_audio(case, spoil)
    require(ended.status == 0, f"it ended: {ended.printed[-300:]}")
    require_others_the_same(case, ended, spoiled)
    return Verdict.ACCEPTED


def truncated_audio(case: Case) -> Verdict:
    """Cut files within the audio: each fails alone. Of compressed ones, what is left may be read."""

    def spoil(case: Case, path: Path) -> None:
        size = path.stat().st_size
        left = case.rng.randint(size // 3, round(size * 0.95))
        case.did(f"{path.name} cut to {left} of {size} bytes")
        os.truncate(path, left)

    ended, spoiled = spoiled_audio(case, spoil)
    require(ended.status == 0, f"it ended: {ended.printed[-300:]}")
    failed = require_others_the_same(case, ended, spoiled)
    require(spoiled - set(COMPRESSED) <= failed, f"read as if whole: {sorted(spoiled - failed)}")
    return Verdict.ACCEPTED


def put_in_place(path: Path, kind: str) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind.startswith("a link to"):
        path.symlink_to({"itself": path.name}.get(kind.split()[-1], kind.split()[-1]))
    elif kind != "nothing":
        path.write_bytes({"an empty file": b"", "text": b"text\n" * 99, "zeros": bytes(9_999)}[kind])


NOT_FILES = ("nothing", "a folder", "a pipe", "a link to itself", "a link to /dev/null", "a link to /dev/zero")
NOT_AUDIO = (*NOT_FILES, "an empty file", "text", "zeros")


def not_audio(case: Case) -> Verdict:
    """Put other things in the place of audio files."""

    def spoil(case: Case, path: Path) -> None:
        kind = case.rng.choice(NOT_AUDIO)
        case.did(f"{kind} as {path.name}")
        put_in_place(path, kind)

    ended, spoiled = spoiled_audio(case, spoil)
    if ended.is_refused:
        return Verdict.REFUSED
    failed = require_others_the_same(case, ended, spoiled)
    require(failed == spoiled, f"read as audio: {sorted(spoiled - failed)}")
    return Verdict.ACCEPTED


# Tables, lists and metadata

TOKEN = re.compile(r'"[^"\n]*"|[^\s,|:{}\[\]"]+')
VALUES = (
    *("", " ", '"', "''", "0", "-1", "-0.5", "1.5", "inf", "nan", "1e400", "9" * 400, "0x10", "1_0"),
    *("true", "null", "[]", "{}", "\0", "a\0b", "\n", "\r", "\u2028", "\u202e", "#", ";", "=1+1", "é音", "²"),
    *("../../../etc/passwd", "/etc/passwd", "~", "C:\\x", "..", "a/b", "x" * 300, "train", "test"),
)


def edit(text: str, rng: random.Random) -> str | bytes:
    """A table or list as people and programs spoil it."""
    lines, tokens = text.splitlines(keepends=True), list(TOKEN.finditer(text))
    token, other, place = rng.choice(tokens), rng.choice(tokens), rng.randrange(len(lines))
    before, line, after = "".join(lines[:place]), lines[place], "".join(lines[place + 1 :])
    value = rng.choice(VALUES)
    in_quotes = json.dumps(value) if token[0].startswith('"') and rng.random() < 0.7 else value
    changed = [text[: token.start()] + new + text[token.end() :] for new in (in_quotes, other[0])]
    fields = line.split(",")
    wholes: tuple[str | bytes, ...] = (
        before + after,
        before + line + line + after,
        before + ",".join(fields[:-1]) + "\n" + after,
        before + line.rstrip("\r\n") + ",more\n" + after,
        text.encode("utf-16"),
        text.encode("utf-8-sig"),
        text.encode().replace(token[0].encode(), b"\xff\xe9"),
        text.replace("\n", "\r\n"),
        text.replace("\n", " "),
        text + text,
        "",
        bytes(9_999),
        "[" * 100_000,
        text[: token.start()] + '"' + text[token.start() :],
    )
    return rng.choice((*changed * 7, *wholes))


def spoiled_listing(case: Case) -> Verdict:
    """Edit, damage or replace a table, list or metadata: a refusal, or features that the data set can have."""
    path = case.pick(*case.command.listings)
    way = case.rng.random()
    if way < 0.1:
        kind = case.rng.choice(NOT_FILES)
        case.did(f"{kind} as {path.name}")
        put_in_place(path, kind)
    elif way < 0.3:
        damage(case, path)
    else:
        edited = edit(path.read_bytes().decode(), case.rng)
        content = edited if isinstance(edited, bytes) else edited.encode("utf-8", "surrogatepass")
        case.did(f"{path.name} is {content[:2_000]!r}")
        path.write_bytes(content)
    if case.finish().is_refused:
        return Verdict.REFUSED
    (file,) = case.out.glob("*features*.pt")
    features = FeatureSet.load(file)
    counts = features.meta["counts"]
    require(counts["clips"] == len(features) + counts["failed"], "clips are missing")
    require(features.features.isfinite().all(), "embeddings are not finite")
    require(features.folds is None or bool((features.folds >= 0).all()), "a negative fold")
    require(set(features.splits or ()) <= {"train", "valid", "test"}, "an unknown split")
    if case.command.class_names:
        require(set(features.class_names) <= set(case.command.class_names), "an unknown class")
        outside = [name for name in features.clip_ids if name.startswith("/") or ".." in Path(name).parts]
        require(not outside, f"a clip outside the data set: {outside[:3]}")
    return Verdict.ACCEPTED


WORKS = (EXTRACT, CLASSIFY, DOWNLOAD, SHARDS)
HEAD = ("results/*linear*.pt",)
ATTACKS = (
    Attack(
        "interrupted while writing",
        "SIGKILL, SIGTERM, SIGINT, a full disk or an error of the disk at any change of a file, up to four times",
        interrupted_while_writing,
        WORKS,
        cases=400,
        quick=4,
    ),
    Attack(
        "killed at random times",
        "SIGKILL, SIGTERM or SIGINT after 0 to 150 ms, up to three times",
        killed_at_random_times,
        WORKS,
        cases=120,
        quick=3,
    ),
    Attack("several processes", "two to four write one output", several_processes, WORKS, cases=120, quick=3),
    Attack("full disk", "room for a part of the bytes or files, then for all", full_disk, WORKS, cases=100, quick=3),
    Attack(
        "broken connection",
        "the server hangs up or stalls; at times the download is killed",
        broken_connection,
        (DOWNLOAD,),
        cases=30,
    ),
    Attack(
        "damaged features",
        "bits flipped, pieces cut, zeroed or dropped in a feature file",
        partial(damaged_file, patterns=("features.pt",)),
        (CLASSIFY,),
        cases=150,
    ),
    Attack(
        "damaged head",
        "the same in a trained head",
        partial(damaged_file, patterns=HEAD),
        (PREDICT,),
        cases=150,
    ),
    Attack("damaged records", "the same in result.json and own_sounds.json", damaged_record, (SUMMARIZE,), cases=100),
    Attack(
        "damaged unfinished extraction",
        "the same in what one shard left for the other",
        damaged_unfinished_extraction,
        (SHARDS,),
        cases=150,
    ),
    Attack(
        "damaged unfinished download",
        "the same in what a killed download left",
        damaged_unfinished_download,
        (DOWNLOAD,),
        cases=40,
    ),
    Attack("damaged archive", "the same in an archive of unknown checksum", damaged_archive, UNPACK, 100, quick=2),
    Attack(
        "unsafe archive",
        "members with .. or an absolute path, links, files behind links",
        unsafe_archive,
        UNPACK,
        cases=60,
        quick=2,
    ),
    Attack("code in features", "pickles that run code", partial(code, patterns=("features.pt",)), (CLASSIFY,), 20),
    Attack("code in a head", "the same", partial(code, patterns=HEAD), (PREDICT,), 20),
    Attack("code in unfinished work", "the same", code_in_unfinished_work, (SHARDS,), 20),
    Attack(
        "code in settings, weights and condition",
        "the same; tags of Python objects in YAML",
        partial(code, patterns=("settings.yaml", "weights.ckpt", "condition.npy")),
        (EXTRACT, WEIGHTS, CONDITION),
        cases=30,
    ),
    Attack(
        "wrong features",
        "an entry of another type, shape or range in a feature file",
        partial(wrong_content, patterns=("features.pt",)),
        (CLASSIFY,),
        cases=150,
    ),
    Attack("wrong head", "the same in a trained head", partial(wrong_content, patterns=HEAD), (PREDICT,), cases=150),
    Attack("wrong weights", "a tensor missing, renamed, NaN, of another shape", wrong_weights, (WEIGHTS,), 30, quick=0),
    Attack("damaged audio", "damage anywhere or in the header, in eleven formats", damaged_audio, (EMBED,), 150),
    Attack("truncated audio", "the end is missing", truncated_audio, (EMBED,), cases=150),
    Attack("not audio", "nothing, folders, pipes, links, text or zeros in its place", not_audio, (EMBED,), cases=80),
    Attack(
        "spoiled tables, lists and metadata",
        "fields, lines and encodings changed, damage, other things in their place",
        spoiled_listing,
        DATA_SETS,
        cases=700,
        quick=7,
    ),
)
