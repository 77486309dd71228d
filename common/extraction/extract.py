"""Clips + encoder -> embeddings: made in parts, which are joined into one feature file or stay as they are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.datasets.audio import changed_files
from common.encoder import Encoder, Output
from common.errors import UserError
from common.extraction.claims import Claims, alive_claims
from common.extraction.clip_list import ClipList
from common.extraction.join import failures_file, join_parts, remove_parts, split_into_parts, write_failures
from common.extraction.launchers import Maker, ThisProcess
from common.extraction.plan import MISSING, Plan
from common.extraction.runner import Threads, Work, check_folder, read_infos, stamp
from common.extraction.settings import ExtractionSettings
from common.extraction.share import Share
from common.features import FeatureFileError, FeatureSet
from common.files import OutputError, exclusive, refuse_unwritable, remove_leftovers
from common.parts import PartInfo, read_info

MOST_JOINED = 1_000_000  # clips; with more, the folder of parts is the feature set


class ExtractionError(UserError):
    """No clip could be embedded."""


@dataclass(frozen=True)
class ExtractOptions:
    """How an extraction runs; none of this changes the rows of its result.

    Attributes:
        threads: of this process.
        overwrite: whether a file, or parts, made with different settings or from other audio may be replaced.
        share: what this process does. Whoever sees that all parts are made joins them.
        allow_missing: whether clips whose files are not there are left out, as failed; otherwise nothing is embedded.
        part_size: clips in a part, at most; 0: as is usual for the device.
    """

    threads: Threads = field(default_factory=Threads.shared)
    overwrite: bool = False
    share: Share = field(default_factory=Share)
    allow_missing: bool = False
    part_size: int = 0


def is_folder(output: Path, n_clips: int = 0) -> bool:
    """Whether an output is a folder of parts: any name that does not end in ``.pt``, or too many clips for one file."""
    return output.suffix != ".pt" or n_clips > MOST_JOINED


def parts_folder(output: Path, n_clips: int) -> Path:
    """Where the parts of an output are: while they are made, and for ever if it is a folder."""
    if is_folder(output, n_clips):
        return output.with_suffix("") if output.suffix == ".pt" else output
    return output.with_name(output.name + ".partial")


def extract(
    clips: ClipList,
    encoder: Encoder,
    output: Path,
    outputs: Sequence[Output],
    options: ExtractOptions | None = None,
) -> bool:
    """Embed every clip in this process, as `extract_with` describes.

    Args:
        encoder: from `common.encoder.load_encoder`, or any other `Encoder`.
        outputs: of `encoder.outputs`; a row has them side by side.
    """
    options = options or ExtractOptions()
    return extract_with(ThisProcess(encoder, outputs, options.threads), clips, output, options)


def extract_with(maker: Maker, clips: ClipList, output: Path, options: ExtractOptions) -> bool:
    """Embed every clip and save the FeatureSet as `output`.

    After an interruption at any moment, even by ``kill -9``, the same call continues and gives the same file: to the
    last bit on one kind of CPU, to 1e-6 on a GPU, where rounding depends on which clips share a batch. Where there is a
    finished file of the same settings and audio, only the clips that failed are tried again.

    Args:
        maker: what makes the parts.
        clips: what to embed. Unreadable clips are listed in ``<output>.failed.csv``.
        output: a ``.pt`` file, or a folder of parts.
        options: how to run.

    Returns:
        Whether the output is finished; False if another process finishes it.

    Raises:
        OutputError: another run is writing the same output; it was made with different settings or from other audio and may
            not be overwritten; or it cannot be written (finished work is kept).
        ExtractionError: every clip failed.
        MissingClipsError: files of clips are not there, and `options` does not allow that.
        KeyboardInterrupt: interrupted; its message says what is kept.
    """
    started, before, settings, share = time.monotonic(), stamp(output), maker.settings(clips), options.share
    to_folder, folder = is_folder(output, len(clips)), parts_folder(output, len(clips))
    finished = None if to_folder else _finished_file(output, clips, settings, maker.width, options.overwrite)
    if finished is not None and (share.index or not _worth_another_try(finished, settings)):
        _remove_leftovers(folder, settings)
        print(f"{output} already exists, made with the same settings: {len(finished):,} clips. Nothing to do.")
        return True
    for path in ([] if to_folder else [output]) + [failures_file(output)]:
        refuse_unwritable(path)
    plan = Plan.make(clips, settings, maker.width, options.allow_missing, options.part_size)
    work = Work(plan, folder, None if to_folder else output, before)
    share = share if finished is None else Share()  # one process tries the few clips that failed
    what = str(output) if share.is_all else f"shard {share} of {output}"
    with exclusive(folder / f".lock-{share}".replace("/", "-of-"), what), _explained(work):
        check_folder(work, options.overwrite)
        if finished is not None:
            split_into_parts(work, finished)
        with Claims(folder, work.identity) as claims:
            n_embedded = maker.make(work, share, claims)
            infos = None
            if not work.is_written() and not work.missing() and not claims.others() and claims.take("join"):
                infos = _finish(work, output)
    if not to_folder:
        with contextlib.suppress(OSError):  # another process is there, or has already started
            folder.rmdir()
    if infos is None:
        print(f"shard {share}: {n_embedded:,} clips done; another process writes {output}")
        return False
    _report(output, plan, infos, time.monotonic() - started)
    return True


def _finished_file(
    path: Path, clips: ClipList, settings: ExtractionSettings, width: int, overwrite: bool
) -> FeatureSet | None:
    """The existing file, if it is what this run would make; None if there is none, or it may be replaced."""
    if not path.exists():
        return None
    if not path.is_file():
        refuse_unwritable(path)  # which says what it is
    try:
        existing = FeatureSet.load(path)
        reason = _why_unusable(existing, clips, settings, width)
    except FeatureFileError as error:
        reason = f"cannot be read ({error})"
    if reason and not overwrite:
        raise OutputError(f"{path} {reason}; --overwrite replaces it")
    return None if reason else existing


def _why_unusable(existing: FeatureSet, clips: ClipList, settings: ExtractionSettings, width: int) -> str:
    needed = ("failed", "counts", "device", "samples", "audio_checksums")
    if any(key not in existing.meta for key in needed):
        return "was not made by this project (no provenance in it)"
    different = settings.difference_from_file(existing.meta)
    if different:
        return f"was made with different settings ({different})"
    path_of = dict(zip(clips.ids(), clips.paths(), strict=True))
    checksums = existing.meta["audio_checksums"]
    per_clip = [values.shape == (len(existing),) for values in (checksums, existing.meta["samples"])]
    if not path_of.keys() >= set(existing.clip_ids) or existing.features.shape[1] != width or not all(per_clip):
        return "does not hold what its settings say"
    paths = [path_of[clip_id] for clip_id in existing.clip_ids]
    changed = changed_files(paths, checksums.tolist())
    return f"was made from other audio ({len(changed)} files have changed, such as {changed[0]})" if changed else ""


def _worth_another_try(finished: FeatureSet, settings: ExtractionSettings) -> bool:
    failed, device = len(finished.meta["failed"]), settings.provenance["device"]
    if failed and finished.meta["device"] != device:
        # Rows from a CPU and a GPU agree to 1e-6, but not to the last bit, so one file is made on one kind of device.
        print(f"{failed} clips failed in the last run, on {finished.meta['device']}; not tried again on another device")
        return False
    if failed:
        print(f"{failed} clips failed in the last run; trying them again")
    return bool(failed)


def _remove_leftovers(folder: Path, settings: ExtractionSettings) -> None:
    """Remove what a run that was killed after writing the file left behind; parts of different settings are kept."""
    if not folder.is_dir() or alive_claims(folder):
        return
    infos = read_infos(folder).values()
    if all(info.settings | settings.of_parts == info.settings for info in infos):
        remove_parts(folder)
        with contextlib.suppress(OSError):  # of another program's files
            folder.rmdir()


def _finish(work: Work, output: Path) -> list[PartInfo]:
    """Join the parts into the file, if it is one, and list the clips that failed; what the parts say is returned."""
    infos = [read_info(work.path(place)) for place in work.plan.slices]
    features = None if work.output is None else join_parts(work)
    remove_leftovers(output)
    write_failures(output, [failure for info in infos for failure in info.failed.values()])
    if features is not None:
        if len(features):
            features.save(output)
        remove_parts(work.folder)
    return infos


@contextlib.contextmanager
def _explained(work: Work) -> Iterator[None]:
    """Say what is kept when a run is interrupted, or cannot write."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted: {work.kept()}; the same command continues from there") from error
    except BrokenPipeError:  # of the reader of what is printed
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {error.filename or work.folder}: {error.strerror}; {work.kept()}: fix that, and the same command "
            "continues from there"
        ) from error


def _report(output: Path, plan: Plan, infos: Sequence[PartInfo], seconds: float) -> None:
    """Print what was done; ExtractionError if every clip failed."""
    count, failed = len(plan.clips), [why for info in infos for _, why in info.failed.values()]
    if len(failed) == count:
        raise ExtractionError(
            f"all {count:,} clips failed, so nothing was saved; the first: {failed[0]} (all reasons: {failures_file(output)})"
        )
    missing = int((plan.sizes == MISSING).sum())
    lost = f", {len(failed) - missing:,} failed" if len(failed) > missing else ""
    lost += f", {missing:,} missing" if missing else ""
    lost += f" (listed in {failures_file(output)})" if failed else ""
    if padded := sum(info.padded for info in infos):
        least, rate = plan.settings.provenance["min_samples"], plan.settings.provenance["sample_rate"]
        print(
            f"{padded:,} clips were shorter than the encoder's minimum and were padded to it ({least:,} samples, "
            f"{least / rate:.2f} s)"
        )
    print(f"{count - len(failed):,} of {count:,} clips{lost}, {seconds:.1f} s -> {output}")
