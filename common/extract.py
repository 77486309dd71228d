"""Clips + encoder -> FeatureSet: decoding ahead, saving as it goes, resuming, and naming what failed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from common.clips import Clip, DatasetError
from common.decode import decode_ahead, in_batches
from common.encoder import CHANNELS, AudioSepEncoder
from common.features import FeatureFileError, FeatureSet
from common.files import OutputError, remove_leftovers, write_csv
from common.partial import Rows, changed_files, claim, difference, discard, settings_id
from common.progress import progress_bar
from common.shards import Shard, clip_lengths, one_at_a_time

SAVE_EVERY_S = 20.0
MAX_WORKERS = 16
WHOLE = Shard()
# Seconds of audio a call of the encoder. One clip on a CPU: larger batches bring nothing there, and rows do not wait for
# others. On a GPU a call is some batches of tiles, which it computes without a pause.
CALL_S = {"cpu": 0.0, "cuda": 1200.0}


class ExtractionError(ValueError):
    """No clip could be extracted; the message is one line."""


def extract(
    clips: Sequence[Clip],
    root: Path,
    encoder: AudioSepEncoder,
    output: Path,
    *,
    dataset: str,
    class_order: Sequence[str] | None = None,
    layer: str = "encoder_block6",
    pool: str = "mean",
    workers: int | None = None,
    overwrite: bool = False,
    shard: Shard = WHOLE,
) -> FeatureSet | None:
    """Embed every clip and save the FeatureSet under `output`.

    Interrupted at any moment, even by ``kill -9``, the same call goes on and gives the same file: on a CPU to the last
    bit, on a GPU, where rounding depends on which clips share a batch, to 1e-6. A finished file of the same settings
    and audio returns at once; clips that failed in it are tried again.

    Args:
        clips: in the order of the file's rows.
        root: the data root, to which clip ids are relative.
        encoder: from `common.encoder.load_encoder`.
        output: the ``.pt`` file; unreadable clips are listed in ``<output>.failed.csv`` beside it.
        dataset: the task's name, kept in the file.
        class_order: every class in its official order; alphabetical where None. Only classes that occur
            are kept, so labels are contiguous.
        layer, pool: as in `AudioSepEncoder.embed`.
        workers: threads that decode ahead; None is one a core, at most 16.
        overwrite: a file, or unfinished work, made with other settings or of other audio may be replaced.
        shard: the part of the clips that this process embeds; the last part to be done writes the file, which is the
            same for any number of parts on the same kind of device.

    Returns:
        The FeatureSet; None where other parts are not done yet.

    Raises:
        OutputError: another run writes the same output; other settings or other audio made it and `overwrite` is
            not set; or it cannot be written (what is done is kept).
        ExtractionError: every clip failed.
        DatasetError: two clips have the same id.
        KeyboardInterrupt: interrupted; its text says what is kept.
    """
    started = time.monotonic()
    clip_ids = _unique_ids(clips, root)
    settings = {
        "dataset": dataset,
        **encoder.info,
        "layer": layer,
        "pool": pool,
        "sample_rate": encoder.sample_rate,
        "clips": len(clips),
        "clip_list": _fingerprint(clips, clip_ids),
    }
    finished = _standing(output, settings, clips, clip_ids, overwrite)
    if finished is not None and not _worth_another_try(finished, encoder):
        print(f"{output} is there already, made with the same settings: {len(finished):,} clips. Nothing to do.")
        return finished

    partial = output.with_name(output.name + ".partial")
    device_settings = {**settings, "device": encoder.device.type}
    made_with = settings_id(device_settings)
    rows = Rows.empty(len(clips), CHANNELS.get(layer, encoder.embedding_size), made_with)

    def gather(wanted: Sequence[int]) -> int:
        """Take over what is there, of a finished file and of chunks; how many rows of chunks."""
        # Looked at again: another run may have finished it in the meantime.
        finished = _standing(output, settings, clips, clip_ids, overwrite)
        if finished is not None:
            rows.adopt(finished, clip_ids)
        return rows.read_chunks(partial, clips, wanted)

    with shard.working(partial, str(output)):
        try:
            with one_at_a_time(partial):
                claim(partial, device_settings, overwrite)
                own = shard.own(clip_lengths(partial, clips, made_with)) if shard.count > 1 else range(len(clips))
                count = gather(own)
            if count:
                print(f"going on: {count:,} of {len(clips):,} clips were done before")
            left = set(rows.pending())
            pending = [index for index in own if index in left]
            workers = workers or default_workers()
            _compute(clips, encoder, rows, pending, partial, layer, pool, workers, shard)
            shard.is_done(partial, rows.failed, made_with)
            with one_at_a_time(partial):
                failed = shard.failures_of_all(partial, made_with)
                if failed is None:  # others are not done, or one that was done at the same moment has written it
                    written = not (partial / "settings.json").exists()
                    then = f"{output} is written" if written else f"the last shard to be done writes {output}"
                    print(f"shard {shard}: {len(own):,} clips done; {then}")
                    return None
                if shard.count > 1:
                    gather(range(len(clips)))
                rows.failed = {index: why for index, why in failed.items() if not rows.samples[index]}
                if rows.pending():
                    raise OutputError(
                        f"{len(rows.pending()):,} clips that a shard had done are gone or have changed; run every shard "
                        "again: what is done is not done again"
                    )
                remove_leftovers(output)
                features = _assemble(clips, clip_ids, rows, settings, encoder, class_order)
                failed_csv = _write_failures(output, features.meta["failed"])
                if len(features):
                    features.save(output)
                discard(partial)
        except OSError as error:
            raise OutputError(
                f"cannot write {error.filename or partial}: {error.strerror}; "
                f"{rows.embedded() - len(rows.unsaved):,} of {len(clips):,} clips are kept in {partial}: "
                "mend that, and the same command goes on from there"
            ) from error
    with contextlib.suppress(OSError):  # another run is there already
        (partial / "common.lock").unlink(missing_ok=True)
        partial.rmdir()
    if not len(features):
        reason = features.meta["failed"][0][1]
        raise ExtractionError(
            f"all {len(clips):,} clips failed, so nothing was saved; the first: {reason} (all reasons: {failed_csv})"
        )
    failed = f", {len(features.meta['failed'])} failed (named in {failed_csv})" if failed_csv else ""
    print(f"{len(features):,} of {len(clips):,} clips{failed}, {time.monotonic() - started:.1f} s -> {output}")
    return features


def default_workers(processes: int = 1) -> int:
    """Threads that decode, where so many processes share the machine: one a core, at most 16."""
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes))


def _unique_ids(clips: Sequence[Clip], root: Path) -> list[str]:
    seen: set[str] = set()
    for clip in clips:
        clip_id = clip.clip_id(root)
        if clip_id in seen:
            raise DatasetError(f"{clip_id} stands twice in the data set's list under {root}; unpack the data set again")
        seen.add(clip_id)
    return [clip.clip_id(root) for clip in clips]


def _fingerprint(clips: Sequence[Clip], clip_ids: list[str]) -> str:
    listing = hashlib.sha256()
    for clip_id, clip in zip(clip_ids, clips, strict=True):
        listing.update(f"{clip_id}\t{clip.class_name}\t{clip.split}\t{clip.fold}\t{clip.group}\n".encode())
    return f"sha256:{listing.hexdigest()}"


def _standing(
    output: Path, settings: dict[str, Any], clips: Sequence[Clip], clip_ids: list[str], overwrite: bool
) -> FeatureSet | None:
    """The file at `output` if it is what this run would make; None if there is none, or it may be replaced."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give the file to write: --output {output / 'features.pt'}")
    if not output.exists():
        return None
    try:
        existing = FeatureSet.load(output)
        reason = _why_it_cannot_stand(existing, settings, clips, clip_ids)
    except FeatureFileError as error:
        existing, reason = None, f"cannot be read ({error})"
    if reason and not overwrite:
        raise OutputError(f"{output} {reason}; --overwrite replaces it")
    return None if reason else existing


