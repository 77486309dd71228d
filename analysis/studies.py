"""The tasks as a user runs them: which scripts extract and classify each, and how to get its data."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from common.cli import data_root_of
from common.config import ConfigError
from common.datasets import Task
from common.datasets.hub import is_on_hub
from esc50_feature_fc import esc50
from fsd50k_feature_fc import fsd50k
from icbhi_feature_fc import icbhi
from key_word_spotting import speech_commands
from nsynth_feature_fc import nsynth
from own_sounds.sounds import Source, absolute
from speaker_recognition import librispeech
from urbansound8k_feature_fc import urbansound8k


@dataclass(frozen=True, eq=False)  # compared by identity
class Study:
    """One task with the scripts that extract and classify it, and the flags that make them run this task."""

    task: Task
    extract: dict[str, Task]  # script -> what it extracts: the task itself, or one of the sets that make it up
    classify: str
    hours: float  # of audio in the whole data set
    download: tuple[tuple[str, ...], ...]  # arguments of `python -m common.download`, one tuple per call
    check: str  # its name for `python -m common.doctor`
    extract_flags: tuple[str, ...] = ()
    classify_flags: tuple[str, ...] = ()
    is_main: bool = True  # not a variant of one of the project's tasks
    root: Path | None = None  # of one's own sounds, which no configuration names

    @property
    def name(self) -> str:
        return self.task.name

    def data_root(self, data: Path | None) -> Path:
        """Where the data set is: as configured, or under its own name below `data`."""
        if self.root is not None:
            return self.root
        configured = data_root_of(self.task)
        return data / configured.name if data else configured

    def how_to_run(self) -> str:
        commands = [(script, *self.extract_flags) for script in self.extract if script != self.classify]
        commands.append((self.classify, *(self.classify_flags if commands else self.extract_flags)))
        return " && ".join(f"python {shlex.join(command)}" for command in commands)


def _study(task: Task, hours: float, *download: str, extract: str = "") -> Study:
    """One script that extracts (by default named after the data set) and one that classifies, in the task's folder."""
    name, folder, (classify, *flags) = download[0], task.folder.name, task.classify
    sets = {f"{folder}/{extract or f'extract_{name}_features_audiosep.py'}": task}
    return Study(task, sets, f"{folder}/{classify}", hours, (download,), name, classify_flags=tuple(flags))


def _variant(study: Study, task: Task, *flags: str, download: tuple[tuple[str, ...], ...] = ()) -> Study:
    """The same scripts with other flags, and more to download."""
    return replace(
        study,
        task=task,
        extract=dict.fromkeys(study.extract, task),
        download=(*study.download, *download),
        extract_flags=flags,
        classify_flags=task.classify[1:],
        is_main=False,
    )


def _studies() -> Iterator[Study]:
    yield _study(esc50.TASK, 2.8, "esc50")
    yield (recordings := _study(icbhi.RECORDINGS, 5.5, "icbhi"))
    yield _study(urbansound8k.TASK, 8.75, "urbansound8k")
    nsynth_folder = nsynth.CLASSIFICATION.folder.name
    sets = {
        f"{nsynth_folder}/extract_nsynth_{split}_features_audiosep.py": nsynth.task(split) for split in nsynth.SPLITS
    }
    nsynth_classify = f"{nsynth_folder}/{nsynth.CLASSIFICATION.classify[0]}"
    yield Study(nsynth.CLASSIFICATION, sets, nsynth_classify, 340.0, (("nsynth",),), "nsynth")
    words = ("librispeech", "--only", "train-clean-100")
    yield _study(librispeech.TRAIN_CLEAN_100, 100.6, *words, extract="extract_train-clean-100_features.py")
    yield _study(fsd50k.TASK, 108.3, "fsd50k")
    variants = [_variant(recordings, icbhi.CYCLES, "--level", "cycle")]
    versions = (
        ("v1", speech_commands.V1, speech_commands.V1_12, "v0.01", 17.8),
        ("v2", speech_commands.V2, speech_commands.V2_12, "v0.02", 29.1),
    )
    for version, task, task_12, release, hours in versions:
        words = ("speech_commands", "--only", release)
        study = _study(task, hours, *words, extract=f"extract_spc_features_audiosep_{version}.py")
        yield (study := replace(study, check=task.name))
        test = ("speech_commands", "--only", f"test-{release}")
        variants.append(_variant(study, task_12, "--task", "12", download=(test,)))
    yield from variants


STUDIES = {study.name: study for study in _studies()}


@cache
def _own_study(source: Source, root: Path) -> Study:
    task, script = source.task(), "own_sounds/probe.py"
    where = (str(source.place), *source.as_flags())
    return Study(task, {script: task}, script, 0.0, ((task.name,),), "", where, is_main=False, root=root)


def study_in(folder: Path, name: str) -> Study | None:
    """The study whose results are in a folder: one of STUDIES by its name, or one's own sounds; None if it is neither."""
    if name in STUDIES:
        return STUDIES[name]
    loaded = Source.load(folder)
    return None if loaded is None else _own_study(*loaded)


def find_study(name: str) -> Study:
    """A study by the beginning of its name, or of one's own sounds by their place or results; ConfigError if there is none."""
    loaded = Source.load(Path(name)) if name else None
    if loaded is not None:
        return _own_study(*loaded)
    place = absolute(Path(name))
    if name and name not in STUDIES and (is_on_hub(place) or place.exists() or "{" in name):
        return _own_study(Source(place), place if place.is_dir() else place.parent)
    matching = [study for study in STUDIES.values() if name and study.name.startswith(name)]
    if not matching:
        raise ConfigError(f"task {name} is unknown; choose one of {', '.join(STUDIES)}, or a folder or table of sounds")
    return STUDIES.get(name, matching[0])
