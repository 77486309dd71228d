"""The manual: every command parses, every import and link resolves, and both READMEs give the same commands."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import re
import runpy
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-TW.md"
DOCS = ROOT / "docs"
FOLDERS = (ROOT / "pretrained_models" / "README.md", ROOT / "speaker_recognition" / "README.md")
PAGES = (README, README_ZH, *sorted(DOCS.glob("*.md")), *FOLDERS)
MOST_WORDS = 750  # of the README
NOT_YET = DOCS / "images" / "esc50_map.png"  # the one picture that may be missing
SHELLS = ("bash", "sh", "shell", "console", "powershell")
KNOWN = ("python", "python3", "make", "torchrun", "pip")  # what a command starts with where no shell is named
WITHOUT_FLAGS = ("demo.run",)  # would work rather than parse
FENCE = re.compile(r"^\s*(```+)\s*([\w+-]*)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block: its language (empty for an indented one), its lines, and the number of the first."""

    language: str
    line: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command with the folder in which it runs; `place` names it in the list of tests."""

    words: tuple[str, ...]
    folder: Path
    place: str

    def __str__(self) -> str:
        return shlex.join(self.words)


class Parsed(BaseException):
    """A script has parsed its flags; no handler of errors catches it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given


# Reading pages


def code_blocks(text: str) -> list[Block]:
    """Fenced blocks, and indented ones outside lists."""
    blocks, lines, fence, in_list = [], text.splitlines(), "", False
    for number, line in enumerate(lines, start=1):
        found = FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2]:
                fence = ""
            else:
                blocks[-1] = replace(blocks[-1], lines=(*blocks[-1].lines, line))
        elif found:
            fence = found[1]
            blocks.append(Block(found[2], number + 1, ()))
        elif line.startswith("    ") and not in_list:
            goes_on = blocks and number == blocks[-1].line + len(blocks[-1].lines) and not blocks[-1].language
            if goes_on:
                blocks[-1] = replace(blocks[-1], lines=(*blocks[-1].lines, line))
            elif not lines[number - 2].strip():
                blocks.append(Block("", number, (line,)))
        elif line[:1].strip():
            in_list = bool(re.match(r"([-*+]|\d+\.)\s", line))
    return blocks


def prose(text: str) -> str:
    """The text without its fenced blocks; every line keeps its number."""
    fence, kept = "", []
    for line in text.splitlines():
        found = FENCE.match(line)
        is_code = bool(fence or found)
        if found:
            fence = "" if fence and found[1].startswith(fence) else fence or found[1]
        kept.append("" if is_code else line)
    return "\n".join(kept)


def commands_of(page: Path) -> list[Command]:
    """Every command of a page in the order of its code blocks, then those inside its sentences."""
    text, name, found = page.read_text(encoding="utf-8"), page.relative_to(ROOT), []
    for block in code_blocks(text):
        if block.language in (*SHELLS, ""):
            found += commands_in(block, name)
    prosaic = prose(text)
    for span in re.finditer(r"`([^`]+)`", prosaic):
        words = " ".join(span[1].split())
        if words.startswith(tuple(f"{each} " for each in KNOWN)) and "…" not in words and "..." not in words:
            line = prosaic.count("\n", 0, span.start()) + 1
            found += commands_in(Block("bash", line, (words,)), name)
    return found


def commands_in(block: Block, page: Path) -> Iterator[Command]:
    """The commands of a block; ``cd`` counts for all that follow."""
    folder, started = ROOT, ""
    for number, line in enumerate(block.lines, start=block.line):
        line = started + line.strip().removeprefix("$ ")
        started = ""
        if line.endswith("\\"):
            started = line[:-1] + " "
            continue
        for words in split(line):
            if not block.language and words[0] not in (*KNOWN, "cd"):
                continue  # output, a drawing, a file
            place = f"{page}:{number}"
            if words[0] == "cd":
                assert len(words) == 2, f"{place}: cd takes one folder"
                folder = folder / words[1]
                assert folder.is_dir(), f"{place}: no folder {words[1]}"
            else:
                yield Command(words, folder, place)


