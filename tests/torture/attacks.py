"""The attacks, and at the end their table.

The docstring of an attack says what is done; the manual's table shows it.
"""

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.download.fetch import BLOCK
from common.features import FeatureSet
from tests.torture import commands
from tests.torture.commands import CLASSIFY, DOWNLOAD, EMBED, EXTRACT, PREDICT, SHARDS, WEIGHTS
from tests.torture.runner import SIGNALS, WATCH, Attack, CannotRunError, Case, Verdict, interrupt_at, require

# Interruptions


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def kill_within_write() -> None:
    """Kill this process, with half of what it wrote last on the disk."""
    path, size = WATCH.opened
    if Path(path).is_file():  # or it has been renamed
        os.truncate(path, (size + Path(path).stat().st_size) // 2)
    signal.raise_signal(signal.SIGKILL)


MS_REMOUNT, MNT_DETACH = 32, 2
INTERRUPTIONS = (
    partial(kill_within_write),
    *(partial(signal.raise_signal, number) for number in SIGNALS),
    *(partial(fail, code) for code in (errno.ENOSPC, errno.EIO)),
)


def interrupted_while_writing(case: Case) -> Verdict:
    """SIGKILL, SIGTERM, SIGINT or a disk's error at, or within, any write, up to four times."""
    for _ in range(case.rng.choice((1, 1, 1, 2, 4))):
        operation = case.rng.randint(1, case.operations)
        interrupt = case.rng.choice(INTERRUPTIONS)
        case.log.append(f"{interrupt.func.__name__}{interrupt.args} at operation {operation}")
        main = case.rng.choice(case.command.mains)
        case.start(main, partial(interrupt_at, operation, interrupt)).wait(is_interrupted=True)
    return case.finish_the_same()


def killed_at_random_times(case: Case) -> Verdict:
    """SIGKILL, SIGTERM or SIGINT after 0 to 150 ms, up to three times."""
    for _ in range(case.rng.randint(1, 3)):
        number, pause_s = case.rng.choice(SIGNALS), case.rng.uniform(0, 0.15)
        case.log.append(f"{number.name} after {pause_s:.3f} s")
        scripts = [case.start(main) for main in case.command.mains]
        time.sleep(pause_s)
        for script in scripts:
            os.kill(script.process, number)
        for script in scripts:
            script.wait(is_interrupted=True)
    return case.finish_the_same()


def several_processes(case: Case) -> Verdict:
    """Two to four processes write one output."""
    scripts = []
    for _ in range(case.rng.randint(2, 4)):
        scripts.append(case.start(case.rng.choice(case.command.mains)))
        time.sleep(case.rng.uniform(0, 0.05))
    require(0 in [script.wait().status for script in scripts], "none of them got through")
    return case.finish_the_same()


def mount(folder: Path, options: str, flags: int = 0) -> None:
    """Mount a file system in memory; with MS_REMOUNT, change its size."""
    place, kind = os.fsencode(folder), b"tmpfs"
    if ctypes.CDLL(None).mount(kind, place, kind, flags, options.encode()):
        raise CannotRunError("mounting a small file system needs root")


def full_disk(case: Case) -> Verdict:
    """Room for a part of the bytes, or of the files; then for all."""
    sizes = [path.stat().st_size for path in case.expected.rglob("*")]
    pages = round(sum(sizes) * case.rng.uniform(0, 1.2) / 4096) + 1
    options = f"size={4 * pages}k,nr_inodes=10000"
    if case.rng.random() < 0.4:
        options = f"size=100m,nr_inodes={case.rng.randint(2, len(sizes) + 6)}"
    case.log.append(options)
    case.out.mkdir()
    mount(case.out, options)
    try:
        case.start(case.command.mains[0]).wait()
        mount(case.out, "size=100m,nr_inodes=10000", MS_REMOUNT)
        return case.finish_the_same()
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(case.out), MNT_DETACH)


