"""A downstream task: a data set with its labels, and the names of the files that belong to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets.clip import Clip
from common.encoder_name import file_of
from common.files import PROJECT_ROOT

if TYPE_CHECKING:
    from common.arrays import Array
    from common.features import FeatureSet


@dataclass(frozen=True)
class Flag:
    """A flag of a single task's classification script; a switch if it has no choices."""

    name: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of its value in `Division.options`."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> str | bool:
        return self.choices[0] if self.choices else False


@dataclass(frozen=True)
class Division:
    """How the user wants a task's rows divided."""

    options: Mapping[str, str | bool]  # `Flag.key` -> value, of the task's flags
    test_share: float  # share of test clips without an official division
    seed: int  # of random choices


class DivisionKind(StrEnum):
    """Who divides the rows into training and test sides: the data set's authors, the user, or chance."""

    OFFICIAL = "official"
    OWN_FOLDS = "own_folds"
    OWN_SPLIT = "own_split"
    RANDOM = "random"  # whatever clips are related

    @property
    def label(self) -> str:
        return self.value.replace("_", " ")


class Metric(StrEnum):
    """The score that a task is judged by: epochs are chosen, intervals given and heads compared by it."""

    ACCURACY = "accuracy"
    MACRO_MAP = "macro_map"  # several labels a clip

    @property
    def label(self) -> str:
        return "mAP" if self is Metric.MACRO_MAP else self.value

    @classmethod
    def words(cls, metrics: Iterable[Metric]) -> str:
        """What a column of scores of these is called."""
        present = set(metrics)
        return " or ".join(metric.label for metric in cls if metric in present)


@dataclass(frozen=True)
class Prepared:
    """The rows of a task, chosen and divided."""

    features: FeatureSet  # the rows to fit and score
    description: str = ""  # of their division, for readers; empty: named after the folds or splits of the features
    is_official: bool = True  # whether the data set's authors divide it so; ignored without folds or splits

    @property
    def kind(self) -> DivisionKind:
        if self.features.folds is None and self.features.splits is None:
            return DivisionKind.RANDOM
        if self.is_official:
            return DivisionKind.OFFICIAL
        return DivisionKind.OWN_SPLIT if self.features.folds is None else DivisionKind.OWN_FOLDS


@dataclass(frozen=True)
class OfficialCounts:
    """Numbers of the whole data set, as far as they are published."""

    clips: int | None = None
    classes: int | None = None
    groups: int | None = None
    folds: Sequence[int] = ()  # clips of fold 1, 2, ...
    splits: Mapping[str, int] = field(default_factory=dict)  # clips of every split
    labels: Mapping[str, int] = field(default_factory=dict)  # clips of every class

    def divide(self, features: FeatureSet) -> bool:
        """Whether as many clips are in every fold and split of the features."""
        folds = () if features.folds is None else tuple(features.folds.bincount()[1:].tolist())
        return folds == tuple(self.folds) and Counter(features.splits or ()) == Counter(self.splits)


@dataclass(frozen=True)
class Copy:
    """How copies of a data set in tables, Parquet files and tars name what the official archive says."""

    columns: Mapping[str, str]  # role (`common.datasets.tables.ROLES`) -> column, or several joined by "+", or "none"
    division: str = ""  # "fold" or "split": what every clip must have
    files: tuple[str, ...] = ()  # of several files, parts of the paths of the task's, with * and ?
    left_out: frozenset[str] = frozenset()  # labels that are not of the task


@dataclass(frozen=True)
class Task:
    """A downstream task: how its clips are read, and how its files are named."""

    name: str  # short name, as in ``esc50``
    title: str  # the data set's name
    folder: Path  # the task's folder, which holds its config.yaml and where its files are written
    read_clips: Callable[[Path], list[Clip]]  # data root -> clips; raises DatasetError for a wrong layout
    class_names: tuple[str, ...] | None  # every class in the official order; None if the data decide (speakers)
    features_file: str  # name of the extracted features
    head_files: dict[str, str]  # head name -> name of its trained file
    # Completes a feature file with fewer fields than ours, such as the original project's; returns it with a sentence
    # that says what was recognised, or None.
    recognise: Callable[[FeatureSet], tuple[FeatureSet, str] | None] = lambda features: None
    # The script in `folder` that reads the features, and the flags that choose this task.
    classify: tuple[str, ...] = ()
    copy: Copy | None = None  # None: only the official archive can be read
    takes_any_features: bool = False  # whether features of other data sets are welcome
    is_multilabel: bool = False  # whether a clip has a set of labels, and not one class
    results_folder: Path | None = None  # where results and trained heads go; None: `folder`
    data_folder: str = ""  # the data root below data/, if config.yaml names none
    # Data set -> name of its feature file, for a task that joins several files.
    parts: dict[str, str] = field(default_factory=dict)
    why_only_its_own: str = ""  # why features of a related data set cannot be classified, for the error message
    flags: tuple[Flag, ...] = ()  # of this task's classification script alone
    # (features, how to divide them) -> the rows to fit and score, chosen and divided.
    prepare: Callable[[FeatureSet, Division], Prepared] = lambda features, division: Prepared(features)
    # (labels, predictions, class names) -> scores in addition to accuracy and macro-F1.
    scores: Callable[[Array, Array, Sequence[str]], dict[str, float]] | None = None
    official_counts: OfficialCounts = OfficialCounts()

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def default_data_root(self) -> Path:
        return PROJECT_ROOT / "data" / self.data_folder

    def features_of(self, encoder: str) -> Path:
        """The feature file of an encoder by its short name (`common.encoder_name.EncoderName.slug`)."""
        return self.folder / file_of(self.features_file, encoder)

    def parts_of(self, encoder: str) -> dict[str, str]:
        """`parts` of an encoder by its short name."""
        return {dataset: file_of(name, encoder) for dataset, name in self.parts.items()}

    def output_dir_of(self, encoder: str) -> Path:
        """Where results go; those of encoders other than AudioSep in a folder of that name."""
        folder = self.results_folder or self.folder
        return folder if encoder == "audiosep" else folder / encoder


@dataclass(frozen=True)
class Variants:
    """The tasks that one script can run, and the flags that choose among them."""

    flags: dict[str, str]  # flag -> its help; the first combination in `tasks` holds their defaults
    tasks: dict[tuple[str, ...], Task]  # a value for each flag, in their order -> the task that they choose

    @property
    def first(self) -> Task:
        return next(iter(self.tasks.values()))
