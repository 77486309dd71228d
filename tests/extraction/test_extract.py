"""Extraction: nothing lost, nothing stale, nothing silent."""

from __future__ import annotations

import csv
import errno
import os
import signal
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import soundfile
import torch

from common import files as files_module
from common.datasets import Clip, DatasetError, DatasetMissingError
from common.datasets.audio import _checksum, read_audio
from common.encoder import Output, Waveform
from common.extraction import ClipList, ExtractionError, ThisProcess, Threads, extract
from common.extraction import runner as runner_module
from common.extraction.runner import decode, embed_in_batches
from common.extraction.work import Failed
from common.features import FeatureSet
from common.files import OutputError, exclusive
from common.parts import Part, part_files
from tests.support import processes
from tests.support.samples import extract_clips, noise, write_wav
from tests.support.stand_in import StandIn, halt

extract_module = sys.modules[extract.__module__]  # the package has a function of the same name


class Run(Protocol):
    """Extract the fixture's clips; keyword arguments replace what is given to `extract_clips`."""

    def __call__(self, **options: Any) -> FeatureSet: ...


@pytest.fixture
def run(clips: tuple[Path, list[Clip]], stand_in: StandIn, tmp_path: Path) -> Run:
    root, listed = clips

    def run(**options: Any) -> FeatureSet:
        given = {"clips": listed, "root": root, "encoder": stand_in, "output": tmp_path / "features.pt", **options}
        features = extract_clips(**given)
        assert features is not None  # no other shard is waited for
        return features

    return run


def test_rows_are_the_clips_embeddings_in_order(run: Run, clips: tuple[Path, list[Clip]], stand_in: StandIn) -> None:
    _, listed = clips
    features = run()
    expected = stand_in.embed([soundfile.read(clip.path, dtype="float32")[0] for clip in listed])
    assert torch.equal(features.features, expected)
    assert [features.class_names[label] for label in features.labels] == [clip.class_name for clip in listed]
    assert features.folds.tolist() == [clip.fold for clip in listed]
    assert features.groups == [clip.group for clip in listed]
    assert features.splits is None
    assert features.clip_ids[0] == "fold1/clip00.wav"


def test_clips_that_make_no_task_are_refused(clips: tuple[Path, list[Clip]]) -> None:
    root, listed = clips
    with pytest.raises(DatasetError, match=r"no clips of test were found in .*--data-root"):
        ClipList([], root, "test")
    with pytest.raises(
        DatasetError, match=rf"clip00\.wav is of class '{listed[0].class_name}', which is not among the 1 classes"
    ):
        ClipList(listed, root, "test", ["another"])
    # Clips without a class are allowed: they are only embedded.
    assert len(ClipList([replace(clip, labels=()) for clip in listed], root, "test", ["another"])) == 12


def test_several_outputs_lie_side_by_side(clips: tuple[Path, list[Clip]], stand_in: StandIn, tmp_path: Path) -> None:
    root, listed = clips
    outputs = [Output("encoder_block1", "max", 32), Output("encoder_block6", "mean", 384)]
    source = ClipList(listed, root, "test")
    assert extract(ThisProcess(stand_in, outputs, Threads.shared()), source, tmp_path / "features.pt")
    features = FeatureSet.load(tmp_path / "features.pt")
    assert stand_in.batch_sizes == [1] * 12  # one pass for both
    for place, output in ((slice(0, 32), outputs[0]), (slice(32, 416), outputs[1])):
        assert features.output_columns[output.name] == place
        alone = extract_clips(listed, root, stand_in, tmp_path / output.pool, layer=output.layer, pool=output.pool)
        assert alone is not None
        assert torch.equal(features.features[:, place], alone.features)
    assert (features.meta["layer"], features.meta["pool"]) == ("several", "several")
    assert features.meta["default_output"] == ("encoder_block6", "mean")
    for layer, pool, place in ((None, None, slice(32, 416)), ("encoder_block1", "max", slice(0, 32))):
        assert torch.equal(
            FeatureSet.load(tmp_path / "features.pt").pick(layer, pool).features, features.features[:, place]
        )


def test_features_record_how_they_were_extracted(run: Run) -> None:
    meta = run(layer="encoder_block3", pool="std", encoder=StandIn(min_samples=12_000)).meta
    assert (meta["dataset"], meta["checkpoint"], meta["release"]) == ("test", "random:2024", "untrained")
    assert (meta["layer"], meta["pool"], meta["condition"], meta["precision"]) == (
        "encoder_block3",
        "std",
        "none",
        "fp32",
    )
    assert (meta["sample_rate"], meta["clips"], meta["failed"]) == (32_000, 12, [])
    assert (meta["parameters"], meta["min_samples"]) == (None, 12_000)
    assert meta["counts"] == {"clips": 12, "extracted": 12, "failed": 0, "padded": 3}
    assert {"python", "torch", "soundfile", "libsndfile"} <= set(meta["versions"])


