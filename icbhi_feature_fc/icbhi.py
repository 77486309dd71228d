"""ICBHI 2017 (Rocha et al. 2019): 920 recordings of breathing, 126 patients, 6,898 annotated breathing cycles.

https://bhichallenge.med.auth.gr. Two tasks: recordings, normal or abnormal (a crackle or a wheeze in any cycle);
and cycles, as in the challenge: normal, crackle, wheeze or both. The split is the official 60/40 split.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import (
    Clip,
    DatasetError,
    DatasetNote,
    Division,
    Flag,
    OfficialCounts,
    Prepared,
    Task,
    Variants,
    download_command,
    layout_error,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from common.arrays import Array
    from common.features import FeatureSet

TITLE = "ICBHI 2017"
SPLIT_FILE = "ICBHI_challenge_train_test.txt"
RECORDING_CLASSES = ("normal", "abnormal")
# Crackles and wheezes, yes or no -> class.
CYCLE_OF: dict[tuple[float, float], str] = {(0, 0): "normal", (1, 0): "crackle", (0, 1): "wheeze", (1, 1): "both"}
CYCLE_CLASSES = tuple(CYCLE_OF.values())
# Patient, recording, chest location, channels, device. The first four identify a recording: the split file and the archive
# disagree about the device of one.
STEM = re.compile(r"(?P<key>(?P<patient>[12]\d\d)_[^_]+_(Tc|[APL][lr])_(sc|mc))_\w+")
SPLIT_ROW = re.compile(STEM.pattern + r"\s+(?P<split>train|test)")


def read_recordings(root: Path) -> list[Clip]:
    """Every recording as a clip: abnormal if any of its cycles has a crackle or a wheeze; groups are patients."""
    return [
        Clip(path, (RECORDING_CLASSES[any(label != "normal" for _, _, label in cycles)],), split=split, group=patient)
        for path, split, patient, cycles in _read(root)
    ]


def read_cycles(root: Path) -> list[Clip]:
    """Every annotated breathing cycle as a clip, a segment of its recording; groups are patients."""
    return [
        Clip(path, (label,), split=split, group=patient, start_s=start_s, end_s=end_s)
        for path, split, patient, cycles in _read(root)
        for start_s, end_s, label in cycles
    ]


def _read(root: Path) -> Iterator[tuple[Path, str, str, list[tuple[float, float, str]]]]:
    """(audio file, split, patient, cycles) of every recording, by name; DatasetError if one of them is not as published."""
    recordings = sorted(root.glob("*.wav"))
    if not recordings:
        raise layout_error(root, TITLE, "920 *.wav with a *.txt beside each", "ICBHI_final_database", "icbhi")
    splits = _read_splits(root)
    for path in recordings:
        name = STEM.fullmatch(path.stem)
        if name is None or name["key"] not in splits:
            raise DatasetError(f"{path} is not in the official split {SPLIT_FILE}; take it out of the folder")
        yield path, splits[name["key"]], name["patient"], _read_cycles(path.with_suffix(".txt"))


def _read_splits(root: Path) -> dict[str, str]:
    """The first four fields of a recording's name -> train or test, from the official list."""
    path = next((path for path in (root / SPLIT_FILE, root.parent / SPLIT_FILE) if path.is_file()), None)
    download = download_command("icbhi --only split", root)
    if path is None:
        raise DatasetError(f"{SPLIT_FILE} is not in {root} or beside it, nor in the archive; get it: {download}")
    splits = {}
    for line, row in enumerate(read_text(path).splitlines(), start=1):
        if match := SPLIT_ROW.fullmatch(row.strip()):
            splits[match["key"]] = match["split"]
        elif row.strip():
            problem = f"({row.strip()[:60]!r}) is not 'recording<TAB>train|test'"
            raise DatasetError(f"{path} line {line} {problem}; delete the file and download it again: {download}")
    return splits


