"""The tasks as a user runs them, and the runs that are there: what every analysis starts from."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import data_root_of, default_path
from common.clips import Task
from common.config import PROJECT_ROOT, ConfigError
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from speaker_recognition import librispeech
from urbansound8k_feature_fc import urbansound8k

if TYPE_CHECKING:  # --help should not wait for torch
    from common.features import FeatureSet

COLUMNS = 100  # of a terminal


@dataclass(frozen=True, eq=False)  # compared by identity: there is one of each
class Study:
    """One task with the scripts that extract and classify it.

    Attributes:
        task: what is classified.
        extract: script -> the set that it extracts: the task itself, or one of the sets that it is made of.
        classify: the script that fits and scores the heads.
        hours: of audio in the whole data set.
        download: how `python -m common.download` is asked for it: one list of arguments a call.
        check: what `python -m common.doctor` knows it by.
        extract_flags, classify_flags: what the scripts need to mean this task.
        is_main: whether it is one of the project's own tasks, or a variant of one.
    """

    task: Task
    extract: dict[str, Task]
    classify: str
    hours: float
    download: tuple[tuple[str, ...], ...]
    check: str
    extract_flags: tuple[str, ...] = ()
    classify_flags: tuple[str, ...] = ()
    is_main: bool = True

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def results_folder(self) -> Path:
        return default_path(self.task, "output_dir")

    def data_root(self, data: Path | None) -> Path:
        """Where the data set lies: as configured, or under its own name below `data`."""
        configured = data_root_of(self.task)
        return data / configured.name if data else configured

    def how_to_run(self) -> str:
        """The commands that make a run of it, in one line."""
        commands = [(script, *self.extract_flags) for script in self.extract]
        return " && ".join(f"python {' '.join(each)}" for each in [*commands, (self.classify, *self.classify_flags)])


def _speech_commands(version: str, release: str, hours: float) -> Study:
    task = {"v1": speech_commands.V1, "v2": speech_commands.V2}[version]
    return Study(
        task,
        {f"key_word_spotting/extract_spc_features_audiosep_{version}.py": task},
        "key_word_spotting/train_spc_fc_classifiers.py",
        hours,
        (("speech_commands", "--only", release),),
        task.name,
        classify_flags=("--version", version),
    )


def _ten_commands(words: Study, task: Task) -> Study:
    (script,), release = words.extract, words.download[0][-1]
    return replace(
        words,
        task=task,
        extract={script: task},
        download=(*words.download, ("speech_commands", "--only", f"test-{release}")),
        extract_flags=("--task", "12"),
        classify_flags=(*words.classify_flags, "--task", "12"),
        is_main=False,
    )


def _studies() -> dict[str, Study]:
    recordings = Study(
        icbhi.RECORDINGS,
        {"icbhi_feature_fc/extract_icbhi_features_audiosep.py": icbhi.RECORDINGS},
        "icbhi_feature_fc/icbhi_linear_classifier.py",
        5.5,
        (("icbhi",),),
        "icbhi",
    )
    cycles = replace(
        recordings,
        task=icbhi.CYCLES,
        extract=dict.fromkeys(recordings.extract, icbhi.CYCLES),
        extract_flags=("--level", "cycle"),
        classify_flags=("--level", "cycle"),
        is_main=False,
    )
    v1, v2 = _speech_commands("v1", "v0.01", 17.8), _speech_commands("v2", "v0.02", 29.1)
    every = (
        Study(
            esc50.TASK,
            {"esc50_feature_fc/extract_esc50_features_audiosep.py": esc50.TASK},
            "esc50_feature_fc/esc50_linear_classifier.py",
            2.8,
            (("esc50",),),
            "esc50",
        ),
        recordings,
        Study(
            urbansound8k.TASK,
            {"urbansound8k_feature_fc/extract_urbansound8k_features_audiosep.py": urbansound8k.TASK},
            "urbansound8k_feature_fc/urbansound8k_linear_classifier.py",
            8.75,
            (("urbansound8k",),),
            "urbansound8k",
        ),
        Study(
            nsynth.CLASSIFICATION,
            {
                f"nsynth_feature_fc/extract_nsynth_{split}_features_audiosep.py": nsynth.task(split)
                for split in nsynth.SPLITS
            },
            "nsynth_feature_fc/train_nsynth_fc_classifiers_valid_test.py",
            340.0,
            (("nsynth",),),
            "nsynth",
        ),
        Study(
            librispeech.TRAIN_CLEAN_100,
            {"speaker_recognition/extract_train-clean-100_features.py": librispeech.TRAIN_CLEAN_100},
            "speaker_recognition/librispeech_linear_classifier.py",
            100.6,
            (("librispeech", "--only", "train-clean-100"),),
            "librispeech",
        ),
        v1,
        v2,
        cycles,
        _ten_commands(v1, speech_commands.V1_12),
        _ten_commands(v2, speech_commands.V2_12),
    )
    return {study.name: study for study in every}


STUDIES = _studies()


@dataclass(frozen=True)
class Run:
    """One finished classification: its record, and on demand the rows and the predictions that it was made of."""

    study: Study
    folder: Path
    record: dict[str, Any]

    @property
    def protocols(self) -> dict[str, dict[str, Any]]:
        return self.record["protocols"]

    @cached_property
    def features(self) -> FeatureSet:
        """The rows as they were classified.

        Raises:
            FeatureFileError: the feature file is gone, or has changed since.
        """
        from common.features import FeatureFileError
        from common.inputs import read_inputs

        inputs = read_inputs(self.study.task, self.record["config"])
        if inputs.source["sha256"] != self.record["features"]["sha256"]:
            raise FeatureFileError(
                f"{inputs.path} has changed since {self.folder / 'result.json'} was made of it; classify it again: "
                f"python {self.study.classify}"
            )
        return inputs.features

    def predictions(self, protocol: str = "official") -> dict[str, dict[str, str]]:
        """Of the first seed: head -> clip id -> the class that it said, for every clip that was tested."""
        from common.features import FeatureFileError

        path = self.folder / f"{'' if protocol == 'official' else protocol + '_'}predictions.csv"
        if not path.is_file():
            raise FeatureFileError(f"{path} is gone; classify again: python {self.study.classify}")
        first_seed = str(self.protocols[protocol]["seeds"][0])
        said: dict[str, dict[str, str]] = {head: {} for head in self.protocols[protocol]["heads"]}
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["seed"] == first_seed:
                    for head, each in said.items():
                        each[row["clip_id"]] = row[head]
        return said


def encoder_words(record: dict[str, Any]) -> str:
    """Which encoder a run's features are of, in a few words."""
    features = record["features"]
    if "checkpoint" not in features:
        return "unknown (no provenance)"
    release = features.get("release", "unknown")
    if release == "untrained":
        return f"untrained ({features['checkpoint']})"
    what = release if release != "unknown" else features["checkpoint"].removeprefix("sha256:")[:12]
    usual = {"layer": "encoder_block6", "pool": "mean", "condition": "none", "precision": "fp32"}
    other = [f"{features[key][:12]}" for key, value in usual.items() if features.get(key, value) != value]
    return ", ".join([what, *other])


