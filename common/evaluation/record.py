"""What result.json holds: every printed number of a run, and what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, computed_field

from common.config import FitConfig
from common.datasets import DivisionKind, Metric
from common.errors import UserError
from common.evaluation.intervals import LEVEL, holm
from common.evaluation.load_features import EncoderRecord, FeaturesRecord
from common.files import read_record
from common.heads import HEADS, HeadKind, Recipe, head_title, recipe_for
from common.text_table import range_of

Interval = tuple[float, float]
Units = Literal["groups", "clips"]  # clips where groups are unknown
# An undefined score (no clip of its kind) is NaN here and null in the file: JSON has no NaN.
Score = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
RESULT_FILE = "result.json"
COMPARED = ("95 %", "p", "p, Holm")  # columns of a table of comparisons, after the difference
FIGURES = ("difference", "low", "high", "p_value", "holm_p_value")  # and of a CSV file


class RecordError(UserError):
    """A record cannot be read."""


class Record(BaseModel, frozen=True, ser_json_inf_nan="null"):
    """Base of all records: immutable; NaN is null in JSON."""

    remedy: ClassVar[str] = ""  # what to do about a file that cannot be read

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read its file; RecordError if that is damaged, or of something else or an earlier version."""
        message = f"{path} is not a record of this project"
        return read_record(path, cls, lambda problem: RecordError(f"{message} ({problem}){cls.remedy}"))


class FitRecord(Record, extra="allow"):
    """One split and seed. Scores (``accuracy``, ``macro_f1``, ...) are extra fields."""

    __pydantic_extra__: dict[str, Score]

    split: str
    seed: int
    n_train: int
    n_test: int
    epoch: int | None = None
    shrinkage: float | None = None
    best_test_accuracy_over_epochs: Score | None = None
    best_test_epoch: int | None = None
    train_loss: list[float] = []
    valid_accuracy: list[float] = []
    valid_macro_map: list[float] = []
    test_accuracy_over_epochs: list[float] = []
    converged: bool | None = None

    @property
    def scores(self) -> dict[str, float]:
        return self.__pydantic_extra__


class PerClass(Record):
    """(C,) scores of every class over all splits and seeds; `clips`: test clips of the true class, for one seed."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    clips: list[float]


class RankedClasses(Record):
    """With several labels a clip: (C,) scores of every class, means over splits and seeds."""

    average_precision: list[Score]  # NaN where no test clip has the label
    auc: list[Score]
    clips: list[float]  # test clips that have the label, for one seed


class LabelSets(Record):
    """With several labels a clip: what is predicted by thresholds, for the first seed."""

    thresholds: list[float]  # (C,) probabilities that as many held-out rows exceed as have the label, for the kept head
    fitted_on: str  # the rows that set them, never those that the rest is measured on
    micro_f1: float
    macro_f1: float  # of the classes with test clips
    per_class: PerClass
    # (C, C) test clips with the label of the row that are predicted to have that of the column, and those without the latter
    confusion: list[list[int]]
    false_alarms: list[list[int]]
    co_occurrence: list[list[int]]  # (C, C) test clips that have both labels


class ReliabilityBin(Record):
    """Predictions of similar confidence: mean confidence, accuracy, number."""

    confidence: float
    accuracy: float
    clips: int


class CalibrationRecord(Record):
    """Calibration of a head's probabilities, for the first seed."""

    temperature: float | None  # divisor of the kept head's logits; None with several labels a clip: see `Scale`
    fitted_on: str  # rows that set it, never those it is measured on
    error_before: float  # expected calibration error without it
    error_after: float  # and with it
    before: list[ReliabilityBin]  # reliability diagrams
    after: list[ReliabilityBin]
    class_errors: list[Score] = []  # (C,) of `error_after`, with several labels a clip


class NoneOfTheseRecord(Record):
    """How often a clip of a known class is marked "none of these", for the first seed; slightly less often by the kept head,
    which with folds is fitted on all clips."""

    asked: float  # false-alarm rate that the threshold was set for
    measured: float  # share of test clips beyond the threshold
    # Share beyond it of the test clips if the head had not been trained on their class; None: with several labels a clip
    found: float | None
    clips: int  # test clips
    groups: int | None  # of the clips that set the threshold; None: unknown, or training clips are of them too
    is_promised: bool  # whether these are enough for the rate to hold for new groups
    fitted_on: str  # rows whose distances set the threshold, never those it is measured on


