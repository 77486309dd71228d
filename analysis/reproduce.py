"""The whole study in one command: check, download what is agreed to, extract, classify, compare, report.

Every step is one of this project's scripts, shown before it runs. Interrupted at any moment, the same command goes on;
what is done is not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.studies import STUDIES, Study, find_study
from common.cli import run
from common.config import COMMON_CONFIG, PROJECT_ROOT, ConfigError, read_config
from common.tables import as_text

CONTROLS = {"random_0": "random:0", "logmel": "logmel"}  # name -> what stands in the encoder's place


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    given = _flags(argv)
    main_ones = [study for study in STUDIES.values() if study.is_main]
    studies = list(dict.fromkeys(map(find_study, given.tasks))) or main_ones
    controls = {name: what for name, what in CONTROLS.items() if what != given.checkpoint}
    if given.dry_run:
        _show_plan(studies, controls, given)
        return
    ready = [study for study in studies if _get(study, given)]
    if not ready:
        raise ConfigError("no data set is here; --data FOLDER says where they lie, --yes downloads them")
    for study in ready:
        _one_study(study, controls, given)
    where = _flag("--results", given.results)
    call("analysis/summary.py", *where)
    if len(ready) > 1:
        call("analysis/task_similarity.py", *where)
    call("analysis/report.py", *where, *_flag("--data", given.data))


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make reproduce", description=__doc__, allow_abbrev=False)
    names = ", ".join(study.name for study in STUDIES.values())
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"{names} (default: the main ones)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data sets' folders lie (default: data)")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="where everything goes (default: the tasks' own folders)"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="AudioSep weights, or random:SEED (default: as configured)"
    )
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: as configured)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the heads (default: 5)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of the heads (default: as configured)")
    parser.add_argument("--recipe", default="paper", metavar="NAME", help="paper or tuned (default: paper)")
    parser.add_argument("--no-doctor", action="store_true", help="go on without checking environment and data first")
    parser.add_argument("--overwrite", action="store_true", help="files made with other settings may be replaced")
    parser.add_argument("--yes", action="store_true", help="download missing data sets without asking")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with estimated hours and disk, and stop")
    return parser.parse_args(argv)


def _flag(name: str, value: object) -> tuple[object, ...]:
    return () if value is None else (name, value)


def run_script(script: str, *flags: object) -> int:
    """Show a command and run it; its exit status."""
    shown = [str(flag).replace(f"{PROJECT_ROOT}/", "") for flag in flags]
    is_module = not script.endswith(".py")
    print(f"\n$ python {'-m ' * is_module}{script} {' '.join(shown)}", flush=True)
    what = ["-m", script] if is_module else [str(PROJECT_ROOT / script)]
    return subprocess.run([sys.executable, *what, *map(str, flags)], check=False).returncode


def call(script: str, *flags: object) -> None:
    """The same; where it fails, this ends too, with its status."""
    status = run_script(script, *flags)
    if status:
        print("stopped there; once that is mended, the same command goes on", file=sys.stderr)
        sys.exit(status)


def _get(study: Study, given: argparse.Namespace) -> bool:
    """Whether the data set is there, at the latest now: a download is shown with its size, and agreed to or not."""
    root = study.data_root(given.data)
    if root.is_dir():
        return True
    print(f"\n{study.task.title} is not here ({root}).")
    if not given.yes and not sys.stdin.isatty():
        how = " && ".join(f"python -m common.download {' '.join(each)} --root {root.parent}" for each in study.download)
        print(f"skipped; to get it: {how}, or --yes")
        return False
    calls = [(*each, "--root", root.parent) for each in study.download]
    if not given.yes:
        for each in calls:
            call("common.download", *each, "--dry-run")
        if input("Download it? [y/N] ").strip().lower() not in ("y", "yes"):
            print(f"{study.name} is skipped")
            return False
    for each in calls:
        call("common.download", *each)
    return True


def _one_study(study: Study, controls: dict[str, str], given: argparse.Namespace) -> None:
    """Doctor, features, control features, heads."""
    root = study.data_root(given.data)
    if not given.no_doctor:
        wanted = _flag("--checkpoint", given.checkpoint)
        status = run_script(
            "common.doctor", study.check, "--data-root", root, *wanted, *_flag("--device", given.device)
        )
        if status:
            print("stopped there: mend that, or add --no-doctor to go on all the same", file=sys.stderr)
            sys.exit(status)
    folder = given.results / study.name if given.results else study.results_folder
    features_folder = folder if given.results else study.task.folder
    again = ("--overwrite",) * given.overwrite
    for name, checkpoint in [("", given.checkpoint), *controls.items()]:
        for script, task in study.extract.items():
            output = _features_file(study, features_folder, name, task.features_file)
            flags = (*study.extract_flags, "--data-root", root, "--output", output, *again)
            device = () if checkpoint == "logmel" else _flag("--device", given.device)
            call(script, *flags, *_flag("--checkpoint", checkpoint), *device)
    one = next(iter(study.extract.values())).features_file
    features, *others = (_features_file(study, features_folder, name, one) for name in ("", *controls))
    if study.task.parts:  # of several files, their folder
        features, others = features.parent, [other.parent for other in others]
    settings = (*_flag("--epochs", given.epochs), *_flag("--device", given.device), *again)
    call(
        study.classify,
        *study.classify_flags,
        *("--features", features, "--output-dir", folder, "--recipe", given.recipe, "--seeds", given.seeds),
        *("--protocol", "both", "--probes", "--controls", "--control-features", *others, *settings),
    )


def _features_file(study: Study, folder: Path, control: str, name: str) -> Path:
    """Where a set's features go; those of a control beside the task's own, by the control's name."""
    if not control:
        return folder / name
    own = folder / "controls" / study.name  # several tasks share a folder
    return own / control / name if study.task.parts else own / f"{control}.pt"


