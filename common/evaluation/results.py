"""One run of a classification script: feature file -> scores, figures, trained heads."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from common.config import ConfigError, FigureFormat, FitConfig
from common.datasets import DivisionKind, Prepared, Task
from common.encoder.device import describe_cpu
from common.evaluation.load_features import EncoderRecord, FeatureSource, FeaturesRecord, load_controls, load_features
from common.evaluation.plots import figures_of
from common.evaluation.predictions import prefix_of, save_predictions
from common.evaluation.protocol import plan_fits, protocols_of, run_protocol
from common.evaluation.record import RESULT_FILE, ConfigRecord, ProtocolRecord, RecordError, RunRecord
from common.evaluation.text import as_result_md, print_scores
from common.features import FeatureSet
from common.files import (
    OutputError,
    describe_difference,
    exclusive,
    refuse_unwritable,
    remove_leftovers,
    sha256_of,
    spreadsheet_cell,
    write_atomically,
    write_csv,
    write_json,
)
from common.heads import recipe_for

# Settings that change no score, head or prediction.
NOT_DECISIVE = {"features", "encoder", "output_dir", "markdown", "figure_format", "plain"}


def classify(
    task: Task, config: FitConfig, options: Mapping[str, str | bool], device: torch.device, overwrite: bool
) -> RunRecord:
    """Fit and score both heads by the task's protocol, with the values `options` of its flags; print the scores, write every
    file, return the record. A finished run of the same features and settings is printed again instead; that of others is
    replaced with `overwrite`. UserError says what is wrong."""
    if config.random_seed + config.seeds > 2**32:
        raise ConfigError(f"--seeds {config.seeds} starting at seed {config.random_seed} exceeds 4294967295")
    if config.whiten_eps is not None and recipe_for("linear", config).scaler != "whiten":
        raise ConfigError("--whiten-eps is the strength of whitening; add --scaler whiten, or --recipe tuned")
    prepared, source = loaded = load_features(task, config, options)
    features = prepared.features
    folder = config.output_dir or task.output_dir_of(features.encoder_slug)
    for name in protocols_of(config):  # fails before anything is written
        plan_fits(name, prepared, config.train_test_split, [config.random_seed])
    refuse_unwritable(folder / RESULT_FILE)
    controls, control_sha256 = load_controls(task, features, config.control_features or ())
    settings = ConfigRecord.of(config, options, control_sha256)
    with exclusive(folder / f".{task.name}_results.lock", f"results into {folder}"):
        record = earlier_record(folder, task, settings, source.sha256, overwrite)
        if record is None:
            record = _fit_and_save(task, loaded, settings, device, controls, folder)
        else:
            print(f"{folder / RESULT_FILE} already exists, for the same features and settings. Nothing to do.")
        record = _with_figures(task, record, config.figure_format, config.plain, folder)
        for written in (RESULT_FILE, "result.csv", "result.md", *record.files):
            remove_leftovers(folder / written)
    print_scores(task, record)
    if config.markdown:
        write_atomically(folder / "result.md", as_result_md(task, record).encode())
        print(f"-> {folder / 'result.md'}")
    print(f"-> {folder}: {', '.join([RESULT_FILE, *record.files])}")
    return record


def _fit_and_save(
    task: Task,
    loaded: tuple[Prepared, FeatureSource],
    config: ConfigRecord,
    device: torch.device,
    controls: Mapping[str, FeatureSet],
    folder: Path,
) -> RunRecord:
    """Run the protocols; write predictions, heads and last the record into `folder`."""
    prepared, source = loaded
    features = prepared.features
    # Without a record, the files of an interrupted fit are ignored.
    remove_record(folder)
    protocols: dict[str, ProtocolRecord] = {}
    files = ["result.csv"]
    for name in protocols_of(config):
        if protocols and protocols["official"].kind is DivisionKind.RANDOM:
            print(f"{task.title} has no official division, so only the random protocol is run")
            break
        run = run_protocol(name, prepared, config, device, task, controls)
        protocols[name] = run.record
        files += save_predictions(run.outcomes, features, folder, prefix_of(name))
        if len(protocols) == 1:
            for kind, head in run.heads.items():
                head.save(folder / task.head_files[kind])
                files.append(task.head_files[kind])
    packages = {name: version(name) for name in ("torch", "numpy", "scikit-learn", "scipy")}
    record = RunRecord(
        task=task.name,
        config=config,
        features=FeaturesRecord.of(features, source),
        protocols=protocols,
        controls={name: EncoderRecord.model_validate(other.provenance) for name, other in controls.items()},
        files=files,
        checksums={name: sha256_of(folder / name) for name in files if name.endswith("predictions.pt")},
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **packages},
        cpu=describe_cpu(),
    )
    save_record(record, folder)
    return record


def _with_figures(
    task: Task, record: RunRecord, figure_format: FigureFormat, is_plain: bool, folder: Path
) -> RunRecord:
    """Draw the figures missing in this format, and return the record that names them; a figure that fails is a warning."""
    figures = {
        f"{prefix_of(name)}{figure}{'_plain' * is_plain}.{figure_format}": draw
        for name, protocol in record.protocols.items()
        for figure, draw in figures_of(task, record.features, protocol, is_plain).items()
    }
    files = [name for name in record.files if name not in figures]
    for name, draw in figures.items():
        if name not in record.files:
            try:
                draw(folder / name)
            except Exception as error:  # noqa: BLE001 - whatever a drawing library raises: the results are saved
                print(f"warning: {folder / name} was not drawn: {' '.join(str(error).split())[:200]}", file=sys.stderr)
                continue
        files.append(name)
    if files != record.files:
        print(f"figures drawn as {figure_format}")
        record = record.model_copy(update={"files": files})
        save_record(record, folder)
    return record


def save_record(record: RunRecord, folder: Path) -> None:
    """Write result.json, and result.csv with one row per protocol, head, split and seed."""
    fits = [
        (protocol.kind.value, row.name, fit)
        for protocol in record.protocols.values()
        for row in protocol.rows()
        for fit in row.scores.splits
    ]
    rows = []
    for kind, head, fit in fits:
        identity = fit.model_dump(include={"split", "seed", "n_train", "n_test"})
        values = {"protocol": kind, "head": head, **identity, **fit.scores, **fit.model_dump(exclude_unset=True)}
        rows.append({key: value for key, value in values.items() if not isinstance(value, list)})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[spreadsheet_cell(row.get(name)) for name in columns] for row in rows]
    write_csv(folder / "result.csv", [columns, *cells])
    write_json(folder / RESULT_FILE, record.model_dump_json(exclude_unset=True))


def earlier_record(
    folder: Path, task: Task, config: ConfigRecord, features_sha256: str, overwrite: bool = False
) -> RunRecord | None:
    """The record in `folder` if it is of the same task, features and configuration and all its files exist; else None.
    OutputError if it is of another run, and `overwrite` is not set."""
    path = folder / RESULT_FILE
    if overwrite or not path.exists():
        return None
    try:
        record = RunRecord.load(path)
    except RecordError as error:
        raise OutputError(f"{error}; --overwrite replaces it") from error
    runs = ((record.task, record.config, record.features.sha256), (task.name, config, features_sha256))
    before, now = (
        {"task": name, **settings.model_dump(mode="json", exclude=NOT_DECISIVE), "features": sha256}
        for name, settings, sha256 in runs
    )
    if different := describe_difference(before, now):
        raise OutputError(
            f"{path} holds the results of another run ({different}); "
            "--overwrite replaces them, --output-dir writes elsewhere"
        )
    is_complete = bool(record.protocols) and all((folder / name).is_file() for name in record.files)
    return record if is_complete else None


def remove_record(folder: Path) -> None:
    """Remove an earlier run's record and every file that it names."""
    path = folder / RESULT_FILE
    try:
        names = [*RunRecord.load(path).files, "result.md"]
    except (OSError, RecordError):
        names = []  # no record, or not of this project
    path.unlink(missing_ok=True)
    for name in names:
        if Path(name).name == name:  # nothing outside the folder, whatever the record says
            (folder / name).unlink(missing_ok=True)
