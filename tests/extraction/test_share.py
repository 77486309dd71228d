"""Extraction by several processes: together they make the very file that one process makes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest
import torch

from common import parts as parts_module
from common.cli import extract_main
from common.config import ConfigError
from common.datasets import Clip
from common.encoder import Output
from common.extraction import ClipList, ExtractOptions, Share, Threads, extract
from common.extraction.claims import Claims, alive_claims
from common.extraction.launchers import OnDevices
from common.extraction.work import cut
from common.feature_formats import checksum_of_features
from common.features import FeatureFileError, FeatureSet
from common.files import OutputError, exclusive
from common.parts import file_name, part_files
from esc50_feature_fc.esc50 import TASK
from tests.support import processes
from tests.support.samples import extract_clips, write_wav
from tests.support.scripts import call, refused
from tests.support.stand_in import StandIn, halt


class Run(Protocol):
    """Extract a shard of the fixture's clips; keyword arguments replace what is given to `extract_clips`."""

    def __call__(self, share: Share, name: str = "features.pt", **options: Any) -> FeatureSet | None: ...


@pytest.fixture
def run(clips: tuple[Path, list[Clip]], stand_in: StandIn, tmp_path: Path) -> Run:
    root, listed = clips

    def run(share: Share, name: str = "features.pt", **options: Any) -> FeatureSet | None:
        given = {"clips": listed, "root": root, "encoder": stand_in, "output": tmp_path / name, **options}
        return extract_clips(**given, share=share)

    return run


def share_of(parts: int) -> list[list[int]]:
    return [list(Share(index, 3).assigned(range(parts))) for index in range(3)]


def test_every_part_has_one_share_and_everyone_looks_at_all() -> None:
    assert sorted(number for own in share_of(20) for number in own) == list(range(20))
    for share in (Share(), Share(1, 3), Share(6, 7), Share(0, 0), Share(3, 0), Share(11, 0)):
        order = share.order(range(20))
        assert sorted(order) == list(range(20))
        assert not share.count or order[: 20 // share.count] == list(share.assigned(range(20)))[: 20 // share.count]
    assert len({Share(index, 0).order(range(100))[0] for index in range(8)}) == 8  # far apart


def test_parts_are_bounded_in_clips_and_in_audio() -> None:
    """A clip that changes moves no borders but those of its slot."""
    lengths = np.full(200, 5.0)
    assert list(cut(lengths, 64, 600.0)) == [range(0, 64), range(64, 128), range(128, 192), range(192, 200)]
    lengths[70:74] = 3600.0
    parts = list(cut(lengths, 64, 600.0))
    assert {range(0, 64), range(128, 192), range(192, 200)} < set(parts)
    assert all(lengths[part.start : part.stop].sum() <= 600 or len(part) == 1 for part in parts)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(200))