def test_padded_clips_are_counted(run: Run, clips: tuple[Path, list[Clip]], capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that are embedded, the ones that are shorter than the encoder's minimum."""
    _, listed = clips
    listed[1].path.write_bytes(b"no audio")
    features = run(encoder=StandIn(min_samples=11_520))  # 0.36 s, the length of the third
    assert features.meta["counts"] == {"clips": 12, "extracted": 11, "failed": 1, "padded": 1}
    words = "1 clips were shorter than the encoder's minimum and were padded to it (11,520 samples, 0.36 s)"
    assert words in capsys.readouterr().out
    run(overwrite=True, encoder=StandIn(padding="official"))
    assert "shorter than the encoder's minimum" not in capsys.readouterr().out


def test_only_classes_that_occur_are_kept_in_the_given_order(run: Run) -> None:
    features = run(class_order=["z", "c", "b", "a"])
    assert features.class_names == ["c", "b", "a"]
    assert features.labels.unique().tolist() == [0, 1, 2]


def test_calls_of_several_clips_give_the_same_rows(clips: tuple[Path, list[Clip]], stand_in: StandIn) -> None:
    """As on a GPU, where a call of the encoder takes many seconds of audio."""
    _, listed = clips
    listed[4].path.write_bytes(b"no audio")
    outputs = [stand_in.default_output]
    decoded = [decode(row, clip, stand_in.sample_rate) for row, clip in enumerate(listed)]
    alone, together = (list(embed_in_batches(iter(decoded), stand_in, outputs, call_s)) for call_s in (0.0, 1.5))
    sizes = stand_in.batch_sizes[11:]
    assert sum(sizes) == 11 and 1 < len(sizes) < 11
    for first, second in zip(
        sorted(alone, key=lambda row: row.row), sorted(together, key=lambda row: row.row), strict=True
    ):
        if isinstance(first, Failed):
            assert first == second
        else:
            assert (first.row, first.samples, first.checksum) == (second.row, second.samples, second.checksum)
            assert np.array_equal(first.embedding, second.embedding)


def test_only_a_few_waveforms_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "sound.wav", seconds=0.05)
    listed = [Clip(tmp_path / "sound.wav", ("a",), start_s=0.0, end_s=0.01 + number * 1e-4) for number in range(200)]
    alive: weakref.WeakSet[np.ndarray] = weakref.WeakSet()
    most = 0

    class HashableArray(np.ndarray):  # an array that a set can hold
        __hash__ = object.__hash__

    def reading(*arguments: Any) -> np.ndarray:
        nonlocal most
        waveform = read_audio(*arguments).view(HashableArray)
        alive.add(waveform)
        most = max(most, len(alive))
        return waveform

    class NoEncoder(StandIn):
        def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
            return {output: torch.zeros(len(waveforms), output.width) for output in outputs}

    monkeypatch.setattr(runner_module, "read_audio", reading)
    extract_clips(listed, tmp_path, NoEncoder(), tmp_path / "features.pt", workers=2)
    assert 2 < most <= 10


def test_segments_of_one_file_are_clips_of_their_own(run: Run, tmp_path: Path, stand_in: StandIn) -> None:
    path = write_wav(tmp_path / "long.wav", seconds=2)
    listed = [Clip(path, ("a",), start_s=0.0, end_s=0.5), Clip(path, ("b",), start_s=0.5, end_s=1.5)]
    features = run(clips=listed, root=tmp_path)
    assert features.clip_ids == ["long.wav#0.0-0.5", "long.wav#0.5-1.5"]
    samples = soundfile.read(path, dtype="float32")[0]
    assert torch.equal(features.features, stand_in.embed([samples[:16_000], samples[16_000:48_000]]))