def _why_it_cannot_stand(
    existing: FeatureSet, settings: dict[str, Any], clips: Sequence[Clip], clip_ids: list[str]
) -> str:
    if "audio_stamps" not in existing.meta:
        return "was not made by this project (no provenance in it)"
    different = difference(existing.meta, settings)
    if different:
        return f"was made with other settings ({different})"
    place = {clip_id: index for index, clip_id in enumerate(clip_ids)}
    stamps = zip((place[clip_id] for clip_id in existing.clip_ids), existing.meta["audio_stamps"].tolist(), strict=True)
    changed = changed_files(clips, dict(stamps))
    return f"was made of other audio ({len(changed)} files have changed, such as {changed[0]})" if changed else ""


def _worth_another_try(finished: FeatureSet, encoder: AudioSepEncoder) -> bool:
    failed = len(finished.meta["failed"])
    if failed and finished.meta["device"] != encoder.device.type:
        # Rows from a CPU and from a GPU agree to 1e-6 but not to the last bit: one file, one kind of device.
        print(f"{failed} clips failed in the last run, on {finished.meta['device']}; not tried again on another device")
        return False
    if failed:
        print(f"{failed} clips failed in the last run; trying them again")
    return bool(failed)


def _compute(
    clips: Sequence[Clip],
    encoder: AudioSepEncoder,
    rows: Rows,
    pending: Sequence[int],
    partial: Path,
    layer: str,
    pool: str,
    workers: int,
    shard: Shard,
) -> None:
    """Embed the pending clips, saving a chunk every SAVE_EVERY_S and at the end, also at an untimely one."""
    device = encoder.device.type
    saved_at = time.monotonic()
    audio_s = 0.0
    total = len(clips) if shard.count == 1 else len(pending)
    desc = "embedding" if shard.count == 1 else f"shard {shard}"
    bar = progress_bar(total=total, initial=total - len(pending), unit="clip", desc=desc)
    with bar, ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool_of_threads:
        decoded = decode_ahead(clips, pending, encoder.sample_rate, pool_of_threads, 1 + 2 * workers, CALL_S[device])
        started = time.monotonic()
        try:
            for batch in in_batches(decoded, CALL_S[device] * encoder.sample_rate):
                readable = [decoded for decoded in batch if decoded.waveform is not None]
                embeddings = encoder.embed([decoded.waveform for decoded in readable], layer, pool)
                is_finite = embeddings.isfinite().all(dim=1).tolist()
                for (index, waveform, stamp, _), embedding, finite in zip(readable, embeddings, is_finite, strict=True):
                    if finite:
                        rows.add(index, embedding, len(waveform), stamp)
                    else:
                        peak = float(np.abs(waveform).max())
                        rows.failed[index] = f"{clips[index].path}: its embedding overflows (peak {peak:.3g})"
                    audio_s += len(waveform) / encoder.sample_rate
                for index, _, _, problem in batch:
                    if problem:
                        rows.failed[index] = problem
                    if index in rows.failed:
                        bar.write(f"failed: {rows.failed[index]}", file=sys.stderr)
                bar.set_postfix_str(f"{audio_s / (time.monotonic() - started):.0f} s of audio/s", refresh=False)
                bar.update(len(batch))
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    rows.save_chunk(partial)
                    saved_at = time.monotonic()
        except KeyboardInterrupt as error:
            pool_of_threads.shutdown(wait=False, cancel_futures=True)
            rows.save_chunk(partial)
            raise KeyboardInterrupt(
                f"interrupted: {rows.embedded():,} of {len(clips):,} clips are kept; the same command goes on from there"
            ) from error
        rows.save_chunk(partial)


