"""The whole study in one command: check, download after asking, extract, classify, compare, report.

Every step is one of this project's scripts, shown before it runs. After an interruption, the same command continues;
finished work is not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.studies import STUDIES, Study, find_study
from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError, ExtractConfig, load_config
from common.encoder_name import FORMS, EncoderKind, EncoderName, file_of
from common.files import PROJECT_ROOT
from common.flags import Parser, run, user_path
from common.scripts import call, flags, measure_encoders, show_command
from common.text_table import as_text

# name -> the flags of what takes the encoder's place
CONTROLS = {
    "random_0": ("--encoder", "audiosep", "--checkpoint", "random:0"),
    "logmel": ("--encoder", "logmel"),
}
BYTES_PER_CLIP = 384 * 4 + 150  # in a feature file: the embedding, then its label, name, group and stamp


class Plan(argparse.Namespace):
    """What `make reproduce` was asked to do, as its flags say it; None: as configured."""

    @cached_property
    def studies(self) -> list[Study]:
        named = list(dict.fromkeys(map(find_study, self.tasks)))
        return named or [study for study in STUDIES.values() if study.is_main]

    @cached_property
    def encoders(self) -> list[EncoderName]:
        """The encoders, AudioSep first; ConfigError if two have the same short name, and so the same files."""
        names = dict.fromkeys(EncoderName.parse(name).resolved(Path.cwd()) for name in self.encoder_names)
        slug, count = Counter(name.slug for name in names).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"--encoders: two are called {slug} in the names of files; rename one's file")
        return sorted(names, key=lambda name: name.kind is not EncoderKind.AUDIOSEP)

    @property
    def has_audiosep(self) -> bool:
        return self.encoders[0].kind is EncoderKind.AUDIOSEP

    @property
    def controls(self) -> list[str]:
        """The names in CONTROLS of what is evaluated beside AudioSep."""
        return [name for name, words in CONTROLS.items() if words[-1] != self.checkpoint]

    @cached_property
    def missing_weights(self) -> Path | None:
        """The file of AudioSep's weights, if it is needed and not there; ConfigError if it cannot be downloaded."""
        if not self.has_audiosep:
            return None
        name = self.checkpoint or load_config(ExtractConfig, self.studies[0].task.config_file).checkpoint
        if name.startswith("random:") or Path(name).exists():
            return None
        if Path(name) != PROJECT_ROOT / DEFAULT_CHECKPOINT:
            raise ConfigError(f"{name} not found; give AudioSep's weights with --checkpoint")
        return Path(name)


def main(argv: Sequence[str] | None = None) -> None:
    plan = _parse(argv)
    if plan.dry_run:
        print(describe_plan(plan))
        if plan.missing_weights:
            preview_download("weights")
        missing = [study for study in plan.studies if study.root is None and not study.data_root(plan.data).is_dir()]
        for words in dict.fromkeys(words for study in missing for words in _downloads(study, plan)):
            preview_download(*words)
        return
    weights = plan.missing_weights
    if weights and not _download(plan, "AudioSep's weights", weights, [("weights",)]):
        raise ConfigError(
            "AudioSep's weights are missing; or try everything with an untrained encoder: --checkpoint random:0"
        )
    ready = []
    for study in plan.studies:
        root = study.data_root(plan.data)
        is_here = root.is_dir() or study.root is not None
        if is_here or _download(plan, study.task.title, root, _downloads(study, plan)):
            ready.append(study)
    if not ready:
        raise ConfigError("no data set found; give their folder with --data, or download them with --yes")
    if len(plan.encoders) > 1 and any(study.root is None for study in ready):
        results = plan.results or PROJECT_ROOT / "analysis" / "results"
        settings = flags(checkpoint=plan.checkpoint, device=plan.device, trust_remote_code=plan.trust_remote_code)
        measure_encoders(plan.encoders, results, plan.overwrite, *settings)
    for study in ready:
        if study.root is not None:  # one's own sounds
            shared = flags(overwrite=plan.overwrite, device=plan.device, checkpoint=plan.checkpoint, epochs=plan.epochs)
            more = flags(allow_missing=plan.allow_missing, trust_remote_code=plan.trust_remote_code, recipe=plan.recipe)
            where = flags(seeds=plan.seeds, output_dir=plan.results and plan.results / study.name)
            call(study.classify, *study.extract_flags, *where, *shared, *more, "--encoders", *plan.encoders)
            continue
        if not plan.no_doctor:
            checkpoint = plan.checkpoint if plan.has_audiosep else "random:0"
            settings = flags(data_root=study.data_root(plan.data), checkpoint=checkpoint, device=plan.device)
            advice = "stopped: fix that, or add --no-doctor to continue anyway"
            call("common.doctor", study.check, *settings, advice=advice)
        for encoder in plan.encoders:
            _one_encoder(study, plan, encoder)
    if all(study.root is not None for study in ready):
        return  # which has its summary and report
    call("analysis/summary.py", *flags(results=plan.results))
    call("analysis/report.py", *flags(results=plan.results, data=plan.data))


