"""Which rows train and which rows test: the data set's own folds or splits, or a seeded random one."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from common.features import FeatureSet

VALID_SHARE = 0.2  # of the training clips, where a data set has no validation clips of its own


class SplitError(ValueError):
    """The data cannot be split for a fair score; the message is one line."""


@dataclass(frozen=True)
class Split:
    """One division of the rows, as int64 indices into the FeatureSet: fitted on `train`, the epoch chosen on
    `valid` (the last one where it is empty), scored on `test`."""

    name: str
    train: np.ndarray
    test: np.ndarray
    valid: np.ndarray = field(default_factory=lambda: np.arange(0))

    @property
    def learnable(self) -> np.ndarray:
        """Training and validation rows, in order: all that a head may learn from once nothing is to be chosen."""
        return np.sort(np.concatenate([self.train, self.valid]))


def make_splits(features: FeatureSet, test_share: float, seed: int) -> tuple[list[Split], str]:
    """The data set's official division where the features hold one, else a stratified random one.

    Returns:
        The splits, and a phrase that names the protocol, such as ``"official folds 1, 2, 10"``.

    Raises:
        SplitError: a single fold, or a fold or side without a class.
    """
    if features.folds is not None:
        return _folds(features)
    if features.splits is not None:
        sides = np.array(features.splits)
        missing = [side for side in ("train", "test") if side not in sides]
        if missing:
            raise SplitError(
                f"the features hold no {' and no '.join(missing)} clips of the official split; "
                "extract the features of the whole data set"
            )
        splits = [Split("test", *(np.flatnonzero(sides == side) for side in ("train", "test", "valid")))]
        protocol = "official train, valid and test split" if len(splits[0].valid) else "official train and test split"
    else:
        splits = [random_split(features, test_share, seed)]
        protocol = f"random {test_share:.0%} test split, stratified"
    for split in splits:
        _refuse_missing_classes(features, split.train, f"the training side of the {protocol}")
    return splits, protocol


def with_validation(features: FeatureSet, split: Split, seed: int) -> tuple[Split, str]:
    """The split with validation rows: its own, or a fifth of its training rows held out.

    Held out are whole groups where they are known; else one whole fold where there are folds; else clips of every
    class. Where none of these leaves all classes on the training side, nothing is.

    Returns:
        The split, and in words what validates.
    """
    if len(split.valid):
        return split, "the official validation clips"
    ways = []
    if features.groups is not None:
        ways.append((f"{VALID_SHARE:.0%} of the training clips, whole groups", _by_group))
    elif features.folds is not None:
        ways.append(("one of the training folds", _one_fold))
    ways.append((f"{VALID_SHARE:.0%} of the training clips", _by_clip))
    for words, hold_out in ways:
        try:
            valid = hold_out(features, split, seed)
        except SplitError:
            continue
        return Split(split.name, np.setdiff1d(split.train, valid), split.test, valid), words
    return split, "nothing: the last epoch is kept"


def _by_group(features: FeatureSet, split: Split, seed: int) -> np.ndarray:
    return hold_out_groups(features, split.train, VALID_SHARE, seed)


def _one_fold(features: FeatureSet, split: Split, seed: int) -> np.ndarray:
    folds = features.folds.numpy()
    present = np.unique(folds[split.train])
    if len(present) < 2:
        raise SplitError("a single training fold cannot be spared")
    after = present[present > folds[split.test[0]]] if len(split.test) else present[seed % len(present) :]
    valid = split.train[folds[split.train] == (after[0] if len(after) else present[0])]
    _refuse_missing_classes(features, np.setdiff1d(split.train, valid), "what is left for training")
    return valid


def _by_clip(features: FeatureSet, split: Split, seed: int) -> np.ndarray:
    part = random_split(features.rows(split.train), VALID_SHARE, seed)
    return split.train[part.test]


def hold_out_groups(features: FeatureSet, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """About `share` of `rows` as whole groups, so that what is held out is related to nothing that stays;
    the classes in proportion as far as groups allow. Every class stays represented among the others, or SplitError.
    """
    labels, groups = features.labels.numpy()[rows], np.array(features.groups)[rows]
    if len(set(groups)) < 2:
        raise SplitError(f"the {len(rows)} training clips are of one group or none: nothing can be held out")
    folds = StratifiedGroupKFold(min(round(1 / share), len(set(groups))), shuffle=True, random_state=seed)
    per_class = np.maximum(np.bincount(labels), 1)

    def imbalance(part: np.ndarray) -> float:
        return float(np.abs(np.bincount(labels[part], minlength=len(per_class)) / per_class - share).sum())

    try:
        with warnings.catch_warnings():  # of a class with fewer clips than parts, which is no matter here
            warnings.simplefilter("ignore", UserWarning)
            # Of the parts, each held out by no other, the one that comes closest to the share in every class.
            held_out = min((part for _, part in folds.split(rows, labels, groups)), key=imbalance)
    except ValueError as error:
        raise SplitError(f"{len(rows)} training clips are too few to hold out whole groups: {error}") from error
    held_out = rows[np.sort(held_out)]
    _refuse_missing_classes(features, np.setdiff1d(rows, held_out), "what is left for training")
    return held_out


def _folds(features: FeatureSet) -> tuple[list[Split], str]:
    folds = features.folds.numpy()
    present = np.unique(folds).tolist()
    if len(present) == 1:
        raise SplitError(
            f"only fold {present[0]} is present: cross-validation over the official folds needs two or more; "
            "extract the features of the whole data set"
        )
    for fold in present:
        _refuse_missing_classes(features, np.flatnonzero(folds == fold), f"fold {fold}")
    splits = [Split(f"fold {fold}", np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in present]
    whole = present == list(range(present[0], present[-1] + 1)) and len(present) > 2
    return splits, f"official folds {f'{present[0]}-{present[-1]}' if whole else ', '.join(map(str, present))}"


def random_split(features: FeatureSet, test_share: float, seed: int) -> Split:
    """A random share of the clips of every class for testing, whatever folds and groups there are: clips of one
    recording, patient or speaker may stand on both sides, so that its score is higher than an honest one.

    Raises:
        SplitError: a class has a single clip, or too few clips in all.
    """
    labels = features.labels.numpy()
    rows = np.arange(len(labels))
    alone = [features.class_names[label] for label, count in Counter(labels.tolist()).items() if count < 2]
    if alone:
        raise SplitError(f"class {alone[0]} has a single clip: it cannot both train and test; add clips or folds")
    try:
        train, test = train_test_split(rows, test_size=test_share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise SplitError(f"{len(rows)} clips cannot be split {test_share:.0%} for testing by class: {error}") from error
    return Split("random", np.sort(train), np.sort(test))


def _refuse_missing_classes(features: FeatureSet, rows: np.ndarray, where: str) -> None:
    counts = np.bincount(features.labels.numpy()[rows], minlength=len(features.class_names))
    missing = [name for name, count in zip(features.class_names, counts, strict=True) if not count]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SplitError(f"{where} has no clip of class {names}; every class must occur there for a fair score")
