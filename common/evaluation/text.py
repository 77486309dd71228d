"""A run's scores as text: tables and remarks, for the terminal and in Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from statistics import fmean

from common.datasets import DivisionKind, Metric, Task
from common.evaluation.calibration import TEMPERATURES
from common.evaluation.intervals import FEW_GROUPS, MIN_GROUPS
from common.evaluation.record import CalibrationRecord, HeadRecord, ProtocolRecord, RunRecord
from common.heads import HeadKind, head_title
from common.text_table import as_markdown, as_text, percent, range_of

WIDTH = 100  # of printed text

NAMES = {"balanced_accuracy": "the balanced accuracy", "icbhi_score": "the ICBHI score"}
TITLES = {
    "accuracy": "accuracy",
    "macro_map": "mAP",
    "micro_map": "micro mAP",
    "macro_auc": "AUC",
    "d_prime": "d'",
    "lwlrap": "lwlrap",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro-F1",
    "top5_accuracy": "top-5",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "icbhi_score": "ICBHI",
}


def score_table(protocol: ProtocolRecord) -> list[list[str]]:
    """One protocol's scores in percent (d' as it is), header first: means, the main one's interval, standard deviations."""
    rows = list(protocol.rows())
    names = [name for name in TITLES if any(name in row.scores.mean for row in rows)]
    has_folds = any(row.scores.std_over_folds for row in rows)
    has_seeds = any(row.scores.std_over_seeds for row in rows)
    metric = rows[0].scores.metric
    header = ["head", metric.label, "95 %", *["± folds"] * has_folds, *["± seeds"] * has_seeds]
    table = [header + [TITLES[name] for name in names[1:]]]
    for row in rows:
        scored = row.scores
        cells = [row.title, percent(scored.score), range_of(scored.interval)]
        for is_shown, spread in ((has_folds, scored.std_over_folds), (has_seeds, scored.std_over_seeds)):
            cells += [percent(spread[metric]) if spread else ""] * is_shown
        table.append(cells + [_cell(name, scored.mean.get(name)) for name in names[1:]])
    return table


def _cell(name: str, value: float | None) -> str:
    if name == "d_prime" and value is not None:
        return "-" if math.isnan(value) else f"{value:.2f}"
    return percent(value)


def few_shot_table(protocol: ProtocolRecord) -> list[list[str]]:
    """The main score by the number of training clips of every class, header first."""
    points = protocol.few_shots
    label = protocol.majority_class.metric.label
    header = ["head", "shots", "clips", label, f"95 % of {len(points[0].draws)} draws"]
    return [header] + [
        [head_title(part.head), str(part.shots), f"{part.n_train:,}", percent(part.mean), range_of(part.interval)]
        for part in points
    ]


def remarks(protocol: ProtocolRecord) -> Iterator[str]:
    """The sentences below the table: how epochs were chosen, leaks, calibration, comparisons."""
    yield from _fit_remarks(protocol)
    yield from _leak_remarks(protocol)
    for name, scored in protocol.probes.items():
        if failed := sum(fit.converged is False for fit in scored.splits):
            yield f"{head_title(name)} had not converged in {failed} of {len(scored.splits)} fits."
    yield from _probability_remarks(protocol)
    for shots, count in {point.shots: point.short_classes for point in protocol.few_shots}.items():
        if count:
            have = "es have" if count > 1 else " has"
            yield f"{count} class{have} fewer than {shots} clips to train on; all are taken."
    yield from _interval_remarks(protocol)
    yield from _comparison_remarks(protocol)


def _by_head(said: Mapping[HeadKind, str], separator: str = ", ") -> str:
    return separator.join(f"{head_title(kind)}{text}" for kind, text in said.items())


def _fit_remarks(protocol: ProtocolRecord) -> Iterator[str]:
    kept = _by_head({kind: f": {_epochs(scored)}" for kind, scored in protocol.heads.items()}, "; ")
    if protocol.chooses_epoch:
        n_epochs = len(protocol.heads["linear"].splits[0].train_loss)
        again = ", then fitted again on training and validation clips" if protocol.refit else ""
        yield f"Epoch (of {n_epochs}) chosen on {protocol.validation}{again}: {kept}."
    else:
        clips = "all training and validation clips" if protocol.refit else "training clips alone"
        yield f"The last epoch is kept ({kept}), after training on {clips}."
    for kind, scored in protocol.heads.items():
        chosen = sorted({fit.shrinkage for fit in scored.splits if fit.shrinkage is not None})
        if len(chosen) > 1:
            values = ", ".join(f"{value:g}" for value in chosen)
            yield f"Strength of whitening chosen on validation clips: {values} ({head_title(kind)})."
    best_by_test = {
        kind: [fit.best_test_accuracy_over_epochs or 0.0 for fit in scored.splits if fit.best_test_epoch is not None]
        for kind, scored in protocol.heads.items()
    }
    if best_by_test["linear"]:
        chosen_by_test = _by_head({kind: f" {percent(fmean(best))}" for kind, best in best_by_test.items()})
        yield f"Not a score: with the epoch chosen by the test clips, as the original project did: {chosen_by_test}."


def _epochs(scored: HeadRecord) -> str:
    epochs = sorted({fit.epoch for fit in scored.splits if fit.epoch is not None})
    return f"{epochs[0]}-{epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"


def _leak_remarks(protocol: ProtocolRecord) -> Iterator[str]:
    related = protocol.related_test_clips
    share = "" if related is None else f"{related:.1%} of the test clips have related training clips"
    if protocol.kind is DivisionKind.RANDOM and related != 0:
        leak = f": {share}" if share else ""
        yield f"WARNING: this split does not keep recordings, patients or speakers apart{leak}; the score may be too high."
    elif related:
        is_official = protocol.kind is DivisionKind.OFFICIAL
        yield f"{share}, in the official division too." if is_official else f"WARNING: {share}."


