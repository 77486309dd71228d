"""Extraction by shards: together they make the very file that one process makes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from common.cli import extract_main
from common.datasets import Clip
from common.extraction import Shard, ShardError
from common.features import FeatureSet
from common.files import OutputError, exclusive
from esc50_feature_fc.esc50 import TASK
from tests.support import processes
from tests.support.samples import extract_clips, write_wav
from tests.support.scripts import call
from tests.support.stand_in import StandIn, halt


class Run(Protocol):
    """Extract a shard of the fixture's clips; keyword arguments replace what is given to `extract_clips`."""

    def __call__(self, shard: Shard, name: str = "features.pt", **options: Any) -> FeatureSet | None: ...


@pytest.fixture
def run(clips: tuple[Path, list[Clip]], stand_in: StandIn, tmp_path: Path) -> Run:
    root, listed = clips

    def run(shard: Shard, name: str = "features.pt", **options: Any) -> FeatureSet | None:
        given = {"clips": listed, "root": root, "encoder": stand_in, "output": tmp_path / name, **options}
        return extract_clips(**given, shard=shard)

    return run


@pytest.mark.parametrize("count", [2, 3, 12, 20])
def test_the_shards_make_the_file_of_one_process(run: Run, tmp_path: Path, count: int) -> None:
    run(Shard(), "whole.pt")
    made = [run(Shard(index, count)) for index in reversed(range(count))]
    assert [features is None for features in made] == [True] * (count - 1) + [False]
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not (tmp_path / "features.pt.partial").exists()


def test_every_clip_has_one_shard_and_the_longest_come_first() -> None:
    seconds = [0.1 * (1 + (7 * place) % 40) for place in range(40)]
    shards = [Shard(index, 3).assign(seconds) for index in range(3)]
    assert sorted(index for shard in shards for index in shard) == list(range(40))
    for shard in shards:
        lengths = [seconds[index] for index in shard]
        assert lengths == sorted(lengths, reverse=True)
    loads = [sum(seconds[index] for index in shard) for shard in shards]
    assert max(loads) - min(loads) < 0.3  # the shortest clips even it out


def test_shards_of_other_settings_are_refused(run: Run) -> None:
    run(Shard(0, 2))
    with pytest.raises(OutputError, match="pool was mean, now std"):
        run(Shard(1, 2), pool="std")
    assert run(Shard(1, 2)) is not None


def test_a_shard_twice_at_once_and_another_division_are_refused(run: Run, tmp_path: Path) -> None:
    partial = tmp_path / "features.pt.partial"
    with exclusive(partial / "lock-0-of-2", "something"):
        with pytest.raises(OutputError, match="another run is writing shard 1/2"):
            run(Shard(0, 2))
        with pytest.raises(OutputError, match=r"in 2 shard\(s\)"):
            run(Shard(0, 3))
        with pytest.raises(OutputError, match=r"in 2 shard\(s\)"):
            run(Shard())
        assert run(Shard(1, 2)) is None
    assert run(Shard(0, 2)) is not None


