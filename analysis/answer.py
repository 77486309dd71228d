"""The answer to the report's question: for each task the best score, what stands beside it, and what cannot be told apart."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.encoders import LEVEL, EncodersRecord
from analysis.runs import Run
from analysis.summary import SummaryRow, summary_rows
from common.evaluation.record import ComparisonRecord, ProtocolRecord
from common.heads import HEADS, HeadKind, head_title
from common.text_table import percent, range_of

LOGMEL = "log-mel statistics (no encoder)"


@dataclass(frozen=True)
class Rival:
    """What the best score of a task is held against: another encoder, a control, or the other head.

    Attributes:
        name: for readers.
        accuracy: as a share.
        p_value: of the difference, corrected for the number of such tests; None: not tested.
    """

    name: str
    accuracy: float
    p_value: float | None

    @property
    def is_worse(self) -> bool:
        """Whether it is significantly worse than the best."""
        return self.p_value is not None and self.p_value < LEVEL


@dataclass(frozen=True)
class TaskAnswer:
    """One task's best score, by the data set's own division where it was run.

    Attributes:
        best: its row of the summary.
        rivals: what it is held against, the best first.
        logmel, untrained: the best scores without an encoder and with an untrained one; None: not run.
    """

    best: SummaryRow
    rivals: list[Rival]
    logmel: float | None
    untrained: float | None

    @property
    def accuracy(self) -> float:
        """The best score, as a share."""
        return self.best.accuracy(self.best.best)

    @property
    def not_worse(self) -> list[str]:
        """What is not significantly worse."""
        return [each.name for each in self.rivals if each.p_value is not None and not each.is_worse]

    @property
    def untested(self) -> list[str]:
        """What could not be tested against the best."""
        return [each.name for each in self.rivals if each.p_value is None]


def answer(runs: Sequence[Run], compared: EncodersRecord | None) -> list[TaskAnswer]:
    """One answer per task, in the order of the runs.

    Args:
        compared: the encoders against each other, if there are several.
    """
    answers = []
    for _, group in itertools.groupby(runs, key=lambda one: one.study.name):
        own = list(group)
        rows = [summary_rows([one])[0] for one in own]  # of the first protocol
        honest = [pair for pair in zip(own, rows, strict=True) if pair[1].protocol != "random"]
        answers.append(_answer(honest or list(zip(own, rows, strict=True)), compared))
    return answers


def _answer(found: Sequence[tuple[Run, SummaryRow]], compared: EncodersRecord | None) -> TaskAnswer:
    one, best = max(found, key=lambda each: each[1].accuracy(each[1].best))
    protocol = one.protocols[one.first_protocol]
    head = best.best
    rivals = [*_other_head(protocol, head), *_controls(one, protocol, head)]
    for _, row in found:
        if row is not best and row.encoder != best.encoder:
            p_value = _p_value(compared, best.task, head, best.encoder, row.encoder)
            rivals.append(Rival(row.encoder, row.accuracy(head), p_value))
    logmel = [each.accuracy for each in rivals if each.name.startswith("log-mel")]
    untrained = [each.accuracy for each in rivals if each.name.startswith("untrained")]
    own = {"logmel": best.encoder == LOGMEL, "untrained": best.is_untrained}
    return TaskAnswer(
        best,
        sorted(rivals, key=lambda each: -each.accuracy),
        max([*logmel, *[best.accuracy(head)] * own["logmel"]], default=None),
        max([*untrained, *[best.accuracy(head)] * own["untrained"]], default=None),
    )


def _other_head(protocol: ProtocolRecord, head: HeadKind) -> list[Rival]:
    (other,) = set(HEADS) - {head}
    return [Rival(f"the {head_title(other)} head", protocol.heads[other].accuracy, protocol.comparison.p_value)]


def _controls(one: Run, protocol: ProtocolRecord, head: HeadKind) -> list[Rival]:
    """The same head on other features, as the run itself compared them."""
    rivals = []
    for control, made in one.record.controls.items():
        name = "untrained encoder" if made.is_untrained else control
        name = "log-mel" if made.checkpoint == "logmel" else name
        key = f"{control}, {head}"
        if key in protocol.controls:
            tested: ComparisonRecord | None = protocol.control_comparisons.get(key)
            rivals.append(Rival(name, protocol.controls[key].accuracy, tested.holm_p_value if tested else None))
    return rivals


def _p_value(compared: EncodersRecord | None, task: str, head: HeadKind, first: str, second: str) -> float | None:
    """Of two encoders; None if they were not compared, or if no difference could have been significant."""
    if compared is None or not any(each.task == task and compared.can_tell(each) for each in compared.tasks):
        return None
    wanted = {first, second}
    return next(
        (
            pair.holm_p_value
            for pair in compared.pairs
            if (pair.task, pair.head) == (task, head) and {pair.first, pair.second} == wanted
        ),
        None,
    )


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
        title = (
            f"{best.title} ({best.clips:,} of {best.whole:,} clips)" if best.whole and best.is_sample else best.title
        )
        row = [title, percent(each.accuracy), range_of(best.intervals[best.best]), head_title(best.best)]
        row += [*[best.encoder] * several, "; ".join(told), percent(each.logmel), percent(each.untrained)]
        table.append([*row, percent(best.majority_class), "-" if published is None else str(published)])
    return table


def answer_words(answers: Sequence[TaskAnswer]) -> list[str]:
    """The answer in a few sentences."""
    encoders = Counter(each.best.encoder for each in answers)
    tasks = len(answers)
    if all(each.best.is_untrained for each in answers):
        return ["No answer yet: the best scores here are of untrained encoders, and say only that everything runs."]
    lines = []
    if len(encoders) > 1:
        leads = [f"{name} ({count} of {tasks})" for name, count in encoders.most_common()]
        lines.append(f"Highest scores: {', '.join(leads)}.")
    else:
        (name,) = encoders
        lines.append(f"{name}: {_span(answers)}" + (f" on {tasks} tasks." if tasks > 1 else "."))
    held = [
        _against(answers, "log-mel", [each.logmel for each in answers], "log-mel statistics"),
        _against(answers, "untrained", [each.untrained for each in answers], "an untrained encoder"),
    ]
    lines.append(f"Significantly better than {held[0]}, than {held[1]}.")
    published = [each for each in answers if each.best.published]
    if published:
        reached = sum(each.accuracy >= max(one.accuracy for one in each.best.published) / 100 for each in published)
        lines.append(f"As good as the best published probe listed here: {reached} of {len(published)}.")
    return lines


def _span(answers: Sequence[TaskAnswer]) -> str:
    low, high = (function(each.accuracy for each in answers) for function in (min, max))
    return f"{percent(low)} %" if low == high else f"{percent(low)} to {percent(high)} %"


def _against(answers: Sequence[TaskAnswer], start: str, scores: Sequence[float | None], words: str) -> str:
    """On how many tasks the best is significantly better than a control."""
    there = [each for each, score in zip(answers, scores, strict=True) if score is not None]
    if not there:
        return f"{words} not tested"
    own = [[one for one in each.rivals if one.name.startswith(start)] for each in there]
    better = sum(bool(each) and all(one.is_worse for one in each) for each in own)
    return f"{words} on {better} of {len(there)} task{'s' * (len(there) > 1)}"