class HeadRecord(Record):
    """All scores of a head."""

    mean: dict[str, Score]  # over all splits and seeds
    # Standard deviations (of a sample) of the folds' (seeds') means; None with only one.
    std_over_folds: dict[str, Score] | None
    std_over_seeds: dict[str, Score] | None
    interval: Interval | None  # 95 %, of the main score (`common.evaluation.intervals`); None with too few groups
    more_intervals: dict[str, Interval | None] = {}  # of scores other than the main one
    per_class: PerClass | RankedClasses
    confusion: list[list[int]] = []  # (C, C) counts over all splits and seeds; row: true class
    splits: list[FitRecord]  # every split and seed
    # None if no held-out rows can set the temperature or the threshold
    calibration: CalibrationRecord | None = None
    none_of_these: NoneOfTheseRecord | None = None
    label_sets: LabelSets | None = None  # None with one label a clip

    @property
    def metric(self) -> Metric:
        """The main score of the task."""
        return Metric.MACRO_MAP if Metric.MACRO_MAP in self.mean else Metric.ACCURACY

    @property
    def score(self) -> float:
        return self.mean[self.metric]


class ComparisonRecord(Record):
    """Difference in the main score between two heads on the same test clips: second minus first."""

    difference: float
    interval: Interval | None  # 95 %
    p_value: float | None  # of a test that swaps the heads in whole units
    units: Units
    n_units: int
    holm_p_value: float | None = None  # corrected for the number of comparisons made together

    @property
    def counted_units(self) -> str:
        return f"{self.n_units:,} {self.units.removesuffix('s') if self.n_units == 1 else self.units}"

    @property
    def words(self) -> str:
        return f"{100 * self.difference:+.1f} points, 95 % {range_of(self.interval)}"

    @property
    def disagrees(self) -> bool:
        """Whether the interval says something else than the test."""
        is_apart = self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]
        return self.interval is not None and self.p_value is not None and is_apart != (self.p_value < LEVEL)

    @property
    def cells(self) -> list[str]:
        """As COMPARED names them: points, then p-values."""
        p_values = ["-" if value is None else f"{value:.2g}" for value in (self.p_value, self.holm_p_value)]
        return [f"{100 * self.difference:+.1f}", range_of(self.interval), *p_values]

    @property
    def figures(self) -> list[float | None]:
        """As FIGURES names them: shares, not percent."""
        return [self.difference, *(self.interval or (None, None)), self.p_value, self.holm_p_value]


Compared = TypeVar("Compared", bound=ComparisonRecord)


def corrected(records: Sequence[Compared]) -> list[Compared]:
    """Comparisons that were made together, with p-values corrected for their number (Holm)."""
    p_values = holm([record.p_value for record in records])
    return [record.model_copy(update={"holm_p_value": value}) for record, value in zip(records, p_values, strict=True)]


class FewShotRecord(Record):
    """The main score of a head that was fitted on a few clips of every class, over draws of these."""

    head: HeadKind
    shots: int
    n_train: int  # clips, on average
    short_classes: int  # classes that have fewer clips on the training side of some split, and give all they have
    draws: list[float]  # the score of every draw, a mean over splits
    mean: float
    interval: Interval | None  # 95 %, of the mean: how much the drawn clips matter, for these test clips


class ProtocolIdentity(Record):
    """What two scores must share to be comparable, whatever the encoder; `clips`, `division` and `recipe` are checksums."""

    version: int  # of the protocols' code
    dataset: str  # the task's name
    clips: str  # with their classes
    division: str  # training, validation and test rows of every fit
    recipe: str  # of both heads, and whether they are refitted
    seeds: list[int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(exclude={"hash"})).encode()).hexdigest()[:12]

    def differences(self, other: ProtocolIdentity) -> list[str]:
        """The names of what differs."""
        names = [name for name in ProtocolIdentity.model_fields if getattr(self, name) != getattr(other, name)]
        # Different clips imply a different division.
        return [name for name in names if name != "division" or "clips" not in names]


