"""The data set of CONTRIBUTING.md, added by copying its three files, and run by the commands below them."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.datasets import DivisionKind
from common.evaluation.record import RunRecord
from common.files import PROJECT_ROOT
from tests.support.samples import write_wav

FILE = re.compile(r"^`(\S+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SPECIES = ("blackbird", "robin", "wren")


def section() -> str:
    """What CONTRIBUTING.md says of adding a data set."""
    text = (PROJECT_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.partition("**Add a data set.**")[2].partition("\n**Add ")[0]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the three files, as a user copies them."""
    files = dict(FILE.findall(section()))
    assert len(files) == 3
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def birdsong(tmp_path: Path) -> Path:
    """The layout that the example expects: 8 recordings per species by 4 recordists, one of whom is the test."""
    root, test = tmp_path / "Birdsong", []
    for place, species in enumerate(SPECIES):
        for number in range(8):
            name = f"{species}/{'ABCD'[number // 2]}_{number}.wav"
            write_wav(root / name, seed=10 * place + number)
            test += [name] * name.startswith(f"{species}/D")
    (root / "test.txt").write_text("".join(f"{name}\n" for name in test), encoding="utf-8")
    return root


@pytest.mark.slow
def test_the_example_of_a_data_set_runs(project: Path, birdsong: Path) -> None:
    """In processes of their own, as the import of a module beside the script is a part of what is shown."""
    (commands,) = COMMANDS.findall(section())
    extract, classify = (shlex.split(line) for line in commands.splitlines())
    for command, flags in ((extract, ["--data-root", birdsong]), (classify, ["--epochs", "2", "--hidden-dim", "16"])):
        assert command[0] == "python"
        words = [sys.executable, *command[1:], *flags]
        ended = subprocess.run(words, cwd=project, check=False, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    record = RunRecord.load(project / "birdsong_feature_fc" / "logmel" / "result.json")
    assert (record.task, record.features.clips) == ("birdsong", 24)
    assert record.features.class_names == list(SPECIES)
    protocol = record.protocols["official"]
    assert protocol.kind is DivisionKind.OFFICIAL
    assert protocol.division == "official train and test split"
    assert protocol.related_test_clips == 0
    with (project / "birdsong_feature_fc" / "logmel" / "predictions.csv").open(encoding="utf-8") as rows:
        tested = {row["clip_id"] for row in csv.DictReader(rows)}
    assert tested == set((birdsong / "test.txt").read_text(encoding="utf-8").splitlines())


def test_the_example_passes_the_linter(project: Path) -> None:
    for what in (["check"], ["format", "--check"]):
        settings = ["--config", PROJECT_ROOT / "pyproject.toml", "--no-cache"]
        subprocess.run([sys.executable, "-m", "ruff", *what, *settings, project], check=True)