def interrupt_before_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run when every part is written, but they are not yet joined."""

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(part_size=5)


# Nothing lost


def test_an_interrupted_run_keeps_its_work_and_resumes_to_the_same_file(
    run: Run, tmp_path: Path, stand_in: StandIn
) -> None:
    run(output=tmp_path / "whole.pt")

    def stop_after_five(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    interrupted = StandIn()
    interrupted.before_call = stop_after_five
    with pytest.raises(KeyboardInterrupt, match="4 of 12 clips are kept"):
        run(encoder=interrupted, part_size=2)
    assert not (tmp_path / "features.pt").exists()
    stand_in.batch_sizes.clear()
    run(part_size=2)
    assert stand_in.batch_sizes == [1] * 8
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not (tmp_path / "features.pt.partial").exists()


# Where a run stands still to be killed. Each is given the sign that it makes when it gets there.


def at_a_clip(number: int) -> Callable[[Path, StandIn], None]:
    def prepare(sign: Path, encoder: StandIn) -> None:
        encoder.before_call = lambda call: halt(sign) if call == number else None

    return prepare


def before(owner: object, function: str) -> Callable[[Path, StandIn], None]:
    def prepare(sign: Path, encoder: StandIn) -> None:
        setattr(owner, function, lambda *_: halt(sign))

    return prepare


def with_half_a_file(owner: object, function: str, number: int = 0) -> Callable[[Path, StandIn], None]:
    """At the `number`-th file that a function writes, when half of it is on the disk."""

    def prepare(sign: Path, encoder: StandIn) -> None:
        write, written = getattr(owner, function), []

        def cut(handle: int) -> None:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            halt(sign)

        def counting(*arguments: Any) -> None:
            if len(written) == number:
                files_module.os.fsync = cut
            written.append(1)
            write(*arguments)

        setattr(owner, function, counting)

    return prepare


MOMENTS = {
    "four clips are embedded": at_a_clip(4),
    "the sixth part is half written": with_half_a_file(runner_module, "write_part", 5),
    "all parts are written": before(extract_module, "_finish"),
    "the features are half written": with_half_a_file(FeatureSet, "save"),
    "the features are written": before(extract_module, "remove_parts"),
}


def extract_until(moment: str, clips: Sequence[Clip], root: Path, output: Path, sign: Path) -> None:
    """In a process of its own: extract with a clip in a part, and stand still at the moment."""
    encoder = StandIn()
    MOMENTS[moment](sign, encoder)
    extract_clips(clips, root, encoder, output, part_size=1)


def kill(moment: str, clips: Sequence[Clip], root: Path, output: Path) -> None:
    """Start an extraction in another process and kill it at the moment."""
    sign = output.with_name(f"sign that {moment}")
    process = processes.start(output.with_name("printed.txt"), extract_until, moment, clips, root, output, sign)
    processes.wait_for(sign, process)
    process.kill()
    assert processes.end(process) == -signal.SIGKILL


needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


@needs_sigkill
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_resumes_to_the_same_file(
    moment: str, run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    root, listed = clips
    listed[2].path.write_bytes(b"no audio")
    run(output=tmp_path / "whole.pt")
    kill(moment, listed, root, tmp_path / "killed.pt")
    run(output=tmp_path / "killed.pt", part_size=1)
    assert (tmp_path / "killed.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "killed.pt.partial").exists()


def test_two_runs_on_one_output_are_refused(run: Run, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "features.pt.partial" / ".lock-1-of-1", "it"),
        pytest.raises(OutputError, match="another run"),
    ):
        run()
    assert len(run()) == 12


def test_a_full_disk_ends_in_one_line_with_the_work_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write, parts = runner_module.write_part, []

    def full_after_three_parts(folder: Path, part: Part) -> None:
        if len(parts) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        parts.append(part)
        write(folder, part)

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "write_part", full_after_three_parts)
        with pytest.raises(OutputError, match=r"No space left on device; 6 of 12 clips are kept") as error:
            run(part_size=2)
    assert "\n" not in str(error.value)
    assert len(run(part_size=2)) == 12


# Nothing stale


def test_a_finished_file_with_the_same_settings_returns_at_once(
    run: Run, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run()
    stand_in.batch_sizes.clear()
    assert torch.equal(run().features, first.features)
    assert not stand_in.batch_sizes
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"layer": "encoder_block5"}, "layer was encoder_block6, now encoder_block5"),
        ({"pool": "max"}, "pool was mean, now max"),
        ({"encoder": StandIn("random:3")}, "checkpoint was random:2024, now random:3"),
        ({"encoder": StandIn(condition="zero")}, "condition was none, now zero"),
        ({"encoder": StandIn(padding="official")}, ", now official"),
        ({"dataset": "other"}, "dataset was test, now other"),
        ({"clips": -1}, "clips was 12, now 11"),
        ({"clips": "relabelled"}, "clip_list was sha256:"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused_with_the_difference(
    run: Run, clips: tuple[Path, list[Clip]], change: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    run()
    before = (tmp_path / "features.pt").read_bytes()
    if change.get("clips") == -1:
        change = {"clips": clips[1][:-1]}
    elif change.get("clips") == "relabelled":
        change = {"clips": [replace(clips[1][0], labels=("b",)), *clips[1][1:]]}
    with pytest.raises(OutputError) as error:
        run(**change)
    assert difference in str(error.value)
    assert "--overwrite" in str(error.value)
    assert (tmp_path / "features.pt").read_bytes() == before
    run(**change, overwrite=True)
    assert (tmp_path / "features.pt").read_bytes() != before


def test_changed_audio_is_noticed(run: Run, clips: tuple[Path, list[Clip]]) -> None:
    run()
    write_wav(clips[1][3].path, seed=99, seconds=0.5)
    with pytest.raises(OutputError, match=r"made from other audio \(1 files have changed, such as .*clip03"):
        run()
    assert run(overwrite=True).meta["samples"][3] == 16_000


def test_audio_that_changes_while_a_run_is_paused_is_noticed(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_the_end(run, monkeypatch)
    write_wav(clips[1][3].path, seed=99, seconds=0.5)
    run(part_size=5)
    run(output=tmp_path / "fresh.pt")
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "fresh.pt").read_bytes()


def test_a_damaged_output_and_a_folder_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "features.pt").write_bytes(b"")
    with pytest.raises(OutputError, match="--overwrite replaces it"):
        run()
    assert len(run(overwrite=True)) == 12
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        run(output=tmp_path / "folder.pt", overwrite=True)


def test_a_change_anywhere_in_a_clip_is_noticed(run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    """Also between the places that earlier versions compared, of the same size, at the same time."""
    run()
    path = clips[1][3].path
    status, content = path.stat(), bytearray(path.read_bytes())
    content[6000] ^= 64
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    _checksum.cache_clear()  # another process has none
    with pytest.raises(OutputError, match=r"made from other audio \(1 files have changed"):
        run()


def test_a_file_without_provenance_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    torch.save({"features": torch.ones(2, 384), "labels": torch.tensor([0, 1])}, tmp_path / "features.pt")
    with pytest.raises(OutputError, match="does not have what this version records"):
        run()


def test_unfinished_work_of_other_settings_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_the_end(run, monkeypatch)
    with pytest.raises(OutputError, match=r"parts made with different settings \(pool was mean, now max"):
        run(pool="max", part_size=5)
    features = run(pool="max", part_size=5, overwrite=True)
    assert features.meta["pool"] == "max"
    fresh = run(pool="max", output=tmp_path / "fresh.pt")
    assert torch.equal(features.features, fresh.features)


# Nothing silent


def failed_clips(features_file: Path) -> list[dict[str, str]]:
    """The rows of the list of failed clips beside a feature file."""
    with features_file.with_name(features_file.name + ".failed.csv").open() as file:
        return list(csv.DictReader(file))


def test_unreadable_clips_are_named_counted_and_left_out(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, listed = clips
    listed[2].path.write_bytes(b"")
    listed[7].path.unlink()
    features = run(allow_missing=True)
    assert len(features) == 10
    assert features.meta["counts"] == {"clips": 12, "extracted": 10, "failed": 2, "missing": 1, "padded": 0}
    assert [name for name, _ in features.meta["failed"]] == ["fold1/clip02.wav", "fold2/clip07.wav"]
    rows = failed_clips(tmp_path / "features.pt")
    assert [row["clip_id"] for row in rows] == ["fold1/clip02.wav", "fold2/clip07.wav"]
    assert "empty file" in rows[0]["reason"]
    assert "not found" in rows[1]["reason"]
    printed = capsys.readouterr()
    assert "10 of 12 clips, 1 failed, 1 missing (listed in " in printed.out
    assert str(listed[2].path) in printed.err


def test_missing_clips_are_one_decision(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for all, before anything is embedded."""
    run(output=tmp_path / "whole.pt")
    _, listed = clips
    contents = {clip.path: clip.path.read_bytes() for clip in listed[2:8]}
    for path in contents:
        path.unlink()
    with pytest.raises(
        DatasetMissingError, match=r"^6 of 12 clips are missing \(fold1/clip02.wav, .*, \.\.\.\) in .*--allow-missing"
    ):
        run()
    assert not (tmp_path / "features.pt").exists()
    capsys.readouterr()
    assert len(run(allow_missing=True)) == 6
    assert capsys.readouterr().err.count("clips are missing") == 1
    for path, content in contents.items():
        path.write_bytes(content)
    run()
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_embedded(
    run: Run, tmp_path: Path, stand_in: StandIn
) -> None:
    for name in ("n" * 245 + ".pt", "file/features.pt"):
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot be written: .*; give another place"):
            run(output=tmp_path / name)
    assert stand_in.batch_sizes == []


