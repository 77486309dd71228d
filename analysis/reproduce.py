"""The whole study in one command: check, download after asking, extract, classify, compare, report.

Every step is one of this project's scripts, shown before it runs. After an interruption, the same command continues;
finished work is not repeated.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import ENCODERS_FOLDER
from analysis.studies import STUDIES, Study, find_study
from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError, ExtractConfig, FitConfig, RecipeName, load_config
from common.encoder_name import FORMS, EncoderKind, EncoderName, file_of
from common.entry import run
from common.files import PROJECT_ROOT
from common.flags import Parser, user_path

if TYPE_CHECKING:
    from analysis.estimates import Estimate

# name -> the flags of what takes the encoder's place
CONTROLS = {
    "random_0": ("--encoder", "audiosep", "--checkpoint", "random:0"),
    "logmel": ("--encoder", "logmel"),
}


@dataclass(frozen=True)
class Plan:
    """What `make reproduce` was asked to do; None: as configured.

    Attributes:
        studies: the tasks.
        data: where the data sets' folders are.
        results: where everything goes.
        encoders: names, as ``--encoder`` takes them.
        checkpoint, device, seeds, epochs, recipe: as the scripts' flags.
        trusts: run the code that a model of ``hf:`` brings.
        controls: names in CONTROLS, evaluated beside AudioSep.
        with_doctor: check environment and data first.
        overwrite: replace files made with other settings.
        allows_missing: leave out listed clips that are not there.
        downloads: download missing data sets without asking.
        is_dry_run: print the plan and stop.
    """

    studies: tuple[Study, ...]
    data: Path | None = None
    results: Path | None = None
    encoders: tuple[EncoderName, ...] = (EncoderName(EncoderKind.AUDIOSEP),)
    checkpoint: str | None = None
    device: str | None = None
    trusts: bool = False
    seeds: int = 5
    epochs: int | None = None
    recipe: RecipeName = "paper"
    controls: tuple[str, ...] = tuple(CONTROLS)
    with_doctor: bool = True
    overwrite: bool = False
    allows_missing: bool = False
    downloads: bool = False
    is_dry_run: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    reproduce(_parse(argv))


def reproduce(plan: Plan) -> None:
    """Carry out the plan."""
    if plan.is_dry_run:
        _show_plan(plan)
        return
    _get_weights(plan)
    ready = [study for study in plan.studies if _get(study, plan)]
    if not ready:
        raise ConfigError("no data set found; give their folder with --data, or download them with --yes")
    if len(plan.encoders) > 1:
        _measure_encoders(plan)
    for study in ready:
        _one_study(study, plan)
    where = _flag("--results", plan.results)
    call("analysis/summary.py", *where)
    if len(ready) > 1:
        call("analysis/task_similarity.py", *where)
    call("analysis/report.py", *where, *_flag("--data", plan.data))


def _parse(argv: Sequence[str] | None) -> Plan:
    parser = Parser(__doc__, prog="make reproduce")
    names = ", ".join(study.name for study in STUDIES.values())
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"{names} (default: the main ones)")
    parser.add_argument(
        "--data", type=user_path, metavar="FOLDER", help="where the data sets' folders are (default: data)"
    )
    parser.add_argument(
        "--results", type=user_path, metavar="FOLDER", help="where everything goes (default: the tasks' own folders)"
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["audiosep"],
        metavar="NAME",
        help=f"{FORMS}; several are compared (default: audiosep)",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="AudioSep weights, or random:SEED (default: as configured)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that a model of hf: brings; read it first"
    )
    parser.add_argument("--device", metavar="NAME", help=f"{DEVICES} (default: as configured)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the heads (default: 5)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of the heads (default: as configured)")
    parser.add_argument("--recipe", default="paper", metavar="NAME", help="paper or tuned (default: paper)")
    parser.add_argument("--no-doctor", action="store_true", help="do not check environment and data first")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made with other settings")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out clips whose files are missing, counted and recorded"
    )
    parser.add_argument("--yes", action="store_true", help="download missing data sets and weights without asking")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan with estimated times and disk space, and stop"
    )
    arguments = parser.parse_args(argv)
    main_ones = [study for study in STUDIES.values() if study.is_main]
    return Plan(
        studies=tuple(dict.fromkeys(map(find_study, arguments.tasks)) or main_ones),
        data=arguments.data,
        results=arguments.results,
        encoders=_encoders(arguments.encoders),
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        trusts=arguments.trust_remote_code,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        recipe=arguments.recipe,
        controls=tuple(name for name, flags in CONTROLS.items() if flags[-1] != arguments.checkpoint),
        with_doctor=not arguments.no_doctor,
        overwrite=arguments.overwrite,
        allows_missing=arguments.allow_missing,
        downloads=arguments.yes,
        is_dry_run=arguments.dry_run,
    )


def _encoders(names: Sequence[str]) -> tuple[EncoderName, ...]:
    """The encoders, AudioSep first; ConfigError if two have the same short name, and so the same files."""
    encoders = sorted(
        {EncoderName.parse(name).resolved(Path.cwd()): None for name in names},
        key=lambda encoder: not _is_audiosep(encoder),
    )
    slugs = [encoder.slug for encoder in encoders]
    for encoder in encoders:
        if slugs.count(encoder.slug) > 1:
            raise ConfigError(f"--encoders: two are called {encoder.slug} in the names of files; rename one's file")
    return tuple(encoders)


def _measure_encoders(plan: Plan) -> None:
    """Check every encoder, and measure its speed on this machine."""
    folder = (plan.results or PROJECT_ROOT / "analysis" / "results") / ENCODERS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for encoder in plan.encoders:
        path = folder / f"{encoder.slug}.json"
        if path.exists() and not plan.overwrite:
            continue
        flags = (
            *_flag("--checkpoint", plan.checkpoint),
            *_flag("--device", plan.device),
            *_trust(plan),
            "--json",
            path,
        )
        if run_script("common.encoder.check", encoder, *flags) > 1:
            sys.exit(2)


def _trust(plan: Plan) -> tuple[str, ...]:
    return ("--trust-remote-code",) * plan.trusts


def _flag(name: str, value: object) -> tuple[object, ...]:
    return () if value is None else (name, value)


def run_script(script: str, *flags: object) -> int:
    """Show a command and run it; returns its exit status."""
    is_module = not script.endswith(".py")
    _show_command(script, *flags)
    what = ["-m", script] if is_module else [str(PROJECT_ROOT / script)]
    return subprocess.run([sys.executable, *what, *map(str, flags)], check=False).returncode


def call(script: str, *flags: object) -> None:
    """The same, but if it fails, exit with its status."""
    status = run_script(script, *flags)
    if status:
        print("stopped; once that is fixed, the same command continues", file=sys.stderr)
        sys.exit(status)


def preview_download(*flags: object) -> None:
    """Show what a download would do, in this process: another one takes as long as all of a plan's previews."""
    from common.download.command import main as download

    _show_command("common.download", *flags, "--dry-run")
    download([*map(str, flags), "--dry-run"])


