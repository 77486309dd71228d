"""Extraction in parts: together they make the very file that one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT_ROOT, write_wav

from common.extraction.extract import extract
from common.extraction.shards import Shard
from common.features import FeatureSet
from common.files import OutputError, exclusive
from demo import generate

SCRIPT = PROJECT_ROOT / "key_word_spotting" / "extract_spc_features_audiosep_v1.py"


@pytest.fixture
def run(clips, encoder, tmp_path):
    """Extract a part of the fixture's clips; keyword arguments replace what is given to `extract`."""
    root, listed = clips

    def run(shard: Shard, name: str = "features.pt", **options) -> FeatureSet | None:
        arguments = {"clips": listed, "root": root, "encoder": encoder, "output": tmp_path / name, "dataset": "test"}
        return extract(**{**arguments, "shard": shard, **options})

    return run


@pytest.mark.parametrize("count", [2, 3, 12, 20])
def test_the_parts_make_the_file_of_one_process(run, tmp_path, count: int) -> None:
    run(Shard(), "whole.pt")
    made = [run(Shard(index, count)) for index in reversed(range(count))]
    assert [features is None for features in made] == [True] * (count - 1) + [False]
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not (tmp_path / "features.pt.partial").exists()


def test_every_clip_has_one_part_and_the_longest_come_first(tmp_path) -> None:
    seconds = [0.1 * (1 + (7 * place) % 40) for place in range(40)]
    parts = [Shard(index, 3).own(seconds) for index in range(3)]
    assert sorted(index for part in parts for index in part) == list(range(40))
    for part in parts:
        lengths = [seconds[index] for index in part]
        assert lengths == sorted(lengths, reverse=True)
    loads = [sum(seconds[index] for index in part) for part in parts]
    assert max(loads) - min(loads) < 0.3  # the shortest clips even it out


def test_parts_of_other_settings_are_refused(run, encoder) -> None:
    run(Shard(0, 2))
    with pytest.raises(OutputError, match="pool was mean, now std"):
        run(Shard(1, 2), pool="std")
    assert run(Shard(1, 2)) is not None


def test_a_part_twice_at_once_and_another_division_are_refused(run, tmp_path) -> None:
    partial = tmp_path / "features.pt.partial"
    with exclusive(partial / "lock-0-of-2", "something"):
        with pytest.raises(OutputError, match="another run is writing shard 1/2"):
            run(Shard(0, 2))
        with pytest.raises(OutputError, match=r"in 2 part\(s\)"):
            run(Shard(0, 3))
        with pytest.raises(OutputError, match=r"in 2 part\(s\)"):
            run(Shard())
        assert run(Shard(1, 2)) is None
    assert run(Shard(0, 2)) is not None


def test_one_process_goes_on_with_what_the_parts_have_done(run, tmp_path, encoder, monkeypatch) -> None:
    run(Shard(), "whole.pt")
    run(Shard(1, 3))
    calls = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda *arguments: calls.append(arguments) or embed(*arguments))
    assert run(Shard()) is not None
    assert len(calls) == 8  # of 12 clips, a third was done
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_clips_that_fail_are_named_whoever_had_them(run, clips, tmp_path) -> None:
    _, listed = clips
    for place in (0, 7):
        listed[place].path.write_bytes(b"no audio")
    assert run(Shard(0, 2)) is None
    features = run(Shard(1, 2))
    assert len(features) == 10
    assert {clip_id for clip_id, _ in features.meta["failed"]} == {
        listed[0].clip_id(clips[0]),
        listed[7].clip_id(clips[0]),
    }
    assert (tmp_path / "features.pt.failed.csv").read_text().count("\n") == 3


def test_audio_that_changes_before_the_end_is_noticed(run, clips) -> None:
    _, listed = clips
    run(Shard(0, 2))
    longest = max(listed, key=lambda clip: clip.path.stat().st_size)  # the first part's first
    write_wav(longest.path, seed=99, seconds=0.2)
    with pytest.raises(OutputError, match="1 clips that a shard had done"):
        run(Shard(1, 2))
    assert run(Shard(0, 2)) is not None


