"""LibriSpeech: speakers and chapters, and divisions that share no session."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.datasets import DatasetError, DatasetNote, Division, DivisionKind
from common.evaluation.splits import make_splits, random_split
from common.features import FeatureSet
from speaker_recognition import librispeech
from tests.support.samples import SHARED, needs_shared, write_wav


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for speaker, chapter, subset in (
        (60, 1, "train-clean-100"),
        (60, 2, "train-clean-100"),
        (62, 3, "train-clean-100"),
        (61, 4, "test-clean"),
    ):
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}.flac"
            write_wav(root / subset / str(speaker) / str(chapter) / name, number, rate=16_000)
    return root


def test_utterances_are_labelled_by_speaker_and_grouped_by_chapter(libri: Path) -> None:
    clips = librispeech.read_clips(libri, "train-clean-100")
    assert Counter(clip.class_name for clip in clips) == {"60": 4, "62": 2}
    assert {clip.group for clip in clips} == {"60-1", "60-2", "62-3"}
    assert [clip.class_name for clip in librispeech.read_clips(libri, "test-clean")] == ["61", "61"]


def test_a_wrong_layout_is_named(libri: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected dev-clean/<speaker>/<chapter>/\*\.flac; found test-clean/"):
        librispeech.read_clips(libri, "dev-clean")
    with pytest.raises(DatasetError, match=f"is a part of LibriSpeech; give all of it: --data-root {libri}$"):
        librispeech.read_clips(libri / "test-clean", "test-clean")


def speakers(chapters: dict[str, list[int]]) -> FeatureSet:
    """Utterances of each speaker's chapters: speaker -> how many in each."""
    rows = [
        (label, f"{speaker}-{chapter}")
        for label, (speaker, counts) in enumerate(chapters.items())
        for chapter, count in enumerate(counts)
        for _ in range(count)
    ]
    return FeatureSet(
        torch.zeros(len(rows), 2),
        torch.tensor([label for label, _ in rows]),
        list(chapters),
        [str(row) for row in range(len(rows))],
        groups=[group for _, group in rows],
    )


def divided(how: str, test_share: float = 0.2, seed: int = 42) -> Division:
    return Division({"split": how}, test_share, seed)


BY_CHAPTER, BY_UTTERANCE = divided("chapter"), divided("utterance")


def test_splitting_by_chapter_needs_two_chapters_that_are_known() -> None:
    features = speakers({"7": [50], "8": [30]})
    with pytest.raises(DatasetError, match="no speaker has two chapters"):
        librispeech.prepare(features, BY_CHAPTER)
    with pytest.raises(DatasetError, match="names no chapters"):
        librispeech.prepare(replace(features, groups=None), BY_CHAPTER)
    with pytest.raises(DatasetError, match="--split matched: the feature file names no chapters"):
        librispeech.prepare(replace(features, groups=None), divided("matched"))


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_by_chapter_no_chapter_is_on_both_sides() -> None:
    features = speakers({"7": [50, 40, 5, 5], "8": [30, 30], "9": [80], "10": [1, 99]})
    with pytest.warns(DatasetNote, match="1 speakers with a single chapter are left out: 9"):
        divided_rows = librispeech.prepare(features, BY_CHAPTER)
    assert "1 speakers with one chapter left out" in divided_rows.description
    assert not divided_rows.is_official
    prepared = divided_rows.features
    assert prepared.class_names == ["7", "8", "10"]
    assert len(prepared) == len(features) - 80
    (split,), _ = make_splits(divided_rows)
    groups = np.array(prepared.groups)
    assert not set(groups[split.train]) & set(groups[split.test])
    for rows in (split.train, split.test):
        assert set(prepared.labels[rows].tolist()) == {0, 1, 2}
    again = librispeech.prepare(speakers({"7": [50, 40, 5, 5], "8": [30, 30]}), BY_CHAPTER).features
    assert set(again.splits) == {"train", "valid", "test"}


def made_up_speakers(seed: int, count: int = 12) -> FeatureSet:
    """Speakers of one to six chapters of 1 to 60 utterances."""
    rng = np.random.default_rng(seed)
    return speakers({str(100 + number): rng.integers(1, 60, rng.integers(1, 7)).tolist() for number in range(count)})


