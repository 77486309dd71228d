"""All parts of an extraction joined into one feature file: the same bytes for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch

from common.datasets import Clip
from common.extraction.plan import not_found
from common.extraction.runner import Work
from common.features import Counts, FeatureSet, Provenance
from common.files import DamagedFileError, OutputError, describe_difference, remove_leftovers, write_csv
from common.parts import Part, read_part, write_part

T = TypeVar("T")


def join_parts(work: Work) -> FeatureSet:
    """Assemble all parts; nothing is written yet.

    Raises:
        OutputError: a part is damaged (then it is removed), or was made by another command meanwhile.
    """
    plan, count = work.plan, len(work.plan.clips)
    embeddings, samples = np.empty((count, plan.width), np.float32), np.zeros(count, np.int64)
    checksums = np.zeros(count, np.int64)
    failed: dict[int, str] = {}
    for place in plan.slices:
        part = _read(work, work.path(place))
        rows = place.start + part.rows
        embeddings[rows], samples[rows], checksums[rows] = part.embeddings, part.samples, part.checksums
        failed |= {place.start + row: why for row, (_, why) in part.info.failed.items()}
    kept = np.setdiff1d(np.arange(count), list(failed)) if failed else slice(None)  # do not copy gigabytes without need
    clips, ids = plan.clips.rows(0, count), plan.clips.ids()
    least = plan.settings.provenance["min_samples"]
    counts = Counts(clips=count, extracted=count - len(failed), failed=len(failed))
    counts["padded"] = int((samples[kept] < least).sum())
    if missing := sum(why == not_found(clips[row]) for row, why in failed.items()):
        counts["missing"] = missing
    meta = Provenance(
        **plan.settings.provenance,
        counts=counts,
        failed=[(ids[row], why) for row, why in sorted(failed.items())],
        samples=torch.from_numpy(samples[kept]),
        audio_checksums=torch.from_numpy(checksums[kept]),
        versions=dict(plan.settings.versions),
    )
    remaining = [row for row in range(count) if row not in failed]
    return _feature_set(
        embeddings[kept],
        [clips[row] for row in remaining],
        [ids[row] for row in remaining],
        plan.clips.class_names,
        meta,
    )


def _read(work: Work, path: Path) -> Part:
    try:
        part = read_part(path)
    except DamagedFileError as error:
        path.unlink()
        raise OutputError(
            f"{path} is damaged ({error}); run the same command again: only its clips are repeated"
        ) from error
    different = describe_difference(part.info.settings, work.plan.part_settings)
    if different or part.info.listing != work.plan.clips.fingerprint(part.info.start, part.info.stop):
        raise OutputError(
            f"another command has written to {work.folder} with {different or 'a different clip list'}; run one of them again, "
            "with --overwrite, and the other with an output of its own"
        )
    return part


def _feature_set(
    embeddings: np.ndarray, clips: list[Clip], ids: list[str], order: Sequence[str] | None, meta: Provenance
) -> FeatureSet:
    present = {clip.class_name for clip in clips} - {""}
    class_names = [name for name in (sorted(present) if order is None else order) if name in present]
    number = {name: place for place, name in enumerate(class_names)}
    folds = _column([clip.fold for clip in clips])
    return FeatureSet(
        torch.from_numpy(embeddings),
        torch.tensor([number.get(clip.class_name, -1) for clip in clips], dtype=torch.int64),
        class_names,
        ids,
        None if folds is None else torch.tensor(folds, dtype=torch.int64),
        _column([clip.split for clip in clips]),
        _column([clip.group for clip in clips]),
        meta,
    )


def _column(values: Sequence[T | None]) -> list[T] | None:
    """One value per clip, or None if no clip has one. Where only some have one, the rows of the others hold None."""
    return None if all(value is None for value in values) else cast("list[T]", list(values))


def split_into_parts(work: Work, features: FeatureSet) -> None:
    """Write the rows of a finished file as parts again, so that a run can repeat the clips that failed."""
    plan, row_of = work.plan, {clip_id: row for row, clip_id in enumerate(features.clip_ids)}
    failed = dict(features.meta["failed"])
    for place in plan.slices:
        ids = plan.clips.ids(place.start, place.stop)
        rows = [row_of[clip_id] for clip_id in ids if clip_id in row_of]
        why = {row: failed.get(clip_id, "") for row, clip_id in enumerate(ids) if clip_id not in row_of}
        samples, checksums = (features.meta[name][rows].numpy() for name in ("samples", "audio_checksums"))
        write_part(work.folder, plan.part(place, features.features[rows].numpy(), samples, checksums, why))


def failures_file(output: Path) -> Path:
    """The list of clips that failed, beside what is written."""
    return output.with_name(output.name + ".failed.csv")


def write_failures(output: Path, failed: Sequence[tuple[str, str]]) -> None:
    """List the failed clips in a file beside the features; remove an outdated list."""
    path = failures_file(output)
    remove_leftovers(path)
    if failed:
        write_csv(path, [("clip_id", "reason"), *failed])
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the parts, once the file holds their rows."""
    for pattern in ("part-*.parquet", "*.claim", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
