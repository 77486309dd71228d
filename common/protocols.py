"""One protocol from end to end: which rows train, choose and test; heads, probes and controls fitted and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from common.features import FeatureSet
from common.heads import HEADS, TrainedHead
from common.metrics import majority_predictions
from common.probes import PROBES, fit_probe
from common.recipes import recipe_for
from common.results import MoreScores, Outcome, comparison_record, head_record
from common.splits import Split, make_splits, random_split, with_validation
from common.stack import FittedHead, Job
from common.train import fit_chosen, fit_heads

PROTOCOLS = ("official", "random")
SHUFFLED = "shuffled_labels"


@dataclass(frozen=True)
class ProtocolRun:
    """What a protocol gives: its record, the outcomes of both heads, and the heads to keep."""

    record: dict[str, Any]
    outcomes: dict[str, list[Outcome]]
    heads: dict[str, TrainedHead]


def run_protocol(
    name: str,
    features: FeatureSet,
    config: Mapping[str, Any],
    own_words: str,
    more_scores: MoreScores | None,
    controls: Mapping[str, FeatureSet],
    provenance: dict[str, Any],
) -> ProtocolRun:
    """Fit and score everything by one protocol.

    Args:
        name: ``"official"``: the data set's own division; ``"random"``: a stratified random one, drawn anew for
            every seed, whatever clips are related.
        features: the rows, with the division that the task has prepared.
        config: the effective configuration.
        own_words: the task's name for its division, where it has one.
        more_scores: the task's own.
        controls: name -> other features of the same rows, judged beside these.
        provenance: of the features, for the heads that are kept.

    Raises:
        SplitError: the rows cannot be divided.
    """
    seeds = [config["random_seed"] + place for place in range(config["seeds"])]
    jobs, words, validation = make_jobs(name, features, config["train_test_split"], seeds)
    device = torch.device(config["device"])

    def fit(kind: str, each: FeatureSet, its_jobs: Sequence[Job]) -> list[tuple[FittedHead, FittedHead]]:
        return fit_chosen(kind, each, its_jobs, recipe_for(kind, config), device, config["refit"])

    def judged(each: Sequence[Outcome]) -> dict[str, Any]:
        return head_record(each, features, more_scores)

    outcomes, heads = {}, {}
    for kind in HEADS:
        fitted = fit(kind, features, jobs)
        outcomes[kind] = [outcome_of(*pair) for pair in fitted]
        heads[kind] = _head_to_keep(kind, features, jobs, [scored for _, scored in fitted], config, provenance)
    record = {
        "protocol": own_words or words if name == "official" else words,
        "is_official": name == "official" and not words.startswith("random"),
        "validation": validation,
        "chooses_epoch": _chooses_epoch(config, jobs),
        "refit": bool(config["refit"]) and any(len(job.split.valid) for job in jobs),
        "seeds": seeds,
        "related_test_clips": _related_share(features, jobs),
        "heads": {kind: judged(each) for kind, each in outcomes.items()},
        "majority_class": judged([_majority(features, job) for job in jobs]),
        "comparison": comparison_record(outcomes["linear"], outcomes["three_layer"], features),
        "probes": {},
        "controls": {},
        "label_efficiency": [],
    }
    if config["probes"]:
        recipe = recipe_for("linear", config)
        record["probes"] = {probe: judged(fit_probe(probe, features, jobs, recipe)) for probe in PROBES}
    others = dict(controls)
    if config["controls"]:
        shuffled = np.random.default_rng(config["random_seed"]).permutation(len(features))
        others[SHUFFLED] = replace(features, labels=features.labels[torch.from_numpy(shuffled)])
    for control, other in others.items():
        for kind in HEADS:
            each = [outcome_of(*pair) for pair in fit(kind, other, jobs)]
            if control == SHUFFLED:  # what was written down while fitting is against shuffled labels
                each = [replace(outcome, facts={}) for outcome in each]
            record["controls"][f"{control}, {kind}"] = judged(each)
    for fraction in config["label_fractions"] or ():
        fewer = [_with_fewer_labels(features, job, fraction) for job in jobs]
        for kind in HEADS:
            scored = judged([outcome_of(*pair) for pair in fit(kind, features, fewer)])
            n_train = int(np.mean([len(job.split.learnable) for job in fewer]))
            point = {key: scored[key] for key in ("mean", "std_over_folds", "std_over_seeds", "interval")}
            record["label_efficiency"].append({"head": kind, "fraction": fraction, "n_train": n_train, **point})
    return ProtocolRun(record, outcomes, heads)


def make_jobs(name: str, features: FeatureSet, test_share: float, seeds: Sequence[int]) -> tuple[list[Job], str, str]:
    """Every split with every seed, its validation rows held out; the protocol in words; what validates, in words."""
    splits, words = make_splits(features, test_share, seeds[0]) if name == "official" else ([], "random")
    is_random = words.startswith("random")
    if is_random:
        words = f"random {test_share:.0%} test split, stratified, " + (
            f"seed {seeds[0]}" if len(seeds) == 1 else f"one for each of seeds {seeds[0]}-{seeds[-1]}"
        )
        # Relations are no matter to this protocol, nor to what validates in it.
        features = replace(features, groups=None, folds=None, splits=None)
    jobs, validations = [], Counter()
    for seed in seeds:
        for split in [random_split(features, test_share, seed)] if is_random else splits:
            validated, validation = with_validation(features, split, seed)
            jobs.append(Job(validated, seed))
            validations[validation] += 1
    if len(validations) == 1:
        return jobs, words, validation
    return jobs, words, ", or ".join(f"{each} ({n} of {len(jobs)} fits)" for each, n in validations.items())


def _chooses_epoch(config: Mapping[str, Any], jobs: Sequence[Job]) -> bool:
    """Whether validation rows choose an epoch, or the last one is kept."""
    return any(len(job.split.valid) for job in jobs) and not all(recipe_for(kind, config).is_cosine for kind in HEADS)


def outcome_of(choosing: FittedHead, scored: FittedHead) -> Outcome:
    """What `common.train.fit_chosen` gives for one job, as it is scored and recorded."""
    job, curve = scored.job, scored.test_accuracy
    best = max(curve, default=float("nan"))
    facts = {
        "epoch": scored.epoch,
        "shrinkage": scored.job.shrinkage,
        # What the original project reported: the epoch chosen by the test clips. Not a score, for the record.
        "best_test_accuracy_over_epochs": best,
        "best_test_epoch": 1 + curve.index(best) if curve else None,
        "train_loss": choosing.train_loss,
        "valid_accuracy": choosing.valid_accuracy,
        "test_accuracy_over_epochs": curve,
    }
    logits = scored.test_logits.numpy()
    return Outcome(job.seed, job.split.name, len(job.split.train), job.split.test, logits.argmax(axis=1), logits, facts)


def _majority(features: FeatureSet, job: Job) -> Outcome:
    train = job.split.learnable
    said = majority_predictions(features.labels.numpy()[train], len(job.split.test))
    return Outcome(job.seed, job.split.name, len(train), job.split.test, said)


def _head_to_keep(
    kind: str,
    features: FeatureSet,
    jobs: Sequence[Job],
    scored: Sequence[FittedHead],
    config: Mapping[str, Any],
    provenance: dict[str, Any],
) -> TrainedHead:
    """The first seed's head; with folds, which each miss some clips, one fitted on all of them for as many epochs."""
    own = [head for job, head in zip(jobs, scored, strict=True) if job.seed == jobs[0].seed]
    final = own[0]
    if len(own) > 1:
        everything = Split("all clips", np.arange(len(features)), np.arange(0))
        epoch = int(np.median([head.epoch for head in own]))
        job = Job(everything, jobs[0].seed, epoch, own[0].job.shrinkage)
        recipe = recipe_for(kind, config)
        (final,) = fit_heads(kind, features, [job], recipe, torch.device(config["device"]))
    return TrainedHead(kind, final.module, final.scaler, features.class_names, provenance)


def _related_share(features: FeatureSet, jobs: Sequence[Job]) -> float | None:
    """The share of test clips of whose group there are training clips; None where groups are unknown."""
    if features.groups is None:
        return None
    groups = np.array(features.groups)
    shares = [np.isin(groups[job.split.test], groups[job.split.learnable]).mean() for job in jobs]
    return float(np.mean(shares))


def _with_fewer_labels(features: FeatureSet, job: Job, fraction: float) -> Job:
    """The job with a share of its training and validation clips, of every class in proportion and at least one."""
    rng = np.random.default_rng([job.seed, round(1e6 * fraction)])
    labels = features.labels.numpy()

    def fewer(rows: np.ndarray) -> np.ndarray:
        kept = []
        for label in np.unique(labels[rows]):
            own = rows[labels[rows] == label]
            kept.append(rng.choice(own, max(1, round(fraction * len(own))), replace=False))
        return np.sort(np.concatenate(kept)) if kept else rows

    return replace(job, split=replace(job.split, train=fewer(job.split.train), valid=fewer(job.split.valid)))
