"""Speaker verification by the cosine of two utterances' embeddings, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from common.arrays import Array
from common.config import FitConfig
from common.datasets import DatasetError, Task
from common.encoder_name import EncoderName, file_of
from common.evaluation.load_features import refuse_other_data
from common.evaluation.plots import plot_det
from common.features import FeatureSet
from common.files import OutputError, describe_difference, read_json, sha256_of, write_csv, write_json
from common.heads import check_fittable
from common.progress import progress_bar
from common.text_table import as_text, percent, range_of

MOST_TRIALS = 20_000  # of either kind
P_TARGETS = (0.01, 0.05)
RESAMPLES = 5_000  # of the speakers: an end of an interval then varies by less than 0.1 points
MIN_SPEAKERS = 10  # with fewer, the bootstrap is too narrow

# Kind of embeddings -> equal_error_rate and min_dcf_<prior>; and their 95 % intervals, None with too few speakers.
Scores = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, tuple[float, float] | None]]


def verify(task: Task, subset: str, others: Task, config: FitConfig, overwrite: bool) -> None:
    """Verify the speakers of a task, with the statistics of `others`, a subset of other speakers; print and save."""
    path = config.features or task.features_of(EncoderName.parse(config.encoder).slug)
    features = _load(path, task, config)
    statistics_path = path.parent / file_of(others.features_file, features.encoder_slug)
    statistics = _load(statistics_path, others, config)
    features.require_same_encoder(statistics, str(path), str(statistics_path))
    if set(features.class_names) & set(statistics.class_names):
        raise DatasetError(f"{path} and {statistics_path} share speakers; the statistics must come from others")
    folder = config.output_dir or task.output_dir_of(features.encoder_slug)
    settings = {
        "seed": config.random_seed,
        "statistics": subset,
        "features_sha256": sha256_of(path),
        "statistics_sha256": sha256_of(statistics_path),
        "layer": config.use_layer,
        "pool": config.use_pool,
    }
    record_path = folder / "verification.json"
    if not overwrite and record_path.exists():
        _refuse_other_results(record_path, settings)
    pairs, same = make_trials(features, config.random_seed)
    similarities = {}
    for name, values in transformed(features.features.double().numpy(), statistics).items():
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        similarities[name] = np.einsum("nd,nd->n", unit[pairs[:, 0]], unit[pairs[:, 1]])
    speakers = features.labels.numpy()[pairs]
    counts = {
        "speakers": len(features.class_names),
        "same": int(same.sum()),
        "different": int((~same).sum()),
        "across_chapters": features.groups is not None,
    }
    scores = {name: error_rates(same, values) for name, values in similarities.items()}
    bar = progress_bar(iterable=similarities.items(), desc="intervals", unit="scoring", leave=False)
    intervals = {name: speaker_intervals(same, values, speakers, config.random_seed) for name, values in bar}
    record = {
        "settings": settings,
        "trials": counts,
        "scores": scores,
        "intervals": intervals,
        "features": {"file": str(path)} | dict(features.provenance),
        "statistics": str(statistics_path),
    }
    ids = np.array(features.clip_ids, dtype=object)[pairs]
    trials = [(int(is_same), *pair) for is_same, pair in zip(same, ids, strict=True)]
    write_csv(folder / "trials.csv", [("same_speaker", "clip_a", "clip_b"), *trials])
    write_json(record_path, json.dumps(record))
    title = f"{task.title}, {len(same):,} {'cross-chapter ' * counts['across_chapters']}trials"
    plot_det(same, similarities, title, folder / f"det.{config.figure_format}")
    print(f"\n{task.title}, statistics from {subset}")
    _print_scores(counts, scores, intervals)
    print(f"-> {folder}: verification.json, trials.csv, det.{config.figure_format}")


def _load(path: Path, task: Task, config: FitConfig) -> FeatureSet:
    """The features of a subset, of which a file without provenance is assumed to be."""
    features = FeatureSet.load(path).pick(config.use_layer, config.use_pool)
    if not features.meta:
        features, sentence = task.recognise(features) or (features, f"taken for {task.title}")
        print(f"{path} holds no provenance, so its encoder is unknown; {sentence}")
    refuse_other_data(task, features.meta.get("dataset", task.name), path, task.name)
    check_fittable(features, str(path))
    if not features.features.any(dim=1).all():
        raise DatasetError(f"{path} holds embeddings of length 0, which have no direction; extract it again")
    return features


def _print_scores(counts: Mapping[str, int], scores: Scores, intervals: Intervals) -> None:
    speakers, across = counts["speakers"], " in two chapters" * counts["across_chapters"]
    print(f"{speakers} speakers, {counts['same']:,} trials of one speaker{across}, {counts['different']:,} of two")
    if not across:
        print("WARNING: chapters are unknown, so trials may be within a session; the rates may be too low.")
    table = [["cosine of embeddings", "EER %", "95 %", *(cell for p in P_TARGETS for cell in (f"minDCF({p})", "95 %"))]]
    for name, rates in scores.items():
        (equal, equal_ends), *costs = zip(rates.values(), intervals[name].values(), strict=True)
        cells = [name, percent(equal), range_of(equal_ends)]
        for cost, ends in costs:
            cells += [f"{cost:.3f}", "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"]
        table.append(cells)
    print(as_text(table))
    if speakers < MIN_SPEAKERS:
        print(f"No 95 % interval: {speakers} speakers are too few.")
    else:
        print("95 % intervals resample the speakers; docs/datasets.md says how often they hold the true rates.")


def _refuse_other_results(path: Path, settings: Mapping[str, object]) -> None:
    """OutputError if the file holds results of different settings."""
    try:
        different = describe_difference(json.loads(read_json(path))["settings"], settings)
    except (ValueError, KeyError, AttributeError) as error:
        raise OutputError(f"{path} is not a record of this project; --overwrite replaces it") from error
    if different:
        raise OutputError(f"{path} holds other results ({different}); --overwrite replaces them")


def make_trials(features: FeatureSet, seed: int) -> tuple[Array, Array]:
    """Pairs of rows (N, 2) and whether their speakers are the same (N,): equally many of either kind, at most MOST_TRIALS. If
    chapters are known, pairs of one speaker span two, so that the recording session cannot give them away."""
    rng = np.random.default_rng(seed)
    labels = features.labels.numpy()
    chapters = np.unique(np.array(features.groups or range(len(labels))), return_inverse=True)[1]
    first, second = np.triu_indices(len(labels), k=1)
    one_speaker = labels[first] == labels[second]
    same = np.flatnonzero(one_speaker & (chapters[first] != chapters[second]))
    different = np.flatnonzero(~one_speaker)
    count = min(MOST_TRIALS, len(same), len(different))
    if not count:
        raise DatasetError("no trials can be made: verification needs two speakers, and one of them in two chapters")
    picked = np.sort(np.concatenate([rng.choice(kind, count, replace=False) for kind in (same, different)]))
    return np.stack([first[picked], second[picked]], axis=1), one_speaker[picked]


def error_rates(same: Array, similarity: Array, weights: Array | None = None) -> dict[str, float]:
    """How badly a threshold on the similarity (N,) divides trials of one speaker, `same`, from others; `weights` count trials.

    ``equal_error_rate``: where false acceptances and false rejections are equally frequent; ``min_dcf_<prior>``: the least
    normalised detection cost over all thresholds (NIST), 1 being the cost of deciding without the scores.
    """
    order = np.argsort(-similarity, kind="stable")
    is_last = np.append(np.diff(similarity[order]) != 0, True)  # of equal similarities
    return _error_rates(same[order], is_last, np.ones(len(same)) if weights is None else weights[order])


def _error_rates(same: Array, is_last: Array, weights: Array) -> dict[str, float]:
    """Of trials by decreasing similarity."""
    true, false = (np.concatenate([[0.0], np.cumsum(weights * kind)[is_last]]) for kind in (same, ~same))
    true_accept, false_accept = true / true[-1], false / false[-1]
    gap = (1 - true_accept) - false_accept  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    # Interpolated between the two thresholds where the rates cross.
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    equal = false_accept[after - 1] + share * (false_accept[after] - false_accept[after - 1])
    rates = {"equal_error_rate": float(equal)}
    for p_target in P_TARGETS:
        cost = p_target * (1 - true_accept) + (1 - p_target) * false_accept
        rates[f"min_dcf_{p_target}"] = float(cost.min() / min(p_target, 1 - p_target))
    return rates


def speaker_intervals(
    same: Array, similarity: Array, speakers: Array, seed: int
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of the error rates by a bootstrap over the `speakers` (N, 2) of trials; None with fewer than MIN_SPEAKERS.

    Bias-corrected percentiles (Efron 1987): the minimum cost over all thresholds is lower in resamples. A trial of one speaker
    counts as often as the speaker was drawn, a trial of two as often as the product.
    """
    rng, count = np.random.default_rng(seed), int(speakers.max()) + 1
    measured = error_rates(same, similarity)
    if count < MIN_SPEAKERS:
        return dict.fromkeys(measured)
    order = np.argsort(-similarity, kind="stable")
    is_last = np.append(np.diff(similarity[order]) != 0, True)
    same, speakers = same[order], speakers[order]
    samples: list[dict[str, float]] = []
    while len(samples) < RESAMPLES:
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        first, second = times[speakers].T
        weights = np.where(same, first, first * second)
        if weights[same].any() and weights[~same].any():  # else all trials are of one kind
            samples.append(_error_rates(same, is_last, weights))
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, rate in measured.items():
        rates = [sample[name] for sample in samples]
        bias = norm.ppf(np.clip(np.mean(np.array(rates) < rate), 1 / RESAMPLES, 1 - 1 / RESAMPLES))
        low, high = np.quantile(rates, norm.cdf(2 * bias + norm.ppf((0.025, 0.975))))
        intervals[name] = (float(low), float(high))
    return intervals


def transformed(embeddings: Array, statistics: FeatureSet) -> dict[str, Array]:
    """Embeddings (N, D) raw, standardised and whitened by the statistics of other speakers.

    The covariance is shrunk (Ledoit and Wolf 2004), since its directions of least variance are noise.
    """
    reference = statistics.features.double().numpy()
    scaler = StandardScaler().fit(reference)
    standardised = scaler.transform(embeddings)
    eigenvalues, eigenvectors = np.linalg.eigh(LedoitWolf().fit(scaler.transform(reference)).covariance_)
    whitened = standardised @ eigenvectors / np.sqrt(eigenvalues)
    return {"raw": embeddings, "standardised": standardised, "whitened": whitened}
