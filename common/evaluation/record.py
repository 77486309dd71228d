"""The record of a run: every printed number and what it was made from, as result.json keeps it."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, computed_field

from common.config import FitConfig
from common.datasets import DivisionKind, Task
from common.encoder.device import describe_cpu
from common.encoder_name import EncoderKind, slug_of
from common.errors import UserError
from common.features import Counts, FeatureSet
from common.files import DamagedFileError, read_json, spreadsheet_cell, write_csv, write_json
from common.heads import HEADS, HeadKind, Recipe, head_title, recipe_for

Interval = tuple[float, float]
# A score that is not defined (no clip of its kind) is NaN here and null in the file: JSON has no NaN.
Score = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
RESULT_FILE = "result.json"


class RecordError(UserError):
    """A result.json cannot be read."""


class Record(BaseModel):
    """The base of all records: immutable; NaN is null in JSON."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class FitRecord(Record):
    """One split and seed. In the file, scores (``accuracy``, ``macro_f1``, ...) are beside the named fields."""

    model_config = ConfigDict(extra="allow")
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
    test_accuracy_over_epochs: list[float] = []
    converged: bool | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The scores by name."""
        return self.__pydantic_extra__


class PerClass(Record):
    """Scores of every class, in the order of the class names; `clips`: of the true class, for one seed."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    clips: list[float]


class ReliabilityBin(Record):
    """Predictions of about the same confidence: their mean confidence, their accuracy, and their number."""

    confidence: float
    accuracy: float
    clips: int


class CalibrationRecord(Record):
    """Whether a head's probabilities mean what they say, for the first seed.

    Attributes:
        temperature: by which the kept head's logits are divided.
        fitted_on: the rows that the temperatures of this measurement come from; never those that it is measured on.
        error_before, error_after: the expected calibration error without and with temperature.
        before, after: the reliability diagram.
    """

    temperature: float
    fitted_on: str
    error_before: float
    error_after: float
    before: list[ReliabilityBin]
    after: list[ReliabilityBin]


class NoneOfTheseRecord(Record):
    """How often a clip of a known class is called "none of these", for the first seed.

    With folds it is measured on each fold against the rest; the kept head has learned from all, so its rate is a little lower.

    Attributes:
        asked: the false-alarm rate that the threshold was set for.
        measured: the share of `clips` beyond it.
        clips: test clips.
        fitted_on: the rows whose distances set the threshold; never those that it is measured on.
    """

    asked: float
    measured: float
    clips: int
    fitted_on: str


class MeanRecord(Record):
    """The scores of one head as means over all splits and seeds.

    Attributes:
        mean: of every score.
        std_over_folds: of the folds' means over seeds; None with one fold. `std_over_seeds`: of the seeds' means over
            folds; None with one seed. Both are population standard deviations.
        interval: 95 % interval of the mean accuracy (`common.evaluation.intervals`); None with too few groups.
    """

    mean: dict[str, Score]
    std_over_folds: dict[str, Score] | None
    std_over_seeds: dict[str, Score] | None
    interval: Interval | None

    @property
    def accuracy(self) -> float:
        """The mean accuracy."""
        return self.mean["accuracy"]


class HeadRecord(MeanRecord):
    """The scores of one head over all splits and seeds.

    Attributes:
        more_intervals: those of the other scores that have one.
        per_class, confusion: over all splits and seeds; the confusion matrix holds counts, row: true class.
        splits: every split and seed.
        calibration: of the probabilities; None if it could not be measured.
        none_of_these: of the threshold for unknown sounds; None if it could not be measured.
    """

    more_intervals: dict[str, Interval | None] = {}
    per_class: PerClass
    confusion: list[list[int]]
    splits: list[FitRecord]
    calibration: CalibrationRecord | None = None
    none_of_these: NoneOfTheseRecord | None = None


class ComparisonRecord(Record):
    """The difference in accuracy between two heads on the same test clips: second minus first.

    Attributes:
        difference, interval: the difference and its 95 % interval.
        p_value: of a test that swaps the heads in whole `units`: groups, or clips where groups are unknown.
        holm_p_value: corrected, where several comparisons belong together.
        n_units: the number of units.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    units: Literal["groups", "clips"]
    n_units: int
    holm_p_value: float | None = None


class EfficiencyRecord(MeanRecord):
    """The scores of a head that learned from a share of the labels."""

    head: HeadKind
    fraction: float
    n_train: int


class ProtocolIdentity(Record):
    """All that decides whether two scores may stand in one column; nothing of the encoder.

    Attributes:
        version: of the protocols' code.
        dataset: the task's name.
        clips: checksum of the clips and their classes.
        division: checksum of the side of every clip in every fit.
        recipe: checksum of both heads' recipes, and whether heads are refitted.
        seeds: of the fits.
    """

    version: int
    dataset: str
    clips: str
    division: str
    recipe: str
    seeds: list[int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hash(self) -> str:
        """A short checksum of everything."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude={"hash"})).encode()).hexdigest()[:12]

    def differences(self, other: ProtocolIdentity) -> list[str]:
        """The names of what differs."""
        names = [name for name in ProtocolIdentity.model_fields if getattr(self, name) != getattr(other, name)]
        # Other clips are also divided otherwise.
        return [name for name in names if name != "division" or "clips" not in names]


