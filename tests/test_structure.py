"""The house rules: imports go one way between floors, nothing loads loosely, scripts explain themselves."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from common.files import PROJECT_ROOT
from common.requirements_check import NAMED, PYTHON, find_problem

COMMON = PROJECT_ROOT / "common"
TASKS = sorted(path.parent for path in PROJECT_ROOT.glob("*/config.yaml") if path.parent != COMMON)
ROOMS = ("analysis", "demo", "benchmarks", "integrations", "own_sounds")
SOURCES = sorted(
    path for folder in (COMMON, *(PROJECT_ROOT / name for name in ROOMS), *TASKS) for path in folder.rglob("*.py")
)
SCRIPTS = sorted(
    path
    for folder in (*(PROJECT_ROOT / name for name in ("analysis", "benchmarks", "own_sounds")), *TASKS)
    for path in folder.glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
# Who may import which part of integrations/; the rest of the project imports none.
DOORS = {COMMON / "export.py": "integrations.export"}
# From the ground up: a module imports only from its own floor and from those before it.
FLOORS = (
    (
        "requirements_check",
        "arrays",
        "average_precision",
        "compiled",
        "errors",
        "files",
        "progress",
        "text_table",
        "encoder_name",
        "config",
        "scripts",
    ),
    ("datasets",),
    ("flags",),
    ("encoder",),
    ("features", "feature_formats", "parts"),
    ("extraction",),
    ("heads",),
    ("evaluation",),
    ("cli",),
    ("download", "doctor", "export", "page", "precompile"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports when it runs: also those inside functions, but not those for type checkers."""
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        nodes += list(ast.iter_child_nodes(node))
    return found


def room_of(path: Path) -> str:
    """The room of common/ that a file belongs to: its folder, or the file itself."""
    return path.relative_to(COMMON).parts[0].removesuffix(".py")


@pytest.mark.parametrize("room", sorted({room_of(path) for path in COMMON.rglob("*.py")} - {"__init__"}))
def test_imports_go_one_way_between_floors(room: str) -> None:
    for path in COMMON.rglob("*.py"):
        if room_of(path) != room:
            continue
        for module in imports(path):
            package, _, rest = module.partition(".")
            if package == "common" and rest:
                other = rest.partition(".")[0]
                assert FLOOR_OF[other] <= FLOOR_OF[room], f"{path} imports {module} from a later floor"
            assert package not in {*(task.name for task in TASKS), "analysis", "demo"}, f"common knows no {module}"


def test_integrations_are_imported_only_through_their_doors() -> None:
    for path in SOURCES:
        if PROJECT_ROOT / "integrations" not in path.parents:
            modules = {module for module in imports(path) if module.partition(".")[0] == "integrations"}
            assert modules == ({DOORS[path]} if path in DOORS else set()), path


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in COMMON.rglob("*.py")} - {"__init__"} == set(FLOOR_OF)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_imports_no_other_task(task: Path) -> None:
    others = {other.name for other in TASKS} - {task.name} | {"analysis", "demo"}
    for path in task.glob("*.py"):
        assert not {module.partition(".")[0] for module in imports(path)} & others


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_sources_load_strictly_and_swallow_no_error(path: Path) -> None:
    source = path.read_text()
    assert "strict=False" not in source
    assert "weights_only=False" not in source
    # A script finds the project beside itself, wherever it is called from and whatever is installed; nothing else does.
    own = "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))"
    assert source.count("sys.path") == (path in SCRIPTS) and (own in source) == (path in SCRIPTS)
    assert not re.search(r"except\s*:|except (Base)?Exception:\s*(pass|continue)", source)
    # state_dict().copy() aliases the live weights
    assert not re.search(r"state_dict\(\)\.copy\(\)", source)


def test_help_is_shown_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """That of every command, from any folder, in one process: numpy alone would take a third of the time."""
    code = """
import contextlib, io, runpy, sys
for words in sys.argv[1:]:
    sys.argv = [words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        if words.endswith(".py"):
            runpy.run_path(words, run_name="__main__")
        else:
            runpy.run_module(words, run_name="__main__", alter_sys=True)
    assert "usage:" in shown.getvalue(), words
    assert "feature_fc" not in words or "--config" in shown.getvalue(), words
    assert not {"numpy", "torch", "sklearn", "matplotlib"} & set(sys.modules), words
"""
    modules = ["common.doctor", "common.download", "common.export", "common.encoder.check", "demo.run"]
    commands = [str(path) for path in SCRIPTS] + modules
    result = subprocess.run(
        [sys.executable, "-c", code, *commands], cwd=PROJECT_ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_what_is_installed_is_what_is_pinned() -> None:
    lines = [
        line.partition("#")[0].strip()
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (PROJECT_ROOT / name).read_text().splitlines()
    ]
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert len(pins) > 10
    for name, pinned in pins.items():
        assert importlib.metadata.version(name).partition("+")[0] == pinned, name
    assert "-e ." in lines


def without_packages(*words: str) -> subprocess.CompletedProcess[str]:
    """Run this Python as one that has nothing installed."""
    return subprocess.run([sys.executable, "-S", *words], cwd=PROJECT_ROOT, check=False, capture_output=True, text=True)


def test_a_python_without_the_requirements_is_told_what_to_do() -> None:
    assert len(SCRIPTS) > 20
    commands = [[str(path)] for path in SCRIPTS] + [
        ["-m", name] for name in ("common.doctor", "demo.run", "common.config")
    ]
    with ThreadPoolExecutor() as pool:
        for ended in pool.map(lambda words: without_packages(*words), commands):
            assert ended.returncode == 2 and ended.stdout == ""
            assert re.fullmatch(
                r"error: Python 3\.\d+ \(.*\) lacks numpy, .* packages; activate the project's environment: source "
                r"\.venv/bin/activate \(make install creates it\)\n",
                ended.stderr,
            ), ended


def test_a_python_of_another_version_is_named() -> None:
    (major, first), (_, last) = PYTHON
    for version in ((major, first - 1), (major, last + 1)):
        problem = find_problem(version, [])
        assert problem is not None and problem.startswith(f"Python {NAMED} is needed, this is 3.{version[1]} (")
    for version in PYTHON:
        assert find_problem(version, []) is None
    # What runs before the check must be readable by old Pythons.
    for path in [COMMON / "requirements_check.py", COMMON / "__init__.py", *SCRIPTS]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    (major, first), (_, last) = PYTHON
    settings = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["requires-python"] == f">={major}.{first},<{major}.{last + 1}"
    assert settings["tool"]["mypy"]["python_version"] == f"{major}.{first}"
    assert "target-version" not in settings["tool"]["ruff"]  # ruff takes it from requires-python
    for page in ("README.md", "README.zh-TW.md", "docs/installation.md", "requirements.txt"):
        named = re.findall(r"Python (3\.\d+) (?:to|到) (3\.\d+)", (PROJECT_ROOT / page).read_text(encoding="utf-8"))
        assert named == [tuple(NAMED.split(" to "))], page