class ScoreKind(StrEnum):
    """What a row of a protocol's scores is of."""

    HEAD = "head"
    PROBE = "probe"
    CONTROL = "control"  # a head on other features of the same clips
    SHUFFLED = "shuffled_labels"  # a head on the run's features with permuted labels
    MAJORITY = "majority_class"


class ScoredRow(NamedTuple):
    """One row of a protocol's scores."""

    kind: ScoreKind
    classifier: str  # a head, a probe, or ``majority_class``
    scores: HeadRecord
    control: str = ""  # its name; empty for other kinds

    @property
    def name(self) -> str:
        features = "shuffled_labels" if self.kind is ScoreKind.SHUFFLED else self.control
        return f"{features}, {self.classifier}" if features else self.classifier

    @property
    def title(self) -> str:
        features = "shuffled" if self.kind is ScoreKind.SHUFFLED else self.control
        if self.kind is ScoreKind.MAJORITY and self.scores.metric is Metric.MACRO_MAP:
            return "label-frequency"
        return f"{features}, {head_title(self.classifier)}" if features else head_title(self.classifier)


class ProtocolRecord(Record):
    """All scores of one protocol."""

    kind: DivisionKind
    division: str  # for readers, as is `validation`
    identity: ProtocolIdentity
    validation: str
    chooses_epoch: bool  # on validation clips; if not, the last epoch is kept
    refit: bool  # on training and validation clips
    seeds: list[int]
    absent: dict[str, list[str]] = {}  # split -> classes of which it has no test clip, with several labels a clip
    related_test_clips: float | None  # share whose group has training clips; None if groups are unknown
    heads: dict[HeadKind, HeadRecord]
    majority_class: HeadRecord
    comparison: ComparisonRecord  # three-layer head minus linear head
    probes: dict[str, HeadRecord] = {}
    controls: dict[str, dict[HeadKind, HeadRecord]] = {}
    shuffled_labels: dict[HeadKind, HeadRecord] = {}
    control_comparisons: dict[str, dict[HeadKind, ComparisonRecord]] = {}  # the run's head minus the control's
    few_shots: list[FewShotRecord] = []

    def rows(self) -> Iterator[ScoredRow]:
        for name, scores in self.heads.items():
            yield ScoredRow(ScoreKind.HEAD, name, scores)
        for probe, scores in self.probes.items():
            yield ScoredRow(ScoreKind.PROBE, probe, scores)
        for control, heads in self.controls.items():
            yield from (ScoredRow(ScoreKind.CONTROL, name, scores, control) for name, scores in heads.items())
        for name, scores in self.shuffled_labels.items():
            yield ScoredRow(ScoreKind.SHUFFLED, name, scores)
        yield ScoredRow(ScoreKind.MAJORITY, ScoreKind.MAJORITY, self.majority_class)

    @property
    def best_head(self) -> HeadKind:
        return max(self.heads, key=lambda kind: self.heads[kind].score)


class ConfigRecord(FitConfig, extra="allow"):
    """The effective configuration of a run, its recipes in numbers (a later version may change what a recipe's name stands
    for), and as extra fields the task's flags."""

    __pydantic_extra__: dict[str, str | bool]

    recipe_linear: Recipe
    recipe_three_layer: Recipe
    control_sha256: dict[str, str]

    @classmethod
    def of(cls, config: FitConfig, options: Mapping[str, str | bool], control_sha256: dict[str, str]) -> ConfigRecord:
        recipes = {f"recipe_{kind}": recipe_for(kind, config) for kind in HEADS}
        return cls(**config.model_dump(), **recipes, control_sha256=control_sha256, **options)

    @property
    def options(self) -> dict[str, str | bool]:
        return self.__pydantic_extra__


class RunRecord(Record):
    """One run of a classification script: what result.json holds.

    On one kind of CPU, the same features, settings and seed give the same predictions. Another kind rounds differently, and
    training in small batches amplifies that, so `cpu` is recorded.
    """

    task: str  # its name
    config: ConfigRecord
    features: FeaturesRecord
    protocols: dict[str, ProtocolRecord]
    controls: dict[str, EncoderRecord] = {}
    files: list[str]  # names of the files beside result.json
    checksums: dict[str, str] = {}  # SHA-256 of the files that are read again
    command: list[str]  # the script and its flags
    created: str  # UTC
    versions: dict[str, str]
    cpu: str = "unknown"  # model and instructions