def test_there_are_never_more_than_some_thousands_of_parts() -> None:
    lengths = np.random.default_rng(0).uniform(1, 30, 1_000_000)
    assert len(list(cut(lengths, -(-len(lengths) // 4096), 600.0))) < 10_000


def test_shares_of_other_settings_are_refused(run: Run, tmp_path: Path) -> None:
    """By the parts that are made, and before by the claim of the process at work."""
    folder = tmp_path / "features.pt.partial"
    folder.mkdir()
    with Claims(folder, "another") as claims:
        assert claims.take("part-000000000-000000002.parquet")
        with pytest.raises(OutputError, match=r"process \d+ on .* is writing .* with different settings"):
            run(Share(0, 2), part_size=2)
    assert run(Share(0, 2), part_size=2) is not None


def test_a_share_twice_at_once_is_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "features.pt.partial"
    with exclusive(folder / ".lock-1-of-2", "something"):
        with pytest.raises(OutputError, match="another run is writing shard 1/2"):
            run(Share(0, 2))
        assert run(Share(1, 2)) is not None


def test_a_claim_of_a_process_that_ended_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "part.claim"
    path.write_text(json.dumps({"identity": "same", "host": platform.node(), "process": 2**22 + 1}))
    with Claims(tmp_path, "same") as claims:
        assert claims.take("part")
        path.write_text(json.dumps({"identity": "same", "host": "another", "process": 1}))
        assert not claims.take("part") and alive_claims(tmp_path) == [path]
        claims.release("part")
        path.write_text(json.dumps({"identity": "same", "host": "another", "process": 1}))
        assert not claims.take("part") and alive_claims(tmp_path) == [path]
        os.utime(path, (0, 0))  # not renewed for long
        assert claims.take("part")
    assert not path.exists()


@pytest.mark.parametrize("count", [2, 3])
def test_shares_at_the_same_time_make_the_file_of_one_process(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, count: int
) -> None:
    root, listed = clips
    run(Share(), "whole.pt")
    output, sign = tmp_path / "features.pt", tmp_path / "sign"
    started = [
        processes.start(tmp_path / f"{index}.txt", extract_share, Share(index, count), listed, root, output, None, sign)
        for index in range(count)
    ]
    assert [processes.end(process) for process in started] == [0] * count
    printed = [(tmp_path / f"{index}.txt").read_text() for index in range(count)]
    assert sum("12 of 12 clips, " in text for text in printed) == 1
    assert output.read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not (tmp_path / "features.pt.partial").exists()


def test_whoever_finishes_early_takes_what_nobody_has_begun(run: Run, tmp_path: Path) -> None:
    run(Share(), "whole.pt")
    assert run(Share(2, 3), part_size=2) is not None
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_share_is_named_by_a_flag_or_a_launcher() -> None:
    assert Share.parse("3/8", {}) == Share(2, 8, "--shard")
    assert Share.parse(None, {}) == Share(0, 1)
    assert Share.parse(None, {"RANK": "5", "WORLD_SIZE": "8"}) == Share(5, 8, "torchrun")
    assert Share.parse("1/2", {"RANK": "5", "WORLD_SIZE": "8"}) == Share(
        0, 2, "--shard"
    )  # a flag is more than the environment
    array = {
        f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in {"MIN": 2, "MAX": 8, "STEP": 2, "COUNT": 4}.items()
    }
    share = Share.parse(None, {**array, "SLURM_ARRAY_TASK_ID": "6"})
    assert (share.index, share.count) == (2, 4)
    gaps = {**array, "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_ID": "7"}
    assert Share.parse(None, gaps).count == 0
    assert Share.parse(None, {"SLURM_ARRAY_TASK_ID": "3"}).count == 0  # a container is handed no more
    share = Share.parse(None, {"JOB_COMPLETION_INDEX": "3"})
    assert (share.index, share.count) == (3, 0)
    for wrong in ("0/4", "5/4", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ConfigError) as error:
            Share.parse(wrong, {})
        assert str(error.value).startswith(f"invalid shard '{wrong}': expected i/n with 1 <= i <= n")


def extract_share(
    share: Share, clips: Sequence[Clip], root: Path, output: Path, halt_at: int | None, sign: Path
) -> None:
    """In a process of its own: extract a share, and stand still at its `halt_at`-th clip."""
    encoder = StandIn()
    encoder.before_call = lambda call: halt(sign) if call == halt_at else None
    extract_clips(clips, root, encoder, output, share=share, part_size=2)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_process_had_begun_is_taken_over(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    root, listed = clips
    run(Share(), "whole.pt")
    sign, output = tmp_path / "sign", tmp_path / "features.pt"
    first = processes.start(tmp_path / "first.txt", extract_share, Share(0, 2), listed, root, output, 3, sign)
    processes.wait_for(sign, first)
    second = processes.start(tmp_path / "second.txt", extract_share, Share(1, 2), listed, root, output, None, sign)
    deadline = time.monotonic() + 60
    while len(part_files(tmp_path / "features.pt.partial")) < 2:  # the others are claimed, and decoded ahead
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert second.is_alive()
    first.kill()
    assert processes.end(first) == -signal.SIGKILL
    assert processes.end(second) == 0
    assert "12 of 12 clips" in (tmp_path / "second.txt").read_text()
    assert output.read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_clip_list_that_changed_says_what_is_still_good(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, stand_in: StandIn
) -> None:
    _, listed = clips
    changed = [*listed[:3], replace(listed[3], labels=("b",)), *listed[4:]]
    run(Share(), "whole/", clips=changed, part_size=4)
    run(Share(), "parts/", part_size=4)
    with pytest.raises(OutputError, match="a different clip list: 2 of 3 are still good; --overwrite keeps those"):
        run(Share(), "parts/", clips=changed, part_size=4)
    stand_in.batch_sizes.clear()
    run(Share(), "parts/", clips=changed, part_size=4, overwrite=True)
    assert stand_in.batch_sizes == [1] * 4
    for path in part_files(tmp_path / "whole").values():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_of_parts_is_the_feature_set(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips[1][4].path.write_bytes(b"no audio")
    whole = run(Share(), "whole.pt")
    parts = run(Share(), "parts", part_size=5)
    assert whole is not None and parts is not None
    monkeypatch.setattr(parts_module, "IN_MEMORY", 5)
    mapped = FeatureSet.load(tmp_path / "parts.pt")  # as the name of a file too many for one
    for features in (parts, mapped):
        assert torch.equal(features.features, whole.features) and torch.equal(features.labels, whole.labels)
        assert torch.equal(features.folds, whole.folds) and features.class_names == whole.class_names
        assert list(features.clip_ids) == whole.clip_ids and list(features.groups) == whole.groups
        assert features.meta["counts"] == whole.meta["counts"] and features.meta["failed"] == whole.meta["failed"]
        assert all(
            features.meta[key] == whole.meta[key] for key in ("checkpoint", "layer", "pool", "encoder", "dataset")
        )
    (flat,) = (tmp_path / "parts").glob("*.f32")
    assert flat.stat().st_size == whole.features.numel() * 4
    assert len(FeatureSet.load(tmp_path / "parts")) == 11


def test_a_folder_without_some_of_its_parts_is_refused(run: Run, tmp_path: Path) -> None:
    run(Share(), "parts", part_size=5)
    first, _, last = part_files(tmp_path / "parts").values()
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(FeatureFileError, match="clips 10 to 12 are in no part yet"):
        FeatureSet.load(tmp_path / "parts")
    last.write_bytes(content[:-100])
    with pytest.raises(FeatureFileError, match="the same extraction again makes what is missing"):
        FeatureSet.load(tmp_path / "parts")
    assert len(run(Share(), "parts", part_size=5)) == 12
    first.unlink()
    with pytest.raises(FeatureFileError, match="clips 0 to 5 are in no part"):
        FeatureSet.load(tmp_path / "parts")


def test_a_folder_with_other_files_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(OutputError, match=r"holds files that are not parts, such as chapter.tex; give an empty folder"):
        run(Share(), "thesis")


def test_other_programs_read_the_parts(run: Run, tmp_path: Path) -> None:
    whole = run(Share(), "whole.pt")
    run(Share(), "parts", part_size=5)
    frames = [pd.read_parquet(path) for path in part_files(tmp_path / "parts").values()]
    table = pd.concat(frames)
    assert table["clip_id"].tolist() == whole.clip_ids
    assert np.array_equal(np.stack(table["embedding"]), whole.features.numpy())
    duckdb = pytest.importorskip("duckdb")
    parts = duckdb.read_parquet(f"{tmp_path}/parts/part-*.parquet")
    rows = parts.select("clip_id", "embedding", "class_name").fetchall()
    place = {clip_id: row for row, clip_id in enumerate(whole.clip_ids)}
    assert len(rows) == 12
    for clip_id, embedding, class_name in rows:
        assert np.array_equal(np.float32(embedding), whole.features[place[clip_id]].numpy())
        assert class_name == whole.class_names[whole.labels[place[clip_id]]]
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(tmp_path / "parts" / "part-*.parquet")
    assert np.array_equal(frame["embedding"].to_numpy(), whole.features.numpy())


@pytest.mark.usefixtures("scripts_load_the_stand_in")
@pytest.mark.slow
def test_torchrun_makes_the_file_of_one_process(esc50_root: Path, tmp_path: Path) -> None:
    flags = ["--data-root", str(esc50_root), "--checkpoint", "random:0", "--device", "cpu", "--output"]
    extract_main(TASK, [*flags, str(tmp_path / "whole.pt")])
    script = Path(__file__).parents[1] / "support" / "stand_in.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = subprocess.run(
        [*launcher, script, *flags, tmp_path / "shards.pt"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },  # a package has tests too
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("another process writes") + made.stdout.count("Nothing to do") == 1
    assert "10 of 10 clips" in made.stdout
    assert (tmp_path / "shards.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_wrong_shard_is_one_line() -> None:
    """Before anything is read: there is no data set here."""
    line = "error: invalid shard '9/8': expected i/n with 1 <= i <= n, such as --shard 3/8"
    assert call(partial(extract_main, TASK), "--shard", "9/8").stderr.splitlines() == [line]


def load_stand_in_on(device: torch.device) -> tuple[StandIn, list[Output]]:
    """As a launcher loads an encoder in another process."""
    encoder = StandIn()
    return encoder, [encoder.default_output]


def test_a_process_for_each_device_makes_the_file_of_one(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    root, listed = clips
    run(Share(), "whole.pt")
    encoder, outputs = load_stand_in_on(torch.device("cpu"))
    maker = OnDevices(encoder, outputs, Threads(1, 1), load_stand_in_on, [torch.device("cpu")])
    options = ExtractOptions(part_size=2)
    assert extract(maker, ClipList(listed, root, "test"), tmp_path / "features.pt", options)
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_the_processes_of_other_devices_look_for_changed_audio_to_the_end(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    """Every part is there from the start, and the one to be made again is not of the first process's share."""
    root, listed = clips
    run(Share(), "parts", part_size=2)
    write_wav(listed[3].path, seed=99, seconds=0.5)
    encoder, outputs = load_stand_in_on(torch.device("cpu"))
    maker = OnDevices(encoder, outputs, Threads(1, 1), load_stand_in_on, [torch.device("cpu")])
    assert extract(maker, ClipList(listed, root, "test"), tmp_path / "parts", ExtractOptions(part_size=2))
    assert FeatureSet.load(tmp_path / "parts").meta["samples"][3] == 16_000


def test_a_ray_cluster_that_does_not_answer_is_one_line(esc50_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    flags = ["--data-root", esc50_root, "--checkpoint", "random:0", "--output", tmp_path / "f.pt"]
    line = refused(call(partial(extract_main, TASK), *flags, "--ray", "127.0.0.1:9"))
    assert "--ray 127.0.0.1:9: nothing answers there (Connection refused)" in line
    assert "--ray divides the work" in refused(call(partial(extract_main, TASK), *flags, "--ray", "--shard", "1/2"))


def test_how_far_an_extraction_is(run: Run, tmp_path: Path, esc50_root: Path, capsys: pytest.CaptureFixture) -> None:
    def status() -> dict[str, Any]:
        flags = ["--data-root", esc50_root, "--output", tmp_path / "parts", "--status", "--json"]
        return json.loads(call(partial(extract_main, TASK), *flags).stdout)

    assert (status()["clips"], status()["is_finished"]) == (None, False)
    run(Share(), "parts", part_size=5)
    done = status()
    assert (done["clips"], done["clips_done"], done["parts_done"], done["is_finished"]) == (12, 12, 3, True)
    next(iter(part_files(tmp_path / "parts").values())).unlink()
    with Claims(tmp_path / "parts", "it") as claims:
        assert claims.take(file_name(range(0, 5)))
        half = status()
    assert (half["clips_done"], half["parts_in_work"], half["parts_missing"], half["is_finished"]) == (7, 1, 0, False)


def test_a_folder_of_parts_is_classified_as_its_file(run: Run, tmp_path: Path) -> None:
    """Its checksum is of what the parts hold."""
    run(Share(), "parts", part_size=5)
    run(Share(), "again", part_size=5)
    checksums = [checksum_of_features(tmp_path / name) for name in ("parts", "again", "parts.pt")]
    assert len(set(checksums)) == 1
    run(Share(), "other", part_size=5, pool="max")
    assert checksum_of_features(tmp_path / "other") not in checksums