def _read_cycles(path: Path) -> list[tuple[float, float, str]]:
    """(start, end, class) of every cycle: rows of four numbers, start_s end_s crackles wheezes, no header."""
    cycles = []
    for line, row in enumerate(read_text(path).splitlines(), start=1):
        if not row.strip():
            continue
        try:
            start_s, end_s, crackles, wheezes = map(float, row.split())
            cycles.append((start_s, end_s, CYCLE_OF[crackles, wheezes]))
        except (ValueError, KeyError):
            start_s = end_s = math.nan
        if not 0 <= start_s < end_s < math.inf:
            problem = "is not an annotation (start and end in seconds, crackles and wheezes 0 or 1)"
            raise DatasetError(f"{path} line {line} {row.strip()[:60]!r} {problem}; unpack {TITLE} again")
    if not cycles:
        raise DatasetError(f"{path} is empty: no breathing cycle is annotated; unpack {TITLE} again")
    return cycles


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """Use the official split; with --patient-disjoint, without training clips of patients who are in the test set too.
    `common.evaluation.splits` holds out patients to choose the epoch."""
    import numpy as np

    is_disjoint = division.options["patient_disjoint"]
    if features.splits is None or features.groups is None:
        if is_disjoint:
            raise DatasetError("--patient-disjoint: the feature file names no patients; extract it with this project")
        return Prepared(features)
    splits, groups = np.array(features.splits), np.array(features.groups)
    both = sorted(set(groups[splits == "train"]) & set(groups[splits == "test"]))
    if not both:
        return Prepared(features, "official 60/40 split, no patient on both sides")
    trains_both, patients = (splits == "train") & np.isin(groups, both), ", ".join(both)
    if not is_disjoint:
        note = f"patients {patients} are on both sides of the official split; --patient-disjoint drops their "
        warnings.warn(f"{note}{trains_both.sum()} training clips", DatasetNote, stacklevel=2)
        return Prepared(features, f"official 60/40 split, patients {patients} on both sides")
    note = f"--patient-disjoint: {trains_both.sum()} training clips of patients {patients} are left out"
    warnings.warn(note, DatasetNote, stacklevel=2)
    words = "official 60/40 split without some training clips, no patient on both sides"
    return Prepared(features.subset(np.flatnonzero(~trains_both)), words, is_official=False)


def scores(labels: Array, predictions: Array, class_names: Sequence[str]) -> dict[str, float]:
    """Sensitivity, specificity and their mean, the ICBHI score; every class but ``"normal"`` is abnormal.

    As the challenge and the field compute them (such as ``get_score`` of https://github.com/raymin0223/patch-mix):
    specificity is the share of normal clips classified as normal; sensitivity is the share of abnormal clips classified
    as exactly their class, so that a crackle classified as a wheeze is a miss. NaN if there is no such clip.
    """
    import numpy as np

    # By name: where no clip is normal, index 0 is another class.
    hits, normal = predictions == labels, (np.array(class_names) == "normal")[labels]
    sensitivity, specificity = (float(hits[side].mean()) if side.any() else math.nan for side in (~normal, normal))
    return {"sensitivity": sensitivity, "specificity": specificity, "icbhi_score": (sensitivity + specificity) / 2}


FOLDER = Path(__file__).resolve().parent
RECORDINGS = Task(
    name="icbhi",
    title=f"{TITLE}, recordings (normal, abnormal)",
    folder=FOLDER,
    read_clips=read_recordings,
    class_names=RECORDING_CLASSES,
    features_file="icbhi_features_audiosep.pt",
    classify=("icbhi_linear_classifier.py",),
    head_files={"linear": "icbhi_linear_classifier.pt", "three_layer": "icbhi_three_classifier.pt"},
    flags=(Flag("--patient-disjoint", "drop the training recordings of patients who are in the test set too"),),
    prepare=prepare,
    scores=scores,
    official_counts=OfficialCounts(
        clips=920, splits={"train": 539, "test": 381}, labels={"normal": 287, "abnormal": 633}
    ),
)
CYCLES = replace(
    RECORDINGS,
    name="icbhi_cycles",
    title=f"{TITLE}, breathing cycles (normal, crackle, wheeze, both)",
    read_clips=read_cycles,
    class_names=CYCLE_CLASSES,
    features_file="icbhi_cycle_features_audiosep.pt",
    classify=("icbhi_linear_classifier.py", "--level", "cycle"),
    results_folder=FOLDER / "cycle_results",
    official_counts=OfficialCounts(
        clips=6898,
        splits={"train": 4142, "test": 2756},
        labels={"normal": 3642, "crackle": 1864, "wheeze": 886, "both": 506},
    ),
)
CHECKS = ((RECORDINGS,), (CYCLES,))
LEVELS = Variants(
    {"--level": "whole recordings (normal, abnormal), or breathing cycles (normal, crackle, wheeze, both)"},
    {("recording",): RECORDINGS, ("cycle",): CYCLES},
)