def _show_plan(studies: Sequence[Study], controls: dict[str, str], given: argparse.Namespace) -> None:
    """What would be done, with estimated hours and disk."""
    from analysis.estimates import estimate, measure
    from common.encoder import resolve_device
    from common.recipes import TUNED, Recipe

    config = read_config(COMMON_CONFIG)
    keys = ("epochs", "batch_size", "learning_rate", "hidden_dim")
    recipe = TUNED["three_layer"] if given.recipe == "tuned" else Recipe(**{key: config[key] for key in keys})
    recipe = replace(recipe, epochs=given.epochs or recipe.epochs, learning_rate=float(recipe.learning_rate))
    try:
        device = resolve_device(given.device or "auto")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    speed = measure(device, recipe)
    encoders = 1 + sum(what != "logmel" for what in controls.values())
    table = [["task", "data", "clips", "hours of audio", "extract, h", "fit, h", "features, MB"]]
    total = [0.0, 0.0, 0.0]
    for study in studies:
        root = study.data_root(given.data)
        planned = estimate(study, root, speed, recipe, given.seeds, encoders)
        figures = planned.extract_hours, planned.fit_hours, planned.n_bytes / 1e6
        total = [before + figure for before, figure in zip(total, figures, strict=True)]
        cells = [f"{planned.clips:,}", f"{planned.audio_hours:.1f}", *_figures(figures)]
        table.append([study.name, "here" if root.is_dir() else "to download", *cells])
    table.append(["all", "", "", "", *_figures(total)])
    print(f"For each task: doctor, features, {' and '.join(controls)} as controls, both heads with {given.seeds} seeds")
    print("under both protocols with probes and shuffled labels; then summary, similarities and report.\n")
    print(as_text(table))
    print(f"\nEstimated on this machine ({device}): {speed.audio:.0f} s of audio a second.")
    missing = [study for study in studies if not study.data_root(given.data).is_dir()]
    for arguments in dict.fromkeys(each for study in missing for each in study.download):
        call("common.download", *arguments, *_flag("--root", given.data), "--dry-run")


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{values[0]:.2f}", f"{values[1]:.2f}", f"{values[2]:,.0f}"]


if __name__ == "__main__":
    run(main)
