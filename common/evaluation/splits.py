"""Training, validation and test rows: the folds or splits of the data set, or a seeded random split."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye, kron
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from common.arrays import Array
from common.datasets import DivisionKind, Prepared
from common.errors import UserError
from common.features import FeatureSet
from common.heads import Job, Split

MOST_FOLDS = 5
SEARCH_S = 60  # seconds at most of the integer program that looks for folds
VALID_SHARE = 0.2  # of the training clips, where a data set has no validation clips


class SplitError(UserError):
    """The rows cannot be split for a fair score."""


def make_splits(prepared: Prepared) -> tuple[list[Split], str]:
    """The splits by the rows' folds or sides, with a description such as ``"official folds 1-5"``; SplitError if there is only
    one fold, or a side or a class is missing."""
    features = prepared.features
    author = "official" if prepared.kind is DivisionKind.OFFICIAL else "given"
    if features.folds is not None:
        return _folds(features, features.folds.numpy(), author)
    assert features.splits is not None
    sides = np.array(features.splits)
    missing = [side for side in ("train", "test") if side not in sides]
    if missing:
        raise SplitError(
            f"the features hold no {' and no '.join(missing)} clips of the {author} split; "
            "extract the features of the whole data set"
        )
    split = Split("test", *(np.flatnonzero(sides == side) for side in ("train", "test", "valid")))
    described = f"{author} train, valid and test split" if len(split.valid) else f"{author} train and test split"
    _refuse_unfair(features, split, f"the {described}")
    return [split], described


def with_validation(features: FeatureSet, split: Split, seed: int) -> tuple[Split, str]:
    """The split with validation rows, and their description; VALID_SHARE of the training rows is held out if it has none.

    Held out are whole groups if they are known, else a fold if there are folds, else clips of every class; nothing, if that
    would leave a class without training clips.
    """
    if len(split.valid):
        return split, "the validation clips of the division"
    ways: list[tuple[str, Callable[[], Array]]] = []
    share = f"{VALID_SHARE:.0%} of the training clips"
    if features.groups is not None:
        ways.append((f"{share}, whole groups", lambda: hold_out_groups(features, split.train, VALID_SHARE, seed)))
    elif features.folds is not None:
        ways.append(("one of the training folds", lambda: _hold_out_fold(features, split)))
    ways.append((share, lambda: split.train[random_split(features.subset(split.train), VALID_SHARE, seed).test]))
    for words, hold_out in ways:
        try:
            valid = hold_out()
            validated = Split(split.name, np.setdiff1d(split.train, valid), split.test, valid)
            _refuse_unfair(features, validated, split.name)
        except ValueError:
            continue
        return validated, words
    return split, "nothing: the last epoch is kept"


def _hold_out_fold(features: FeatureSet, split: Split) -> Array:
    """The rows of the training fold after the tested one."""
    assert features.folds is not None
    folds = features.folds.numpy()
    present = np.unique(folds[split.train])
    after = [*present[present > folds[split.test[0]]], present[0]]
    valid: Array = split.train[folds[split.train] == after[0]]
    return valid


def hold_out_groups(features: FeatureSet, rows: Array, share: float, seed: int) -> Array:
    """About `share` of `rows` as whole groups, with classes in proportion as far as groups allow; ValueError if groups are too
    few, or no clip of a class would remain."""
    assert features.groups is not None
    labels, groups = features.labels.numpy()[rows], np.array(features.groups)[rows]
    count, n_classes = min(round(1 / share), len(set(groups))), len(features.class_names)
    per_class = np.maximum(class_counts(labels, n_classes), 1)
    folds = group_folds(labels, groups, count, seed)
    # The fold that comes closest to the share in every class.
    held_out = min(
        (np.flatnonzero(folds == fold) for fold in range(count)),
        key=lambda part: np.abs(class_counts(labels[part], n_classes) / per_class - share).sum(),
    )
    valid: Array = rows[held_out]
    _refuse_missing_classes(features, np.setdiff1d(rows, valid), "what is left for training")
    return valid


def group_folds(labels: Array, groups: Array, count: int, seed: int) -> Array:
    """The fold (N,) of every row, from 0, with groups kept whole; ValueError if there are too few rows.

    With several labels a clip, (N, C), the sets of labels of whole groups are stratified (Sechidis et al. 2011). With one, these
    are the folds of StratifiedGroupKFold up to scikit-learn 1.7, on which earlier scores rest: it balanced the folds by class,
    and then mixed up the groups by mistake. Version 1.8 draws different folds.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    if labels.ndim == 2:
        of_group = np.zeros((group_of.max() + 1, labels.shape[1]), bool)
        np.logical_or.at(of_group, group_of, labels)
        splitter = MultilabelStratifiedKFold(count, shuffle=True, random_state=seed)
        parts = [held_out for _, held_out in splitter.split(of_group, of_group)]
    else:
        mixed_up = np.arange(group_of.max() + 1)
        np.random.RandomState(seed).shuffle(mixed_up)
        stand_ins = np.argsort(mixed_up)[group_of]
        with warnings.catch_warnings():  # about classes with fewer clips than folds
            warnings.simplefilter("ignore", UserWarning)
            parts = [stand_ins[rows] for _, rows in StratifiedGroupKFold(count).split(labels, labels, stand_ins)]
    fold_of_group = np.empty(group_of.max() + 1, np.int64)
    for fold, held_out in enumerate(parts):
        fold_of_group[held_out] = fold
    fold_of_row: Array = fold_of_group[group_of]
    return fold_of_row


