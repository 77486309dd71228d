"""One protocol: rows are divided, then heads, probes and controls are fitted and scored."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from sklearn.preprocessing import MultiLabelBinarizer

from common.config import FitConfig, ProtocolName
from common.datasets import Division, DivisionKind, Prepared, Sounds, Task
from common.evaluation.calibration import heads_to_keep
from common.evaluation.intervals import mean_interval
from common.evaluation.outcomes import HeadFitter, Outcome, baseline, fit_probe, probes_of
from common.evaluation.record import (
    ComparisonRecord,
    FewShotRecord,
    HeadRecord,
    ProtocolIdentity,
    ProtocolRecord,
    corrected,
)
from common.evaluation.scores import MoreScores, compare_heads, judge, score_head
from common.evaluation.splits import class_counts, make_splits, random_split, with_shots, with_validation
from common.features import FeatureSet
from common.heads import HEADS, HeadKind, Job, Split, TrainedHead, check_labels, recipe_for

VERSION = 1  # raised when the same settings give different scores


@dataclass(frozen=True)
class ProtocolRun:
    """What a protocol gives: its record, the outcomes of both heads, and the heads to keep."""

    record: ProtocolRecord
    outcomes: dict[HeadKind, list[Outcome]]
    heads: dict[HeadKind, TrainedHead]


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]  # every split with every seed, validation rows held out
    kind: DivisionKind
    division: str  # for readers, as is `validation`
    validation: str


def seeds_of(config: FitConfig) -> list[int]:
    return [config.random_seed + place for place in range(config.seeds)]


def protocols_of(config: FitConfig) -> tuple[ProtocolName, ...]:
    return ("official", "random") if config.protocol == "both" else (config.protocol,)


def plan_fits(name: ProtocolName, prepared: Prepared, test_share: float, seeds: Sequence[int]) -> Plan:
    """Plan the fits of a protocol; SplitError if the rows cannot be divided.

    ``"official"`` is the data set's division, if it has one; ``"random"`` a stratified random division with this share of
    test clips, drawn for every seed, which ignores related clips.
    """
    features = prepared.features
    kind = DivisionKind.RANDOM if name == "random" else prepared.kind
    splits: list[Split] = []
    if kind is DivisionKind.RANDOM:
        drawn = f"seed {seeds[0]}" if len(seeds) == 1 else f"one for each of seeds {seeds[0]}-{seeds[-1]}"
        division = f"random {test_share:.0%} test split, stratified, {drawn}"
        # Validation rows ignore related clips too.
        features = replace(features, groups=None, folds=None, splits=None)
    else:
        splits, division = make_splits(prepared)
        division = prepared.description or division
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


def check_clips(task: Task, sounds: Sounds, config: FitConfig) -> None:
    """Divide a task's clips as its classification will, before the first is embedded; the same errors as there."""
    clips = sounds.clips
    binarizer = MultiLabelBinarizer()
    has_label = torch.from_numpy(binarizer.fit_transform([clip.labels for clip in clips]))
    columns = [[getattr(clip, name) for clip in clips] for name in ("fold", "split", "group")]
    folds, splits, groups = (None if None in column else column for column in columns)
    features = FeatureSet(
        torch.zeros(len(clips), 1),
        has_label.bool() if task.is_multilabel else has_label.argmax(dim=1),
        list(binarizer.classes_),
        [clip.clip_id(sounds.root) for clip in clips],
        None if folds is None else torch.tensor(folds),
        splits,
        groups,
    )
    check_labels(features, str(sounds.root))
    prepared = task.prepare(features, Division({}, config.train_test_split, config.random_seed))
    for name in protocols_of(config):
        plan_fits(name, prepared, config.train_test_split, [config.random_seed])


