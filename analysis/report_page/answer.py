"""The answer to the report's question: for each task the best score, what stands beside it, and what cannot be told
apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.compare import LEVEL, EncodersRecord, can_tell
from analysis.scores import Run, by_task
from analysis.summary import SummaryRow, summary_rows
from common.datasets import DivisionKind
from common.encoder_name import EncoderKind
from common.heads import HEADS, head_title
from common.text_table import percent, range_of

CONTROLS = {EncoderKind.LOGMEL: "log-mel statistics", EncoderKind.UNTRAINED: "an untrained encoder"}


@dataclass(frozen=True)
class Rival:
    """What the best score of a task is held against, with the same head: another encoder or a control; or the other
    head.

    Attributes:
        name: for readers.
        kind: the kind of the encoder; None for the other head.
        accuracy: as a share.
        p_value: of the difference, corrected for the number of such tests; None: not tested, or too few groups to tell.
    """

    name: str
    kind: EncoderKind | None
    accuracy: float
    p_value: float | None


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's division where it was run, and what it is held against, best first."""

    best: SummaryRow
    rivals: list[Rival]

    @property
    def kind(self) -> EncoderKind | None:
        """The kind of the best encoder."""
        return self.best.run.record.features.kind

    @property
    def accuracy(self) -> float:
        """The best score, as a share."""
        return self.best.accuracy(self.best.best)

    def is_worse(self, rival: Rival) -> bool:
        """Whether a rival is significantly worse than the best."""
        return rival.p_value is not None and rival.p_value < LEVEL and rival.accuracy < self.accuracy

    @property
    def not_worse(self) -> list[str]:
        """What was tested, and is not significantly worse."""
        return [rival.name for rival in self.rivals if rival.p_value is not None and not self.is_worse(rival)]

    @property
    def untested(self) -> list[str]:
        """What could not be tested against the best."""
        return [rival.name for rival in self.rivals if rival.p_value is None]

    def control(self, kind: EncoderKind) -> float | None:
        """The best accuracy of a kind of control, or of the best itself if it is one; None: not run."""
        accuracies = [rival.accuracy for rival in self.rivals if rival.kind is kind]
        return max([*accuracies, *[self.accuracy] * (self.kind is kind)], default=None)

    def beats(self, kind: EncoderKind) -> bool | None:
        """Whether the best is significantly better than a kind of control; None if it is one itself, or not tested."""
        tested = [rival for rival in self.rivals if rival.kind is kind and rival.p_value is not None]
        return None if self.kind is kind or not tested else all(map(self.is_worse, tested))


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs.

    Only runs of the most clips are considered, and random divisions only where a task has no other runs.

    Args:
        compared: the encoders against each other, if there are several.
    """
    answers = []
    for runs_of_task in by_task(runs).values():
        rows = [summary_rows([run])[0] for run in runs_of_task]  # of the first protocol
        rows = [row for row in rows if row.protocol.kind is not DivisionKind.RANDOM] or rows
        most = max(row.clips for row in rows)
        answers.append(_answer([row for row in rows if row.clips == most], compared))
    return answers


def _answer(rows: Sequence[SummaryRow], compared: EncodersRecord | None) -> TaskAnswer:
    best = max(rows, key=lambda row: row.accuracy(row.best))
    rivals = [_other_head(best), *_controls(best)]
    for row in rows:
        if row.run.encoder != best.run.encoder:
            p_value = _p_value(compared, best, row)
            kind = row.run.record.features.kind
            rivals.append(Rival(row.run.encoder, kind, row.accuracy(best.best), p_value))
    return TaskAnswer(best, sorted(rivals, key=lambda rival: -rival.accuracy))


def _other_head(best: SummaryRow) -> Rival:
    (other,) = set(HEADS) - {best.best}
    comparison = best.protocol.comparison
    p_value = comparison.p_value if can_tell(comparison.n_units, 1) else None
    return Rival(f"the {head_title(other)} head", None, best.accuracy(other), p_value)


def _controls(best: SummaryRow) -> list[Rival]:
    """The same head on other features, as the run itself compared them."""
    comparisons, rivals = best.protocol.control_comparisons, []
    n_tests = sum(map(len, comparisons.values()))
    for control, encoder in best.run.record.controls.items():
        if control not in best.protocol.controls:
            continue
        comparison = comparisons[control][best.best]
        p_value = comparison.holm_p_value if can_tell(comparison.n_units, n_tests) else None
        name = encoder.title if encoder.kind else control
        rivals.append(Rival(name, encoder.kind, best.protocol.controls[control][best.best].accuracy, p_value))
    return rivals


def _p_value(compared: EncodersRecord | None, first: SummaryRow, second: SummaryRow) -> float | None:
    """Of two runs, with the head that is best in the first; None if these runs were not compared, or could not tell."""
    name = first.run.study.name
    task = next((task for task in compared.tasks if task.task == name), None) if compared else None
    if compared is None or task is None or not compared.can_tell(task):
        return None
    if not {str(row.run.folder) for row in (first, second)} <= {score.folder for score in task.scores}:
        return None
    wanted = {first.run.encoder, second.run.encoder}
    pairs = [pair for pair in compared.pairs if (pair.task, pair.head) == (name, first.best)]
    return next((pair.holm_p_value for pair in pairs if {pair.first, pair.second} == wanted), None)


def answer_table(answers: Sequence[TaskAnswer]) -> list[list[str]]:
    """The answers as text, header first; in percent."""
    header = ["task", "best", "95 %", "head", "encoder", "not significantly worse"]
    table = [[*header, "log-mel", "untrained", "chance", "best published"]]
    for task in answers:
        best = task.best
        told = [", ".join(task.not_worse) or "nothing"] if task.not_worse or not task.untested else []
        told += [f"not tested: {', '.join(task.untested)}"] if task.untested else []
        title = best.run.study.task.title
        if best.is_sample:
            title += f" ({best.clips:,} of {best.whole:,} clips)"
        if best.protocol.kind is DivisionKind.RANDOM:
            title += " (random division)"
        table.append(
            [
                *(title, percent(task.accuracy), range_of(best.interval), head_title(best.best), best.run.encoder),
                *("; ".join(told), percent(task.control(EncoderKind.LOGMEL))),
                *(percent(task.control(EncoderKind.UNTRAINED)), percent(best.protocol.majority_class.accuracy)),
                str(best.best_published or "-"),
            ]
        )
    return table


def answer_words(answers: Sequence[TaskAnswer]) -> list[str]:
    """The answer in a few sentences."""
    if all(task.kind is EncoderKind.UNTRAINED for task in answers):
        return ["No answer yet: the best scores here are of untrained encoders, and say only that everything runs."]
    encoders = Counter(task.best.run.encoder for task in answers)
    if len(encoders) > 1:
        leads = [f"{name} ({count} of {len(answers)})" for name, count in encoders.most_common()]
        lines = [f"Highest scores: {', '.join(leads)}."]
    else:
        (name,) = encoders
        low, high = (percent(function(task.accuracy for task in answers)) for function in (min, max))
        span = low if low == high else f"{low} to {high}"
        lines = [f"{name}: {span} %" + (f" on {len(answers)} tasks." if len(answers) > 1 else ".")]
    for kind, words in CONTROLS.items():
        tested = [beaten for task in answers if (beaten := task.beats(kind)) is not None]
        if tested:
            lines.append(f"Significantly better than {words} on {_of_tasks(tested)}.")
    reached = [
        task.accuracy >= published.accuracy / 100
        for task in answers
        if (published := task.best.best_published) and task.best.protocol.kind is DivisionKind.OFFICIAL
    ]
    if reached:
        lines.append(f"The best published probe listed here is reached on {_of_tasks(reached)} (not a test).")
    return lines


def _of_tasks(holds: Sequence[bool]) -> str:
    return f"{sum(holds)} of {len(holds)} task{'s' * (len(holds) > 1)}"