def folds_by_group(labels: Array, groups: Array, class_names: Sequence[str], seed: int) -> tuple[Array, str]:
    """The fold (N,) of every row, from 1, and their description: the largest number of folds, up to MOST_FOLDS, that keep groups
    whole and all hold every class (with several labels a clip, (N, C): leave it to train on). SplitError if there are not two."""
    _, group_of = np.unique(groups, return_inverse=True)
    is_set = labels.ndim == 2
    has_class = labels.astype(int) if is_set else np.eye(len(class_names), dtype=int)[labels]
    clips = np.zeros((group_of.max() + 1, len(class_names)), int)  # (G, C)
    np.add.at(clips, group_of, has_class)
    n_groups = (clips > 0).sum(axis=0)
    rarest, fewest = int(n_groups.argmin()), int(n_groups.min())
    few = f"class {class_names[rarest]} has clips of only {fewest} group{'s' * (fewest != 1)}"
    most = min(MOST_FOLDS, len(clips) if is_set else fewest)
    for count in range(most if fewest > 1 else 0, 1, -1):
        folds = group_folds(labels, groups, count, seed)
        in_fold = np.array([(clips[np.unique(group_of[folds == fold])] > 0).sum(axis=0) for fold in range(count)])
        if (in_fold < n_groups).all() and (in_fold.any(axis=1) if is_set else in_fold).all():
            chosen = folds
        elif (found := _search_folds(clips, count, is_set, seed)) is not None:
            chosen = found[group_of]
        else:
            continue
        why = f"; {few}" * (count < MOST_FOLDS and count == fewest)
        return 1 + chosen, f"{count} folds by group, made here with seed {seed}{why}"
    raise SplitError(
        f"no folds keep groups apart and hold every class: {few}; give folds or splits, or leave out the groups (then related "
        "clips may be on both sides)"
    )


def _search_folds(clips: Array, count: int, is_set: bool, seed: int) -> Array | None:
    """The fold (G,) of every group by an integer program, from its clips of every class (G, C); None if none is found."""
    holds, n_places = clips > 0, len(clips) * count
    in_one_fold = kron(eye(len(clips)), np.ones((1, count)))
    in_fold = kron(csr_array(holds.T, dtype=float), eye(count))  # groups with a class, of every class and fold
    labelled = kron(holds.any(axis=1, keepdims=True).T.astype(float), eye(count))
    least, most = (0 if is_set else 1), np.repeat(holds.sum(axis=0) - 1, count)
    constraints = [
        LinearConstraint(in_one_fold, 1, 1),
        LinearConstraint(in_fold, least, most),
        LinearConstraint(labelled, 1),
    ]
    options = {"time_limit": SEARCH_S}
    solved = milp(np.zeros(n_places), integrality=1, bounds=Bounds(0, 1), constraints=constraints, options=options)
    if solved.x is None:
        return None
    folds: Array = solved.x.reshape(len(clips), count).argmax(axis=1)
    # The program takes any such folds; groups are moved while that makes the classes more even.
    shares, order, is_even = clips / clips.sum(axis=0), np.random.default_rng(seed).permutation(len(clips)), False
    held, share = (np.array([part[folds == fold].sum(axis=0) for fold in range(count)]) for part in (holds, shares))
    while not is_even:
        is_even = True
        for group in order:
            before = folds[group]
            held[before] -= holds[group]
            share[before] -= shares[group]
            off = np.abs(share + shares[group] - 1 / count).sum(axis=1) - np.abs(share - 1 / count).sum(axis=1)
            moved = held + np.eye(count, dtype=int)[:, :, None] * holds[group]  # (fold that it is in, F, C)
            off[((moved < least) | (moved >= holds.sum(axis=0))).any(axis=(1, 2)) | ~moved.any(axis=2).all(axis=1)] = (
                np.inf
            )
            best = int(off.argmin())
            is_even &= off[best] > off[before] - 1e-9
            folds[group] = best
            held[best] += holds[group]
            share[best] += shares[group]
    return folds