def identity_of(dataset: str, features: FeatureSet, jobs: Sequence[Job], config: FitConfig) -> ProtocolIdentity:
    """What scores of other encoders must share to be comparable with these."""
    names = features.label_texts
    order = np.argsort(np.array(features.clip_ids), kind="stable")
    place = np.argsort(order)  # of the rows when sorted by their ids
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
    """What all scores of a protocol share; `more_scores` are the task's."""

    features: FeatureSet
    jobs: Sequence[Job]
    fitter: HeadFitter
    more_scores: MoreScores | None

    def outcomes(self, features: FeatureSet) -> dict[HeadKind, list[Outcome]]:
        """Both heads, fitted on other features or labels of the same rows."""
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
    """Fit and score everything by one protocol, also other features of the same rows, `controls`, by their names. The task is
    for its name and its additional scores; errors as of `plan_fits`."""
    features, fitter = prepared.features, HeadFitter(config, device)
    plan = plan_fits(name, prepared, config.train_test_split, seeds_of(config))
    fits = _Fits(features, plan.jobs, fitter, task.scores if task else None)
    chosen = {kind: fitter.fit(kind, features, plan.jobs) for kind in HEADS}
    outcomes = {kind: [Outcome.of(head, features.is_multilabel) for head in heads] for kind, heads in chosen.items()}
    control_outcomes = {control: fits.outcomes(other) for control, other in (controls or {}).items()}
    kept = heads_to_keep(features, plan.jobs, chosen, fitter)
    has_validation = any(len(job.split.valid) for job in plan.jobs)
    record = ProtocolRecord(
        kind=plan.kind,
        division=plan.division,
        identity=identity_of(task.name if task else "", features, plan.jobs, config),
        validation=plan.validation,
        chooses_epoch=has_validation and not all(recipe_for(kind, config).is_cosine for kind in HEADS),
        refit=config.refit and has_validation,
        seeds=seeds_of(config),
        absent=_absent_classes(features, plan.jobs),
        related_test_clips=_related_share(features, plan.jobs),
        heads={kind: scored.model_copy(update=kept[kind][1]) for kind, scored in fits.score_both(outcomes).items()},
        majority_class=fits.score([baseline(features, job) for job in plan.jobs]),
        comparison=compare_heads(outcomes["linear"], outcomes["three_layer"], features),
        probes={
            probe: fits.score(fit_probe(probe, features, plan.jobs, recipe_for("linear", config)))
            for probe in (probes_of(features) if config.probes else ())
        },
        controls={control: fits.score_both(of_control) for control, of_control in control_outcomes.items()},
        shuffled_labels=_score_shuffled(fits) if config.controls else {},
        control_comparisons=_compare_controls(control_outcomes, outcomes, features),
        few_shots=_few_shots(fits),
    )
    return ProtocolRun(record, outcomes, {kind: head for kind, (head, _) in kept.items()})


def _score_shuffled(fits: _Fits) -> dict[HeadKind, HeadRecord]:
    """Both heads on permuted labels, without the facts of their fits, which refer to these labels."""
    features = fits.features
    order = np.random.default_rng(fits.fitter.config.random_seed).permutation(len(features))
    outcomes = fits.outcomes(replace(features, labels=features.labels[torch.from_numpy(order)]))
    return {kind: fits.score([replace(outcome, facts={}) for outcome in fitted]) for kind, fitted in outcomes.items()}


def _compare_controls(
    controls: Mapping[str, Mapping[HeadKind, Sequence[Outcome]]],
    heads: Mapping[HeadKind, Sequence[Outcome]],
    features: FeatureSet,
) -> dict[str, dict[HeadKind, ComparisonRecord]]:
    """The run's heads minus the controls' heads of the same kind, corrected for the number of comparisons."""
    pairs = itertools.product(controls.values(), HEADS)
    compared = iter(corrected([compare_heads(control[kind], heads[kind], features) for control, kind in pairs]))
    return {control: {kind: next(compared) for kind in HEADS} for control in controls}


def _few_shots(fits: _Fits) -> list[FewShotRecord]:
    """Both heads of the first seed, fitted on the configured numbers of clips of every class, for every draw."""
    config, features = fits.fitter.config, fits.features
    first = [job for job in fits.jobs if job.seed == fits.jobs[0].seed]
    labels = features.labels.numpy()
    counts = np.min([class_counts(labels[job.split.learnable], len(features.class_names)) for job in first], axis=0)
    records = []
    for shots in config.shots or ():
        jobs = [with_shots(features, job, shots, draw) for draw in range(config.draws) for job in first]
        for kind, outcomes in replace(fits, jobs=jobs).outcomes(features).items():
            draws = [outcomes[start : start + len(first)] for start in range(0, len(outcomes), len(first))]
            scored = [judge(draw, features).score for draw in draws]
            records.append(
                FewShotRecord(
                    head=kind,
                    shots=shots,
                    n_train=int(np.mean([outcome.n_train for outcome in outcomes])),
                    short_classes=int((counts < shots).sum()),
                    draws=scored,
                    mean=float(np.mean(scored)),
                    interval=mean_interval(scored),
                )
            )
    return records


def _absent_classes(features: FeatureSet, jobs: Sequence[Job]) -> dict[str, list[str]]:
    """See `ProtocolRecord.absent`; with any of the seeds, if splits are drawn."""
    absent: dict[str, set[str]] = {}
    for job in jobs if features.is_multilabel else ():
        missing = np.flatnonzero(~features.labels.numpy()[job.split.test].any(axis=0))
        absent.setdefault(job.split.name, set()).update(features.class_names[place] for place in missing)
    return {split: sorted(missing) for split, missing in absent.items() if missing}


def _related_share(features: FeatureSet, jobs: Sequence[Job]) -> float | None:
    """See `ProtocolRecord.related_test_clips`."""
    if features.groups is None:
        return None
    groups = np.array(features.groups)
    shares = [np.isin(groups[job.split.test], groups[job.split.learnable]).mean() for job in jobs]
    return float(np.mean(shares))
