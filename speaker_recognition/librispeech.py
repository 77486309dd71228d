"""LibriSpeech (Panayotov et al. 2015): read English, 16 kHz; used here to recognise and to verify speakers.

https://www.openslr.org/12; train-clean-100 has 251 speakers, dev-clean and test-clean have 40 other speakers each.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import Clip, DatasetError, DatasetNote, Division, Flag, Task, Variants, layout_error

if TYPE_CHECKING:
    from common.features import FeatureSet

TITLE = "LibriSpeech"
SUBSETS = ("train-clean-100", "dev-clean", "test-clean")


def read_clips(root: Path, subset: str) -> list[Clip]:
    """Every utterance of a subset, labelled by its speaker; groups are chapters, the recording sessions.

    Raises:
        DatasetError: the subset is not unpacked under `root`, or SPEAKERS.TXT does not list one of its speakers.
    """
    if not (root / subset).is_dir() or not (root / "SPEAKERS.TXT").is_file():
        if root.name in SUBSETS:
            raise DatasetError(f"data root {root} is one subset; give the folder that holds it: {root.parent}")
        expected = f"SPEAKERS.TXT and {subset}/<speaker>/<chapter>/*.flac"
        raise layout_error(root, TITLE, expected, "LibriSpeech", f"librispeech --only {subset}")
    speakers = read_speakers(root / "SPEAKERS.TXT")
    clips = []
    for path in sorted((root / subset).glob("*/*/*.flac")):
        speaker, chapter = path.parent.parent.name, path.parent.name
        if not path.name.startswith(f"{speaker}-{chapter}-"):
            raise DatasetError(f"{path} does not belong in {path.parent}; unpack {subset} again")
        if speakers.get(speaker) != subset:
            raise DatasetError(
                f"{path}: speaker {speaker} is not in {subset} by {root / 'SPEAKERS.TXT'}"
                f"{f' (but in {speakers[speaker]})' if speaker in speakers else ''}; unpack {subset} again"
            )
        clips.append(Clip(path, speaker, group=f"{speaker}-{chapter}"))
    missing = sorted(name for name, of in speakers.items() if of == subset and not (root / subset / name).is_dir())
    if missing and clips:
        warnings.warn(
            f"{len(missing)} speakers of {subset} are missing in {root}: {', '.join(missing[:6])}"
            f"{'...' if len(missing) > 6 else ''}",
            DatasetNote,
            stacklevel=2,
        )
    if not clips:
        raise DatasetError(f"{root / subset} holds no <speaker>/<chapter>/*.flac; unpack {subset} again")
    return clips


def read_speakers(path: Path) -> dict[str, str]:
    """Speaker id -> subset, from SPEAKERS.TXT: ``ID | SEX | SUBSET | MINUTES | NAME``, comments after ``;``.

    A name may hold the separator (speaker 60 is ``|CBW|Simon``), so only the first four separators count.
    """
    speakers = {}
    for line, row in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not row.strip() or row.startswith(";"):
            continue
        fields = [field.strip() for field in row.split("|", 4)]
        if len(fields) != 5 or not fields[0].isdecimal():
            raise DatasetError(f"{path} line {line} ({row[:60]!r}) is not 'ID | SEX | SUBSET | MINUTES | NAME'")
        speakers[fields[0]] = fields[2]
    return speakers


def prepare(features: FeatureSet, division: Division) -> tuple[FeatureSet, str]:
    """Split by utterance (features unchanged; a seeded random split follows) or by chapter.

    By chapter, about a fifth of every speaker's utterances are test data, in whole chapters, so that no recording
    session is on both sides; speakers with one chapter are named and left out.
    """
    if division.options["split"] == "utterance":
        return features, ""
    import numpy as np

    if features.groups is None:
        raise DatasetError("--split chapter: the feature file names no chapters; extract it with this project")
    rng = np.random.default_rng(division.seed)
    labels, chapters = features.labels.numpy(), np.array(features.groups)
    splits = np.array(["train"] * len(features), dtype=object)
    alone = []
    for label, speaker in enumerate(features.class_names):
        own = np.unique(chapters[labels == label])
        if len(own) < 2:
            alone.append(speaker)
            splits[labels == label] = ""
            continue
        wanted = division.test_share * (labels == label).sum()
        for chapter in rng.permutation(own)[:-1]:  # one stays for training
            splits[chapters == chapter] = "test"
            if ((splits == "test") & (labels == label)).sum() >= wanted:
                break
    if alone:
        warnings.warn(
            f"{len(alone)} speakers with a single chapter are left out: {', '.join(alone)}", DatasetNote, stacklevel=2
        )
    kept = np.flatnonzero(splits != "")
    if not len(kept):
        raise DatasetError("--split chapter: no speaker has two chapters, so there is nothing to split")
    prepared = replace(features, splits=splits.tolist()).subset(kept)
    left_out = f"; {len(alone)} speakers with one chapter left out" if alone else ""
    return prepared, f"about {division.test_share:.0%} test, by whole chapters, seed {division.seed}{left_out}"


def task(subset: str, features_file: str, official_counts: Mapping[str, int]) -> Task:
    """The task of extracting one subset."""
    return Task(
        name=f"librispeech_{subset}",
        title=f"{TITLE} {subset}",
        folder=Path(__file__).resolve().parent,
        read_clips=partial(read_clips, subset=subset),
        class_names=None,  # the speakers
        features_file=features_file,
        head_files={"linear": "librispeech_linear_classifier.pt", "three_layer": "librispeech_three_classifier.pt"},
        why_only_its_own="its speakers are different, and a head has no class for a speaker it was not trained on",
        flags=(
            Flag("--split", "utterance: 80/20 within every speaker; or by whole chapters", ("utterance", "chapter")),
        ),
        prepare=prepare,
        official_counts=official_counts,
    )


TRAIN_CLEAN_100 = task(
    "train-clean-100",
    "librispeech_trainclean100_features.pt",
    {"clips": 28_539, "classes": 251, "groups": 585},
)
OTHERS = {
    "test-clean": task("test-clean", "librispeech_testclean_features.pt", {"clips": 2620, "classes": 40}),
    "dev-clean": task("dev-clean", "librispeech_devclean_features.pt", {"clips": 2703, "classes": 40}),
}
OTHER_SUBSETS = Variants(
    {"--subset": "test-clean, or dev-clean; the speakers of neither are in train-clean-100"},
    {(name,): subset for name, subset in OTHERS.items()},
)
CHECKS = ((TRAIN_CLEAN_100,), *((subset,) for subset in OTHERS.values()))
