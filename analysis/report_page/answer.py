"""The answer to the report's question: for each task the best score, what stands beside it, and what cannot be told
apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
    """What the best score of a task is held against: another encoder or a control with the same head, or the other head."""

    name: str
    kind: EncoderKind | None  # None for the other head
    score: float
    p_value: float | None  # corrected for the number of such tests; None: not tested, or too few groups to tell


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's division where it was run, and what it is held against, best first."""

    best: SummaryRow
    rivals: list[Rival]

    @property
    def kind(self) -> EncoderKind | None:
        """The kind of the best encoder."""
        return self.best.run.record.features.kind

    def is_worse(self, rival: Rival) -> bool | None:
        """Whether a rival is significantly worse than the best; None if it could not be tested."""
        if rival.p_value is None:
            return None
        return rival.p_value < LEVEL and rival.score < self.best.best.score

    def names(self, is_worse: bool | None) -> list[str]:
        """The rivals of which this holds."""
        return [rival.name for rival in self.rivals if self.is_worse(rival) is is_worse]

    def control(self, kind: EncoderKind) -> float | None:
        """The best score of a kind of control, or of the best itself if it is one; None: not run."""
        scores = [rival.score for rival in self.rivals if rival.kind is kind]
        return max([*scores, *[self.best.best.score] * (self.kind is kind)], default=None)

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
        most = max(row.run.record.features.clips for row in rows)
        rows = [row for row in rows if row.run.record.features.clips == most]
        best = max(rows, key=lambda row: row.best.score)
        rivals = [*_of_the_run(best), *_of_other_runs(best, rows, compared)]
        answers.append(TaskAnswer(best, sorted(rivals, key=lambda rival: -rival.score)))
    return answers


def _of_the_run(best: SummaryRow) -> Iterator[Rival]:
    """The other head, and the same head on other features, as the run itself compared them."""
    protocol, head = best.protocol, best.protocol.best_head
    (other,) = set(HEADS) - {head}
    p_value = protocol.comparison.p_value if can_tell(protocol.comparison.n_units, 1) else None
    yield Rival(f"the {head_title(other)} head", None, protocol.heads[other].score, p_value)
    n_tests = sum(map(len, protocol.control_comparisons.values()))
    for control, encoder in best.run.record.controls.items():
        comparison = protocol.control_comparisons[control][head]
        p_value = comparison.holm_p_value if can_tell(comparison.n_units, n_tests) else None
        name = encoder.title if encoder.kind else control
        yield Rival(name, encoder.kind, protocol.controls[control][head].score, p_value)


def _of_other_runs(best: SummaryRow, rows: Sequence[SummaryRow], compared: EncodersRecord | None) -> Iterator[Rival]:
    """The same head on the features of other encoders; without a p-value if the two runs were not compared."""
    task, head = best.run.study.name, best.protocol.best_head
    tells = compared is not None and any(known.task == task and known.can_tell for known in compared.tasks)
    folders = {score.folder for score in compared.scores} if compared and tells else set()
    pairs = [pair for pair in compared.pairs if (pair.task, pair.head) == (task, head)] if compared else []
    p_values = {frozenset((pair.first, pair.second)): pair.holm_p_value for pair in pairs}
    for run, protocol in ((row.run, row.protocol) for row in rows if row.run.encoder != best.run.encoder):
        are_compared = {str(run.folder), str(best.run.folder)} <= folders
        p_value = p_values.get(frozenset((run.encoder, best.run.encoder))) if are_compared else None
        yield Rival(run.encoder, run.record.features.kind, protocol.heads[head].score, p_value)


def answer_table(answers: Sequence[TaskAnswer]) -> list[list[str]]:
    """The answers as text, header first; in percent."""
    header = ["task", "best", "95 %", "head", "encoder", "not significantly worse"]
    table = [[*header, "log-mel", "untrained", "chance", "best published"]]
    for task in answers:
        row, run, protocol = task.best, task.best.run, task.best.protocol
        not_worse, untested = task.names(False), ", ".join(task.names(None))
        told = [", ".join(not_worse) or "nothing"] if not_worse or not untested else []
        told += [f"not tested: {untested}"] if untested else []
        title = run.study.task.title
        if row.is_sample:
            title += f" ({run.record.features.clips:,} of {row.whole:,} clips)"
        if protocol.kind is DivisionKind.RANDOM:
            title += " (random division)"
        score = [percent(row.best.score), range_of(row.best.interval), head_title(protocol.best_head), run.encoder]
        shares = [*map(task.control, CONTROLS), protocol.majority_class.score]
        table.append([title, *score, "; ".join(told), *map(percent, shares), str(row.best_published or "-")])
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
        low, high = (percent(function(task.best.best.score for task in answers)) for function in (min, max))
        span = low if low == high else f"{low} to {high}"
        lines = [f"{answers[0].best.run.encoder}: {span} %" + f" on {len(answers)} tasks" * (len(answers) > 1) + "."]
    for kind, words in CONTROLS.items():
        tested = [beaten for task in answers if (beaten := task.beats(kind)) is not None]
        if tested:
            tasks = f"{sum(tested)} of {len(tested)} task{'s' * (len(tested) > 1)}"
            lines.append(f"Significantly better than {words} on {tasks}.")
    return lines
