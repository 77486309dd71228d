"""A run's scores as text: tables and remarks, for the terminal and in Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

from common.datasets import DivisionKind, Metric, Task
from common.evaluation.intervals import MIN_GROUPS
from common.evaluation.record import ComparisonRecord, HeadRecord, ProtocolRecord, RunRecord
from common.heads import head_title
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
    """One protocol's scores in percent (d' as it is), header first: means, the 95 % interval of the main score, standard
    deviations."""
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


def efficiency_table(protocol: ProtocolRecord) -> list[list[str]]:
    """The main score by the fraction of labelled clips, header first."""
    table = [["head", "labels", "clips", protocol.majority_class.metric.label, "95 %"]]
    for point in protocol.label_efficiency:
        share, clips = f"{100 * point.fraction:g} %", f"{point.n_train:,}"
        table.append([head_title(point.head), share, clips, percent(point.score), range_of(point.interval)])
    return table


def few_shot_table(protocol: ProtocolRecord) -> list[list[str]]:
    """The main score by the number of training clips of every class, header first."""
    n_draws = len(protocol.few_shots[0].draws)
    table = [["head", "shots", "clips", protocol.majority_class.metric.label, f"95 % of {n_draws} draws"]]
    for point in protocol.few_shots:
        cells = [head_title(point.head), str(point.shots), f"{point.n_train:,}"]
        table.append([*cells, percent(point.mean), range_of(point.interval)])
    return table


def _few_shot_remarks(protocol: ProtocolRecord) -> list[str]:
    short = {point.shots: point.short_classes for point in protocol.few_shots if point.short_classes}
    return [
        f"{count} class{'es have' if count > 1 else ' has'} fewer than {shots} clips to train on; all are taken."
        for shots, count in short.items()
    ]


def remarks(protocol: ProtocolRecord) -> list[str]:
    """The sentences below the table: how epochs were chosen, leaks, calibration, comparisons."""
    compared = protocol.comparison
    p_value = compared.p_value
    how = f"heads swapped in whole {compared.units}"
    if protocol.majority_class.metric is Metric.MACRO_MAP:
        how = f"t test over {compared.units}"
    test = "" if p_value is None else f", p = {p_value:.2g} ({how})"
    return [
        _epoch_remark(protocol),
        *_whitening_remarks(protocol),
        *_best_on_test_remarks(protocol),
        *_leak_remarks(protocol),
        *_convergence_remarks(protocol),
        *_calibration_remarks(protocol),
        *_label_remarks(protocol),
        *_few_shot_remarks(protocol),
        *_interval_remarks(protocol),
        *_control_remarks(protocol),
        f"Three-layer minus linear: {_points(compared)}{test}.",
    ]


def _by_head(protocol: ProtocolRecord, describe: Callable[[HeadRecord], str], separator: str = ", ") -> str:
    return separator.join(f"{head_title(kind)}{describe(scored)}" for kind, scored in protocol.heads.items())


def _points(compared: ComparisonRecord) -> str:
    return f"{100 * compared.difference:+.1f} points, 95 % {range_of(compared.interval)}"


def _epochs(scored: HeadRecord) -> str:
    epochs = sorted({fit.epoch for fit in scored.splits if fit.epoch is not None})
    return f": {epochs[0]}" + (f"-{epochs[-1]}" if len(epochs) > 1 else "")


def _epoch_remark(protocol: ProtocolRecord) -> str:
    kept = _by_head(protocol, _epochs, "; ")
    if protocol.chooses_epoch:
        n_epochs = len(protocol.heads["linear"].splits[0].train_loss)
        again = ", then fitted again on training and validation clips" if protocol.refit else ""
        return f"Epoch (of {n_epochs}) chosen on {protocol.validation}{again}: {kept}."
    clips = "all training and validation clips" if protocol.refit else "training clips alone"
    return f"The last epoch is kept ({kept}), after training on {clips}."


def _whitening_remarks(protocol: ProtocolRecord) -> list[str]:
    lines = []
    for kind, scored in protocol.heads.items():
        chosen = sorted({fit.shrinkage for fit in scored.splits if fit.shrinkage is not None})
        if len(chosen) > 1:
            values = ", ".join(f"{value:g}" for value in chosen)
            lines.append(f"Strength of whitening chosen on validation clips: {values} ({head_title(kind)}).")
    return lines


def _best_on_test_remarks(protocol: ProtocolRecord) -> list[str]:
    if all(fit.best_test_epoch is None for scored in protocol.heads.values() for fit in scored.splits):
        return []
    sentence = "Not a score: with the epoch chosen by the test clips, as the original project did"
    return [f"{sentence}: {_by_head(protocol, _best_on_test)}."]


def _best_on_test(scored: HeadRecord) -> str:
    best = [fit.best_test_accuracy_over_epochs for fit in scored.splits]
    accuracies = [accuracy for accuracy in best if accuracy is not None]
    return f" {percent(sum(accuracies) / len(accuracies) if accuracies else None)}"


def _leak_remarks(protocol: ProtocolRecord) -> list[str]:
    related = protocol.related_test_clips
    if protocol.kind is not DivisionKind.RANDOM:
        if not related:
            return []
        sentence = f"{related:.1%} of the test clips have related training clips"
        is_official = protocol.kind is DivisionKind.OFFICIAL
        return [f"{sentence}, in the official division too." if is_official else f"WARNING: {sentence}."]
    if related == 0:
        return [
            "This split is not designed to keep recordings, patients or speakers apart, but here no test clip has a "
            "related training clip."
        ]
    share = "" if related is None else f": {related:.0%} of the test clips have related training clips"
    return [
        f"WARNING: this split does not keep recordings, patients or speakers apart{share}; the score may be too high."
    ]


def _convergence_remarks(protocol: ProtocolRecord) -> list[str]:
    failed = {name: [fit.converged is False for fit in scored.splits] for name, scored in protocol.probes.items()}
    return [
        f"{head_title(name)} had not converged in {sum(fits)} of {len(fits)} fits."
        for name, fits in failed.items()
        if any(fits)
    ]


def _calibration_remarks(protocol: ProtocolRecord) -> list[str]:
    measured = {kind: scored.calibration for kind, scored in protocol.heads.items() if scored.calibration is not None}
    if not measured:
        return []
    errors = "; ".join(
        f"{head_title(kind)} {percent(calibration.error_before)} -> {percent(calibration.error_after)}"
        + ("" if calibration.temperature is None else f" (temperature {calibration.temperature:.2g})")
        for kind, calibration in measured.items()
    )
    first = next(iter(measured.values()))
    what = "a slope and a bias for every class" if first.temperature is None else "a temperature"
    return [f"Calibration error of the probabilities, without and with {what} fitted on {first.fitted_on}: {errors}."]


def _label_remarks(protocol: ProtocolRecord) -> list[str]:
    """With several labels a clip: F1 by thresholds."""
    measured = {kind: scored.label_sets for kind, scored in protocol.heads.items() if scored.label_sets is not None}
    absent = [
        f"No test clip of {', '.join(names)} ({split}): left out of means over classes."
        for split, names in protocol.absent.items()
    ]
    if not measured:
        return absent
    scores = "; ".join(
        f"{head_title(kind)} {percent(labels.micro_f1)}, {percent(labels.macro_f1)}"
        for kind, labels in measured.items()
    )
    rows = next(iter(measured.values())).fitted_on
    return [*absent, f"Micro and macro F1 with a threshold for every class, by {rows}: {scores}."]


def _interval_remarks(protocol: ProtocolRecord) -> list[str]:
    units = protocol.comparison.units
    if all(scored.interval is None for scored in protocol.heads.values()):
        return [f"No 95 % interval: fewer than {MIN_GROUPS} {units}."]
    unknown = "" if units == "groups" else " (which clips are related is unknown)"
    lines = [f"95 % intervals are over {units}{unknown}. They leave out how much training itself would vary."]
    for name, title in NAMES.items():
        ranges = ", ".join(
            f"{head_title(kind)} {range_of(scored.more_intervals[name])}"
            for kind, scored in protocol.heads.items()
            if name in scored.more_intervals
        )
        lines += [f"95 % interval of {title}: {ranges}."] if ranges else []
    return lines


def _control_remarks(protocol: ProtocolRecord) -> list[str]:
    compared = {
        f"{control}, {head_title(kind)}": comparison
        for control, by_head in protocol.control_comparisons.items()
        for kind, comparison in by_head.items()
    }
    return [
        f"Minus {title}: {_points(comparison)}, "
        f"p = {'-' if comparison.holm_p_value is None else f'{comparison.holm_p_value:.2g}'} "
        f"(corrected for {len(compared)} tests, Holm)."
        for title, comparison in compared.items()
    ]


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
        if protocol.label_efficiency:
            print(as_text(efficiency_table(protocol)))
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
        if protocol.label_efficiency:
            parts.append(as_markdown(efficiency_table(protocol)))
        if protocol.few_shots:
            parts.append(as_markdown(few_shot_table(protocol)))
    return "\n\n".join(parts) + "\n"
