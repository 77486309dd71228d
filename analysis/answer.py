"""The answer to the report's question: for each task the best score, what stands beside it, and what cannot be told apart."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.encoders import LEVEL, EncodersRecord, smallest_p_value
from analysis.runs import Run
from analysis.summary import SummaryRow, summary_rows
from common.evaluation.record import ComparisonRecord, ProtocolRecord
from common.heads import HEADS, HeadKind, head_title
from common.text_table import percent, range_of

LOGMEL, UNTRAINED = "log-mel", "untrained"


@dataclass(frozen=True)
class Rival:
    """What the best score of a task is held against, with the same head: another encoder or a control; or the other head.

    Attributes:
        name: for readers.
        kind: `LOGMEL`, `UNTRAINED`, or empty.
        accuracy: as a share.
        p_value: of the difference, corrected for the number of such tests; None: not tested, or too few groups to tell.
    """

    name: str
    kind: str
    accuracy: float
    p_value: float | None


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's own division where it was run.

    Attributes:
        best: its row of the summary.
        kind: what the best is: `LOGMEL`, `UNTRAINED`, or empty for an encoder.
        rivals: what it is held against, the best first.
    """

    best: SummaryRow
    kind: str
    rivals: list[Rival]

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
        return [each.name for each in self.rivals if each.p_value is not None and not self.is_worse(each)]

    @property
    def untested(self) -> list[str]:
        """What could not be tested against the best."""
        return [each.name for each in self.rivals if each.p_value is None]

    def control(self, kind: str) -> float | None:
        """The accuracy of a control, or of the best itself if it is one; None: not run."""
        own = [self.accuracy] * (self.kind == kind)
        return max([*own, *(each.accuracy for each in self.rivals if each.kind == kind)], default=None)

    def beats(self, kind: str) -> bool | None:
        """Whether the best is significantly better than a control; None if that was not tested."""
        tested = [each for each in self.rivals if each.kind == kind and each.p_value is not None]
        if self.kind == kind:
            return False
        return all(map(self.is_worse, tested)) if tested else None


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs.

    Only runs of the most clips are considered, and runs by a random division only if there are no others.

    Args:
        compared: the encoders against each other, if there are several.
    """
    answers = []
    for _, group in itertools.groupby(runs, key=lambda one: one.study.name):
        found = [(one, summary_rows([one])[0]) for one in group]  # of the first protocol
        found = [pair for pair in found if pair[1].protocol != "random"] or found
        most = max(row.clips for _, row in found)
        answers.append(_answer([pair for pair in found if pair[1].clips == most], compared))
    return answers


def _answer(found: Sequence[tuple[Run, SummaryRow]], compared: EncodersRecord | None) -> TaskAnswer:
    one, best = max(found, key=lambda each: each[1].accuracy(each[1].best))
    protocol = one.protocols[one.first_protocol]
    head = best.best
    rivals = [*_other_head(protocol, head), *_controls(one, protocol, head)]
    for other, row in found:
        if row.encoder != best.encoder:
            p_value = _p_value(compared, best, row)
            rivals.append(Rival(row.encoder, _kind_of(other), row.accuracy(head), p_value))
    return TaskAnswer(best, _kind_of(one), sorted(rivals, key=lambda each: -each.accuracy))


def _kind_of(one: Run) -> str:
    features = one.record.features
    return LOGMEL if features.checkpoint == "logmel" else UNTRAINED if features.release == "untrained" else ""


def _other_head(protocol: ProtocolRecord, head: HeadKind) -> list[Rival]:
    (other,) = set(HEADS) - {head}
    p_value = _if_it_can_tell(protocol.comparison, protocol.comparison.p_value, 1)
    return [Rival(f"the {head_title(other)} head", "", protocol.heads[other].accuracy, p_value)]


def _controls(one: Run, protocol: ProtocolRecord, head: HeadKind) -> list[Rival]:
    """The same head on other features, as the run itself compared them."""
    rivals = []
    for control, made in one.record.controls.items():
        key = f"{control}, {head}"
        if key in protocol.controls:
            kind = UNTRAINED if made.is_untrained else LOGMEL if made.checkpoint == "logmel" else ""
            tested, tests = protocol.control_comparisons.get(key), len(protocol.control_comparisons)
            p_value = _if_it_can_tell(tested, tested.holm_p_value, tests) if tested else None
            name = {UNTRAINED: "untrained encoder", LOGMEL: "log-mel"}.get(kind, control)
            rivals.append(Rival(name, kind, protocol.controls[key].accuracy, p_value))
    return rivals


def _if_it_can_tell(compared: ComparisonRecord, p_value: float | None, tests: int) -> float | None:
    """The p-value; None if there are too few groups for any difference to be significant."""
    return p_value if compared.n_units is None or smallest_p_value(compared.n_units) * tests < LEVEL else None


def _p_value(compared: EncodersRecord | None, first: SummaryRow, second: SummaryRow) -> float | None:
    """Of two runs, with the head that is best in the first; None if these runs were not compared, or could not tell."""
    if compared is None:
        return None
    folders = {(task.task, score.encoder): score.folder for task in compared.tasks for score in task.scores}
    if any(folders.get((first.task, row.encoder)) != row.folder for row in (first, second)):
        return None
    if not any(task.task == first.task and compared.can_tell(task) for task in compared.tasks):
        return None
    wanted = {first.encoder, second.encoder}
    found = [pair for pair in compared.pairs if (pair.task, pair.head) == (first.task, first.best)]
    return next((pair.holm_p_value for pair in found if {pair.first, pair.second} == wanted), None)


def answer_table(answers: Sequence[TaskAnswer]) -> list[list[str]]:
    """The answers as text, header first; in percent."""
    several = len({each.best.encoder for each in answers}) > 1
    header = ["task", "best", "95 %", "head", *["encoder"] * several, "not significantly worse"]
    table = [[*header, "log-mel", "untrained", "chance", "best published"]]
    for each in answers:
        best = each.best
        published = max(best.published, key=lambda one: one.accuracy, default=None)
        told = [", ".join(each.not_worse) or "nothing"] if each.not_worse or not each.untested else []
        told += [f"not tested: {', '.join(each.untested)}"] if each.untested else []
        title = best.title
        if best.is_sample:
            title += f" ({best.clips:,} of {best.whole:,} clips)"
        if best.protocol == "random":
            title += " (random division)"
        row = [title, percent(each.accuracy), range_of(best.intervals[best.best]), head_title(best.best)]
        row += [
            *[best.encoder] * several,
            "; ".join(told),
            percent(each.control(LOGMEL)),
            percent(each.control(UNTRAINED)),
        ]
        table.append([*row, percent(best.majority_class), "-" if published is None else str(published)])
    return table


def answer_words(answers: Sequence[TaskAnswer]) -> list[str]:
    """The answer in a few sentences."""
    encoders = Counter(each.best.encoder for each in answers)
    tasks = len(answers)
    if all(each.kind == UNTRAINED for each in answers):
        return ["No answer yet: the best scores here are of untrained encoders, and say only that everything runs."]
    lines = []
    if len(encoders) > 1:
        leads = [f"{name} ({count} of {tasks})" for name, count in encoders.most_common()]
        lines.append(f"Highest scores: {', '.join(leads)}.")
    else:
        (name,) = encoders
        low, high = (percent(function(each.accuracy for each in answers)) for function in (min, max))
        span = low if low == high else f"{low} to {high}"
        lines.append(f"{name}: {span} %" + (f" on {tasks} tasks." if tasks > 1 else "."))
    held = [
        f"than {words} on {sum(tested)} of {len(tested)}"
        for kind, words in ((LOGMEL, "log-mel statistics"), (UNTRAINED, "an untrained encoder"))
        if (tested := [beaten for each in answers if (beaten := each.beats(kind)) is not None])
    ]
    if held:
        lines.append(f"Significantly better {', '.join(held)} tasks where that was tested.")
    published = [each for each in answers if each.best.published and each.best.protocol != "random"]
    if published:
        reached = sum(each.accuracy >= max(one.accuracy for one in each.best.published) / 100 for each in published)
        lines.append(
            f"The best published probe listed here is reached on {reached} of {len(published)} "
            f"task{'s' * (len(published) > 1)} (not a test)."
        )
    return lines
