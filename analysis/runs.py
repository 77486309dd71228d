"""The finished runs that analyses start from, and the flags that choose them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.studies import STUDIES, Study, find_study, study_in
from common.config import ConfigError
from common.files import PROJECT_ROOT, sha256_of
from common.flags import Parser

if TYPE_CHECKING:  # --help should not wait for torch
    from common.evaluation.record import FeaturesRecord, ProtocolRecord, RunRecord
    from common.features import FeatureSet

COLUMNS = 100  # the width of printed text
ENCODERS_FOLDER = "encoders"  # below the results: what `common.encoder.check` measured of each encoder


@dataclass(frozen=True)
class Run:
    """One finished classification: its record, and its rows and predictions, read on demand."""

    study: Study
    folder: Path
    record: RunRecord

    @property
    def protocols(self) -> dict[str, ProtocolRecord]:
        """Name of each protocol -> its scores."""
        return self.record.protocols

    @property
    def first_protocol(self) -> str:
        """The official one, if it was run."""
        return next(iter(self.protocols))

    @cached_property
    def features(self) -> FeatureSet:
        """The rows as they were classified.

        Raises:
            FeatureFileError: the feature file is missing, or has changed since.
        """
        from common.evaluation.load_features import load_features
        from common.features import FeatureFileError

        config = self.record.config
        prepared = load_features(self.study.task, config.fit_config, config.options)
        if prepared.source.sha256 != self.record.features.sha256:
            raise FeatureFileError(
                f"{prepared.source.path} has changed since {self.folder / 'result.json'} was made from it; classify it "
                f"again: python {self.study.classify}"
            )
        return prepared.features

    def predictions(self, protocol: str = "official") -> dict[str, dict[str, str]]:
        """For the first seed: head -> clip id -> predicted class, for every clip that was tested."""
        from common.evaluation.predictions import prefix_of, read_predictions
        from common.features import FeatureFileError

        path = self.folder / f"{prefix_of(protocol)}predictions.csv"
        expected = self.record.checksums.get(path.name)  # none in records of earlier versions
        if expected and path.exists() and sha256_of(path) != expected:
            raise FeatureFileError(f"{path} is damaged (not what was written); classify again with --overwrite")
        record = self.protocols[protocol]
        return read_predictions(path, list(record.heads), record.seeds[0])


def describe_encoder(record: RunRecord) -> str:
    """The encoder of a run's features in a few words."""
    features = record.features
    if features.checkpoint is None:
        return "unknown (no provenance)"
    if features.checkpoint == "logmel":
        return "log-mel statistics (no encoder)"
    if features.release == "untrained":
        return ", ".join([f"untrained ({features.checkpoint})", *_unusual(features)])
    if features.release == "plug-in":
        is_usual = features.layer in ("scene", "last_hidden_state") and features.pool in ("", "mean")
        return f"{features.encoder}" if is_usual else f"{features.encoder}, {features.layer} {features.pool}".strip()
    name = features.release if features.release != "unknown" else features.checkpoint.removeprefix("sha256:")[:12]
    return ", ".join([name, *_unusual(features)])


def _unusual(features: FeaturesRecord) -> list[str]:
    """The settings of AudioSep's encoder that are not the default ones."""
    usual = ("encoder_block6", "mean", "none", "fp32")
    own = (features.layer, features.pool, features.condition, features.precision)
    other = [
        value.removeprefix("sha256:")[:12] if value.startswith("sha256:") else value
        for value, default in zip(own, usual, strict=True)
        if value is not None and value != default
    ]
    return [*other, *["official padding"] * (features.padding == "official")]


def read_runs(folder: Path | None) -> list[Run]:
    """Every finished run: those in the tasks' own folders, or every result.json below `folder`.

    Raises:
        ConfigError: a record is damaged, or of an earlier version.
    """
    from common.evaluation.record import RESULT_FILE, RecordError, RunRecord

    if folder is None:
        # AudioSep's results are in the task's folder, those of each other encoder in a folder below it.
        own = (PROJECT_ROOT / "own_sounds" / "results").glob("*/")
        folders = dict.fromkeys([*(study.results_folder for study in STUDIES.values()), *sorted(own)])
        found = [path for each in folders for path in (each / RESULT_FILE, *sorted(each.glob(f"*/{RESULT_FILE}")))]
        paths = [path for path in dict.fromkeys(found) if path.is_file()]
    else:
        if not folder.is_dir():
            raise ConfigError(f"--results {folder} is not a folder; give the one that has result.json files below it")
        paths = sorted(folder.rglob(RESULT_FILE))
    runs = []
    for path in paths:
        try:
            record = RunRecord.load(path)
        except RecordError as error:
            raise ConfigError(f"{error}; remove it, or classify again with --overwrite") from error
        study = study_in(path.parent, record.task)
        if study is None:
            print(f"left out: {path} is of {record.task}, for which analysis/studies.py has no Study", file=sys.stderr)
            continue
        runs.append(Run(study, path.parent, record))
    # One's own sounds come last, by their names.
    order = {name: place for place, name in enumerate(STUDIES)}
    return sorted(runs, key=lambda run: (order.get(run.study.name, len(order)), run.study.name, str(run.folder)))


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that all analyses share."""
    parser = Parser(description)
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where result.json files are (default: the tasks' own folders)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where this writes (default: the results' folder, or analysis/results)",
    )
    return parser


def output_folder(given: argparse.Namespace) -> Path:
    """Where an analysis writes; created if need be."""
    folder: Path = given.output or given.results or PROJECT_ROOT / "analysis" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_for(given: argparse.Namespace) -> list[Run]:
    """The runs that an analysis is about; tasks not run yet are listed on stderr, with the commands that run them.

    Raises:
        ConfigError: there are none at all.
    """
    runs = read_runs(given.results)
    there = {run.study.name for run in runs}
    missing = [study for study in STUDIES.values() if study.is_main and study.name not in there]
    if not runs and given.results and any(given.results.rglob("result.json")):
        raise ConfigError(f"none of the results below {given.results} is of a known task; each is named above")
    if not runs:
        raise ConfigError(
            f"no result.json in {given.results or 'the tasks folders'} yet; for example: {missing[0].how_to_run()}"
        )
    for study in missing:
        print(f"not run yet: {study.name}; to get it: {study.how_to_run()}", file=sys.stderr)
    return runs


def find_run(given: argparse.Namespace) -> Run:
    """The run of the named task; if there are several, the one whose folder comes first.

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