def test_a_file_that_is_gone_moves_no_other_clip(run, clips) -> None:
    _, listed = clips
    run(Shard(0, 2))
    # As on a machine that lacks it; of the second part, which has the second longest.
    sorted(listed, key=lambda clip: -clip.path.stat().st_size)[1].path.unlink()
    features = run(Shard(1, 2))
    assert len(features) == 11
    assert len(features.meta["failed"]) == 1


def test_rows_of_other_settings_are_not_mixed_in(run, tmp_path, encoder) -> None:
    """One part is still at work when another begins anew with other settings."""
    run(Shard(), "whole.pt", pool="std")
    partial = tmp_path / "features.pt.partial"
    run(Shard(0, 2))
    old = {file.name: file.read_bytes() for file in partial.glob("*") if file.name.startswith(("chunk", "done"))}
    assert run(Shard(1, 2), pool="std", overwrite=True) is None  # not done: the other part's note was of other settings
    for name, content in old.items():  # what the old part writes at its end, all unaware
        (partial / name).write_bytes(content)
    assert run(Shard(1, 2), pool="std") is None
    assert run(Shard(0, 2), pool="std") is not None
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_what_names_a_part() -> None:
    assert Shard.of("3/8", {}) == Shard(2, 8)
    assert Shard.of(None, {}) == Shard(0, 1)
    assert Shard.of(None, {"RANK": "5", "WORLD_SIZE": "8"}) == Shard(5, 8)
    assert Shard.of("1/2", {"RANK": "5", "WORLD_SIZE": "8"}) == Shard(0, 2)  # a flag is more than the environment
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ValueError, match="give i/n"):
            Shard.of(wrong, {})


def flags(tmp_path: Path, output: str) -> list[str]:
    where = ["--data-root", tmp_path / "speech_commands_v0.01", "--output", tmp_path / output]
    return [*map(str, where), "--checkpoint", "random:0", "--device", "cpu"]


def test_a_killed_part_is_started_again_and_loses_nothing(tmp_path) -> None:
    generate.generate_speech_commands(tmp_path / "speech_commands_v0.01", speakers=4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(
        [sys.executable, SCRIPT, *flags(tmp_path, "whole.pt")], env=environment, check=True, capture_output=True
    )
    assert b"40 of 40 clips" in whole.stdout
    command = [sys.executable, SCRIPT, *flags(tmp_path, "parts.pt")]
    first = subprocess.Popen([*command, "--shard", "1/2"], env=environment, stdout=subprocess.PIPE)
    second = subprocess.Popen([*command, "--shard", "2/2"], env=environment, stdout=subprocess.PIPE)
    while not list(tmp_path.glob("parts.pt.partial/lock-0-of-2")):
        time.sleep(0.01)
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    said, _ = second.communicate(timeout=120)
    assert b"the last shard to be done writes" in said
    assert not (tmp_path / "parts.pt").exists()
    again = subprocess.run([*command, "--shard", "1/2"], env=environment, check=True, capture_output=True)
    assert b"40 of 40 clips" in again.stdout
    assert (tmp_path / "parts.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_torchrun_makes_the_file_of_one_process(tmp_path) -> None:
    generate.generate_speech_commands(tmp_path / "speech_commands_v0.01", speakers=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, SCRIPT, *flags(tmp_path, "whole.pt")], env=environment, check=True, capture_output=True
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(SCRIPT)]
    made = subprocess.run(
        [*launcher, *flags(tmp_path, "parts.pt")], env=environment, check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("the last shard to be done writes") + made.stdout.count("is written") == 2
    assert (tmp_path / "parts.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_shard_that_is_none_is_one_line(tmp_path) -> None:
    result = subprocess.run([sys.executable, SCRIPT, "--shard", "9/8"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--shard '9/8' is none; give i/n" in result.stderr