def _show_command(script: str, *flags: object) -> None:
    shown = [str(flag).replace(f"{PROJECT_ROOT}/", "") for flag in flags]
    print(f"\n$ python {'' if script.endswith('.py') else '-m '}{script} {' '.join(shown)}", flush=True)


def _get(study: Study, plan: Plan) -> bool:
    """Whether the data set is there, after downloading it if need be: show the size, and ask before starting."""
    root = study.data_root(plan.data)
    if root.is_dir():
        return True
    print(f"\n{study.task.title} was not found ({root}).")
    if not plan.downloads and not sys.stdin.isatty():
        how = " && ".join(
            f"python -m common.download {' '.join(flags)} --root {root.parent}" for flags in study.download
        )
        print(f"skipped; to get it: {how}, or --yes")
        return False
    calls = [(*flags, "--root", root.parent) for flags in study.download]
    if not plan.downloads:
        for flags in calls:
            preview_download(*flags)
        if input("Download it? [y/N] ").strip().lower() not in ("y", "yes"):
            print(f"{study.name} is skipped")
            return False
    for flags in calls:
        call("common.download", *flags)
    return True


def _one_study(study: Study, plan: Plan) -> None:
    """Doctor, then every encoder."""
    root = study.data_root(plan.data)
    if plan.with_doctor:
        needs_weights = any(_is_audiosep(encoder) for encoder in plan.encoders)
        checkpoint = plan.checkpoint if needs_weights else "random:0"
        wanted = (*_flag("--checkpoint", checkpoint), *_flag("--device", plan.device))
        status = run_script("common.doctor", study.check, "--data-root", root, *wanted)
        if status:
            print("stopped: fix that, or add --no-doctor to continue anyway", file=sys.stderr)
            sys.exit(status)
    for encoder in plan.encoders:
        _one_encoder(study, plan, encoder)


