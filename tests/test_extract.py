"""Extraction: nothing lost, nothing stale, nothing silent."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, write_wav

from common import decode as decode_module
from common import extract as extract_module
from common import files as files_module
from common import partial as partial_module
from common.datasets import Clip, DatasetError
from common.datasets.audio import read_audio
from common.encoder import load_encoder
from common.encoder.logmel import LogMelStatistics
from common.extraction.extract import ExtractionError, extract
from common.features import FeatureSet
from common.files import OutputError, exclusive


@pytest.fixture
def run(clips, encoder, tmp_path):
    """Extract the fixture's clips; keyword arguments replace what is given to `extract`."""
    root, listed = clips

    def run(**options) -> FeatureSet:
        arguments = {"clips": listed, "root": root, "encoder": encoder, "output": tmp_path / "features.pt"}
        return extract(**{**arguments, "dataset": "test", **options})

    return run


def test_rows_are_the_clips_embeddings_in_order(run, clips, encoder) -> None:
    _, listed = clips
    features = run()
    expected = encoder.embed([soundfile.read(clip.path, dtype="float32")[0] for clip in listed])
    assert torch.equal(features.features, expected)
    assert [features.class_names[label] for label in features.labels] == [clip.class_name for clip in listed]
    assert features.folds.tolist() == [clip.fold for clip in listed]
    assert features.groups == [clip.group for clip in listed]
    assert features.splits is None
    assert features.clip_ids[0] == "fold1/clip00.wav"


def test_the_record_of_the_run(run, encoder) -> None:
    meta = run(layer="encoder_block3", pool="std").meta
    assert (meta["dataset"], meta["checkpoint"], meta["release"]) == ("test", "random:2024", "untrained")
    assert (meta["layer"], meta["pool"], meta["condition"], meta["precision"]) == (
        "encoder_block3",
        "std",
        "none",
        "fp32",
    )
    assert (meta["sample_rate"], meta["clips"], meta["failed"]) == (32_000, 12, [])
    assert meta["counts"] == {"clips": 12, "extracted": 12, "failed": 0}
    assert {"python", "torch", "soundfile", "libsndfile"} <= set(meta["versions"])


def test_only_classes_that_occur_are_kept_in_the_given_order(run) -> None:
    features = run(class_order=["z", "c", "b", "a"])
    assert features.class_names == ["c", "b", "a"]
    assert features.labels.unique().tolist() == [0, 1, 2]


def test_calls_of_several_clips_give_the_same_file(run, clips, encoder, tmp_path, monkeypatch) -> None:
    """As on a GPU, where a call of the encoder takes many seconds of audio."""
    _, listed = clips
    listed[4].path.write_bytes(b"no audio")
    expected = run(output=tmp_path / "one_by_one.pt")
    monkeypatch.setitem(extract_module.CALL_S, "cpu", 1.5)
    sizes, embed = [], encoder.embed

    def counting(waveforms, *others):
        sizes.append(len(waveforms))
        return embed(waveforms, *others)

    monkeypatch.setattr(encoder, "embed", counting)
    together = run(output=tmp_path / "together.pt")
    assert sum(sizes) == 11 and 1 < len(sizes) < 11
    assert torch.equal(together.features, expected.features)
    assert (together.clip_ids, together.meta["failed"]) == (expected.clip_ids, expected.meta["failed"])


def test_only_a_few_waveforms_are_in_memory_at_a_time(tmp_path, monkeypatch) -> None:
    write_wav(tmp_path / "sound.wav", seconds=0.05)
    listed = [Clip(tmp_path / "sound.wav", "a", start_s=0.0, end_s=0.01 + number * 1e-4) for number in range(200)]
    alive, most = weakref.WeakSet(), 0

    class Waveform(np.ndarray):  # an array that a set can hold
        __hash__ = object.__hash__

    def reading(*arguments):
        nonlocal most
        waveform = read_audio(*arguments).view(Waveform)
        alive.add(waveform)
        most = max(most, len(alive))
        return waveform

    class NoEncoder(LogMelStatistics):
        def embed(self, waveforms, layer="", pool=""):
            return torch.zeros(len(waveforms), self.embedding_size)

    monkeypatch.setattr(decode_module, "read_audio", reading)
    extract(listed, tmp_path, NoEncoder(), tmp_path / "features.pt", dataset="test", workers=2, layer="logmel")
    assert 2 < most <= 10


