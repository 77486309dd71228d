"""LibriSpeech (Panayotov et al. 2015): read English, 16 kHz; used here to recognise and to verify speakers.

https://www.openslr.org/12; 251 speakers in train-clean-100, and 40 others in dev-clean and in test-clean.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import (
    Clip,
    Copy,
    DatasetError,
    DatasetNote,
    Division,
    Flag,
    OfficialCounts,
    Prepared,
    Task,
    Variants,
    layout_error,
)

if TYPE_CHECKING:
    import numpy as np

    from common.arrays import Array
    from common.features import FeatureSet

TITLE = "LibriSpeech"
# subset -> its folder below clean/ in `openslr/librispeech_asr`
ON_THE_HUB = {"train-clean-100": "train.100", "test-clean": "test", "dev-clean": "validation"}
VALID_SHARE = 0.2  # of a speaker's training utterances, to choose the epoch, with --split chapter or matched
SPLIT_HELP = "utterance: 80/20 of every speaker; chapter: whole chapters; matched: as many utterances as by chapter"
SUBSETS = {
    "train-clean-100": OfficialCounts(28_539, classes=251, groups=585),
    "test-clean": OfficialCounts(2620, classes=40),
    "dev-clean": OfficialCounts(2703, classes=40),
}
# From the archive's SPEAKERS.TXT; a feature file without provenance is recognised by them.
SPEAKERS = {
    "test-clean": (
        "61 121 237 260 672 908 1089 1188 1221 1284 1320 1580 1995 2094 2300 2830 2961 3570 3575 3729 4077 4446 4507 4970 4992 "
        "5105 5142 5639 5683 6829 6930 7021 7127 7176 7729 8224 8230 8455 8463 8555"
    ),
    "dev-clean": (
        "84 174 251 422 652 777 1272 1462 1673 1919 1988 1993 2035 2078 2086 2277 2412 2428 2803 2902 3000 3081 3170 3536 3576 "
        "3752 3853 5338 5536 5694 5895 6241 6295 6313 6319 6345 7850 7976 8297 8842"
    ),
}


def read_clips(root: Path, subset: str) -> list[Clip]:
    """Every utterance of a subset, labelled by its speaker; groups are chapters, the recording sessions. DatasetError if the
    subset is not unpacked under `root`."""
    paths = sorted((root / subset).glob("*/*/*.flac"))
    if not paths:
        expected = f"{subset}/<speaker>/<chapter>/*.flac"
        raise layout_error(root, TITLE, expected, "LibriSpeech", f"librispeech --only {subset}")
    # Files are named SPEAKER-CHAPTER-NUMBER.flac, in folders of these names.
    return [Clip(path, (path.parts[-3],), group="-".join(path.parts[-3:-1])) for path in paths]


def recognise(features: FeatureSet) -> tuple[FeatureSet, str] | None:
    """Name the subset of a file of the original project, which holds speaker ids, but neither chapters nor provenance."""
    for subset, speakers in SPEAKERS.items():
        if set(features.class_names) <= set(speakers.split()):
            sentence = f"recognised as speakers of {subset} by their ids; chapters are unknown"
            return replace(features, meta={"dataset": f"librispeech_{subset}"}), sentence
    return None


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """Divide the utterances of every speaker by ``--split``.

    ``utterance``: at random, later. ``chapter``: whole chapters test, so that no recording session is on both sides; speakers
    with a single chapter are left out. ``matched``: the same speakers and numbers of utterances, but drawn at random. Both
    choose the epoch on a fifth of every speaker's training utterances, so that they differ only in the sessions.
    """
    import numpy as np

    how = str(division.options["split"])
    if how == "utterance":
        return Prepared(features)
    if features.groups is None:
        raise DatasetError(f"--split {how}: the feature file names no chapters; extract it with this project")
    # Separate generators, so that both divisions break ties in the same way.
    ties, draws = np.random.default_rng(division.seed), np.random.default_rng([division.seed, 1])
    labels, chapters = features.labels.numpy(), np.array(features.groups)
    splits = np.full(len(features), "", dtype=object)  # empty: left out
    for label in range(len(features.class_names)):
        utterances = np.flatnonzero(labels == label)
        tested = utterances[_nearest_chapters(chapters[utterances], division.test_share, ties)]
        if not len(tested):
            continue
        if how == "matched":
            tested = draws.choice(utterances, len(tested), replace=False)
        trained = np.setdiff1d(utterances, tested)
        splits[trained], splits[tested] = "train", "test"
        splits[draws.choice(trained, round(VALID_SHARE * len(trained)), replace=False)] = "valid"
    kept = np.flatnonzero(splits != "")
    if not len(kept):
        raise DatasetError(f"--split {how}: no speaker has two chapters, so there is nothing to split")
    by = {
        "chapter": f"by whole chapters (nearest to {division.test_share:.0%})",
        "matched": "by utterance, as many of each speaker as --split chapter tests",
    }
    words = f"{(splits[kept] == 'test').mean():.0%} test, {by[how]}, seed {division.seed}"
    left_out = [name for label, name in enumerate(features.class_names) if label not in labels[kept]]
    if left_out:
        note = f"{len(left_out)} speakers with a single chapter are left out: {', '.join(left_out)}"
        warnings.warn(note, DatasetNote, stacklevel=2)
        words += f"; {len(left_out)} speakers with one chapter left out"
    return Prepared(replace(features, splits=splits.tolist()).subset(kept), words, is_official=False)


def _nearest_chapters(chapters: Array, test_share: float, rng: np.random.Generator) -> Array:
    """Which of a speaker's utterances are of some of the (N,) chapters, not all, whose share of the utterances is nearest
    to `test_share`; ties are drawn."""
    import numpy as np

    names, chapter, counts = np.unique(chapters, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names)).tolist()
    some = [list(chosen) for size in range(1, len(names)) for chosen in itertools.combinations(order, size)]
    nearest = min(some, key=lambda chosen: abs(counts[chosen].sum() / len(chapters) - test_share), default=[])
    return np.isin(chapter, nearest)


def task(subset: str) -> Task:
    """The task of extracting a subset."""
    return Task(
        name=f"librispeech_{subset}",
        title=f"{TITLE} {subset}",
        folder=Path(__file__).resolve().parent,
        read_clips=partial(read_clips, subset=subset),
        class_names=None,  # the speakers
        copy=Copy(
            {"label": "speaker_id", "group": "speaker_id+chapter_id", "split": "none"},
            files=(subset.replace("-", "?"), f"clean/{ON_THE_HUB[subset]}/"),
        ),
        features_file=f"librispeech_{subset.replace('-', '')}_features.pt",
        classify=(f"librispeech_{'linear_classifier' if subset == 'train-clean-100' else 'verification'}.py",),
        head_files={"linear": "librispeech_linear_classifier.pt", "three_layer": "librispeech_three_classifier.pt"},
        why_only_its_own="its speakers are different, and a head has no class for a speaker it was not trained on",
        flags=(Flag("--split", SPLIT_HELP, ("utterance", "chapter", "matched")),),
        recognise=recognise,
        prepare=prepare,
        official_counts=SUBSETS[subset],
    )


TRAIN_CLEAN_100 = task("train-clean-100")
OTHERS = {subset: task(subset) for subset in ("test-clean", "dev-clean")}
OTHER_SUBSETS = Variants(
    {"--subset": "test-clean, or dev-clean; the speakers of neither are in train-clean-100"},
    {(name,): subset for name, subset in OTHERS.items()},
)
CHECKS = ((TRAIN_CLEAN_100,), *((subset,) for subset in OTHERS.values()))