def _folds(features: FeatureSet, folds: Array, author: str) -> tuple[list[Split], str]:
    present = np.unique(folds).tolist()
    if len(present) == 1:
        raise SplitError(
            f"only fold {present[0]} is present: cross-validation over the {author} folds needs two or more; "
            "extract the features of the whole data set"
        )
    splits = [Split(f"fold {fold}", np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in present]
    for split in splits:
        if features.is_multilabel:  # a class that is not tested is left out of a mean
            _refuse_unfair(features, split, split.name)
        else:
            _refuse_missing_classes(features, split.test, split.name)
    is_range = present == list(range(present[0], present[-1] + 1)) and len(present) > 2
    return splits, f"{author} folds {f'{present[0]}-{present[-1]}' if is_range else ', '.join(map(str, present))}"


def random_split(features: FeatureSet, test_share: float, seed: int) -> Split:
    """A stratified random split, whatever the folds and groups; leaks related clips, so its scores are too high. With several
    labels a clip, the stratification is iterative (Sechidis et al. 2011). SplitError if there are too few clips."""
    labels = features.labels.numpy()
    rows = np.arange(len(labels))
    single = np.flatnonzero(class_counts(labels, len(features.class_names)) == 1)
    if len(single):
        name = features.class_names[single[0]]
        raise SplitError(f"class {name} has a single clip: it cannot both train and test; add clips or folds")
    try:
        if features.is_multilabel:
            splitter = MultilabelStratifiedShuffleSplit(1, test_size=test_share, random_state=seed)
            train, test = next(splitter.split(labels, labels))
        else:
            train, test = train_test_split(rows, test_size=test_share, random_state=seed, stratify=labels)
    except ValueError as error:
        raise SplitError(f"{len(rows)} clips cannot be split {test_share:.0%} for testing by class: {error}") from error
    split = Split("random", np.sort(train), np.sort(test))
    if features.is_multilabel:
        _refuse_unfair(features, split, "the random split")
    return split


def class_counts(labels: Array, n_classes: int) -> Array:
    """(C,) clips of every class."""
    counts: Array = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=n_classes)
    return counts


def _refuse_missing_classes(features: FeatureSet, rows: Array, where: str) -> None:
    counts = class_counts(features.labels.numpy()[rows], len(features.class_names))
    missing = [name for name, count in zip(features.class_names, counts, strict=True) if not count]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise SplitError(f"{where} has no clip of class {names}; every class must occur there for a fair score")


def _refuse_unfair(features: FeatureSet, split: Split, name: str) -> None:
    """SplitError unless every class occurs on the training side, and the other sides, if they have clips, have a label."""
    _refuse_missing_classes(features, split.train, f"the training side of {name}")
    for rows, side in ((split.test, "test"), (split.valid, "validation")):
        if features.is_multilabel and len(rows) and not features.labels.numpy()[rows].any():
            problem = f"no clip of the {side} side of {name} has a label, so nothing can be scored there"
            raise SplitError(f"{problem}; divide the clips otherwise")


def with_shots(features: FeatureSet, job: Job, shots: int, draw: int) -> Job:
    """The job with `shots` clips of every class to train on, drawn at random from its training and validation clips, and
    none to validate on; a class with fewer gives all.

    With several labels a clip, classes are filled in the order of their frequency, rarest first, and a clip counts for all its
    labels, so that frequent labels may have more.
    """
    rng, labels = np.random.default_rng([job.seed, shots, draw]), features.labels.numpy()
    rows = rng.permutation(job.split.learnable)
    has = labels[rows] if features.is_multilabel else labels[rows, None] == np.arange(len(features.class_names))
    taken = np.zeros(len(rows), bool)
    for label in np.argsort(has.sum(axis=0), kind="stable"):
        wanted = shots - int(has[taken, label].sum())
        taken[np.flatnonzero(has[:, label] & ~taken)[: max(0, wanted)]] = True
    few = replace(job.split, train=np.sort(rows[taken]), valid=np.arange(0))
    return replace(job, split=few, seed=job.seed + draw)