def test_segments_of_one_file_are_clips_of_their_own(run, tmp_path, encoder) -> None:
    path = write_wav(tmp_path / "long.wav", seconds=2)
    listed = [Clip(path, "a", start_s=0.0, end_s=0.5), Clip(path, "b", start_s=0.5, end_s=1.5)]
    features = run(clips=listed, root=tmp_path)
    assert features.clip_ids == ["long.wav#0.0-0.5", "long.wav#0.5-1.5"]
    samples = soundfile.read(path, dtype="float32")[0]
    assert torch.equal(features.features, encoder.embed([samples[:16_000], samples[16_000:48_000]]))


def interrupt_before_the_end(run, monkeypatch) -> None:
    """Stop a run when every row is computed and saved, but not yet put together."""

    def stop(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "_assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            run()


# Nothing lost


def test_an_interrupted_run_keeps_its_work_and_resumes_to_the_same_file(run, tmp_path, encoder, monkeypatch) -> None:
    run(output=tmp_path / "whole.pt")
    embed, calls = type(encoder).embed, []

    def stops_after_five(self, *arguments):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return embed(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(encoder), "embed", stops_after_five)
        with pytest.raises(KeyboardInterrupt, match="5 of 12 clips are kept"):
            run()
    assert not (tmp_path / "features.pt").exists()
    calls.clear()
    monkeypatch.setattr(type(encoder), "embed", lambda self, *arguments: calls.append(1) or embed(self, *arguments))
    run()
    assert len(calls) == 7
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not (tmp_path / "features.pt.partial").exists()


SCRIPT = """
import sys
from pathlib import Path
from common import extract as module
from common.datasets import Clip
from common.encoder import load_encoder
root, output = map(Path, sys.argv[1:3])
module.SAVE_EVERY_S = 0.1
clips = [Clip(path, path.stem[:1]) for path in sorted(root.glob("*.wav"))]
module.extract(clips, root, load_encoder("random:1", "cpu"), output, dataset="test")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_any_moment_it_resumes_to_the_same_file(tmp_path) -> None:
    root = tmp_path / "audio"
    for index in range(40):
        write_wav(root / f"{'ab'[index % 2]}{index:02d}.wav", index, 0.5)
    (root / "a_broken.wav").write_text("no audio")
    command = [sys.executable, "-c", SCRIPT, root]
    subprocess.run([*command, tmp_path / "whole.pt"], check=True, capture_output=True)
    output = tmp_path / "killed.pt"
    kills = 0
    for delay_s in (0.15, 0.4, 0.7):
        process = subprocess.Popen([*command, output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Counted from the first sign of work: start-up takes seconds and would take most of the kills.
        while not (tmp_path / "killed.pt.partial" / "settings.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    subprocess.run([*command, output], check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_two_runs_on_one_output_are_refused(run, tmp_path) -> None:
    with (
        exclusive(tmp_path / "features.pt.partial" / "lock-0-of-1", "it"),
        pytest.raises(OutputError, match="another run"),
    ):
        run()
    assert len(run()) == 12


def test_a_full_disk_ends_in_one_line_with_the_work_kept(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(extract_module, "SAVE_EVERY_S", 0)
    save, chunks = files_module.save_torch, []

    def full_after_three_chunks(content, path):
        if len(chunks) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        chunks.append(path)
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(partial_module, "save_torch", full_after_three_chunks)
        with pytest.raises(OutputError, match=r"No space left on device; 3 of 12 clips are kept"):
            run()
    assert len(run()) == 12


# Nothing stale


def test_a_finished_file_with_the_same_settings_returns_at_once(run, encoder, monkeypatch, capsys) -> None:
    first = run()
    monkeypatch.setattr(type(encoder), "embed", None)  # not called again
    assert torch.equal(run().features, first.features)
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"layer": "encoder_block5"}, "layer was encoder_block6, now encoder_block5"),
        ({"pool": "max"}, "pool was mean, now max"),
        ({"encoder": "random:3"}, "checkpoint was random:2024, now random:3"),
        ({"encoder": ("random:2024", "zero")}, "condition was none, now zero"),
        ({"dataset": "other"}, "dataset was test, now other"),
        ({"clips": -1}, "clips was 12, now 11"),
        ({"clips": "relabelled"}, "clip_list was sha256:"),
    ],
)
def test_other_settings_are_refused_with_the_difference(run, clips, change, difference, tmp_path) -> None:
    run()
    before = (tmp_path / "features.pt").read_bytes()
    if "encoder" in change:
        names = [change["encoder"]] if isinstance(change["encoder"], str) else change["encoder"]
        change = {"encoder": load_encoder(names[0], "cpu", condition=names[1] if len(names) > 1 else None)}
    if change.get("clips") == -1:
        change = {"clips": clips[1][:-1]}
    elif change.get("clips") == "relabelled":
        change = {"clips": [replace(clips[1][0], class_name="b"), *clips[1][1:]]}
    with pytest.raises(OutputError) as error:
        run(**change)
    assert difference in str(error.value)
    assert "--overwrite" in str(error.value)
    assert (tmp_path / "features.pt").read_bytes() == before
    run(**change, overwrite=True)
    assert (tmp_path / "features.pt").read_bytes() != before


def test_changed_audio_is_noticed(run, clips) -> None:
    run()
    write_wav(clips[1][3].path, seed=99, seconds=0.5)
    with pytest.raises(OutputError, match=r"made of other audio \(1 files have changed, such as .*clip03"):
        run()
    assert run(overwrite=True).meta["samples"][3] == 16_000


def test_a_changed_clip_does_not_cost_the_rows_that_were_saved_with_it(
    run, clips, encoder, monkeypatch, capsys
) -> None:
    interrupt_before_the_end(run, monkeypatch)
    write_wav(clips[1][0].path, seed=99, seconds=0.5)  # the first row of the only chunk
    interrupt_before_the_end(run, monkeypatch)
    monkeypatch.setattr(type(encoder), "embed", None)  # not called again, but for no clips
    monkeypatch.setattr(extract_module, "_compute", lambda *_: None)
    capsys.readouterr()
    assert len(run()) == 12
    assert "going on: 12 of 12 clips" in capsys.readouterr().out


def test_other_audio_of_the_same_size_is_noticed(run, clips) -> None:
    run()
    for clip in clips[1]:
        size = clip.path.stat().st_size
        write_wav(clip.path, seed=500, seconds=(size - 44) / 64_000)
        assert clip.path.stat().st_size == size
    with pytest.raises(OutputError, match="12 files have changed"):
        run()


def test_audio_that_changes_between_two_parts_of_a_run(run, clips, tmp_path, monkeypatch) -> None:
    interrupt_before_the_end(run, monkeypatch)
    write_wav(clips[1][3].path, seed=99, seconds=0.5)
    run()
    run(output=tmp_path / "fresh.pt")
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "fresh.pt").read_bytes()


def test_a_damaged_output_and_a_folder(run, tmp_path) -> None:
    (tmp_path / "features.pt").write_bytes(b"")
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        run()
    assert len(run(overwrite=True)) == 12
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        run(output=tmp_path / "folder.pt", overwrite=True)


def test_damaged_unfinished_work(run, tmp_path) -> None:
    partial = tmp_path / "features.pt.partial"
    partial.mkdir()
    (partial / "settings.json").write_text("{")
    with pytest.raises(OutputError, match="settings cannot be read"):
        run()
    assert len(run(overwrite=True)) == 12
    assert not partial.exists()


def test_a_damaged_chunk_is_computed_again(run, tmp_path, monkeypatch, capsys) -> None:
    interrupt_before_the_end(run, monkeypatch)
    for chunk in (tmp_path / "features.pt.partial").glob("chunk-*.pt"):
        chunk.write_bytes(b"damaged")
    assert len(run()) == 12
    assert "its clips are computed again" in capsys.readouterr().out


def test_leftovers_of_killed_writes_are_removed(run, tmp_path) -> None:
    (tmp_path / ".features.pt.abc.tmp").touch()
    run()
    assert not list(tmp_path.glob(".*"))


def test_a_file_without_provenance_is_not_overwritten(run, tmp_path) -> None:
    torch.save({"features": torch.ones(2, 384), "labels": torch.tensor([0, 1])}, tmp_path / "features.pt")
    with pytest.raises(OutputError, match="not made by this project"):
        run()


def test_unfinished_work_of_other_settings_is_refused(run, tmp_path, encoder, monkeypatch) -> None:
    interrupt_before_the_end(run, monkeypatch)
    with pytest.raises(OutputError, match=r"unfinished work of other settings \(pool was mean, now max"):
        run(pool="max")
    features = run(pool="max", overwrite=True)
    assert features.meta["pool"] == "max"
    fresh = run(pool="max", output=tmp_path / "fresh.pt")
    assert torch.equal(features.features, fresh.features)


# Nothing silent


def test_unreadable_clips_are_named_counted_and_left_out(run, clips, tmp_path, capsys) -> None:
    _, listed = clips
    listed[2].path.write_bytes(b"")
    listed[7].path.unlink()
    features = run()
    assert len(features) == 10
    assert features.meta["counts"] == {"clips": 12, "extracted": 10, "failed": 2}
    assert [name for name, _ in features.meta["failed"]] == ["fold1/clip02.wav", "fold2/clip07.wav"]
    with (tmp_path / "features.pt.failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip_id"] for row in rows] == ["fold1/clip02.wav", "fold2/clip07.wav"]
    assert "empty file" in rows[0]["reason"]
    assert "not found" in rows[1]["reason"]
    printed = capsys.readouterr()
    assert "10 of 12 clips, 2 failed" in printed.out
    assert str(listed[2].path) in printed.err


def test_failed_clips_are_tried_again(run, clips, tmp_path) -> None:
    _, listed = clips
    content = listed[2].path.read_bytes()
    listed[2].path.write_bytes(b"")
    partial = run()
    assert len(run()) == 11  # still broken
    listed[2].path.write_bytes(content)
    mended = run()
    assert len(mended) == 12
    assert not (tmp_path / "features.pt.failed.csv").exists()
    assert torch.equal(mended.features[3:], partial.features[2:])
    run(output=tmp_path / "fresh.pt")
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "fresh.pt").read_bytes()


def test_failed_clips_are_tried_again_when_a_run_goes_on(run, clips, tmp_path, monkeypatch) -> None:
    content = clips[1][2].path.read_bytes()
    clips[1][2].path.write_bytes(b"")
    interrupt_before_the_end(run, monkeypatch)
    clips[1][2].path.write_bytes(content)
    assert len(run()) == 12


def test_failed_clips_are_not_tried_on_another_kind_of_device(run, clips, tmp_path, capsys) -> None:
    clips[1][2].path.write_bytes(b"")
    features = run()
    features.meta["device"] = "cuda"
    features.save(tmp_path / "features.pt")
    assert len(run()) == 11
    assert "not tried again on another device" in capsys.readouterr().out


def test_a_header_with_an_absurd_rate_fails_alone(run, clips) -> None:
    content = bytearray(clips[1][2].path.read_bytes())
    content[24:28] = (1).to_bytes(4, "little")
    clips[1][2].path.write_bytes(content)
    features = run()
    assert len(features) == 11
    assert "claims 1 samples a second" in features.meta["failed"][0][1]


def test_an_embedding_that_overflows_is_a_failure(run, clips) -> None:
    _, listed = clips
    soundfile.write(listed[4].path, noise(0, 12_000) * 1e37, 32_000, subtype="FLOAT")
    assert "overflows" in run().meta["failed"][0][1]


def test_if_every_clip_fails_nothing_is_saved(run, clips, tmp_path) -> None:
    root, _ = clips
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(ExtractionError, match="all 12 clips failed"):
        run()
    assert not (tmp_path / "features.pt").exists()
    assert len((tmp_path / "features.pt.failed.csv").read_text().splitlines()) == 13
    (tmp_path / "elsewhere").rename(root)
    assert len(run()) == 12


def test_a_clip_listed_twice(run, clips) -> None:
    _, listed = clips
    with pytest.raises(DatasetError, match="twice"):
        run(clips=[*listed, listed[0]])


def test_a_disk_that_fills_at_the_last_write(run, tmp_path, monkeypatch) -> None:
    def full(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(FeatureSet, "save", full)
        with pytest.raises(OutputError, match=r"features\.pt: No space left on device; 12 of 12 clips are kept"):
            run()
    assert len(run()) == 12


def test_a_read_only_folder(run, tmp_path, monkeypatch) -> None:
    def refuse(self, *_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError):
        run()


def test_chunks_and_settings_are_readable_files(run, tmp_path, monkeypatch) -> None:
    """Whoever finds a .partial folder can see what it is."""
    interrupt_before_the_end(run, monkeypatch)
    partial = tmp_path / "features.pt.partial"
    assert json.loads((partial / "settings.json").read_text())["checkpoint"] == "random:2024"
    chunks = [torch.load(path, weights_only=True) for path in partial.glob("chunk-*.pt")]
    assert sorted(index for chunk in chunks for index in chunk["indices"].tolist()) == list(range(12))