def _one_encoder(study: Study, plan: Plan, encoder: EncoderName) -> None:
    """Features, for AudioSep control features too, and heads."""
    root = study.data_root(plan.data)
    slug, is_audiosep = encoder.slug, _is_audiosep(encoder)
    task, again = study.task, ("--overwrite",) * plan.overwrite
    folder = task.output_dir_of(slug)
    if plan.results:
        folder = plan.results / study.name if is_audiosep else plan.results / study.name / slug
    features_folder = folder if plan.results else task.folder
    # Always named: config.yaml may name another.
    this_encoder = ("--encoder", encoder, *(_flag("--checkpoint", plan.checkpoint) if is_audiosep else ()))
    sets: dict[str, tuple[object, ...]] = {"": this_encoder}
    sets |= {name: CONTROLS[name] for name in plan.controls if is_audiosep}
    for name, made_by in sets.items():
        for script, part in study.extract.items():
            output = _features_file(study, features_folder, name, file_of(part.features_file, slug))
            flags = (*study.extract_flags, "--data-root", root, "--output", output, *again)
            flags += ("--allow-missing",) * plan.allows_missing
            call(script, *flags, *_trust(plan), *made_by, *_flag("--device", plan.device))
    file_name = file_of(next(iter(study.extract.values())).features_file, slug)
    features, *others = (_features_file(study, features_folder, name, file_name) for name in sets)
    if task.parts:  # for several files, their folder
        features, others = features.parent, [other.parent for other in others]
    what = ("--features", features, "--output-dir", folder, "--recipe", plan.recipe, "--seeds", plan.seeds)
    how = ("--protocol", "both", "--probes", "--controls", *(("--control-features", *others) if others else ()))
    settings = (*_flag("--epochs", plan.epochs), *_flag("--device", plan.device), *again)
    call(study.classify, *study.classify_flags, *what, *how, "--encoder", encoder, *settings)


def _features_file(study: Study, folder: Path, control: str, name: str) -> Path:
    """Where a set's features go; those of a control beside the task's own, by the control's name."""
    if not control:
        return folder / name
    controls = folder / "controls" / study.name  # several tasks share a folder
    return controls / control / name if study.task.parts else controls / f"{control}.pt"


