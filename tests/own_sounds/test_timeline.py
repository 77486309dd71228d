"""Windows of long recordings."""

from __future__ import annotations

from pathlib import Path

from own_sounds.timeline import Windows
from tests.support.own_sounds import tone


def test_windows_cover_a_file_up_to_its_end(tmp_path: Path) -> None:
    path = tone(tmp_path / "day.wav", 500, seconds=2.1)
    assert Windows(1.0, 0.5).of_file(path) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.1)]
    assert Windows(5.0, 5.0).of_file(path) == [(0.0, 2.1)]
    assert Windows(1.0, 1.0).of_file(path) == [(0.0, 1.0), (1.0, 2.0)]  # a tenth of a window remains