def _parse(argv: Sequence[str] | None) -> Plan:
    parser = Parser(__doc__, prog="make reproduce")

    def add(name: str, text: str, metavar: str | None = None, **more: object) -> None:
        kind = {"action": "store_true"} if metavar is None else {"metavar": metavar, **more}
        parser.add_argument(name, help=text, **kind)

    which = f"{', '.join(STUDIES)}, or a folder or table of sounds (default: the main ones)"
    add("tasks", which, "TASK", nargs="*")
    add("--data", "where the data sets' folders are (default: data)", "FOLDER", type=user_path)
    add("--results", "where everything goes (default: the tasks' own folders)", "FOLDER", type=user_path)
    which = f"{FORMS}; several are compared (default: audiosep)"
    add("--encoders", which, "NAME", nargs="+", default=["audiosep"], dest="encoder_names")
    add("--checkpoint", "AudioSep weights, or random:SEED (default: as configured)", "FILE")
    add("--trust-remote-code", "run the code that a model of hf: brings; read it first")
    add("--device", f"{DEVICES} (default: as configured)", "NAME")
    add("--seeds", "seeds of the heads (default: 5)", "N", type=int, default=5)
    add("--epochs", "epochs of the heads (default: as configured)", "N", type=int)
    add("--recipe", "paper or tuned (default: paper)", "NAME", default="paper")
    add("--no-doctor", "do not check environment and data first")
    add("--overwrite", "replace files that were made with different settings")
    add("--allow-missing", "leave out clips whose files are missing, counted and recorded")
    add("--yes", "download missing data sets and weights without asking")
    add("--dry-run", "print the plan with hours of audio and disk space, and stop")
    return parser.parse_args(argv, Plan())


def describe_plan(plan: Plan) -> str:
    """What the plan would do, and how many clips, hours of audio and bytes of feature files it takes."""
    n_sets = 1 + len(plan.controls) if plan.has_audiosep else 0
    rows: list[tuple[str, str, int, float]] = []
    for study in plan.studies:
        root = study.data_root(plan.data)
        rows.append((study.name, "here" if root.is_dir() else "to download", *_clips_and_hours(study, root)))
    rows.append(("in all", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    table = [["task", "data", "clips", "hours of audio", "features"]]
    for name, place, n_clips, hours in rows:
        megabytes = n_sets * n_clips * BYTES_PER_CLIP / 1e6
        table.append([name, place, f"{n_clips:,}", f"{hours:,.1f}", f"{megabytes:,.0f} MB"])
    return f"""\
For each task: doctor, features, {" and ".join(plan.controls)} as controls, both heads with {plan.seeds} seeds
under both protocols with probes and shuffled labels; then summary and report.

{as_text(table, left=2)}

docs/performance.md says how many seconds of audio a machine embeds per second, and how long fitting takes.
Sizes are those of AudioSep's features and the controls'."""


def _clips_and_hours(study: Study, root: Path) -> tuple[int, float]:
    """Number of clips, counted if the data set is present, and hours of audio, as published for so many; 0 of own sounds."""
    tasks = list(study.extract.values())
    if not root.is_dir():
        return sum(task.official_counts.clips or 0 for task in tasks), study.hours
    from common.datasets.places import read_task

    n_clips, whole = sum(len(read_task(task, root).clips) for task in tasks), study.task.official_counts.clips
    return n_clips, study.hours * n_clips / (whole or 1)


def preview_download(*flags: object) -> None:
    """Show what a download would do, in this process: another one takes as long as all of a plan's previews."""
    from common.download.command import main as download

    show_command("common.download", *flags, "--dry-run")
    download([*map(str, flags), "--dry-run"])


def _downloads(study: Study, plan: Plan) -> list[Sequence[object]]:
    return [(*words, "--root", study.data_root(plan.data).parent) for words in study.download]


def _download(plan: Plan, what: str, place: Path, calls: Sequence[Sequence[object]]) -> bool:
    """Download with --yes, or if the user says so after having seen the sizes; returns whether."""
    print(f"\n{what} not found ({place}).")
    if not plan.yes and sys.stdin.isatty():
        for words in calls:
            preview_download(*words)
    if not plan.yes and not (sys.stdin.isatty() and input("Download? [y/N] ").strip().lower() in ("y", "yes")):
        how = " && ".join(f"python -m common.download {' '.join(map(str, words))}" for words in calls)
        print(f"skipped; to get it: {how}, or --yes")
        return False
    for words in calls:
        call("common.download", *words)
    return True


def _one_encoder(study: Study, plan: Plan, encoder: EncoderName) -> None:
    """Features, for AudioSep control features too, and heads."""
    task, slug, is_audiosep = study.task, encoder.slug, encoder.kind is EncoderKind.AUDIOSEP
    folder = task.output_dir_of(slug)
    if plan.results:
        folder = plan.results / study.name if is_audiosep else plan.results / study.name / slug
    features_folder = folder if plan.results else task.folder
    shared = flags(overwrite=plan.overwrite, device=plan.device)
    more = flags(allow_missing=plan.allow_missing, trust_remote_code=plan.trust_remote_code)
    # Always named: config.yaml may name another.
    sets = {"": flags(encoder=encoder, checkpoint=plan.checkpoint if is_audiosep else None)}
    sets |= {name: [*CONTROLS[name]] for name in plan.controls if is_audiosep}
    made: list[Path] = []
    for name, made_by in sets.items():
        for script, part in study.extract.items():
            output = features_folder / file_of(part.features_file, slug)
            if name:  # several tasks share a folder
                controls = features_folder / "controls" / study.name
                output = controls / name / output.name if task.parts else controls / f"{name}.pt"
            where = flags(data_root=study.data_root(plan.data), output=output)
            call(script, *study.extract_flags, *where, *shared, *more, *made_by)
        made.append(output.parent if task.parts else output)  # for several files, their folder
    features, *others = made
    what = flags(encoder=encoder, features=features, output_dir=folder, recipe=plan.recipe, seeds=plan.seeds)
    how = ("--protocol", "both", "--probes", "--controls", *(("--control-features", *others) if others else ()))
    call(study.classify, *study.classify_flags, *what, *flags(epochs=plan.epochs), *shared, *how)


if __name__ == "__main__":
    run(main)