def utterances_of_each(features: FeatureSet) -> dict[str, tuple[int, int]]:
    """Speaker -> how many of the utterances train (or choose the epoch), and how many test."""
    assert features.splits is not None
    splits = ["train" if split == "valid" else split for split in features.splits]
    counts = Counter(zip(features.labels.tolist(), splits, strict=True))
    return {
        speaker: (counts[label, "train"], counts[label, "test"]) for label, speaker in enumerate(features.class_names)
    }


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
@pytest.mark.parametrize("test_share", [0.05, 0.2, 0.5, 0.77])
@pytest.mark.parametrize("seed", range(5))
def test_the_chapters_nearest_to_the_test_share_are_tested(test_share: float, seed: int) -> None:
    """Of each speaker, against every way to choose some of the chapters but not all."""
    features = made_up_speakers(seed)
    assert features.groups is not None
    prepared = librispeech.prepare(features, divided("chapter", test_share, seed)).features
    assert prepared.splits is not None and prepared.groups is not None
    expected = []
    for label, speaker in enumerate(features.class_names):
        sizes = list(Counter(group for group in features.groups if group.startswith(f"{speaker}-")).values())
        shares = [
            sum(size for place, size in enumerate(sizes) if chosen >> place & 1) / sum(sizes)
            for chosen in range(1, 2 ** len(sizes) - 1)
        ]
        if not shares:
            continue
        expected.append(speaker)
        n_train, n_test = utterances_of_each(prepared)[speaker]
        assert n_train + n_test == sum(sizes) == int((features.labels == label).sum())
        assert abs(n_test / sum(sizes) - test_share) == pytest.approx(
            min(abs(share - test_share) for share in shares), abs=1e-12
        )
    assert prepared.class_names == expected
    sides = Counter((group, split == "test") for group, split in zip(prepared.groups, prepared.splits, strict=True))
    assert len(sides) == len(set(prepared.groups))  # every chapter is on one side


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
@pytest.mark.parametrize("test_share", [0.05, 0.2, 0.5, 0.77])
@pytest.mark.parametrize("seed", range(5))
def test_matched_differs_from_chapter_in_the_sessions_alone(test_share: float, seed: int) -> None:
    features = made_up_speakers(seed)
    by_chapter, matched = (
        librispeech.prepare(features, divided(how, test_share, seed)) for how in ("chapter", "matched")
    )
    assert matched.features.class_names == by_chapter.features.class_names
    assert matched.features.clip_ids == by_chapter.features.clip_ids
    assert utterances_of_each(matched.features) == utterances_of_each(by_chapter.features)
    assert matched.features.splits != by_chapter.features.splits
    assert not matched.is_official
    again = librispeech.prepare(features, divided("matched", test_share, seed)).features
    assert again.splits == matched.features.splits
    # Drawn at random, the test utterances of most speakers are of several chapters, which train as well.
    (split,), _ = make_splits(matched)
    groups = np.array(matched.features.groups)
    assert np.isin(groups[split.test], groups[split.train]).mean() > 0.5


@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("chapter", "by whole chapters (nearest to 20%)"),
        ("matched", "by utterance, as many of each speaker as --split chapter tests"),
    ],
)
def test_the_protocol_names_the_share_that_is_tested(how: str, words: str) -> None:
    # A half of the first speaker's and a third of the second's: 60 of 130 utterances.
    features = speakers({"7": [50, 50], "8": [20, 10], "9": [80]})
    prepared = librispeech.prepare(features, divided(how))
    assert utterances_of_each(prepared.features) == {"7": (50, 50), "8": (20, 10)}
    assert prepared.description == (f"46% test, {words}, seed 42; 1 speakers with one chapter left out")
    without = librispeech.prepare(features.subset(np.arange(130)), divided(how, seed=7))
    assert without.description == f"46% test, {words}, seed 7"


def test_by_utterance_the_division_is_random() -> None:
    features = speakers({"7": [50], "8": [30, 30]})
    prepared = librispeech.prepare(features, BY_UTTERANCE)
    split = random_split(prepared.features, 0.2, 42)
    assert (prepared.description, prepared.kind) == ("", DivisionKind.RANDOM)
    assert prepared.features.labels[split.test].bincount().tolist() == [10, 12]


@needs_shared
@pytest.mark.filterwarnings("ignore::common.datasets.DatasetNote")
def test_the_real_utterances_are_of_6_speakers_in_12_chapters() -> None:
    clips = librispeech.read_clips(SHARED / "real_audio" / "LibriSpeech", "train-clean-100")
    assert Counter(Counter(clip.class_name for clip in clips).values()) == {12: 6}
    assert len({clip.group for clip in clips}) == 12


def test_files_of_raw_speaker_ids_are_recognised() -> None:
    for subset, ids in librispeech.SPEAKERS.items():
        names = ids.split()
        assert len(names) == len(set(names)) == 40
        features = replace(speakers({speaker: [2] for speaker in names[:5]}), groups=None)
        recognised = librispeech.recognise(features)
        assert recognised is not None
        assert recognised[0].meta == {"dataset": f"librispeech_{subset}"}
        assert f"speakers of {subset}" in recognised[1]
    assert librispeech.recognise(speakers({"61": [2], "84": [2]})) is None  # of two subsets
    assert not set(librispeech.SPEAKERS["test-clean"].split()) & set(librispeech.SPEAKERS["dev-clean"].split())