class ScoreKind(StrEnum):
    """What a row of a protocol's scores is of."""

    HEAD = "head"
    PROBE = "probe"
    CONTROL = "control"  # a head on other features of the same clips
    SHUFFLED = "shuffled_labels"  # a head on the run's features with labels of other clips
    MAJORITY = "majority_class"


@dataclass(frozen=True)
class ScoredRow:
    """One row of a protocol's scores.

    Attributes:
        kind: what it is.
        classifier: a head, a probe, or ``majority_class``.
        scores: the scores.
        control: the name of the control; empty for other kinds.
    """

    kind: ScoreKind
    classifier: str
    scores: HeadRecord
    control: str = ""

    @property
    def name(self) -> str:
        """As result.csv calls it."""
        return self._with_features("shuffled_labels", self.classifier)

    @property
    def title(self) -> str:
        """For readers."""
        return self._with_features("shuffled", head_title(self.classifier))

    def _with_features(self, shuffled: str, classifier: str) -> str:
        features = shuffled if self.kind is ScoreKind.SHUFFLED else self.control
        return f"{features}, {classifier}" if features else classifier


class ProtocolRecord(Record):
    """Everything scored by one protocol.

    Attributes:
        kind: the kind of the division.
        division: a description of it, for readers.
        identity: what scores of other encoders must share to be compared with these.
        validation: a description of the validation clips, for readers.
        chooses_epoch: whether validation clips choose the epoch, or the last one is kept.
        refit: whether heads were fitted again on training and validation clips.
        seeds: of the fits.
        related_test_clips: share of test clips whose group has training clips; None if groups are unknown.
        heads, majority_class, probes: the scores.
        controls: name of a control -> its heads.
        shuffled_labels: the heads on labels of other clips; empty if not asked for.
        comparison: of the three-layer head with the linear one.
        control_comparisons: name of a control -> of the run's head with the control's of the same kind.
        label_efficiency: scores by share of the labels.
    """

    kind: DivisionKind
    division: str
    identity: ProtocolIdentity
    validation: str
    chooses_epoch: bool
    refit: bool
    seeds: list[int]
    related_test_clips: float | None
    heads: dict[HeadKind, HeadRecord]
    majority_class: HeadRecord
    comparison: ComparisonRecord
    probes: dict[str, HeadRecord] = {}
    controls: dict[str, dict[HeadKind, HeadRecord]] = {}
    shuffled_labels: dict[HeadKind, HeadRecord] = {}
    control_comparisons: dict[str, dict[HeadKind, ComparisonRecord]] = {}
    label_efficiency: list[EfficiencyRecord] = []

    def rows(self) -> Iterator[ScoredRow]:
        """Every row of the printed table: heads, probes, controls, shuffled labels, the majority class."""
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
        """The head of the higher accuracy."""
        return max(self.heads, key=lambda kind: self.heads[kind].accuracy)


class ConfigRecord(FitConfig):
    """The effective configuration of a run, with the recipes in numbers and the values of the task's own flags.

    A recipe of the same name may differ in a later version, so the numbers count.
    """

    model_config = ConfigDict(extra="allow")
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
        """The values of the task's own flags."""
        return self.__pydantic_extra__

    @property
    def fit_config(self) -> FitConfig:
        """The configuration without what a record adds."""
        return FitConfig(**{key: getattr(self, key) for key in FitConfig.model_fields})