def split(line: str) -> list[tuple[str, ...]]:
    """A line's commands as words, without comments and without variables set for one command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.escape = True, ""  # Windows separates folders with what escapes elsewhere
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";"):
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            found[-1].append(word)
    return [tuple(words) for words in found if words]


# Checking commands


def check(command: Command) -> None:
    """Fail unless the command would start: its script or target exists, and its flags are accepted."""
    program, *rest = command.words
    if program in ("python", "python3"):
        check_python(rest, command)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = parsed(lambda: get_args_parser().parse_args(rest), program, rest, command)
        check_script(given.training_script, given.training_script_args, command)
    elif program == "make":
        check_make(rest, command)
    elif program == "pip":
        check_pip(rest, command)
    else:
        known = (("source", ".venv/bin/activate"), (r".venv\Scripts\activate",))
        assert command.words in known, f"{command.place}: what is this? {command}"


def check_python(rest: Sequence[str], command: Command) -> None:
    if rest[0] != "-m":
        check_script(rest[0], rest[1:], command)
        return
    module, *flags = rest[1:]
    assert importlib.util.find_spec(module), f"{command.place}: no module {module}"
    if not (ROOT / module.partition(".")[0]).is_dir():
        return  # pytest, venv: not this project's
    if module in WITHOUT_FLAGS:
        assert not flags, f"{command.place}: {module} takes no flags"
        return
    check_names(parsed(lambda: runpy.run_module(module, run_name="__main__"), module, flags, command), module, command)


def check_script(script: str, flags: Sequence[str], command: Command) -> None:
    path = command.folder / script
    assert path.is_file(), f"{command.place}: no script {script}"
    given = parsed(lambda: runpy.run_path(str(path), run_name="__main__"), str(path), flags, command)
    check_names(given, path.relative_to(ROOT).as_posix(), command)


def parsed(start: Callable[[], object], name: str, flags: Sequence[str], command: Command) -> argparse.Namespace:
    """What a script's own parser makes of the flags; the script gets no further."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(
        self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> None:
        raise Parsed(parse_args(self, args, namespace))

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
            mock.patch.object(sys, "argv", [name, *flags]),
            mock.patch.object(signal, "signal"),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # a module that was imported before it is run
            start()
    except Parsed as stop:
        return stop.given
    except SystemExit as stop:
        if stop.code in (0, None) and {"-h", "--help"} & set(flags):
            return argparse.Namespace()
        pytest.fail(f"{command.place}: {command}: {said.getvalue().strip().splitlines()[-1:] or stop.code}")
    pytest.fail(f"{command.place}: {command} parses no flags")


def check_names(given: argparse.Namespace, script: str, command: Command) -> None:
    """Names of data sets and tasks, which the scripts themselves look up only after parsing; PLACEHOLDERS pass."""

    def wanted(*keys: str) -> list[str]:
        values = [getattr(given, key, None) or [] for key in keys]
        names = [name for value in values for name in ([value] if isinstance(value, str) else value)]
        return [name for name in names if not name.isupper()]

    if script == "common.download":
        (archives,) = (ROOT / "common").rglob("archives.yaml")
        sources = yaml.safe_load(archives.read_text(encoding="utf-8"))
        assert set(wanted("names")) <= set(sources), f"{command.place}: {command}: choose from {', '.join(sources)}"
        parts = {row.get("part") for name in wanted("names") for row in sources[name]["archives"]}
        assert set(wanted("only")) <= parts, f"{command.place}: {command}: its parts are {parts}"
    elif script == "common.doctor":
        known = [point.name for point in importlib.metadata.entry_points(group="audiosep_probe.data_sets")]
        for name in wanted("names"):
            assert any(each.startswith(name) for each in known), f"{command.place}: no data set {name}"
    elif script.startswith("analysis"):
        from analysis.studies import STUDIES

        for name in wanted("task", "tasks"):
            is_own = name.startswith(("own_", "my_sounds"))  # of one's own sounds
            if script.endswith("visualize_features.py"):  # takes the folder of a run too, and embeddings
                folders = {study.task.folder.name for study in STUDIES.values()}
                is_own = is_own or name.partition("/")[0] in folders or name == "season.pt"
            assert is_own or any(each.startswith(name) for each in STUDIES), f"{command.place}: no task {name}"