def test_one_process_continues_what_the_shards_have_done(run: Run, tmp_path: Path, stand_in: StandIn) -> None:
    run(Shard(), "whole.pt")
    run(Shard(1, 3))
    stand_in.batch_sizes.clear()
    assert run(Shard()) is not None
    assert stand_in.batch_sizes == [1] * 8  # of 12 clips, a third was done
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_clips_that_fail_are_named_whoever_had_them(run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    root, listed = clips
    for place in (0, 7):
        listed[place].path.write_bytes(b"no audio")
    failed = [listed[place].clip_id(root) for place in (0, 7)]
    assert run(Shard(0, 2)) is None
    features = run(Shard(1, 2))
    assert features is not None
    assert len(features) == 10
    assert [clip_id for clip_id, _ in features.meta["failed"]] == failed
    with (tmp_path / "features.pt.failed.csv").open() as file:
        assert [row["clip_id"] for row in csv.DictReader(file)] == failed


def test_audio_that_changes_before_the_end_is_noticed(run: Run, clips: tuple[Path, list[Clip]]) -> None:
    _, listed = clips
    run(Shard(0, 2))
    longest = max(listed, key=lambda clip: clip.path.stat().st_size)  # the first shard's first
    write_wav(longest.path, seed=99, seconds=0.2)
    with pytest.raises(OutputError, match="1 clips that a shard had finished are missing or have changed"):
        run(Shard(1, 2))
    assert run(Shard(0, 2)) is not None


def test_rows_of_other_settings_are_not_mixed_in(run: Run, tmp_path: Path) -> None:
    """One shard is still at work when another begins anew with other settings."""
    run(Shard(), "whole.pt", pool="std")
    partial = tmp_path / "features.pt.partial"
    run(Shard(0, 2))
    old = {file.name: file.read_bytes() for file in partial.glob("*") if file.name.startswith(("chunk", "done"))}
    assert {name[:5] for name in old} == {"chunk", "done-"}
    assert run(Shard(1, 2), pool="std", overwrite=True) is None  # not done: the other's note was of other settings
    for name, content in old.items():  # what the old shard writes at its end, all unaware
        (partial / name).write_bytes(content)
    assert run(Shard(1, 2), pool="std") is None
    assert run(Shard(0, 2), pool="std") is not None
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_shards_are_named_by_flags_and_launchers() -> None:
    assert Shard.parse("3/8", {}) == Shard(2, 8)
    assert Shard.parse(None, {}) == Shard(0, 1)
    assert Shard.parse(None, {"RANK": "5", "WORLD_SIZE": "8"}) == Shard(5, 8)
    assert Shard.parse("1/2", {"RANK": "5", "WORLD_SIZE": "8"}) == Shard(0, 2)  # a flag is more than the environment
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ShardError) as error:
            Shard.parse(wrong, {})
        assert str(error.value).startswith(f"invalid shard '{wrong}': expected i/n with 1 <= i <= n")


def extract_shard(
    shard: Shard, clips: Sequence[Clip], root: Path, output: Path, halt_at: int | None, sign: Path
) -> None:
    """In a process of its own: extract a shard, and stand still at its `halt_at`-th clip."""
    encoder = StandIn()
    encoder.before_call = lambda call: halt(sign) if call == halt_at else None
    extract_clips(clips, root, encoder, output, shard=shard)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_shard_is_started_again_and_loses_nothing(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, listed = clips
    run(Shard(), "whole.pt")
    sign, printed = tmp_path / "sign", tmp_path / "printed.txt"
    output = tmp_path / "features.pt"
    first = processes.start(tmp_path / "other.txt", extract_shard, Shard(0, 2), listed, root, output, 3, sign)
    second = processes.start(printed, extract_shard, Shard(1, 2), listed, root, output, None, sign)
    processes.wait_for(sign, first)
    first.kill()
    assert processes.end(first) == -signal.SIGKILL
    assert processes.end(second) == 0
    assert "shard 2/2: 6 clips done; the last shard writes" in printed.read_text()
    assert not output.exists()
    assert run(Shard(0, 2)) is not None
    assert "12 of 12 clips" in capsys.readouterr().out
    assert output.read_bytes() == (tmp_path / "whole.pt").read_bytes()


@pytest.mark.usefixtures("scripts_load_the_stand_in")
@pytest.mark.slow
def test_torchrun_makes_the_file_of_one_process(esc50_root: Path, tmp_path: Path) -> None:
    flags = ["--data-root", str(esc50_root), "--checkpoint", "random:0", "--device", "cpu", "--output"]
    extract_main(TASK, [*flags, str(tmp_path / "whole.pt")])
    script = Path(__file__).parents[1] / "support" / "stand_in.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = subprocess.run(
        [*launcher, script, *flags, tmp_path / "shards.pt"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("the last shard writes") + made.stdout.count("is written") == 1
    assert "10 of 10 clips" in made.stdout
    assert (tmp_path / "shards.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_wrong_shard_is_one_line() -> None:
    """Before anything is read: there is no data set here."""
    line = "error: invalid shard '9/8': expected i/n with 1 <= i <= n, such as --shard 3/8"
    assert call(partial(extract_main, TASK), "--shard", "9/8").stderr.splitlines() == [line]
