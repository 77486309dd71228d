"""The quick part of the torture suite; `make torture` runs all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.files import PROJECT_ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks, and limits memory as Linux does")
def test_a_few_cases_of_every_attack_hold() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--quick"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert " cases, " in ended.stdout.splitlines()[-1]