def broken_connection(case: Case) -> Verdict:
    """The server hangs up within a file; at times, the download is killed then."""
    server, is_killed = commands.file_server(), case.rng.random() < 0.7
    server.ranges.clear()
    for _ in range(case.rng.randint(1, 2)):
        server.script = [f"cut {case.rng.randint(2 * BLOCK, 50_000)}"]  # a block that is incomplete is lost
        script = case.start(case.command.mains[0])
        if is_killed:
            number = case.rng.choice(SIGNALS)
            wait_for_output(case)
            os.kill(script.process, number)
            case.log.append(number.name)
        script.wait(is_interrupted=True)
    server.script.clear()
    require(is_killed or any(server.ranges), "it began again instead of asking for the rest")
    return case.finish_the_same()


def wait_for_output(case: Case) -> None:
    """Wait until a process has written something, five seconds at most."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # of a temporary file
            if any(path.is_file() and path.stat().st_size for path in case.out.rglob("*")):
                return
        time.sleep(0.005)


# Damage


def damaged(content: bytes, rng: random.Random) -> bytes:
    """With a bit flipped, half of the time; or with a piece zeroed, dropped or all after it cut."""
    place, length = rng.randrange(len(content)), rng.choice((1, 8, 512, 4096))
    before, after = content[:place], content[place + length :]
    flipped = before + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    zeroed = before + bytes(len(content) - len(before) - len(after)) + after
    return rng.choice((flipped, flipped, flipped, zeroed, before + after, before))


def damage(case: Case, path: Path) -> None:
    """Change a file as failing disks and broken copies do."""
    path.write_bytes(damaged(path.read_bytes(), case.rng))
    case.log.append(f"damage in {path.name}")


def damaged_file(case: Case, pattern: str = "") -> Verdict:
    """Bits flipped, pieces zeroed, dropped or cut off in features, heads and records of results."""
    path = case.pick(pattern or case.command.attacked)
    damage(case, path)
    ended = case.finish()
    if ended.is_refused:
        return Verdict.REFUSED
    if path.suffix == ".json" and path.name in ended.printed:  # a record that its owner may edit
        return Verdict.ACCEPTED
    return case.require_same()


def damaged_unfinished_work(case: Case) -> Verdict:
    """The same in any file that a killed extraction or download left."""
    commands.file_server().script = [f"cut {case.rng.randint(2 * BLOCK, 50_000)}"]
    script = case.start(case.command.mains[0])
    wait_for_output(case)
    time.sleep(case.rng.uniform(0, 0.1))
    os.kill(script.process, signal.SIGKILL)
    script.wait(is_interrupted=True)
    commands.file_server().script.clear()
    return damaged_file(case, "out/**/*")


def unsafe_archive(case: Case) -> Verdict:
    """Members with .. or an absolute path, links, files behind links."""
    table = "../../data/archives.yaml"
    link = {"top/link": case.rng.choice(("../..", str(case.folder), table))}
    names = ("../escaped", "top/../../escaped", f"{case.folder}/escaped", table)
    unsafe: tuple[dict[str, bytes | str], ...] = (
        *({name: b"escaped"} for name in names),
        {**link},
        {**link, "top/link/escaped": b"escaped"},
    )
    members = case.rng.choice(unsafe)
    case.log.append(str(members))
    file = case.command.name
    commands.file_server().files[file] = commands.pack(file, {**members, **commands.ARCHIVED})
    is_refused = case.finish().is_refused
    require((case.data / "archives.yaml").read_bytes() != b"escaped", "a file was replaced")
    outside = set(case.folder.rglob("escaped")) - set(case.out.rglob("escaped"))
    require(not outside, "a file was written outside the folder")
    return Verdict.REFUSED if is_refused else Verdict.ACCEPTED


# Code and weights


class Executes:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def code_in_file(case: Case) -> Verdict:
    """Pickles that run code, and tags of Python objects in YAML, in place of the files."""
    if case.command is SHARDS:
        case.start(case.command.mains[0]).wait()  # which leaves rows for the other
    path, sign = case.pick(case.command.attacked), case.folder / "executed"
    code: Any = Executes(sign)
    value = case.rng.choice((code, [code], {code: 1}, {"features": code}, {"state_dict": code}))
    form = case.rng.randrange(3)
    case.log.append(f"{type(value).__name__}, form {form}, in {path.name}")
    if path.suffix == ".yaml":
        path.write_text(f"seed: !!python/object/apply:os.system ['touch {sign}']\n")
    elif form == 2:
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == 1)
    ended = case.finish()
    require(not sign.exists(), "code was run")
    return Verdict.REFUSED if ended.is_refused else case.require_same()


def wrong_weights(case: Case) -> Verdict:
    """A tensor that is missing, renamed, NaN, or of another shape or type."""
    path = case.data / "weights.ckpt"
    tensors: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    name = case.rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    wrong: tuple[dict[str, torch.Tensor], ...] = (
        {},
        {f"{name}_": tensor},
        {name: torch.full_like(tensor, torch.nan)},
        {name: tensor[None]},
        {name: tensor.int()},
    )
    changed = case.rng.choice(wrong)
    case.log.append(f"{name} becomes {changed.keys()}")
    torch.save({**tensors, **changed}, path)
    ended = case.finish()
    require(ended.is_refused, "it was not refused")
    require(name in ended.printed, "the tensor is not named")
    return Verdict.REFUSED


# Audio


def finish_with_spoiled_audio(
    case: Case,
    spoil: Callable[[Path], None],
) -> tuple[set[str], set[str]]:
    """Embed all files, up to three of them spoiled: the names of these, and of those that failed.

    The others must have the same numbers as ever; those that failed must be named and counted.
    """
    spoiled = set(case.rng.sample(sorted(commands.FORMATS), case.rng.randint(1, 3)))
    for name in sorted(spoiled):
        spoil(case.data / name)
    ended = case.finish()
    require(ended.status == 0, f"the others were not embedded: {ended.printed[-300:]}")
    folders = (case.expected, case.out)
    whole, features = (FeatureSet.load(folder / "features.pt") for folder in folders)
    rows = dict(zip(features.clip_ids, features.features, strict=True))
    failed = set(whole.clip_ids) - rows.keys()
    require(features.meta["counts"]["failed"] == len(failed), "failed clips are not counted")
    for name in failed:
        listed = (case.out / "features.pt.failed.csv").read_text()
        require(f"/{name}: " in listed, f"{name} is not listed")
        require(re.search(f"failed: .*/{re.escape(name)}: ", ended.printed), f"{name} is not named")
    for name, row in zip(whole.clip_ids, whole.features, strict=True):
        is_same = name in rows and torch.equal(rows[name], row)
        require(is_same or name in spoiled, f"other numbers for {name}")
    require(features.features.isfinite().all(), "embeddings are not finite")
    return spoiled, failed


def damaged_audio(case: Case) -> Verdict:
    """Damage anywhere, or in the header, in eleven formats."""

    def spoil(path: Path) -> None:
        damage(case, path)
        if case.rng.random() < 0.5:
            content = path.read_bytes()
            path.write_bytes(damaged(content[:60] or b"x", case.rng) + content[60:])

    finish_with_spoiled_audio(case, spoil)
    return Verdict.ACCEPTED


def truncated_audio(case: Case) -> Verdict:
    """Files that end within the audio. What is left of a compressed one may be read."""

    def spoil(path: Path) -> None:
        size = path.stat().st_size
        left = case.rng.randint(size // 3, round(size * 0.95))
        case.log.append(f"{path.name} cut to {left} of {size} bytes")
        os.truncate(path, left)

    spoiled, failed = finish_with_spoiled_audio(case, spoil)
    require(spoiled - commands.COMPRESSED <= failed, f"read as if whole: {spoiled - failed}")
    return Verdict.ACCEPTED


def not_audio(case: Case) -> Verdict:
    """Pipes, empty files, text or zeros in place of audio files."""
    kinds = ("a pipe", "", "text\n" * 99, "\0" * 9_999)
    spoiled, failed = finish_with_spoiled_audio(case, lambda path: replace_with(case, path, kinds))
    require(failed == spoiled, f"read as audio: {spoiled - failed}")
    return Verdict.ACCEPTED


def replace_with(case: Case, path: Path, kinds: tuple[str, ...]) -> None:
    """Put something else in the place of a file: something special, or a text."""
    kind = case.rng.choice(kinds)
    case.log.append(f"{path.name} is {kind[:20]!r}")
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind.startswith("a link to "):
        path.symlink_to(kind.split()[-1])
    elif kind != "nothing":
        path.write_text(kind)


# Tables, lists and metadata

TOKEN = re.compile(r'"[^"\n]*"|[^\s,|:{}\[\]"]+')
VALUES = (
    *("", " ", '"', "''", "0", "-1", "-0.5", "1.5", "inf", "nan", "1e400", "9" * 400, "0x10", "²"),
    *("true", "null", "[]", "{}", "\0", "a\0b", "\n", "\r", "\u2028", "\u202e", "#", "=1+1", "é"),
    *("../../../etc/passwd", "/etc/passwd", "~", "C:\\x", "..", "a/b", "x" * 300, "train", "test"),
)


def edited(text: str, rng: random.Random) -> bytes:
    """A table or list as people and programs spoil it."""
    lines, tokens = text.splitlines(keepends=True), list(TOKEN.finditer(text))
    token, place, value = rng.choice(tokens), rng.randrange(len(lines)), rng.choice(VALUES)
    if token[0].startswith('"') and rng.random() < 0.7:
        value = json.dumps(value)
    before, line, after = "".join(lines[:place]), lines[place], "".join(lines[place + 1 :])
    new_cells = (value, rng.choice(tokens)[0], '"')
    cells = [text[: token.start()] + cell + text[token.end() :] for cell in new_cells]
    wholes = (
        before + after,
        before + line + line + after,
        before + line.rpartition(",")[0] + "\n" + after,
        before + line.rstrip("\r\n") + ",more\n" + after,
        text.replace("\n", "\r\n"),
        text.replace("\n", " "),
        "",
        "\0" * 9_999,
        "[" * 100_000,
    )
    changed = rng.choice((*cells * 6, *wholes, text))
    encoding = "utf-8" if changed != text else rng.choice(("utf-16", "utf-8-sig"))
    content = changed.encode(encoding, "surrogatepass")
    return content.replace(token[0].encode(), b"\xff\xe9") if rng.random() < 0.05 else content


def spoiled_listing(case: Case) -> Verdict:
    """Cells, lines, encodings changed, damage, pipes or links in place of tables and metadata."""
    path, way = case.pick(case.command.attacked), case.rng.random()
    links = (f"a link to {path.name}", "a link to /dev/null", "a link to /dev/zero")
    if way < 0.1:
        replace_with(case, path, ("nothing", "a folder", "a pipe", *links))
    elif way < 0.3:
        damage(case, path)
    else:
        path.write_bytes(edited(path.read_bytes().decode(), case.rng))
        case.log.append(f"{path.name} is {path.read_bytes()[:2_000]!r}")
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
    if case.command is not commands.TABLE:  # which may name files anywhere
        outside = [name for name in features.clip_ids if ".." in Path(name).parts or name[0] == "/"]
        require(not outside, f"clips outside the data set: {outside}")
    return Verdict.ACCEPTED


WORKS = (CLASSIFY, SHARDS, DOWNLOAD, EXTRACT)
ATTACKS = (
    Attack(interrupted_while_writing, WORKS, cases=160, quick=2),
    Attack(killed_at_random_times, WORKS, cases=60),
    Attack(several_processes, WORKS, cases=48),
    Attack(full_disk, WORKS, cases=48),
    Attack(broken_connection, (DOWNLOAD,), cases=16),
    Attack(damaged_file, (CLASSIFY, PREDICT, commands.SUMMARIZE), cases=210, quick=2),
    Attack(damaged_unfinished_work, (SHARDS, DOWNLOAD), cases=80),
    Attack(unsafe_archive, commands.UNPACK, cases=24),
    Attack(code_in_file, (CLASSIFY, PREDICT, SHARDS, EXTRACT, WEIGHTS), cases=40, quick=2),
    Attack(wrong_weights, (WEIGHTS,), cases=12, quick=0),
    Attack(damaged_audio, (EMBED,), cases=80),
    Attack(truncated_audio, (EMBED,), cases=80),
    Attack(not_audio, (EMBED,), cases=24),
    Attack(spoiled_listing, commands.DATA_SETS, cases=280, quick=3),
)