class EncoderRecord(Record):
    """Which encoder made some features, as far as their file says; see `common.encoder.EncoderInfo`."""

    kind: EncoderKind | None = None
    encoder: str | None = None
    checkpoint: str | None = None
    release: str = "unknown"
    condition: str | None = None
    padding: str | None = None
    precision: str | None = None
    parameters: int | None = None
    layer: str | None = None
    pool: str | None = None

    @property
    def slug(self) -> str:
        """A short form of the encoder's name for file names."""
        return slug_of(self.kind, self.encoder or "")

    @property
    def is_untrained(self) -> bool:
        """Whether it is AudioSep's encoder with random weights."""
        return self.kind is EncoderKind.UNTRAINED

    @property
    def title(self) -> str:
        """The encoder in a few words, with every setting that is not the default one."""
        if self.kind is None:
            return "unknown encoder"
        if self.kind is EncoderKind.LOGMEL:
            return "log-mel statistics"
        if self.kind.is_plug_in:
            is_usual = self.layer in ("scene", "last_hidden_state") and self.pool in ("", "mean")
            return f"{self.encoder}" if is_usual else f"{self.encoder}, {self.layer} {self.pool}".strip()
        weights = self.release if self.release != "unknown" else _short(self.checkpoint or "")
        name = f"untrained AudioSep ({self.checkpoint})" if self.is_untrained else f"AudioSep ({weights})"
        usual = {"layer": "encoder_block6", "pool": "mean", "condition": "none", "precision": "fp32"}
        values = {key: getattr(self, key) for key in usual}
        unusual = [_short(value) for key, value in values.items() if value not in (None, usual[key])]
        return ", ".join([name, *unusual, *["official padding"] * (self.padding == "official")])


def _short(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12] if identity.startswith("sha256:") else identity


class FeaturesRecord(EncoderRecord):
    """The feature file of a run. In the record, the rest of its provenance is beside the named fields.

    Attributes:
        file: the path or paths.
        sha256: of all of them.
        clips, class_names: those that were fitted and scored.
        width: numbers per clip.
    """

    model_config = ConfigDict(extra="allow")

    file: str
    sha256: str
    clips: int
    class_names: list[str]
    width: int
    dataset: str | None = None
    counts: Counts = Counts()

    @classmethod
    def of(cls, features: FeatureSet, file: str, sha256: str) -> FeaturesRecord:
        shown = {"clips": len(features), "class_names": features.class_names, "width": features.features.shape[1]}
        return cls.model_validate({**features.provenance, "file": file, "sha256": sha256, **shown})


class RunRecord(Record):
    """One run of a classification script: what result.json holds.

    Attributes:
        task: the task's name.
        config: the effective configuration.
        features: what was classified.
        protocols: name -> its scores.
        controls: name of a control -> which encoder made its features.
        files: what was written beside result.json.
        checksums: of those that are read again: name -> SHA-256.
        command: the script and its flags.
        created: UTC time.
        versions: of the packages that compute.
        cpu: its model and instructions. On one kind of CPU, the same features, settings and seed give the same
            predictions; another kind rounds differently, and training in small batches amplifies that.
    """

    task: str
    config: ConfigRecord
    features: FeaturesRecord
    protocols: dict[str, ProtocolRecord]
    controls: dict[str, EncoderRecord] = {}
    files: list[str]
    checksums: dict[str, str] = {}
    command: list[str]
    created: str
    versions: dict[str, str]
    cpu: str = "unknown"

    @classmethod
    def of(
        cls,
        task: Task,
        config: ConfigRecord,
        features: FeaturesRecord,
        protocols: Mapping[str, ProtocolRecord],
        files: Sequence[str],
        controls: Mapping[str, FeatureSet],
    ) -> RunRecord:
        """The record of a run that has just finished."""
        packages = {name: version(name) for name in ("torch", "numpy", "scikit-learn", "scipy")}
        return cls(
            task=task.name,
            config=config,
            features=features,
            protocols=dict(protocols),
            controls={name: EncoderRecord.model_validate(other.provenance) for name, other in controls.items()},
            files=list(files),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"python": platform.python_version(), **packages},
            cpu=describe_cpu(),
        )

    def save(self, folder: Path) -> None:
        """Write result.json, and result.csv with one row per protocol, head, split and seed."""
        rows = [
            {"protocol": protocol.kind.value, "head": row.name, **_cells(fit)}
            for protocol in self.protocols.values()
            for row in protocol.rows()
            for fit in row.scores.splits
        ]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[spreadsheet_cell(row.get(name)) for name in columns] for row in rows]
        write_csv(folder / "result.csv", [columns, *cells])
        write_json(folder / RESULT_FILE, self.model_dump_json(exclude_unset=True))

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a result.json; RecordError if it is damaged or something else."""
        try:
            return cls.model_validate_json(read_json(path))
        except (DamagedFileError, ValidationError) as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False, include_input=False)[0]
                problem = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
            raise RecordError(f"{path} is not a record of this project ({problem})") from error


def _cells(fit: FitRecord) -> dict[str, object]:
    """The single values of a fit, in the order of result.csv's columns."""
    values = fit.model_dump(exclude_unset=True)
    single = {key: value for key, value in values.items() if not isinstance(value, list)}
    identity = ("split", "seed", "n_train", "n_test")
    return {key: single.pop(key) for key in identity} | fit.scores | single