def test_failed_clips_are_tried_again(run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path) -> None:
    _, listed = clips
    content = listed[2].path.read_bytes()
    listed[2].path.write_bytes(b"")
    partial = run()
    assert len(run()) == 11  # still broken
    listed[2].path.write_bytes(content)
    fixed = run()
    assert len(fixed) == 12
    assert not (tmp_path / "features.pt.failed.csv").exists()
    assert torch.equal(fixed.features[3:], partial.features[2:])
    run(output=tmp_path / "fresh.pt")
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "fresh.pt").read_bytes()


def test_failed_clips_are_not_tried_on_another_kind_of_device(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips[1][2].path.write_bytes(b"")
    features = run()
    features.meta["device"] = "cuda"
    features.save(tmp_path / "features.pt")
    assert len(run()) == 11
    assert "not tried again on another device" in capsys.readouterr().out


def test_an_embedding_that_overflows_is_a_failure(run: Run, clips: tuple[Path, list[Clip]]) -> None:
    _, listed = clips
    soundfile.write(listed[4].path, noise(0, 12_000) * 1e37, 32_000, subtype="FLOAT")
    ((name, reason),) = run().meta["failed"]
    assert name == "fold1/clip04.wav"
    peak = float(np.abs(soundfile.read(listed[4].path, dtype="float32")[0]).max())
    assert reason == f"{listed[4].path}: its embedding is not finite (peak {peak:.3g})"


def test_an_extraction_whose_every_clip_fails_saves_nothing(
    run: Run, clips: tuple[Path, list[Clip]], tmp_path: Path
) -> None:
    root, listed = clips
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(ExtractionError, match="all 12 clips failed"):
        run(allow_missing=True)
    assert not (tmp_path / "features.pt").exists()
    assert [row["clip_id"] for row in failed_clips(tmp_path / "features.pt")] == [clip.clip_id(root) for clip in listed]
    (tmp_path / "elsewhere").rename(root)
    assert len(run()) == 12


def test_a_clip_listed_twice_is_refused(run: Run, clips: tuple[Path, list[Clip]]) -> None:
    _, listed = clips
    with pytest.raises(DatasetError, match="twice"):
        run(clips=[*listed, listed[0]])


def test_a_file_with_padding_is_not_one_without(run: Run, tmp_path: Path) -> None:
    run(encoder=StandIn(padding="official"))
    before = (tmp_path / "features.pt").read_bytes()
    with pytest.raises(OutputError, match="padding was official"):
        run()
    assert (tmp_path / "features.pt").read_bytes() == before
    assert run(overwrite=True).meta["padding"] == "none"


def test_padding_is_recorded_where_there_is_one(run: Run, tmp_path: Path) -> None:
    assert run().meta["padding"] == "none"
    assert run(output=tmp_path / "padded.pt", encoder=StandIn(padding="official")).meta["padding"] == "official"


def test_a_link_in_the_place_of_the_output_stays_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "features.pt").symlink_to(tmp_path / "elsewhere" / "real.pt")
    run()
    assert (tmp_path / "features.pt").is_symlink()
    first = (tmp_path / "elsewhere" / "real.pt").read_bytes()
    run(encoder=StandIn("random:1"), overwrite=True)
    assert (tmp_path / "features.pt").is_symlink()
    assert (tmp_path / "elsewhere" / "real.pt").read_bytes() != first
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.pt"]


@pytest.mark.parametrize("damage", ["foreign", "half", "a bit"])
def test_a_damaged_part_is_computed_again(
    damage: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_before_the_end(run, monkeypatch)
    path = list(part_files(tmp_path / "features.pt.partial").values())[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"foreign": b"damaged", "half": content[: len(content) // 2], "a bit": bytes(content)}[damage])
    assert len(run(part_size=5)) == 12
    assert "its clips are computed again" in capsys.readouterr().out
    run(output=tmp_path / "fresh.pt")
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "fresh.pt").read_bytes()


def test_a_disk_that_fills_at_the_last_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_features: FeatureSet, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(FeatureSet, "save", full)
        with pytest.raises(OutputError, match=r"features\.pt: No space left on device; 12 of 12 clips are kept"):
            run()
    assert len(run()) == 12
