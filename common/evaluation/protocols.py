"""One protocol from end to end: rows divided; heads, probes and controls fitted and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from common.arrays import Array
from common.config import FitConfig, ProtocolName
from common.datasets import Prepared
from common.evaluation.calibration import calibrate
from common.evaluation.metrics import majority_predictions
from common.evaluation.outcomes import HeadFitter, Outcome
from common.evaluation.probes import PROBES, fit_probe
from common.evaluation.record import ComparisonRecord, EfficiencyRecord, HeadRecord, ProtocolRecord
from common.evaluation.scoring import MoreScores, compare_heads, score_head
from common.evaluation.splits import make_splits, random_split, with_validation
from common.evaluation.uncertainty import holm
from common.evaluation.unseen import Distances, Unseen, held_out_distances, measure_none_of_these
from common.features import FeatureSet
from common.heads import (
    HEADS,
    ChosenHead,
    HeadKind,
    Job,
    KnownSounds,
    Split,
    TrainedHead,
    fit_heads,
    recipe_for,
)

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
SHUFFLED = "shuffled_labels"


@dataclass(frozen=True)
class ProtocolRun:
    """The results of a protocol: its record, the outcomes of both heads, and the heads to keep."""

    record: ProtocolRecord
    outcomes: dict[HeadKind, list[Outcome]]
    heads: dict[HeadKind, TrainedHead]


@dataclass(frozen=True)
class Plan:
    """The fits of a protocol.

    Attributes:
        jobs: every split with every seed, validation rows held out.
        division: a description of the splits.
        validation: a description of the validation rows.
    """

    jobs: list[Job]
    division: str
    validation: str

    @property
    def is_random(self) -> bool:
        """Whether the splits are random ones, which ignore related clips."""
        return self.division.startswith("random")

    @property
    def has_validation(self) -> bool:
        """Whether any job has validation rows."""
        return any(len(job.split.valid) for job in self.jobs)


def run_protocol(
    name: ProtocolName,
    prepared: Prepared,
    config: FitConfig,
    device: torch.device,
    more_scores: MoreScores | None = None,
    controls: Mapping[str, FeatureSet] | None = None,
) -> ProtocolRun:
    """Fit and score everything by one protocol.

    Args:
        name: ``"official"``: the data set's own division; ``"random"``: a stratified random one, drawn again for every
            seed, which ignores related clips.
        prepared: the rows, divided by the task.
        config: the effective configuration.
        device: where to fit.
        more_scores: the task's own scores.
        controls: name -> other features of the same rows, evaluated beside these.

    Raises:
        SplitError: the rows cannot be divided.
    """
    features = prepared.features
    plan = plan_fits(name, features, config.train_test_split, seeds_of(config))
    run = _ProtocolRun(plan, features, HeadFitter(config, device), more_scores)
    chosen = {kind: run.fitter.fit(kind, features, plan.jobs) for kind in HEADS}
    outcomes = {kind: [Outcome.of(head) for head in heads] for kind, heads in chosen.items()}
    control_outcomes = run.controls(controls or {})
    is_own = name == "official" and not plan.is_random
    unseen = {kind: run.unseen(kind, heads) for kind, heads in chosen.items()}
    distances = run.distances(chosen["linear"])
    none_of_these = measure_none_of_these(distances)
    measured = {
        kind: {"calibration": calibrate(*each), "none_of_these": none_of_these} for kind, each in unseen.items()
    }
    scored = {kind: run.score(each).model_copy(update=measured[kind]) for kind, each in outcomes.items()}
    record = ProtocolRecord(
        protocol=(prepared.protocol or plan.division) if is_own else plan.division,
        is_official=is_own and prepared.is_official,
        validation=plan.validation,
        chooses_epoch=plan.has_validation and not all(recipe_for(kind, config).is_cosine for kind in HEADS),
        refit=config.refit and plan.has_validation,
        seeds=seeds_of(config),
        related_test_clips=_related_share(features, plan.jobs),
        heads=scored,
        majority_class=run.score([_majority(features, job) for job in plan.jobs]),
        comparison=compare_heads(outcomes["linear"], outcomes["three_layer"], features),
        probes=run.probes() if config.probes else {},
        controls={name: run.score(each) for name, each in control_outcomes.items()},
        control_comparisons=run.compare_controls(control_outcomes, outcomes),
        label_efficiency=run.label_efficiency(),
    )
    known = run.known_sounds(distances, chosen["linear"])
    heads = {}
    for kind in HEADS:
        kept, calibration = _head_to_keep(kind, features, plan.jobs, chosen[kind], run.fitter), scored[kind].calibration
        temperature = 1.0 if calibration is None else calibration.temperature
        heads[kind] = replace(kept, temperature=temperature, known=known)
    return ProtocolRun(record, outcomes, heads)


def seeds_of(config: FitConfig) -> list[int]:
    """The seeds of a configuration."""
    return [config.random_seed + place for place in range(config.seeds)]


def plan_fits(name: ProtocolName, features: FeatureSet, test_share: float, seeds: Sequence[int]) -> Plan:
    """Every split of a protocol with every seed, its validation rows held out."""
    splits, division = make_splits(features, test_share, seeds[0]) if name == "official" else ([], "random")
    is_random = division.startswith("random")
    if is_random:
        division = f"random {test_share:.0%} test split, stratified, " + (
            f"seed {seeds[0]}" if len(seeds) == 1 else f"one for each of seeds {seeds[0]}-{seeds[-1]}"
        )
        # This protocol ignores which clips are related, also in the choice of validation rows.
        features = replace(features, groups=None, folds=None, splits=None)
    jobs = []
    validations: Counter[str] = Counter()
    for seed in seeds:
        for split in [random_split(features, test_share, seed)] if is_random else splits:
            validated, validation = with_validation(features, split, seed)
            jobs.append(Job(validated, seed))
            validations[validation] += 1
    described = [f"{each} ({n} of {len(jobs)} fits)" for each, n in validations.items()]
    return Plan(jobs, division, ", or ".join(described) if len(described) > 1 else next(iter(validations)))


@dataclass(frozen=True)
class _ProtocolRun:
    """What every part of a protocol's record is made from."""

    plan: Plan
    features: FeatureSet
    fitter: HeadFitter
    more_scores: MoreScores | None

    def score(self, outcomes: Sequence[Outcome]) -> HeadRecord:
        return score_head(outcomes, self.features, self.more_scores)

    def unseen(self, kind: HeadKind, chosen: Sequence[ChosenHead]) -> tuple[list[Unseen], Unseen | None]:
        """The answers of the first seed's heads for the test rows of each split and, with one split, for its validation
        rows. If these were learned from, another head is fitted without them."""
        labels = self.features.labels.numpy()
        own = self._of_first_seed(chosen)
        tested = [Unseen.test_rows(head.final, labels) for head in own]
        validated = None
        job, head = self.plan.jobs[0], own[0]
        if len(own) == 1 and len(job.split.valid):
            apart = head.choosing
            if not len(apart.valid_logits):
                recipe = recipe_for(kind, self.fitter.config)
                again = replace(job, keep=recipe.epochs, shrinkage=head.final.job.shrinkage)
                (apart,) = fit_heads(kind, self.features, [again], recipe, self.fitter.device)
            validated = Unseen.validation_rows(apart, labels)
        return tested, validated

    def distances(self, chosen: Sequence[ChosenHead]) -> Distances:
        """Of the first seed's splits; those of either kind of head, which have the same."""
        job, own = self.plan.jobs[0], self._of_first_seed(chosen)
        tested = [
            held_out_distances(self.features, head.final.job.split.test, head.final.job.split.train, job.seed)
            for head in own
        ]
        validated = None
        if len(own) == 1 and len(job.split.valid):
            validated = held_out_distances(self.features, job.split.valid, job.split.train, job.seed)
        return Distances(tested, validated)

    def known_sounds(self, distances: Distances, chosen: Sequence[ChosenHead]) -> KnownSounds | None:
        """What the kept heads have learned from; with folds that is all."""
        if distances.held_out is None:
            return None
        own = self._of_first_seed(chosen)
        values = self.features.features.numpy()
        train = values if len(own) > 1 else values[own[0].final.job.split.train]
        return KnownSounds.of(train, distances.held_out, self.plan.jobs[0].seed)

    def _of_first_seed(self, chosen: Sequence[ChosenHead]) -> list[ChosenHead]:
        seed = self.plan.jobs[0].seed
        return [head for job, head in zip(self.plan.jobs, chosen, strict=True) if job.seed == seed]

    def probes(self) -> dict[str, HeadRecord]:
        """scikit-learn's classifiers on the same rows."""
        recipe = recipe_for("linear", self.fitter.config)
        return {name: self.score(fit_probe(name, self.features, self.plan.jobs, recipe)) for name in PROBES}

    def controls(self, others: Mapping[str, FeatureSet]) -> dict[str, list[Outcome]]:
        """Both heads on other features of the same rows, and on shuffled labels if the configuration asks for it."""
        outcomes = {
            f"{control}, {kind}": self.fitter.outcomes(kind, other, self.plan.jobs)
            for control, other in others.items()
            for kind in HEADS
        }
        if self.fitter.config.controls:
            order = np.random.default_rng(self.fitter.config.random_seed).permutation(len(self.features))
            shuffled = replace(self.features, labels=self.features.labels[torch.from_numpy(order)])
            for kind in HEADS:
                # What was recorded while fitting refers to shuffled labels.
                fitted = self.fitter.outcomes(kind, shuffled, self.plan.jobs)
                outcomes[f"{SHUFFLED}, {kind}"] = [replace(outcome, facts=None) for outcome in fitted]
        return outcomes

    def compare_controls(
        self, controls: Mapping[str, Sequence[Outcome]], heads: Mapping[HeadKind, Sequence[Outcome]]
    ) -> dict[str, ComparisonRecord]:
        """The run's heads against the same heads on other features: run minus control, corrected for their number."""
        compared = {
            name: compare_heads(controls[name], own, self.features)
            for kind, own in heads.items()
            for name in controls
            if name.endswith(f", {kind}") and not name.startswith(SHUFFLED)
        }
        corrected = holm([each.p_value for each in compared.values()])
        return {
            name: each.model_copy(update={"holm_p_value": value})
            for (name, each), value in zip(compared.items(), corrected, strict=True)
        }

    def label_efficiency(self) -> list[EfficiencyRecord]:
        """Both heads after learning from each share of the labels that the configuration asks for."""
        records = []
        for fraction in self.fitter.config.label_fractions or ():
            fewer = [_with_fewer_labels(self.features, job, fraction) for job in self.plan.jobs]
            n_train = int(np.mean([len(job.split.learnable) for job in fewer]))
            for kind in HEADS:
                scored = self.score(self.fitter.outcomes(kind, self.features, fewer))
                records.append(
                    EfficiencyRecord(
                        head=kind,
                        fraction=fraction,
                        n_train=n_train,
                        mean=scored.mean,
                        std_over_folds=scored.std_over_folds,
                        std_over_seeds=scored.std_over_seeds,
                        interval=scored.interval,
                    )
                )
        return records


