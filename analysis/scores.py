"""All finished runs, as one long table of scores and one of predictions: what every analysis groups."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.studies import STUDIES, Study, find_study, study_in
from common.config import ConfigError
from common.files import PROJECT_ROOT
from common.flags import Parser, user_path

if TYPE_CHECKING:  # --help should not wait for torch
    import pandas as pd

    from common.evaluation.predictions import Predictions
    from common.evaluation.rankings import Rankings
    from common.evaluation.record import ProtocolRecord, RunRecord
    from common.evaluation.scores import Hits
    from common.features import FeatureSet
    from common.heads import HeadKind

WIDTH = 100  # of printed text


@dataclass(frozen=True)
class Run:
    """One finished classification: its record, and its rows and predictions, read on demand."""

    study: Study
    folder: Path
    record: RunRecord

    @property
    def first_protocol(self) -> ProtocolRecord:
        """The official one, if it was run."""
        return next(iter(self.record.protocols.values()))

    @property
    def encoder(self) -> str:
        return self.record.features.title

    @cached_property
    def features(self) -> FeatureSet:
        """The rows as they were classified; FeatureFileError if their file is missing, or has changed since."""
        from common.evaluation.load_features import load_features
        from common.features import FeatureFileError

        config = self.record.config
        prepared, source = load_features(self.study.task, config, config.options)
        if source.sha256 != self.record.features.sha256:
            what = f"{source.path} has changed since {self.folder / 'result.json'} was made from it"
            raise FeatureFileError(f"{what}; classify it again: python {self.study.classify}")
        return prepared.features

    def predictions(self, protocol: str | None = None) -> pd.DataFrame:
        """Every prediction of a protocol (None: the first), ordered by seed, split and clip: the columns of predictions.csv.
        FeatureFileError if the file is missing, damaged or changed."""
        return self.read_predictions(protocol).table

    def judged(self) -> Mapping[HeadKind, Hits | Rankings]:
        """What is right of the first protocol's predictions by each head, in the order of `predictions`; errors as there."""
        return self.read_predictions().judged(self.first_protocol.comparison.units)

    def read_predictions(self, protocol: str | None = None) -> Predictions:
        """The same with the labels and logits."""
        from common.evaluation.predictions import Predictions, prefix_of

        name = protocol or next(iter(self.record.protocols))
        path = self.folder / f"{prefix_of(name)}predictions.pt"
        return Predictions.read(path, self.record.checksums.get(path.name))


def scores(runs: Sequence[Run]) -> pd.DataFrame:
    """All scores, one row each: columns ``run`` (place in `runs`), ``task``, ``encoder``, ``output``, ``protocol``, ``hash``,
    ``recipe``, ``kind`` (`ScoreKind`), ``head``, ``control``, ``split``, ``seed``, ``metric`` and ``value``."""
    import pandas as pd

    return pd.DataFrame(
        {
            "run": place,
            "task": run.study.name,
            "encoder": run.encoder,
            "output": f"{run.record.features.layer or ''} {run.record.features.pool or ''}".strip(),
            "protocol": name,
            "hash": protocol.identity.hash,
            "recipe": run.record.config.recipe,
            "kind": row.kind.value,
            "head": row.classifier,
            "control": row.control,
            "split": fit.split,
            "seed": fit.seed,
            "metric": metric,
            "value": value,
        }
        for place, run in enumerate(runs)
        for name, protocol in run.record.protocols.items()
        for row in protocol.rows()
        for fit in row.scores.splits
        for metric, value in fit.scores.items()
    )


def read_runs(folder: Path | None) -> list[Run]:
    """Every finished run: those in the tasks' folders, or every result.json below `folder`. ConfigError if a record is damaged,
    or of another version."""
    from common.evaluation.record import RESULT_FILE, RecordError, RunRecord

    if folder is None:
        # AudioSep's results are in the task's folder, those of each other encoder in a folder below it.
        folders = dict.fromkeys(study.task.output_dir_of("audiosep") for study in STUDIES.values())
        paths = [path for place in folders for path in (place / RESULT_FILE, *sorted(place.glob(f"*/{RESULT_FILE}")))]
        paths = [path for path in dict.fromkeys(paths) if path.is_file()]
    elif folder.is_dir():
        paths = sorted(folder.rglob(RESULT_FILE))
    else:
        raise ConfigError(f"--results {folder} is not a folder; give the one that has result.json files below it")
    runs = []
    for path in paths:
        try:
            record = RunRecord.load(path)
        except RecordError as error:
            raise ConfigError(f"{error}; remove it, or classify again with --overwrite") from error
        study = study_in(path.parent, record.task)
        if study is None:
            print(f"left out: {path} is of {record.task}, for which analysis/studies.py has no Study", file=sys.stderr)
        else:
            runs.append(Run(study, path.parent, record))
    # Own sounds come last, by their names.
    order = {name: place for place, name in enumerate(STUDIES)}
    return sorted(runs, key=lambda run: (order.get(run.study.name, len(order)), run.study.name, str(run.folder)))


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = dict.fromkeys(run.study.name for run in runs)
    return {name: [run for run in runs if run.study.name == name] for name in names}


def new_parser(description: str | None) -> argparse.ArgumentParser:
    parser = Parser(description)
    results = "where result.json files are (default: the tasks' own folders)"
    parser.add_argument("--results", type=user_path, metavar="FOLDER", help=results)
    output = "where this writes (default: the results' folder, or analysis/results)"
    parser.add_argument("--output", type=user_path, metavar="FOLDER", help=output)
    return parser


def output_folder(arguments: argparse.Namespace) -> Path:
    """Where an analysis writes; created if need be."""
    folder: Path = arguments.output or arguments.results or PROJECT_ROOT / "analysis" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_for(arguments: argparse.Namespace) -> list[Run]:
    """The runs that an analysis is about, after saying which tasks are missing; ConfigError if there is none."""
    runs = read_runs(arguments.results)
    missing = [study for study in STUDIES.values() if study.is_main and study.name not in by_task(runs)]
    if not runs:
        where = arguments.results or "the tasks' folders"
        raise ConfigError(f"no result.json of a known task in {where} yet; for example: {missing[0].how_to_run()}")
    if missing and arguments.results is None:
        names = " ".join(study.name for study in missing)
        print(f'not run yet: {names}; to get them: make reproduce TASKS="{names}"', file=sys.stderr)
    return runs


def find_run(arguments: argparse.Namespace) -> Run:
    """The run in the named folder, or the first of the named task; ConfigError if there is none."""
    from common.evaluation.record import RESULT_FILE

    folder = user_path(arguments.task)
    if (folder / RESULT_FILE).is_file():
        return next(run for run in read_runs(folder) if run.folder == folder)
    study = find_study(arguments.task)
    runs = [run for run in read_runs(arguments.results) if run.study.name == study.name]
    if not runs:
        raise ConfigError(f"{study.name} has not been run yet; to get it: {study.how_to_run()}")
    if len(runs) > 1:
        print(f"{len(runs)} runs of {study.name}; taking {runs[0].folder} (choose with --results)", file=sys.stderr)
    return runs[0]