def _assemble(
    clips: Sequence[Clip],
    clip_ids: list[str],
    rows: Rows,
    settings: dict[str, Any],
    encoder: AudioSepEncoder,
    class_order: Sequence[str] | None,
) -> FeatureSet:
    kept = [index for index in range(len(clips)) if index not in rows.failed]
    present = {clips[index].class_name for index in kept}
    order = sorted(present) if class_order is None else class_order
    class_names = [name for name in order if name in present]
    label = {name: number for number, name in enumerate(class_names)}
    embedded = [clip_ids[index] for index in kept]

    def column(name: str) -> list[Any] | None:
        values = [getattr(clips[index], name) for index in kept]
        return None if all(value is None for value in values) else values

    def of_kept(values: torch.Tensor) -> torch.Tensor:
        return values if len(kept) == len(clips) else values[kept]  # no copy of gigabytes where none is needed

    folds = column("fold")
    failed = [[clip_ids[index], reason] for index, reason in sorted(rows.failed.items())]
    meta = {
        **settings,
        "device": encoder.device.type,
        "counts": {"clips": len(clips), "extracted": len(kept), "failed": len(failed)},
        "failed": failed,
        "samples": of_kept(rows.samples),
        "audio_stamps": of_kept(rows.stamps),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "soundfile", "soxr")},
            "libsndfile": soundfile.__libsndfile_version__,
        },
    }
    return FeatureSet(
        of_kept(rows.features),
        torch.tensor([label[clips[index].class_name] for index in kept], dtype=torch.int64),
        class_names,
        embedded,
        None if folds is None else torch.tensor(folds, dtype=torch.int64),
        column("split"),
        column("group"),
        meta,
    )


def _write_failures(output: Path, failed: list[list[str]]) -> Path | None:
    """List the failed clips beside the output; remove a list that no longer holds."""
    path = output.with_name(output.name + ".failed.csv")
    if not failed:
        path.unlink(missing_ok=True)
        return None
    write_csv(path, [("clip_id", "reason"), *failed])
    return path