def _show_plan(plan: Plan) -> None:
    """Print what would be done, with estimated times and disk space."""
    from analysis.estimates import estimate, measure_speed, time_range
    from common.encoder import resolve_device
    from common.heads import recipe_for
    from common.text_table import as_text

    flags = {"recipe": plan.recipe} | ({} if plan.epochs is None else {"epochs": plan.epochs})
    recipe = recipe_for("three_layer", load_config(FitConfig, plan.studies[0].task.config_file, None, flags))
    device = resolve_device(plan.device or "auto")
    speed = measure_speed(device, recipe)
    n_sets = sum(_is_audiosep(encoder) for encoder in plan.encoders) + ("random_0" in plan.controls)
    table = [["task", "data", "clips", "hours of audio", "extraction", "fitting", "features"]]
    estimates: dict[str, Estimate] = {}
    for study in plan.studies:
        root = study.data_root(plan.data)
        planned = estimates[study.name] = estimate(study, root, speed, recipe, plan.seeds, n_sets)
        times = time_range(planned.extract_hours), time_range(planned.fit_hours)
        cells = [f"{planned.clips:,}", f"{planned.audio_hours:.1f}", *times, f"{planned.n_bytes / 1e6:,.0f} MB"]
        table.append([study.name, "here" if root.is_dir() else "to download", *cells])
    total = sum(planned_task.hours for planned_task in estimates.values())
    megabytes = sum(planned_task.n_bytes for planned_task in estimates.values()) / 1e6
    print(
        f"For each task: doctor, features, {' and '.join(plan.controls)} as controls, both heads with {plan.seeds} seeds"
    )
    print("under both protocols with probes and shuffled labels; then summary, similarities and report.\n")
    print(as_text(table))
    print(f"\nIn all {time_range(total)} and {megabytes:,.0f} MB of features, on {device}, which embeds")
    print(f"{speed.audio:.0f} s of audio per second. From: nothing else runs. To: other work beside it.")
    print(_how_to_spend_less(estimates, plan.seeds, device.type == "cpu"))
    others = [str(encoder) for encoder in plan.encoders if not _is_audiosep(encoder)]
    if others:
        print(f"Not in the estimate: {', '.join(others)}; python -m common.encoder.check NAME measures its speed.")
    if _missing_weights(plan):
        preview_download("weights")
    missing = [study for study in plan.studies if not study.data_root(plan.data).is_dir()]
    for arguments in dict.fromkeys(planned_task for study in missing for planned_task in study.download):
        preview_download(*arguments, *_flag("--root", plan.data))


def _how_to_spend_less(estimates: Mapping[str, Estimate], seeds: int, is_on_cpu: bool) -> str:
    """What takes most of the time, and which flags save most of it."""
    from analysis.estimates import time_range

    extraction = sum(planned.extract_hours for planned in estimates.values())
    fitting = sum(planned.fit_hours for planned in estimates.values())
    total = extraction + fitting
    name, longest = max(estimates.items(), key=lambda item: max(item[1].extract_hours, item[1].fit_hours))
    part = "extraction" if longest.extract_hours > longest.fit_hours else "fitting"
    share = max(longest.extract_hours, longest.fit_hours) / total
    saved = []
    if seeds > 1:
        saved.append(f"--seeds 1: {time_range(extraction + fitting / seeds)}")
    if len(estimates) > 1:
        saved.append(f"without {name}: {time_range(total - longest.hours)}")
    if extraction > fitting and is_on_cpu:
        saved.append("a GPU, or --shard of the extraction scripts on several machines")
    most = f"Most of it: {part} of {name} ({share:.0%})."
    return f"{most}\nTo spend less: {'; '.join(saved)}." if saved else most


def _is_audiosep(encoder: EncoderName) -> bool:
    return encoder.kind is EncoderKind.AUDIOSEP


def _missing_weights(plan: Plan) -> Path | None:
    """The file of AudioSep's weights, if the plan needs it and it is not there; ConfigError if it is not the one that can be
    downloaded."""
    if not any(_is_audiosep(encoder) for encoder in plan.encoders):
        return None
    name = plan.checkpoint or load_config(ExtractConfig, plan.studies[0].task.config_file).checkpoint
    if name.startswith("random:") or Path(name).exists():
        return None
    if Path(name) != PROJECT_ROOT / DEFAULT_CHECKPOINT:
        raise ConfigError(f"{name} not found; give AudioSep's weights with --checkpoint")
    return Path(name)


def _get_weights(plan: Plan) -> None:
    """Download AudioSep's weights if they are needed, missing and wanted; else say how to get them."""
    missing = _missing_weights(plan)
    if missing is None:
        return
    print(f"\nAudioSep's weights were not found ({missing}).")
    if not plan.downloads:
        preview_download("weights")
        wanted = sys.stdin.isatty() and input("Download them? [y/N] ").strip().lower() in ("y", "yes")
        if not wanted:
            raise ConfigError(
                "AudioSep's weights are missing; to get them: python -m common.download weights, or --yes; or try everything "
                "with an untrained encoder: --checkpoint random:0"
            )
    call("common.download", "weights")


if __name__ == "__main__":
    run(main)
