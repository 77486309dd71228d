"""One protocol from end to end: rows divided; heads, probes and controls fitted and scored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import numpy as np
import torch

from common.arrays import Array
from common.config import FitConfig, ProtocolName
from common.datasets import DivisionKind, Prepared, Task
from common.evaluation.calibration import calibrate, held_out_distances, measure_none_of_these, unseen_by
from common.evaluation.intervals import holm
from common.evaluation.outcomes import PROBES, HeadFitter, Outcome, fit_probe
from common.evaluation.record import (
    ComparisonRecord,
    EfficiencyRecord,
    HeadRecord,
    MeanRecord,
    ProtocolIdentity,
    ProtocolRecord,
    Record,
)
from common.evaluation.scores import MoreScores, compare_heads, majority_predictions, score_head
from common.evaluation.splits import make_splits, random_split, with_validation
from common.features import FeatureSet
from common.heads import (
    HEADS,
    ChosenHead,
    FittedHead,
    HeadKind,
    Job,
    KnownSounds,
    Recipe,
    Split,
    TrainedHead,
    fit_heads,
    recipe_for,
)

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
VERSION = 1  # of the protocols: raised when the same settings give other scores


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
        kind: the kind of the division.
        division, validation: descriptions of the splits and of the validation rows, for readers.
    """

    jobs: list[Job]
    kind: DivisionKind
    division: str
    validation: str


def seeds_of(config: FitConfig) -> list[int]:
    """The seeds of a configuration."""
    return [config.random_seed + place for place in range(config.seeds)]


def plan_fits(name: ProtocolName, prepared: Prepared, test_share: float, seeds: Sequence[int]) -> Plan:
    """Every split of a protocol with every seed, its validation rows held out.

    Args:
        name: ``"official"``: the data set's division, if it has one; ``"random"``: a stratified random division, drawn
            again for every seed, which ignores related clips.
        test_share: of a random division.
    """
    features = prepared.features
    kind = DivisionKind.RANDOM if name == "random" else prepared.kind
    splits: list[Split] = []
    if kind is DivisionKind.RANDOM:
        drawn = f"seed {seeds[0]}" if len(seeds) == 1 else f"one for each of seeds {seeds[0]}-{seeds[-1]}"
        division = f"random {test_share:.0%} test split, stratified, {drawn}"
        # This protocol ignores which clips are related, also in the choice of validation rows.
        features = replace(features, groups=None, folds=None, splits=None)
    else:
        splits, division = make_splits(prepared)
    jobs = []
    validations: Counter[str] = Counter()
    for seed in seeds:
        for split in splits or [random_split(features, test_share, seed)]:
            validated, validation = with_validation(features, split, seed)
            jobs.append(Job(validated, seed))
            validations[validation] += 1
    described = [f"{validation} ({n} of {len(jobs)} fits)" for validation, n in validations.items()]
    validation = ", or ".join(described) if len(described) > 1 else next(iter(validations))
    return Plan(jobs, kind, division, validation)


def identity_of(dataset: str, features: FeatureSet, jobs: Sequence[Job], config: FitConfig) -> ProtocolIdentity:
    """What scores of other encoders must share to be compared with these: clips, division, recipe and seeds."""
    names = np.array(features.class_names)[features.labels.numpy()]
    order = np.argsort(np.array(features.clip_ids), kind="stable")
    place = np.argsort(order)  # of each row when the rows are sorted by their ids
    clips, division = hashlib.sha256(), hashlib.sha256()
    for row in order:
        clips.update(f"{features.clip_ids[row]}\t{names[row]}\n".encode(errors="surrogatepass"))
    for job in jobs:
        division.update(f"{job.split.name}\t{job.seed}\n".encode())
        for rows in (job.split.train, job.split.valid, job.split.test):
            division.update(np.sort(place[rows]).tobytes() + b"\n")
    recipes = [asdict(recipe_for(kind, config)) for kind in HEADS]
    recipe = hashlib.sha256(json.dumps([recipes, config.refit]).encode())
    return ProtocolIdentity(
        version=VERSION,
        dataset=dataset,
        clips=clips.hexdigest()[:12],
        division=division.hexdigest()[:12],
        recipe=recipe.hexdigest()[:12],
        seeds=seeds_of(config),
    )