def _probability_remarks(protocol: ProtocolRecord) -> Iterator[str]:
    """Calibration, and with several labels a clip F1 by thresholds."""
    heads = protocol.heads
    if measured := {kind: scored.calibration for kind, scored in heads.items() if scored.calibration is not None}:
        first = next(iter(measured.values()))
        what = "a slope and a bias for every class" if first.temperature is None else "a temperature"
        errors = _by_head({kind: _calibration(calibration) for kind, calibration in measured.items()}, "; ")
        yield f"Expected calibration error in points, without and with {what} fitted on {first.fitted_on}: {errors}."
    for split, names in protocol.absent.items():
        yield f"No test clip of {', '.join(names)} ({split}): left out of means over classes."
    if label_sets := {kind: scored.label_sets for kind, scored in heads.items() if scored.label_sets is not None}:
        rows = next(iter(label_sets.values())).fitted_on
        f1 = {kind: f" {percent(sets.micro_f1)}, {percent(sets.macro_f1)}" for kind, sets in label_sets.items()}
        yield f"Micro and macro F1 with a threshold for every class, by {rows}: {_by_head(f1, '; ')}."


def _calibration(measured: CalibrationRecord) -> str:
    errors, value = f" {percent(measured.error_before)} -> {percent(measured.error_after)}", measured.temperature
    if value is None:
        return errors
    at_the_end = [f"{end:g}, the end of the search" for end in TEMPERATURES if 0.98 < value / end < 1.02]
    shown = "none, since it did not help" if value == 1 else [*at_the_end, f"{value:.2g}"][0]
    return f"{errors} (the kept head's temperature: {shown})"


def _interval_remarks(protocol: ProtocolRecord) -> Iterator[str]:
    units = protocol.comparison.units
    if all(scored.interval is None for scored in protocol.heads.values()):
        yield f"No 95 % interval: fewer than {MIN_GROUPS} {units}, or a few of them decide the score, in small folds."
        return
    unknown = "" if units == "groups" else " (which clips are related is unknown)"
    yield f"95 % intervals are over {units}{unknown}. They leave out how much training itself would vary."
    if (count := protocol.comparison.n_units) < FEW_GROUPS:
        yield f"{count} {units} are in effect {count} observations, so the intervals are wide, also where everything is right."
    for name, title in NAMES.items():
        if name in protocol.heads["linear"].more_intervals:
            ranges = {kind: f" {range_of(scored.more_intervals[name])}" for kind, scored in protocol.heads.items()}
            yield f"95 % interval of {title}: {_by_head(ranges)}."


def _comparison_remarks(protocol: ProtocolRecord) -> Iterator[str]:
    n_tests = sum(map(len, protocol.control_comparisons.values()))
    for control, by_head in protocol.control_comparisons.items():
        for kind, compared in by_head.items():
            tested = f"p = {compared.cells[-1]} (corrected for {n_tests} tests, Holm)"
            yield f"Minus {control}, {head_title(kind)}: {compared.words}, {tested}."
    compared = protocol.comparison
    is_t_test = protocol.majority_class.metric is Metric.MACRO_MAP
    how = f"t test over {compared.units}" if is_t_test else f"heads swapped in whole {compared.units}"
    test = (
        ""
        if compared.p_value is None
        else f", p = {compared.p_value:.2g} ({how}{', which decides' * compared.disagrees})"
    )
    yield f"Three-layer minus linear: {compared.words}{test}."


def run_title(task: Task, record: RunRecord, protocol: ProtocolRecord) -> str:
    """The line above a table: the task, the encoder, the clips, the division, the recipe, the seeds."""
    seeds, dataset = len(protocol.seeds), record.features.dataset
    is_other = dataset not in (None, task.name, *task.parts)  # recognised as part of another data set
    return (
        f"{dataset if is_other else task.title}, {record.features.title}: {record.features.clips:,} clips, "
        f"{len(record.features.class_names)} classes, {protocol.division}; {record.config.recipe} recipe, "
        + (f"{seeds} seeds" if seeds > 1 else f"seed {protocol.seeds[0]}")
    )


def print_scores(task: Task, record: RunRecord) -> None:
    """Print the tables and remarks of every protocol, then both protocols side by side."""
    features = record.features
    output = f", {features.layer} {features.pool}".rstrip() if features.layer else ""
    print(f"features of {features.title}{output}: {features.width:,} numbers per clip")
    for protocol in record.protocols.values():
        print("\n" + textwrap.fill(run_title(task, record, protocol), WIDTH))
        print(as_text(score_table(protocol)))
        for line in remarks(protocol):
            print(textwrap.fill(line, WIDTH))
        if protocol.few_shots:
            print(as_text(few_shot_table(protocol)))
    if len(record.protocols) == 2:
        official, random = record.protocols["official"], record.protocols["random"]
        table = [["head", official.kind.label, "random", "difference"]]
        for kind in official.heads:
            scores = official.heads[kind].score, random.heads[kind].score
            table.append([head_title(kind), *map(percent, scores), f"{100 * (scores[1] - scores[0]):+.1f}"])
        print(f"\n{as_text(table)}")


def as_result_md(task: Task, record: RunRecord) -> str:
    parts = []
    for protocol in record.protocols.values():
        parts += [f"**{run_title(task, record, protocol)}** (percent)", as_markdown(score_table(protocol))]
        parts.append("\n".join(f"- {line}" for line in remarks(protocol)))
        if protocol.few_shots:
            parts.append(as_markdown(few_shot_table(protocol)))
    return "\n\n".join(parts) + "\n"
