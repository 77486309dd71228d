"""Clips + encoder -> FeatureSet: decoding ahead, saving regularly, resuming, and listing the clips that failed."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import soundfile
import torch

from common.arrays import Array
from common.encoder import Encoder, Output, PluginError
from common.errors import UserError
from common.extraction.missing import find_missing, not_found
from common.extraction.prefetch import DaemonThreads, Decoded, decode_ahead, in_batches
from common.extraction.resume import RowStore, changed_files, claim, discard, is_finished_work
from common.extraction.settings import ClipList, ExtractionSettings
from common.extraction.shards import Shard, clip_lengths, one_at_a_time, remove_locks
from common.features import Counts, FeatureFileError, FeatureSet, Provenance
from common.files import OutputError, refuse_unwritable, remove_leftovers, write_csv
from common.progress import progress_bar

T = TypeVar("T")

WHOLE = Shard()
SAVE_EVERY_S = 20.0
MAX_WORKERS = 16
# Seconds of audio per call of the encoder. One clip on a CPU, where larger batches are no faster and no row waits for
# others, and on mps. On a CUDA GPU a call is several batches of tiles, which it computes without a pause.
CALL_S = {"cpu": 0.0, "mps": 0.0, "cuda": 1200.0}


class ExtractionError(UserError):
    """No clip could be embedded."""


@dataclass(frozen=True)
class ExtractOptions:
    """How an extraction runs; none of this changes the rows of its result.

    Attributes:
        workers: threads that decode ahead; None: one per core, at most 16.
        overwrite: whether a file, or unfinished work, made with different settings or from other audio may be replaced.
        shard: the part of the clips that this process embeds. The last shard to finish writes the file, which is the same
            for any number of shards on the same kind of device.
        allow_missing: whether clips whose files are not there are left out, as failed; otherwise nothing is embedded.
    """

    workers: int | None = None
    overwrite: bool = False
    shard: Shard = WHOLE
    allow_missing: bool = False


def extract(
    clips: ClipList,
    encoder: Encoder,
    features_file: Path,
    outputs: Sequence[Output],
    options: ExtractOptions | None = None,
) -> FeatureSet | None:
    """Embed every clip and save the FeatureSet as `features_file`.

    After an interruption at any moment, even by ``kill -9``, the same call continues and gives the same file: to the
    last bit on a CPU, to 1e-6 on a GPU, where rounding depends on which clips share a batch. A finished file with the
    same settings and audio is returned at once; clips that failed in it are tried again.

    Args:
        clips: what to embed. Unreadable clips are listed in ``<features_file>.failed.csv``.
        encoder: from `common.encoder.load_encoder`, or any other `Encoder`.
        features_file: the ``.pt`` file.
        outputs: of `encoder.outputs`; a row of the file has them side by side.
        options: how to run.

    Returns:
        The FeatureSet; None if other shards are not done yet.

    Raises:
        OutputError: another run is writing the same file; it was made with different settings or from other audio and may
            not be overwritten; or it cannot be written (finished work is kept).
        ExtractionError: every clip failed.
        MissingClipsError: files of clips are not there, and `options` does not allow that.
        DatasetError: two clips have the same id.
        KeyboardInterrupt: interrupted; its message says what is kept.
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    run = _Extraction(clips, encoder, features_file, tuple(outputs), options)
    finished = run.finished_file()
    if finished is not None and (options.shard.index or not _worth_another_try(finished, encoder)):
        run.clear_leftovers()
        print(f"{features_file} already exists, made with the same settings: {len(finished):,} clips. Nothing to do.")
        return finished
    for path in (features_file, run.failures_file):
        refuse_unwritable(path)
    # Where there is a file, one process tries the few clips that failed; shards would wait for each other again.
    features = run.run(options.shard if finished is None else WHOLE)
    if features is not None:
        run.report(features, time.monotonic() - started)
    return features


def default_workers(processes: int = 1) -> int:
    """The number of decoding threads if this many processes share the machine: one per core, at most 16."""
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes))