@dataclass(frozen=True)
class _Fits:
    """What every score of a protocol shares.

    Attributes:
        features, jobs: the rows, and the fits of a head.
        fitter: fits them as configured.
        more_scores: the task's additional scores.
    """

    features: FeatureSet
    jobs: Sequence[Job]
    fitter: HeadFitter
    more_scores: MoreScores | None

    def outcomes(self, features: FeatureSet) -> dict[HeadKind, list[Outcome]]:
        """Both heads fitted on other features, or other labels, of the same rows."""
        return {kind: self.fitter.outcomes(kind, features, self.jobs) for kind in HEADS}

    def score(self, outcomes: Sequence[Outcome]) -> HeadRecord:
        return score_head(outcomes, self.features, self.more_scores)

    def score_both(self, outcomes: Mapping[HeadKind, Sequence[Outcome]]) -> dict[HeadKind, HeadRecord]:
        return {kind: self.score(of_kind) for kind, of_kind in outcomes.items()}


def run_protocol(
    name: ProtocolName,
    prepared: Prepared,
    config: FitConfig,
    device: torch.device,
    task: Task | None = None,
    controls: Mapping[str, FeatureSet] | None = None,
) -> ProtocolRun:
    """Fit and score everything by one protocol.

    Args:
        name: as for `plan_fits`.
        prepared: the rows, divided by the task.
        config: the effective configuration.
        device: where to fit.
        task: has a name, and additional scores.
        controls: name -> other features of the same rows, evaluated beside these.

    Raises:
        SplitError: the rows cannot be divided.
    """
    features, fitter = prepared.features, HeadFitter(config, device)
    plan = plan_fits(name, prepared, config.train_test_split, seeds_of(config))
    fits = _Fits(features, plan.jobs, fitter, task.scores if task else None)
    chosen = {kind: fitter.fit(kind, features, plan.jobs) for kind in HEADS}
    outcomes = {kind: [Outcome.of(head) for head in heads] for kind, heads in chosen.items()}
    control_outcomes = {control: fits.outcomes(other) for control, other in (controls or {}).items()}
    heads, measured = _heads_to_keep(features, plan.jobs, chosen, fitter)
    is_drawn = plan.kind is DivisionKind.RANDOM
    has_validation = any(len(job.split.valid) for job in plan.jobs)
    record = ProtocolRecord(
        kind=plan.kind,
        division=plan.division if is_drawn else prepared.description or plan.division,
        identity=identity_of(task.name if task else "", features, plan.jobs, config),
        validation=plan.validation,
        chooses_epoch=has_validation and not all(recipe_for(kind, config).is_cosine for kind in HEADS),
        refit=config.refit and has_validation,
        seeds=seeds_of(config),
        related_test_clips=_related_share(features, plan.jobs),
        heads={kind: head.model_copy(update=measured[kind]) for kind, head in fits.score_both(outcomes).items()},
        majority_class=fits.score([_majority(features, job) for job in plan.jobs]),
        comparison=compare_heads(outcomes["linear"], outcomes["three_layer"], features),
        probes=_score_probes(fits) if config.probes else {},
        controls={control: fits.score_both(of_control) for control, of_control in control_outcomes.items()},
        shuffled_labels=_score_shuffled(fits) if config.controls else {},
        control_comparisons=_compare_controls(control_outcomes, outcomes, features),
        label_efficiency=_label_efficiency(fits),
    )
    return ProtocolRun(record, outcomes, heads)


def _heads_to_keep(
    features: FeatureSet, jobs: Sequence[Job], chosen: Mapping[HeadKind, Sequence[ChosenHead]], fitter: HeadFitter
) -> tuple[dict[HeadKind, TrainedHead], dict[HeadKind, dict[str, Record | None]]]:
    """The first seed's heads, with what is measured of their probabilities and of unknown sounds, by the names of
    `HeadRecord`."""
    n_splits = sum(job.seed == jobs[0].seed for job in jobs)  # the jobs of the first seed come first
    # Distances depend on the split alone: either kind of head has the same.
    splits = [head.final.job.split for head in chosen["linear"][:n_splits]]
    tested, validated = held_out_distances(features, jobs[0], splits)
    held_out = np.concatenate(tested) if n_splits > 1 else validated
    none_of_these, known = measure_none_of_these(tested, validated), None
    if held_out is not None:
        values = features.features.numpy()
        known = KnownSounds.of(values if n_splits > 1 else values[splits[0].train], held_out, jobs[0].seed)
    heads: dict[HeadKind, TrainedHead] = {}
    measured: dict[HeadKind, dict[str, Record | None]] = {}
    for kind, of_kind in chosen.items():
        fitted, recipe = of_kind[:n_splits], recipe_for(kind, fitter.config)
        calibration = calibrate(*unseen_by(kind, fitted, features, jobs[0], recipe, fitter.device))
        measured[kind] = {"calibration": calibration, "none_of_these": none_of_these}
        final = _final_head(kind, features, fitted, recipe, fitter.device)
        temperature = 1.0 if calibration is None else calibration.temperature
        heads[kind] = TrainedHead(
            kind, final.module, final.scaler, features.class_names, features.provenance, temperature, known
        )
    return heads, measured