def _majority(features: FeatureSet, job: Job) -> Outcome:
    train = job.split.learnable
    predictions = majority_predictions(features.labels.numpy()[train], len(job.split.test))
    return Outcome(job.seed, job.split.name, len(train), job.split.test, predictions)


def _head_to_keep(
    kind: HeadKind,
    features: FeatureSet,
    jobs: Sequence[Job],
    chosen: Sequence[ChosenHead],
    fitter: HeadFitter,
) -> TrainedHead:
    """The first seed's head. With folds, each of which leaves clips out: one fitted on all clips for as many epochs."""
    own = [head.final for job, head in zip(jobs, chosen, strict=True) if job.seed == jobs[0].seed]
    final = own[0]
    if len(own) > 1:
        everything = Split("all clips", np.arange(len(features)), np.arange(0))
        epoch = int(np.median([head.epoch for head in own]))
        job = Job(everything, jobs[0].seed, epoch, own[0].job.shrinkage)
        (final,) = fit_heads(kind, features, [job], recipe_for(kind, fitter.config), fitter.device)
    return TrainedHead(kind, final.module, final.scaler, features.class_names, features.provenance)


def _related_share(features: FeatureSet, jobs: Sequence[Job]) -> float | None:
    """The share of test clips whose group has training clips; None if groups are unknown."""
    if features.groups is None:
        return None
    groups = np.array(features.groups)
    shares = [np.isin(groups[job.split.test], groups[job.split.learnable]).mean() for job in jobs]
    return float(np.mean(shares))


def _with_fewer_labels(features: FeatureSet, job: Job, fraction: float) -> Job:
    """The job with a share of its training and validation clips, of every class in proportion and at least one."""
    rng = np.random.default_rng([job.seed, round(1e6 * fraction)])
    labels = features.labels.numpy()

    def fewer(rows: Array) -> Array:
        kept = []
        for label in np.unique(labels[rows]):
            own = rows[labels[rows] == label]
            kept.append(rng.choice(own, max(1, round(fraction * len(own))), replace=False))
        return np.sort(np.concatenate(kept)) if kept else rows

    return replace(job, split=replace(job.split, train=fewer(job.split.train), valid=fewer(job.split.valid)))
