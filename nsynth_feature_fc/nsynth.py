"""NSynth (Engel et al. 2017): 305,979 notes of 4 s by 1,006 instruments of 11 families.

https://magenta.tensorflow.org/datasets/nsynth; official train, valid and test sets, where train shares no instrument
with valid and test.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import Clip, DatasetError, Division, Flag, OfficialCounts, Prepared, Task, layout_error, plain_name

if TYPE_CHECKING:
    from common.features import FeatureSet

TITLE = "NSynth"
NOTES = {"train": 289_205, "valid": 12_678, "test": 4_096}
SPLITS = tuple(NOTES)
# In the order of the official numbers 0 to 10. synth_lead occurs only in train.
FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")


def read_clips(root: Path, split: str) -> list[Clip]:
    """Every note of a set, labelled by its instrument's family; groups are instruments. DatasetError if the set is not
    unpacked under `root`, or its examples.json is damaged."""
    folder = root / f"nsynth-{split}"
    listing = folder / "examples.json"
    if not listing.is_file() or not (folder / "audio").is_dir():
        expected = f"{folder.name}/examples.json and {folder.name}/audio/*.wav"
        raise layout_error(root, TITLE, expected, "nsynth", f"nsynth --only {split}")
    used = ("instrument_family_str", "instrument_str")  # 289,205 whole entries would fill a gigabyte
    try:
        notes = json.loads(
            listing.read_text(encoding="utf-8"),
            object_hook=lambda entry: tuple(map(entry.get, used)) if used[0] in entry else entry,
        ).items()
    except (ValueError, RecursionError, AttributeError) as error:
        raise DatasetError(f"{listing} is damaged ({error}); unpack {folder.name} again") from error
    clips = []
    for name, note in notes:
        family, instrument = note if isinstance(note, tuple) else (None, None)
        if family not in FAMILIES or not isinstance(instrument, str):
            problem = f"note {name} has no known instrument_family_str and instrument_str"
            raise DatasetError(f"{listing}: {problem}; unpack {folder.name} again")
        path = folder / "audio" / f"{plain_name(name, listing)}.wav"
        clips.append(Clip(path, (family,), split=split, group=instrument))
    return clips


def prepare(features: FeatureSet, division: Division) -> Prepared:
    """Choose the families and the set to train on.

    Without synth_lead, which occurs only in train, unless `families` is 11. With `train_on` valid, heads are fitted on valid,
    as in the original project, but notes held out of valid choose the epoch, which the original chose on test.
    """
    import numpy as np

    has_lead, on_valid = division.options["families"] == "11", division.options["train_on"] == "valid"
    if features.splits is None:
        raise DatasetError("the feature files do not say which set a note is of; extract them with this project")
    if has_lead and on_valid:
        raise DatasetError("--families 11 needs the train set: synth_lead, the eleventh, does not occur in valid")
    sides, protocol = np.array(features.splits), "official train, valid and test sets"
    missing = [side for side in SPLITS[on_valid:] if side not in sides]
    if missing:
        fix = "extract_nsynth_{train,valid,test}_features_audiosep.py, or with valid and test alone --train-on valid"
        raise DatasetError(f"the features of NSynth's {' and '.join(missing)} set are missing; run {fix}")
    keep = np.ones(len(features), dtype=bool)
    if on_valid:
        keep = sides != "train"
        sides[sides == "valid"] = "train"
        protocol = "TRAINED ON VALID as the original project did, official test set"
    if has_lead:
        protocol += ", 11 families (synth_lead has no test note: its F1 is 0)"
    elif "synth_lead" in features.class_names:
        keep &= features.labels.numpy() != features.class_names.index("synth_lead")
        protocol += ", 10 families (without synth_lead, which occurs in train alone)"
    prepared = replace(features, splits=sides.tolist()).subset(np.flatnonzero(keep))
    return Prepared(prepared, protocol, is_official=not on_valid)


def task(split: str) -> Task:
    """The task of extracting a set."""
    return Task(
        name=f"nsynth_{split}",
        title=f"{TITLE} {split}",
        folder=Path(__file__).resolve().parent,
        read_clips=partial(read_clips, split=split),
        class_names=FAMILIES,
        features_file=f"nsynth_{split}_features.pt",
        classify=("train_nsynth_fc_classifiers_valid_test.py",),
        head_files={},
        official_counts=OfficialCounts(NOTES[split], labels={} if split == "train" else {"synth_lead": 0}),
    )


CLASSIFICATION = replace(
    task("train"),
    name="nsynth",
    title=TITLE,
    parts={f"nsynth_{split}": f"nsynth_{split}_features.pt" for split in SPLITS},
    head_files={"linear": "nsynth_linear_classifier.pt", "three_layer": "nsynth_three_classifier.pt"},
    flags=(
        Flag("--families", "instrument families: 10, or 11 with synth_lead, which no test note has", ("10", "11")),
        Flag("--train-on", "train; or valid, as the original project did", ("train", "valid")),
    ),
    prepare=prepare,
    official_counts=OfficialCounts(sum(NOTES.values())),
)
CHECKS = (tuple(task(split) for split in SPLITS),)