def _final_head(
    kind: HeadKind, features: FeatureSet, fitted: Sequence[ChosenHead], recipe: Recipe, device: torch.device
) -> FittedHead:
    """One seed's only head. With folds, each of which leaves clips out: one fitted on all clips for as many epochs."""
    final = fitted[0].final
    if len(fitted) == 1:
        return final
    everything = Split("all clips", np.arange(len(features)), np.arange(0))
    epoch = int(np.median([head.final.epoch for head in fitted]))
    job = Job(everything, final.job.seed, epoch, final.job.shrinkage)
    return fit_heads(kind, features, [job], recipe, device)[0]


def _score_shuffled(fits: _Fits) -> dict[HeadKind, HeadRecord]:
    """Both heads on labels of other clips; what was recorded while fitting refers to these, and is left out."""
    features = fits.features
    order = np.random.default_rng(fits.fitter.config.random_seed).permutation(len(features))
    outcomes = fits.outcomes(replace(features, labels=features.labels[torch.from_numpy(order)]))
    return {kind: fits.score([replace(outcome, facts={}) for outcome in fitted]) for kind, fitted in outcomes.items()}


def _score_probes(fits: _Fits) -> dict[str, HeadRecord]:
    recipe = recipe_for("linear", fits.fitter.config)
    return {name: fits.score(fit_probe(name, fits.features, fits.jobs, recipe)) for name in PROBES}


def _compare_controls(
    controls: Mapping[str, Mapping[HeadKind, Sequence[Outcome]]],
    heads: Mapping[HeadKind, Sequence[Outcome]],
    features: FeatureSet,
) -> dict[str, dict[HeadKind, ComparisonRecord]]:
    """The run's heads against the same heads on other features: run minus control, corrected for their number."""
    compared = {
        (control, kind): compare_heads(by_head[kind], outcomes, features)
        for kind, outcomes in heads.items()
        for control, by_head in controls.items()
    }
    corrected = holm([comparison.p_value for comparison in compared.values()])
    records: dict[str, dict[HeadKind, ComparisonRecord]] = {control: {} for control in controls}
    for ((control, kind), comparison), value in zip(compared.items(), corrected, strict=True):
        records[control][kind] = comparison.model_copy(update={"holm_p_value": value})
    return records


def _label_efficiency(fits: _Fits) -> list[EfficiencyRecord]:
    """Both heads after learning from each share of the labels that the configuration asks for."""
    records = []
    for fraction in fits.fitter.config.label_fractions or ():
        fewer = replace(fits, jobs=[_with_fewer_labels(fits.features, job, fraction) for job in fits.jobs])
        n_train = int(np.mean([len(job.split.learnable) for job in fewer.jobs]))
        for kind, scored in fewer.score_both(fewer.outcomes(fits.features)).items():
            means = scored.model_dump(include=set(MeanRecord.model_fields))
            records.append(EfficiencyRecord(head=kind, fraction=fraction, n_train=n_train, **means))
    return records


def _majority(features: FeatureSet, job: Job) -> Outcome:
    train = job.split.learnable
    predictions = majority_predictions(features.labels.numpy()[train], len(job.split.test))
    return Outcome(job.seed, job.split.name, len(train), job.split.test, predictions)


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
            of_class = rows[labels[rows] == label]
            kept.append(rng.choice(of_class, max(1, round(fraction * len(of_class))), replace=False))
        return np.sort(np.concatenate(kept)) if kept else rows

    return replace(job, split=replace(job.split, train=fewer(job.split.train), valid=fewer(job.split.valid)))