class _Extraction:
    """One run of `extract`, in its phases: check, claim, embed, finish."""

    def __init__(
        self,
        clips: ClipList,
        encoder: Encoder,
        features_file: Path,
        outputs: tuple[Output, ...],
        options: ExtractOptions,
    ) -> None:
        self.source, self.encoder, self.features_file = clips, encoder, features_file
        self.outputs, self.options = outputs, options
        self.settings = ExtractionSettings.of(clips, encoder, outputs)
        self.work_folder = features_file.with_name(features_file.name + ".partial")
        width = sum(output.width for output in outputs)
        self.rows = RowStore.empty(len(clips), width, self.settings.identity)
        self.shard = WHOLE
        self.missing: frozenset[int] = frozenset()

    def finished_file(self) -> FeatureSet | None:
        """The existing file, if it is what this run would make; None if there is none, or it may be replaced."""
        path = self.features_file
        if not path.exists():
            return None
        if not path.is_file():
            refuse_unwritable(path)  # which says what it is
        existing = None
        try:
            existing = FeatureSet.load(path)
            reason = self._why_unusable(existing)
        except FeatureFileError as error:
            reason = f"cannot be read ({error})"
        if reason and not self.options.overwrite:
            raise OutputError(f"{path} {reason}; --overwrite replaces it")
        return None if reason else existing

    def _why_unusable(self, existing: FeatureSet) -> str:
        needed = ("failed", "counts", "device", "samples", "audio_checksums")
        if any(key not in existing.meta for key in needed):
            return "was not made by this project (no provenance in it)"
        different = self.settings.difference_from_file(existing.meta)
        if different:
            return f"was made with different settings ({different})"
        place = {clip_id: index for index, clip_id in enumerate(self.source.clip_ids)}
        checksums = existing.meta["audio_checksums"]
        widths = (existing.features.shape[1], self.rows.embeddings.shape[1])
        of_clips = [values.shape == (len(existing),) for values in (checksums, existing.meta["samples"])]
        if not place.keys() >= set(existing.clip_ids) or widths[0] != widths[1] or not all(of_clips):
            return "does not hold what its settings say"
        indices = torch.tensor([place[clip_id] for clip_id in existing.clip_ids])
        changed = changed_files(self.source.clips, indices, checksums)
        return f"was made from other audio ({len(changed)} files have changed, such as {changed[0]})" if changed else ""

    def run(self, shard: Shard) -> FeatureSet | None:
        """Embed the shard's clips and, as the last shard, write the file."""
        self.shard, self.missing = shard, find_missing(self.source, self.options.allow_missing)
        with shard.hold(self.work_folder, str(self.features_file)):
            try:
                mine = self._claim()
                left = set(self.rows.pending())
                for index in left & self.missing:
                    self.rows.failed[index] = not_found(self.source.clips[index])
                left -= self.missing
                self._embed([index for index in mine if index in left])
                features = self._finish(len(mine))
            except BrokenPipeError:  # of the output's reader
                raise
            except OSError as error:
                raise OutputError(
                    f"cannot write {error.filename or self.work_folder}: {error.strerror}; "
                    f"{self.rows.n_saved():,} of {len(self.source):,} clips are kept in {self.work_folder}: "
                    "fix that, and the same command continues from there"
                ) from error
        if features is not None:
            self._remove_work_folder()
        return features

    def clear_leftovers(self) -> None:
        """Remove what a run that was killed after writing the file left behind; work of different settings is kept."""
        if not self.work_folder.exists() or not is_finished_work(self.work_folder, self.settings):
            return
        with contextlib.suppress(OutputError):  # another run is using it
            with WHOLE.hold(self.work_folder, str(self.features_file)):
                discard(self.work_folder)
            self._remove_work_folder()

    def _remove_work_folder(self) -> None:
        with contextlib.suppress(OSError):  # another run has already started there
            remove_locks(self.work_folder)
            (self.work_folder / "common.lock").unlink(missing_ok=True)
            self.work_folder.rmdir()

    def _claim(self) -> Sequence[int]:
        """Claim the folder for these settings and load finished rows; returns the indices of this shard's clips."""
        mine: Sequence[int] = range(len(self.source))
        shard = self.shard
        with one_at_a_time(self.work_folder):
            claim(self.work_folder, self.settings, self.options.overwrite)
            if shard.count > 1:
                mine = shard.assign(clip_lengths(self.work_folder, self.source.clips, self.settings.identity))
            count = self._gather(mine)
        if count:
            print(f"continuing: {count:,} of {len(self.source):,} clips were done before")
        return mine

    def _gather(self, wanted: Sequence[int]) -> int:
        """Load the rows of a finished file and of chunks; returns how many rows the chunks had."""
        # Checked again: another run may have finished it in the meantime.
        finished = self.finished_file()
        if finished is not None:
            self.rows.adopt(finished, self.source.clip_ids)
        return self.rows.read_chunks(self.work_folder, self.source.clips, wanted)

    def _embed(self, pending: Sequence[int]) -> None:
        """Embed the pending clips, saving a chunk every SAVE_EVERY_S, at the end, and on Ctrl-C."""
        encoder, device, shard = self.encoder, self.encoder.device.type, self.shard
        workers = self.options.workers or default_workers()
        total = len(self.source) if shard.count == 1 else len(pending)
        desc = "embedding" if shard.count == 1 else f"shard {shard}"
        bar = progress_bar(total=total, initial=total - len(pending), unit="clip", desc=desc)
        with bar, DaemonThreads(workers) as threads:
            decoded = decode_ahead(
                self.source.clips, pending, encoder.sample_rate, threads, 1 + 2 * workers, CALL_S[device]
            )
            started = saved_at = time.monotonic()
            audio_s = 0.0
            try:
                for batch in in_batches(decoded, CALL_S[device] * encoder.sample_rate):
                    audio_s += self._embed_batch(batch)
                    for clip in batch:
                        if clip.index in self.rows.failed:
                            bar.write(f"failed: {self.rows.failed[clip.index]}", file=sys.stderr)
                    speed = audio_s / (time.monotonic() - started)
                    bar.set_postfix_str(f"{speed:.{0 if speed >= 10 else 1}f} s of audio/s", refresh=False)
                    bar.update(len(batch))
                    if time.monotonic() - saved_at > SAVE_EVERY_S:
                        self.rows.save_chunk(self.work_folder)
                        saved_at = time.monotonic()
            except UserError:
                self.rows.save_chunk(self.work_folder)
                raise
            except KeyboardInterrupt as error:
                self.rows.save_chunk(self.work_folder)
                raise KeyboardInterrupt(
                    f"interrupted: {self.rows.n_embedded():,} of {len(self.source):,} clips are kept; the same command "
                    "continues from there"
                ) from error
            self.rows.save_chunk(self.work_folder)

    def _embed_batch(self, batch: Sequence[Decoded]) -> float:
        """Embed what could be decoded, and note what failed; returns the seconds of audio."""
        readable = [(clip, clip.waveform) for clip in batch if clip.waveform is not None]
        for (clip, waveform), embedding in zip(
            readable, self._rows_of([waveform for _, waveform in readable]), strict=True
        ):
            path = self.source.clips[clip.index].path
            if isinstance(embedding, PluginError):
                self.rows.failed[clip.index] = f"{path}: {embedding}"
            elif not embedding.isfinite().all():
                peak = float(np.abs(waveform).max())
                self.rows.failed[clip.index] = f"{path}: its embedding is not finite (peak {peak:.3g})"
            else:
                self.rows.add(clip.index, embedding, len(waveform), clip.checksum)
        for clip in batch:
            if clip.problem:
                self.rows.failed[clip.index] = clip.problem
        return sum(len(waveform) for _, waveform in readable) / self.encoder.sample_rate

    def _rows_of(self, waveforms: Sequence[Array]) -> list[torch.Tensor | PluginError]:
        """The rows of a batch; if an encoder from outside fails, one clip at a time, with the error of each that fails."""
        try:
            embedded = self.encoder.embed_outputs(waveforms, self.outputs)
        except PluginError as error:
            if len(waveforms) == 1:
                return [error]
            return [row for waveform in waveforms for row in self._rows_of([waveform])]
        return list(torch.cat([embedded[output] for output in self.outputs], dim=1))

    def _finish(self, n_own: int) -> FeatureSet | None:
        """Mark this shard as done. If all shards are, assemble the rows and write the file; otherwise None."""
        shard, folder, identity = self.shard, self.work_folder, self.settings.identity
        shard.mark_done(folder, self.rows.failed, identity)
        features, written = None, False
        with one_at_a_time(folder):
            failed = shard.failures_of_all(folder, identity)
            if failed is None:  # others are not done, or one that finished at the same time has written it
                written = not (folder / "settings.json").exists()
                then = f"{self.features_file} is written" if written else f"the last shard writes {self.features_file}"
                print(f"shard {shard}: {n_own:,} clips done; {then}")
            else:
                features = self._write(failed)
        if written:  # waiting for the lock has made the folder again
            self._remove_work_folder()
        return features

    def _write(self, failed: Mapping[int, str]) -> FeatureSet:
        """Assemble all rows and write the file; `failed` are those of all shards."""
        if self.shard.count > 1:
            self._gather(range(len(self.source)))
        self.rows.failed = {index: why for index, why in failed.items() if not self.rows.samples[index]}
        if self.rows.pending():
            raise OutputError(
                f"{len(self.rows.pending()):,} clips that a shard had finished are missing or have changed; run every shard "
                "again: finished clips are not repeated"
            )
        for path in (self.features_file, self.failures_file):
            remove_leftovers(path)
        features = self._assemble()
        self._write_failures(features.meta["failed"])
        if len(features):
            features.save(self.features_file)
        discard(self.work_folder)
        return features

    def _assemble(self) -> FeatureSet:
        rows, clips = self.rows, self.source.clips
        kept = [index for index in range(len(clips)) if index not in rows.failed]
        own_clips = [clips[index] for index in kept]
        present = {clip.class_name for clip in own_clips} - {""}
        order = sorted(present) if self.source.class_names is None else self.source.class_names
        class_names = [name for name in order if name in present]
        label = {name: number for number, name in enumerate(class_names)}

        def of_kept(values: torch.Tensor) -> torch.Tensor:
            return values if len(kept) == len(clips) else values[kept]  # do not copy gigabytes without need

        failed = [(self.source.clip_ids[index], reason) for index, reason in sorted(rows.failed.items())]
        samples, least = of_kept(rows.samples), self.encoder.info.min_samples
        counts = Counts(clips=len(clips), extracted=len(kept), failed=len(failed), padded=int((samples < least).sum()))
        if missing := sum(reason == not_found(clips[index]) for index, reason in rows.failed.items()):
            counts["missing"] = missing
        packages = ("torch", "numpy", "soundfile", "soxr", *self.encoder.info.packages)
        meta = Provenance(
            **self.settings.provenance,
            counts=counts,
            failed=failed,
            samples=samples,
            audio_checksums=of_kept(rows.checksums),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
                "libsndfile": soundfile.__libsndfile_version__,
            },
        )
        folds = _column([clip.fold for clip in own_clips])
        return FeatureSet(
            of_kept(rows.embeddings),
            torch.tensor([label.get(clip.class_name, -1) for clip in own_clips], dtype=torch.int64),
            class_names,
            [self.source.clip_ids[index] for index in kept],
            None if folds is None else torch.tensor(folds, dtype=torch.int64),
            _column([clip.split for clip in own_clips]),
            _column([clip.group for clip in own_clips]),
            meta,
        )

    @property
    def failures_file(self) -> Path:
        """The list of clips that failed."""
        return self.features_file.with_name(self.features_file.name + ".failed.csv")

    def _write_failures(self, failed: Sequence[tuple[str, str]]) -> None:
        """List the failed clips in a file beside the features; remove an outdated list."""
        if failed:
            write_csv(self.failures_file, [("clip_id", "reason"), *failed])
        else:
            self.failures_file.unlink(missing_ok=True)

    def report(self, features: FeatureSet, seconds: float) -> None:
        """Print what was done; ExtractionError if every clip failed."""
        n_clips, failed = len(self.source), features.meta["failed"]
        if not len(features):
            raise ExtractionError(
                f"all {n_clips:,} clips failed, so nothing was saved; the first: {failed[0][1]} "
                f"(all reasons: {self.failures_file})"
            )
        missing = features.meta["counts"].get("missing", 0)
        lost = f", {len(failed) - missing:,} failed" if len(failed) > missing else ""
        lost += f", {missing:,} missing" if missing else ""
        lost += f" (listed in {self.failures_file})" if failed else ""
        padded = features.meta["counts"].get("padded")
        if padded:
            least = self.encoder.info.min_samples
            print(
                f"{padded:,} clips were shorter than the encoder's minimum and were padded to it "
                f"({least:,} samples, {least / self.encoder.sample_rate:.2f} s)"
            )
        print(f"{len(features):,} of {n_clips:,} clips{lost}, {seconds:.1f} s -> {self.features_file}")


def _worth_another_try(finished: FeatureSet, encoder: Encoder) -> bool:
    failed = len(finished.meta["failed"])
    if failed and finished.meta["device"] != encoder.device.type:
        # Rows from a CPU and a GPU agree to 1e-6, but not to the last bit, so one file is made on one kind of device.
        print(f"{failed} clips failed in the last run, on {finished.meta['device']}; not tried again on another device")
        return False
    if failed:
        print(f"{failed} clips failed in the last run; trying them again")
    return bool(failed)


def _column(values: Sequence[T | None]) -> list[T] | None:
    """One value per clip, or None if no clip has one. Where only some have one, the rows of the others hold None."""
    return None if all(value is None for value in values) else cast("list[T]", list(values))
