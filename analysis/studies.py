"""The tasks as a user runs them: which scripts extract and classify each, and how to get its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from common.cli import data_root_of
from common.config import ConfigError
from common.datasets import Task
from esc50_feature_fc import esc50
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from own_sounds.sounds import Source
from speaker_recognition import librispeech
from urbansound8k_feature_fc import urbansound8k


@dataclass(frozen=True, eq=False)  # compared by identity: there is one of each
class Study:
    """One task with the scripts that extract and classify it.

    Attributes:
        task: what is classified.
        extract: script -> what it extracts: the task itself, or one of the sets that make it up.
        classify: the script that fits and scores the heads.
        hours: of audio in the whole data set.
        download: arguments of `python -m common.download`, one tuple per call.
        check: its name for `python -m common.doctor`.
        extract_flags, classify_flags: flags that make the scripts run this task.
        is_main: whether it is one of the project's tasks, not a variant of one.
        root: of one's own sounds, which no configuration names.
        folds: official folds of the whole data set; 1 if it has none.
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
    root: Path | None = None
    folds: int = 1

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def results_folder(self) -> Path:
        """Where its results go by default."""
        return self.task.default_output_dir

    def data_root(self, data: Path | None) -> Path:
        """Where the data set is: as configured, or under its own name below `data`."""
        if self.root is not None:
            return self.root
        configured = data_root_of(self.task)
        return data / configured.name if data else configured

    def how_to_run(self) -> str:
        """The commands that run it, on one line."""
        commands = [(script, *self.extract_flags) for script in self.extract if script != self.classify]
        if not commands:
            return f"python {self.classify} {' '.join(self.extract_flags)}"
        return " && ".join(
            f"python {' '.join(command)}" for command in [*commands, (self.classify, *self.classify_flags)]
        )


def _study(task: Task, extract: str, classify: str, hours: float, *download: str) -> Study:
    """A study of one script that extracts, and one that classifies, in the task's folder."""
    folder = task.folder.name
    return Study(task, {f"{folder}/{extract}": task}, f"{folder}/{classify}", hours, (download,), download[0])


def _speech_commands(version: str, task: Task, release: str, hours: float) -> Study:
    extract, classify = f"extract_spc_features_audiosep_{version}.py", "train_spc_fc_classifiers.py"
    study = _study(task, extract, classify, hours, "speech_commands", "--only", release)
    return replace(study, check=task.name, classify_flags=("--version", version))


def _variant(study: Study, task: Task, *flags: str, download: tuple[tuple[str, ...], ...] = ()) -> Study:
    """The same scripts with other flags, and more to download."""
    return replace(
        study,
        task=task,
        extract=dict.fromkeys(study.extract, task),
        download=(*study.download, *download),
        extract_flags=flags,
        classify_flags=(*study.classify_flags, *flags),
        is_main=False,
    )


def _studies() -> dict[str, Study]:
    icbhi_scripts = ("extract_icbhi_features_audiosep.py", "icbhi_linear_classifier.py")
    recordings = _study(icbhi.RECORDINGS, *icbhi_scripts, 5.5, "icbhi")
    urbansound_scripts = ("extract_urbansound8k_features_audiosep.py", "urbansound8k_linear_classifier.py")
    speaker_scripts = ("extract_train-clean-100_features.py", "librispeech_linear_classifier.py")
    v1 = _speech_commands("v1", speech_commands.V1, "v0.01", 17.8)
    v2 = _speech_commands("v2", speech_commands.V2, "v0.02", 29.1)
    v1_test, v2_test = (("speech_commands", "--only", f"test-{release}") for release in ("v0.01", "v0.02"))
    nsynth_extract = "nsynth_feature_fc/extract_nsynth_{}_features_audiosep.py"
    esc50_scripts = ("extract_esc50_features_audiosep.py", "esc50_linear_classifier.py")
    studies = (
        replace(_study(esc50.TASK, *esc50_scripts, 2.8, "esc50"), folds=5),
        recordings,
        replace(_study(urbansound8k.TASK, *urbansound_scripts, 8.75, "urbansound8k"), folds=10),
        Study(
            nsynth.CLASSIFICATION,
            {nsynth_extract.format(split): nsynth.task(split) for split in nsynth.SPLITS},
            "nsynth_feature_fc/train_nsynth_fc_classifiers_valid_test.py",
            340.0,
            (("nsynth",),),
            "nsynth",
        ),
        _study(librispeech.TRAIN_CLEAN_100, *speaker_scripts, 100.6, "librispeech", "--only", "train-clean-100"),
        v1,
        v2,
        _variant(recordings, icbhi.CYCLES, "--level", "cycle"),
        _variant(v1, speech_commands.V1_12, "--task", "12", download=(v1_test,)),
        _variant(v2, speech_commands.V2_12, "--task", "12", download=(v2_test,)),
    )
    return {study.name: study for study in studies}


STUDIES = _studies()


@cache
def _own_study(source: Source, root: Path) -> Study:
    task, script = source.task(), "own_sounds/probe.py"
    regexes = {"--label-regex": source.label_regex, "--group-regex": source.group_regex}
    flags = [word for flag, regex in regexes.items() if regex is not None for word in (flag, repr(regex))]
    where = (str(source.place), *flags)
    return Study(task, {script: task}, script, 0.0, ((task.name,),), "", where, is_main=False, root=root)


def study_in(folder: Path, name: str) -> Study | None:
    """The study whose results are in a folder: one of STUDIES by its name, or one's own sounds; None if it is neither."""
    if name in STUDIES:
        return STUDIES[name]
    loaded = Source.load(folder)
    return None if loaded is None else _own_study(*loaded)


def find_study(name: str) -> Study:
    """Find a study by its name, or the beginning of one, such as `librispeech`; or by the folder of results of one's own
    sounds. ConfigError if there is none."""
    loaded = Source.load(Path(name)) if name else None
    if loaded is not None:
        return _own_study(*loaded)
    matching = [study for study in STUDIES.values() if name and study.name.startswith(name)]
    if not matching:
        raise ConfigError(
            f"task {name} is unknown; choose one of {', '.join(STUDIES)}, or a folder that own_sounds/probe.py has written"
        )
    return STUDIES.get(name, matching[0])
