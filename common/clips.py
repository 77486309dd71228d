"""What a data set is to the rest of the project: a list of clips, and the task that they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from common.features import FeatureSet


class DatasetNote(UserWarning):
    """Something about a data set that its user should know, and that stops nothing."""


class DatasetError(ValueError):
    """A data set is not laid out as expected; the message is one line that says what to do."""


class DatasetMissingError(DatasetError):
    """A data set, or a part of it, is not there at all."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled piece of audio: a file, or a segment of it.

    Attributes:
        path: the audio file.
        class_name: the label as text.
        split: ``"train"``, ``"valid"`` or ``"test"`` where the data set has an official one.
        fold: official cross-validation fold, from 1.
        group: what must not stand on two sides of a split: source recording, patient, speaker.
        start_s, end_s: the segment in seconds; None is the file's beginning or end.
    """

    path: Path
    class_name: str
    split: str | None = None
    fold: int | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    def clip_id(self, root: Path) -> str:
        """The path relative to the data root, with the segment where the clip is one."""
        name = self.path.relative_to(root).as_posix()
        return name if self.start_s is None and self.end_s is None else f"{name}#{self.start_s}-{self.end_s}"


@dataclass(frozen=True)
class Flag:
    """A flag of one task's classification script alone; a switch where it has no choices."""

    name: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Under which its value stands in the configuration."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def default(self) -> str | bool:
        """Its value where it is not given."""
        return self.choices[0] if self.choices else False


def as_it_is(features: FeatureSet, options: Mapping[str, Any], seed: int) -> tuple[FeatureSet, str]:
    """What `Task.prepare` does where nothing is to be prepared."""
    del options, seed
    return features, ""


@dataclass(frozen=True)
class Task:
    """A downstream task: how its clips are read, and under which names its files are kept.

    Attributes:
        name: short name, as in ``esc50``.
        title: the data set's own name.
        folder: the task's folder; its config.yaml lies there, and its files land there.
        read_clips: data root -> clips; raises DatasetError for a wrong layout.
        class_names: every class in the official order; None where the data decide (speakers).
        features_file: name of the extracted features.
        head_files: head name -> name of its trained file.
        recognise: completes a feature file that holds less than ours, such as the original project's;
            returns it with a sentence that says what was recognised, or None where it was not.
        results_folder: where results and trained heads go; None is `folder`.
        data_folder: the data root below data/ where config.yaml names none, as for one of several variants.
        parts: data set -> file name of the features that classification puts together; none where it is one file.
        only_its_own: why features of another data set cannot be classified, where that needs saying.
        flags: flags of the classification script that only this task has.
        prepare: (features, values of `flags`, seed) -> the features to fit and score, rows chosen and splits made,
            and the protocol in words where these no longer are the data set's own.
        scores: (labels, predictions) -> scores beside accuracy and macro-F1.
        official_counts: how many the whole data set has, by the names that `count` gives; as far as known.
        official_overlap: groups that the data set's own division puts on two sides.
    """

    name: str
    title: str
    folder: Path
    read_clips: Callable[[Path], list[Clip]]
    class_names: tuple[str, ...] | None
    features_file: str
    head_files: dict[str, str]
    recognise: Callable[[FeatureSet], tuple[FeatureSet, str] | None] = lambda features: None
    results_folder: Path | None = None
    data_folder: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    only_its_own: str = ""
    flags: tuple[Flag, ...] = ()
    prepare: Callable[[FeatureSet, Mapping[str, Any], int], tuple[FeatureSet, str]] = as_it_is
    scores: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None
    official_counts: Mapping[str, int] = field(default_factory=dict)
    official_overlap: frozenset[str] = frozenset()


def count(clips: Sequence[Clip]) -> Counter[str]:
    """How many there are of everything: ``clips``, ``classes``, ``groups``, ``fold 1``, ``train``, ``class dog``."""
    counts = Counter(clips=len(clips))
    for clip in clips:
        counts[f"class {clip.class_name}"] += 1
        if clip.fold is not None:
            counts[f"fold {clip.fold}"] += 1
        if clip.split is not None:
            counts[clip.split] += 1
    counts["classes"] = len({clip.class_name for clip in clips})
    counts["groups"] = len({clip.group for clip in clips} - {None})
    return counts


@dataclass(frozen=True)
class Variants:
    """The tasks that one script can do, and the flags that choose among them.

    Attributes:
        flags: flag -> its help; the first combination in `tasks` holds their defaults.
        tasks: a value for each flag, in their order -> the task meant.
    """

    flags: dict[str, str]
    tasks: dict[tuple[str, ...], Task]


def layout_error(root: Path, title: str, expected: str, usual_folder: str, download: str) -> DatasetMissingError:
    """The error for a data root that does not hold what a data set's official archive holds; `download` is what
    `python -m common.download` knows the data set by."""
    if not root.exists():
        return DatasetMissingError(
            f"data root {root} does not exist. Give the folder of {title} ({expected} in it) with --data-root, or "
            f"get it: {download_command(download, root)}"
        )
    if not root.is_dir():
        return DatasetMissingError(
            f"data root {root} is a file; give the folder of {title} ({expected} in it): --data-root"
        )
    if (root / usual_folder).is_dir():
        return DatasetMissingError(
            f"data root {root} is one folder too high for {title}: give --data-root {root / usual_folder}"
        )
    for parent in (root.parent, root.parent.parent):
        if parent.name == usual_folder:
            return DatasetMissingError(f"data root {root} is a part of {title}; give all of it: --data-root {parent}")
    names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
    return DatasetMissingError(
        f"data root {root} is not laid out as {title}: expected {expected}; found {found}. "
        f"If that is missing, get it: {download_command(download, root)}"
    )


def download_command(download: str, root: Path) -> str:
    """The command that gets a data set whose folder is `root`."""
    return f"python -m common.download {download} --root {root.parent}"


def read_metadata(path: Path, columns: tuple[str, ...], whole_numbers: tuple[str, ...], title: str) -> pd.DataFrame:
    """A data set's official CSV with all of `columns` present and filled, those of `whole_numbers` as int64."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not the CSV of {title}: {str(error).strip()}; unpack it again") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DatasetError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} of {title}'s official CSV "
            f"(it has {', '.join(map(str, table.columns[:10]))}); unpack it again"
        )
    empty = table[list(columns)].isna().any(axis=1)
    if empty.any():
        raise DatasetError(f"{path} line {int(empty.idxmax()) + 2} has an empty field; unpack {title} again")
    for column in whole_numbers:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = numbers.isna() | (numbers % 1 != 0)
        if wrong.any():
            row = int(wrong.idxmax())
            raise DatasetError(
                f"{path} line {row + 2}: {column} must be a whole number, not {table[column][row]!r}; "
                f"unpack {title} again"
            )
        table[column] = numbers.astype("int64")
    if table.empty:
        raise DatasetError(f"{path} lists no clips; unpack {title} again")
    return table