def read_runs(folder: Path | None) -> list[Run]:
    """Every finished run: those in the tasks' own folders, or every result.json below `folder`.

    Raises:
        ConfigError: a record is damaged or of an earlier version.
    """
    if folder is None:
        paths = [path for study in STUDIES.values() if (path := study.results_folder / "result.json").is_file()]
    else:
        if not folder.is_dir():
            raise ConfigError(f"--results {folder} is no folder; give the one below which result.json files lie")
        paths = sorted(folder.rglob("result.json"))
    runs = []
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            study = STUDIES[record["task"]]
            for protocol in record["protocols"].values():
                _ = protocol["heads"], protocol["seeds"], protocol["majority_class"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a record of this version ({type(error).__name__}: {error}); remove it, or classify "
                "again with --overwrite"
            ) from error
        runs.append(Run(study, path.parent, record))
    order = list(STUDIES)
    return sorted(runs, key=lambda run: (order.index(run.study.name), str(run.folder)))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The flags that all analyses share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where result.json files lie (default: the tasks' own folders)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where this writes (default: the results' folder, or analysis/results)",
    )
    return parser


def output_folder(given: argparse.Namespace) -> Path:
    """Where an analysis writes, made if need be."""
    folder = given.output or given.results or PROJECT_ROOT / "analysis" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_for(given: argparse.Namespace) -> list[Run]:
    """The runs that an analysis is asked about; what is missing goes to stderr, with how to get it.

    Raises:
        ConfigError: there are none at all.
    """
    runs = read_runs(given.results)
    there = {run.study.name for run in runs}
    missing = [study for study in STUDIES.values() if study.is_main and study.name not in there]
    if not runs:
        raise ConfigError(
            f"no result.json in {given.results or 'the tasks folders'} yet; for example: {missing[0].how_to_run()}"
        )
    for study in missing:
        print(f"not run yet: {study.name}; to get it: {study.how_to_run()}", file=sys.stderr)
    return runs


def find_study(name: str) -> Study:
    """By its name, or the beginning of one, such as `librispeech`; ConfigError where there is none."""
    found = [study for study in STUDIES.values() if name and study.name.startswith(name)]
    if not found:
        raise ConfigError(f"task {name} is unknown; choose one of {', '.join(STUDIES)}")
    return STUDIES.get(name, found[0])


def run_of(given: argparse.Namespace) -> Run:
    """The run of the task that is named; of several, the one whose folder comes first.

    Raises:
        ConfigError: there is none.
    """
    study = find_study(given.task)
    own = [run for run in read_runs(given.results) if run.study is study]
    if not own:
        raise ConfigError(f"{study.name} has not been run yet; to get it: {study.how_to_run()}")
    if len(own) > 1:
        print(f"{len(own)} runs of {study.name}; taking {own[0].folder} (choose with --results)", file=sys.stderr)
    return own[0]


def seeded_rows(strata: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """At most about `most` row numbers, drawn from every stratum in proportion and at least one of each; in order."""
    if not most or len(strata) <= most:
        return np.arange(len(strata))
    rng = np.random.default_rng(seed)
    kept = []
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        kept.append(rng.choice(own, max(1, round(most * len(own) / len(strata))), replace=False))
    return np.sort(np.concatenate(kept))


def balanced_rows(labels: np.ndarray, sides: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """The same of every side (fold or split) alike, as far as it has clips: else of a small test side little is left."""
    left, quotas = most or len(labels), {}
    counts = dict(zip(*np.unique(sides, return_counts=True), strict=True))
    for place, side in enumerate(sorted(counts, key=counts.__getitem__)):
        quotas[side] = min(counts[side], left // (len(counts) - place))
        left -= quotas[side]
    rows = []
    for side, quota in quotas.items():
        own = np.flatnonzero(sides == side)
        rows.append(own[seeded_rows(labels[own], quota, seed)])
    return np.sort(np.concatenate(rows))
