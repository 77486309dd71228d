"""Windows of long recordings."""

from __future__ import annotations

from pathlib import Path

from common.datasets import Clip
from own_sounds.windows import Windows
from tests.support.own_sounds import tone


def test_windows_cover_a_file_up_to_its_end(tmp_path: Path) -> None:
    path = tone(tmp_path / "day.wav", 500, seconds=2.1)

    def spans(windows: Windows, clip: Clip) -> list[tuple[float | None, float | None]]:
        return [(window.start_s, window.end_s) for window in windows.of_clip(clip)]

    assert spans(Windows(1.0, 0.5), Clip(path)) == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.1)]
    assert spans(Windows(5.0, 5.0), Clip(path)) == [(0.0, 2.1)]
    assert spans(Windows(1.0, 1.0), Clip(path)) == [(0.0, 1.0), (1.0, 2.0)]  # a tenth of a window remains
    assert spans(Windows(0.5, 0.5), Clip(path, start_s=1.0, end_s=2.0)) == [(1.0, 1.5), (1.5, 2.0)]