def check_make(rest: Sequence[str], command: Command) -> None:
    """Targets and variables are the Makefile's; `reproduce` passes its own on to a script."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", makefile, re.MULTILINE))
    variables = {name for pair in re.findall(r"\$\((\w+)\)|^ifdef (\w+)", makefile, re.MULTILINE) for name in pair}
    given = dict(word.split("=", 1) for word in rest if "=" in word)
    asked = [word for word in rest if "=" not in word]
    assert asked, f"{command.place}: {command} names no target"
    assert set(asked) <= targets, f"{command.place}: {command}: the targets are {sorted(targets)}"
    assert set(given) <= variables, f"{command.place}: {command}: the variables are {sorted(variables)}"
    if "reproduce" in asked:
        flags = [*given.get("TASKS", "").split(), *(["--data", given["DATA"]] if "DATA" in given else ())]
        flags += [*(["--yes"] if given.get("YES") else ()), *shlex.split(given.get("ARGS", ""))]
        check_python(["-m", "analysis.reproduce", *flags], command)


def check_pip(rest: Sequence[str], command: Command) -> None:
    """Files exist, and versions are the pinned ones."""
    assert rest[0] == "install", f"{command.place}: pip {rest[0]}"
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    for option, value in zip(rest, [*rest[1:], ""], strict=True):
        if option == "-r":
            assert (command.folder / value).is_file(), f"{command.place}: no file {value}"
        elif "==" in option:
            assert option in pins, f"{command.place}: {option} is not the pinned version"


def every_command() -> list[Command]:
    """Of all pages, each once."""
    found: dict[tuple[object, ...], Command] = {}
    for page in PAGES:
        for command in commands_of(page):
            found.setdefault((command.words, command.folder), command)
    return list(found.values())


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.place)
def test_commands_of_the_manual_parse(command: Command) -> None:
    check(command)


@pytest.mark.parametrize(
    "line",
    [
        "python esc50_feature_fc/esc50_linear_classifier.py --epoch 5",
        "cd esc50_feature_fc && python esc50_linear_classifier.py --seeds",
        "python icbhi_feature_fc/icbhi_linear_classifier.py --level recordings",
        "python esc50_feature_fc/esc50.py",
        "python no_such_script.py",
        "python -m common.no_such_module",
        "python -m common.download esc-50",
        "python -m common.download nsynth --only dev",
        "python -m common.doctor esc51",
        "python -m demo.run --fast",
        "python analysis/ablation.py esc51",
        "torchrun --nodes-per-proc 2 esc50_feature_fc/extract_esc50_features_audiosep.py",
        "torchrun --nproc-per-node 2 esc50_feature_fc/extract_esc50_features_audiosep.py --devices cpu",
        "make demonstration",
        "make demo GPU=1",
        'make reproduce TASKS="esc50" ARGS=--dry',
        "pip install -r no_such_requirements.txt",
        "pip install torch==1.0.0",
        "cargo build",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    (command,) = commands_in(Block("bash", 1, (line,)), Path("a page"))
    with pytest.raises((AssertionError, ModuleNotFoundError, pytest.fail.Exception)):
        check(command)


def test_both_readmes_give_the_same_commands() -> None:
    english, chinese = ([(each.words, each.folder) for each in commands_of(page)] for page in (README, README_ZH))
    assert len(english) > 8
    assert english == chinese


# Python


@pytest.mark.parametrize(
    "page",
    [DOCS / name for name in ("python.md", "own_sounds.md", "encoders.md", "clusters.md")],
    ids=lambda page: page.name,
)
def test_python_of_the_manual_compiles_and_its_imports_resolve(page: Path) -> None:
    blocks = [block for block in code_blocks(page.read_text(encoding="utf-8")) if block.language == "python"]
    assert blocks
    for block in blocks:
        tree = ast.parse("\n".join(block.lines), f"{page.name}:{block.line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert importlib.util.find_spec(alias.name), f"{page.name}:{block.line}: no {alias.name}"
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}:{block.line}: no {alias.name} in {node.module}"


# Pages


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MOST_WORDS


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs name them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def every_link() -> list[tuple[Path, str]]:
    return [
        (page, target)
        for page in PAGES
        for target in LINK.findall(re.sub(r"`[^`]*`", "", prose(page.read_text(encoding="utf-8"))))
        if not re.match(r"[a-z]+:", target)
    ]


@pytest.mark.parametrize(("page", "target"), every_link(), ids=lambda each: getattr(each, "name", str(each)))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if path == NOT_YET and not path.exists():
        pytest.skip(f"{name} is not made yet")
    assert path.is_file(), f"{page.name} links to {target}"
    if page.parent == DOCS:
        assert path.is_relative_to(DOCS), f"{page.name}: the manual has no {target}, which lies outside docs/"
    if anchor:
        assert anchor in anchors_of(path), f"{page.name}: {path.name} has no heading #{anchor}"


def test_the_manual_lists_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [name for entry in settings["nav"] for name in entry.values()]
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))
    assert settings["strict"] is True


def test_the_manual_explains_every_setting() -> None:
    keys = yaml.safe_load((ROOT / "common" / "config.yaml").read_text(encoding="utf-8"))
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in page] == []


# Messages that other programs print, or that are put together from parts.
COMPOSED = ("No module named 'common'",)


def printed_texts() -> str:
    """The sources with the parts of each text joined, and values replaced by an ellipsis."""
    folders = [ROOT / "common", ROOT / "analysis", *(path.parent for path in ROOT.glob("*/config.yaml"))]
    sources = [path.read_text(encoding="utf-8") for folder in dict.fromkeys(folders) for path in folder.rglob("*.py")]
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join([*sources, (ROOT / "Makefile").read_text(encoding="utf-8")]))
    for _ in range(4):  # nested braces
        text = re.sub(r"\{[^{}\n]*\}", "…", text)
    return text


def test_the_messages_of_troubleshooting_are_those_of_the_scripts() -> None:
    printed = printed_texts()
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    leads = re.findall(r"\*\*(.+?)\*\*", page)
    quoted = [part.strip() for lead in leads for text in re.findall(r"`([^`]+)`", lead) for part in text.split("…")]
    long = [part for part in quoted if len(part) >= 10 and part not in COMPOSED]
    assert len(long) > 20
    assert [part for part in long if part not in printed] == []
