"""Clips + encoder -> embeddings: made in parts, which are joined into one feature file or stay as they are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.datasets.audio import changed_files
from common.extraction import work as todo
from common.extraction.claims import Claims, alive_claims
from common.extraction.clip_list import ClipList
from common.extraction.launchers import OnRay
from common.extraction.notes import notes_on
from common.extraction.runner import ThisProcess
from common.extraction.work import Embedded, ExtractionError, ExtractionSettings, Failed, Work
from common.features import Counts, FeatureFileError, FeatureSet
from common.files import OutputError, describe_difference, exclusive, refuse_unwritable, remove_leftovers, write_csv
from common.flags import Share
from common.parts import read_info, totals, write_part


@dataclass(frozen=True)
class ExtractOptions:
    """How an extraction runs; none of this changes the rows of its result."""

    overwrite: bool = False  # whether what was made with different settings or from other audio may be replaced
    share: Share = field(default_factory=Share)  # of this process; whoever sees that all parts are made joins them
    allow_missing: bool = False  # whether clips whose files are not there are left out, as failed
    part_size: int = 0  # clips in a part, at most; 0: as is usual for the device


def extract(maker: ThisProcess | OnRay, clips: ClipList, output: Path, options: ExtractOptions | None = None) -> bool:
    """Embed every clip and save the FeatureSet as `output`, a ``.pt`` file or a folder of parts; clips that cannot be embedded
    are listed in ``<output>.failed.csv``. Returns whether the output is finished; False: another process finishes it.

    After an interruption at any moment, even by ``kill -9``, the same call continues and gives the same file: to the last bit
    on one kind of CPU, to 1e-6 on a GPU, where rounding depends on which clips share a batch. Of a finished file of the same
    settings and audio, only the clips that failed are tried again.

    OutputError: another run is writing the output, it was made with different settings or from other audio and may not be
    overwritten, or it cannot be written (finished work is kept); ExtractionError: every clip failed; DatasetMissingError: files
    are missing, and `options` does not allow that. The message of a KeyboardInterrupt says what is kept."""
    options = options or ExtractOptions()
    started, before, settings, share = time.monotonic(), todo.stamp(output), maker.settings(clips), options.share
    folder = todo.parts_folder(output, len(clips))
    joined = output if folder.name == f"{output.name}.partial" else None  # else the parts stay
    finished = _finished_file(output, clips, settings, options.overwrite) if joined else None
    if finished is not None and (share.index or not _worth_another_try(finished, settings)):
        _remove_old_parts(folder, settings)
        print(f"{output} already exists, made with the same settings: {len(finished):,} clips. Nothing to do.")
        return True
    refuse_unwritable(failures_file(output))  # and so beside it
    sizes = todo.file_sizes(clips)
    todo.tell_missing(clips, sizes, options.allow_missing)
    usual_clips, seconds = todo.PART_SIZES[settings.provenance["device"]]
    part_size = max(options.part_size or usual_clips, -(-len(clips) // todo.MOST_PARTS))
    slices = tuple(todo.cut(todo.lengths_s(clips, sizes), part_size, seconds))
    work = Work(clips, settings, slices, sizes, part_size, folder, joined, before)
    share = share if finished is None else Share()  # one process tries the few clips that failed
    what, result = str(output) if share.count == 1 else f"shard {share} of {output}", None
    with exclusive(folder / f".lock-{share}".replace("/", "-of-"), what), _explained(work):
        todo.check_folder(work, options.overwrite)
        if finished is not None:
            _split_into_parts(work, finished)
        n_embedded = maker.make(work, share)
        with Claims(folder, work.identity) as claims:
            is_last = not work.missing() and not alive_claims(folder)  # others may be at work, or have joined the parts
            if is_last and claims.take("join") and not work.is_written():
                result = _finish(work, output)
    if joined:
        with contextlib.suppress(OSError):  # another process is there, or has already started
            folder.rmdir()
    if result is None:
        print(f"shard {share}: {n_embedded:,} clips done; another process writes {output}")
        return False
    _report(output, work, *result, time.monotonic() - started)
    return True


def _finished_file(path: Path, clips: ClipList, settings: ExtractionSettings, overwrite: bool) -> FeatureSet | None:
    """The existing file, if it is what this run would make; None if there is none, or it may be replaced."""
    if not path.is_file():
        refuse_unwritable(path)  # which says what it is, if anything
        return None
    try:
        existing = FeatureSet.load(path)
        reason = _why_unusable(existing, clips, settings)
    except FeatureFileError as error:
        reason = f"cannot be read ({error})"
    if reason and not overwrite:
        raise OutputError(f"{path} {reason}; --overwrite replaces it")
    return None if reason else existing


def _why_unusable(existing: FeatureSet, clips: ClipList, settings: ExtractionSettings) -> str:
    needed = {"failed", "counts", "device", "samples", "audio_checksums", "peaks"}
    if not existing.meta.keys() >= needed:
        return "does not have what this version records of every clip"
    decisive = {key: value for key, value in settings.provenance.items() if key not in (*todo.NOT_DECISIVE, "device")}
    if different := describe_difference(existing.meta, decisive):
        return f"was made with different settings ({different})"
    failed = dict(existing.meta["failed"])
    path_of = {clip_id: path for clip_id, path in zip(clips.ids(), clips.paths(), strict=True) if clip_id not in failed}
    if existing.clip_ids != list(path_of):  # such as a subset that a user saved
        return "does not hold what its settings say"
    changed = changed_files(list(path_of.values()), existing.meta["audio_checksums"].tolist())
    return f"was made from other audio ({len(changed)} files have changed, such as {changed[0]})" if changed else ""


def _worth_another_try(finished: FeatureSet, settings: ExtractionSettings) -> bool:
    failed, device = len(finished.meta["failed"]), finished.meta["device"]
    # Rows from a CPU and a GPU agree to 1e-6, but not to the last bit, so one file is made on one kind of device.
    is_same = device == settings.provenance["device"]
    if failed:
        then = "trying them again" if is_same else "not tried again on another device"
        print(f"{failed} clips failed in the last run, on {device}; {then}")
    return bool(failed) and is_same


def _split_into_parts(work: Work, features: FeatureSet) -> None:
    """Write the rows of a finished file as parts again, so that only the clips that failed are repeated."""
    meta = features.meta
    columns = (features.features.numpy(), *(meta[name].tolist() for name in ("samples", "audio_checksums", "peaks")))
    rows, failed = zip(*columns, strict=True), dict(meta["failed"])
    outcomes = {
        row: Failed(row, failed[clip_id]) if clip_id in failed else Embedded(row, *next(rows))
        for row, clip_id in enumerate(work.clips.ids())
    }
    for place in work.slices:
        write_part(work.folder, work.part(place, outcomes))


def _finish(work: Work, output: Path) -> tuple[Counts, list[tuple[str, str]]]:
    """Join the parts into the file, if it is one, with notes on its clips, and list the clips that failed; returns the numbers of
    clips, and that list."""
    infos = [read_info(work.path(place)) for place in work.slices]
    for info in infos:
        if info.settings != work.part_settings or info.listing != work.clips.of(info.place).fingerprint():
            raise OutputError(
                f"another command has written to {work.folder} with different settings or clips; give it another output, and "
                "run this one again with --overwrite"
            )
    for path in (output, failures_file(output)):
        remove_leftovers(path)
    counts, failed = totals(infos)
    if failed:
        write_csv(failures_file(output), [("clip_id", "reason"), *failed])
    else:
        failures_file(output).unlink(missing_ok=True)
    if work.output is not None:
        if counts["extracted"]:
            features = FeatureSet.load(work.folder)
            features.meta["clip_list"] = work.settings.provenance["clip_list"]
            features.save(work.output)
            for note in notes_on(features):
                print(f"note: {note}")
        remove_parts(work.folder)
    return counts, failed


def failures_file(output: Path) -> Path:
    """The list of clips that failed, beside what is written."""
    return output.with_name(output.name + ".failed.csv")


def remove_parts(folder: Path) -> None:
    """Remove the parts, once the file holds their rows."""
    for pattern in ("part-*.parquet", "*.claim", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    for path in folder.glob(".lock-*"):  # of processes that were killed
        with contextlib.suppress(OutputError), exclusive(path, ""):
            pass


def _remove_old_parts(folder: Path, settings: ExtractionSettings) -> None:
    """Remove what a run that was killed after writing the file left behind; parts of different settings are kept."""
    if folder.is_dir() and not alive_claims(folder):
        infos = todo.read_infos(folder).values()
        if all(info.settings | settings.of_parts == info.settings for info in infos):
            remove_parts(folder)
            with contextlib.suppress(OSError):  # of another program's files
                folder.rmdir()


@contextlib.contextmanager
def _explained(work: Work) -> Iterator[None]:
    """Say what is kept when a run is interrupted, or cannot write."""
    try:
        yield
    except BrokenPipeError:  # of the reader of what is printed
        raise
    except (KeyboardInterrupt, OSError) as error:
        kept = f"{work.n_done():,} of {len(work.clips):,} clips are kept in {work.folder}; the same command continues from there"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted: {kept}") from error
        raise OutputError(f"cannot write {error.filename or work.folder}: {error.strerror}; {kept}") from error


def _report(output: Path, work: Work, counts: Counts, failures: Sequence[tuple[str, str]], seconds: float) -> None:
    """Print what was done; ExtractionError if every clip failed."""
    count, padded, missing, listed = counts["clips"], counts["padded"], counts.get("missing", 0), failures_file(output)
    if not counts["extracted"]:
        raise ExtractionError(f"all {count:,} clips failed, nothing was saved: {failures[0][1]} (reasons: {listed})")
    failed = counts["failed"] - missing
    lost = f", {failed:,} failed" * bool(failed) + f", {missing:,} missing" * bool(missing)
    lost += f" (listed in {listed})" * bool(failures)
    if padded:
        least = work.settings.provenance["min_samples"]
        minimum = f"{least:,} samples, {least / work.settings.provenance['sample_rate']:.2f} s"
        print(f"{padded:,} clips were shorter than the encoder's minimum and were padded to it ({minimum})")
    print(f"{counts['extracted']:,} of {count:,} clips{lost}, {seconds:.1f} s -> {output}")
