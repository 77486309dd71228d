"""The features to classify: a task's files read, recognised, joined and divided; and those of controls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from common.config import ConfigError, FitConfig
from common.datasets import Division, Prepared, Task
from common.encoder_name import EncoderKind, EncoderName
from common.feature_formats import checksum_of_features
from common.features import Counts, FeatureFileError, FeatureSet
from common.heads import check_fittable


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from."""

    path: Path  # the file, or the folder of several, for error messages
    files: str  # path or paths
    sha256: str  # of all of them


class EncoderRecord(BaseModel, frozen=True):
    """The encoder of some features, as far as their file says; see `common.encoder.EncoderInfo`."""

    kind: EncoderKind | None = None
    encoder: str | None = None
    checkpoint: str | None = None
    release: str = "unknown"
    condition: str | None = None
    padding: str | None = None
    precision: str | None = None
    parameters: int | None = None
    layer: str | None = None
    pool: str | None = None

    @property
    def is_untrained(self) -> bool:
        """Whether it is AudioSep with random weights."""
        return self.kind is EncoderKind.UNTRAINED

    @property
    def title(self) -> str:
        if self.kind is None:
            return "unknown encoder"
        if self.kind is EncoderKind.LOGMEL:
            return "log-mel statistics"
        if self.kind is EncoderKind.ELSEWHERE:
            return f"embeddings from elsewhere ({self.encoder})"
        if self.kind.is_plug_in:
            is_default = self.layer in ("scene", "last_hidden_state") and self.pool in ("", "mean")
            return f"{self.encoder}" if is_default else f"{self.encoder}, {self.layer} {self.pool}".strip()
        weights = self.release if self.release != "unknown" else _short(self.checkpoint or "")
        name = f"untrained AudioSep ({self.checkpoint})" if self.is_untrained else f"AudioSep ({weights})"
        values = (self.layer, self.pool, self.condition, self.precision)
        usual = ("encoder_block6", "mean", "none", "fp32")
        settings = [_short(value) for value in values if value and value not in usual]
        return ", ".join([name, *settings, *["official padding"] * (self.padding == "official")])


def _short(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12] if identity.startswith("sha256:") else identity


class FeaturesRecord(EncoderRecord, extra="allow"):
    """The features of a run; the rest of their provenance are extra fields."""

    file: str  # path or paths
    sha256: str  # of all files
    clips: int  # fitted and scored, as are `class_names`
    class_names: list[str]
    width: int  # numbers per clip
    dataset: str | None = None
    counts: Counts = Counts()

    @classmethod
    def of(cls, features: FeatureSet, source: FeatureSource) -> FeaturesRecord:
        shown = {"clips": len(features), "class_names": features.class_names, "width": features.features.shape[1]}
        return cls.model_validate({**features.provenance, "file": source.files, "sha256": source.sha256, **shown})


def load_features(task: Task, config: FitConfig, options: Mapping[str, str | bool]) -> tuple[Prepared, FeatureSource]:
    """The rows that a configuration and the task's flags, `options`, select, and where they come from; UserError if they
    cannot be read or fitted."""
    name = EncoderName.parse(config.encoder)
    features, source = _read(task, config.features, name.slug)
    features = _recognise(task, features, source.path).pick(config.use_layer, config.use_pool)
    is_chosen = name.kind is not EncoderKind.AUDIOSEP
    if is_chosen and "kind" in features.meta and features.encoder_slug != name.slug:
        raise FeatureFileError(
            f"{source.path} was made by {features.meta['encoder']}, not by {name.label}; omit --encoder, or give a different file"
        )
    width = features.features.shape[1]
    if config.feature_dim not in (None, width):
        raise ConfigError(
            f"{source.path} has {width} numbers per clip, but the configuration says {config.feature_dim}; if that is "
            f"intended, give --feature-dim {width}"
        )
    prepared = task.prepare(features, Division(options, config.train_test_split, config.random_seed))
    if features.meta.get("kind") == EncoderKind.ELSEWHERE and not task.official_counts.divide(prepared.features):
        prepared = replace(prepared, is_official=False)  # nothing vouches for the folds or splits of the file
    check_fittable(prepared.features, str(source.path))
    return prepared, source


def _read(task: Task, place: Path | None, encoder: str) -> tuple[FeatureSet, FeatureSource]:
    """The task's feature file of an encoder; of a task with several files, those in the folder `place`."""
    if not task.parts:
        path = place or task.features_of(encoder)
        return FeatureSet.load(path), FeatureSource(path, str(path), checksum_of_features(path))
    folder = place or task.folder
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; {task.title} takes several from one folder: --features {folder.parent}")
    parts_of = task.parts_of(encoder)
    present = {dataset: folder / name for dataset, name in parts_of.items() if (folder / name).exists()}
    paths = list(present.values())
    if not paths:
        names = ", ".join(parts_of.values())
        raise ConfigError(
            f"{folder} holds none of {names}; run the task's extract_*.py first, or give --features FOLDER or --encoder NAME"
        )
    parts = [FeatureSet.load(path) for path in paths]
    for part, (dataset, path) in zip(parts, present.items(), strict=True):
        refuse_other_data(task, part.meta.get("dataset", dataset), path, dataset)
    together = hashlib.sha256("".join(map(checksum_of_features, paths)).encode()).hexdigest()
    features = FeatureSet.join(parts, [str(path) for path in paths], task.class_names)
    return features, FeatureSource(folder, ", ".join(map(str, paths)), together)


def _recognise(task: Task, features: FeatureSet, path: Path) -> FeatureSet:
    """Refuse features of another task; complete a file of the original project where possible."""
    refuse_other_data(task, features.meta.get("dataset", task.name), path, task.name)
    if features.is_multilabel != task.is_multilabel:
        has, wants = ("several labels", "one class") if features.is_multilabel else ("one class", "several labels")
        raise FeatureFileError(f"{path} has {has} a clip, but {task.title} has {wants}; give others with --features")
    if task.class_names is not None and set(features.class_names) <= set(task.class_names):
        features = features.in_order([name for name in task.class_names if name in features.class_names])
    if not features.meta:
        print(f"{path} holds no provenance: its encoder and its audio are unknown")
    if "dataset" not in features.meta and (recognised := task.recognise(features)):
        features, sentence = recognised
        print(sentence)
    return features


def refuse_other_data(task: Task, dataset: str, path: Path, wanted: str) -> None:
    """FeatureFileError unless the features of `path`, of a data set, are of the data set `wanted`."""
    if dataset == wanted or task.takes_any_features:
        return
    is_related = dataset.partition("_")[0] == wanted.partition("_")[0]
    because = f": {task.why_only_its_own}" if task.why_only_its_own and is_related else ""
    raise FeatureFileError(f"{path} holds features of {dataset}, not of {wanted}{because}; give others with --features")


def load_controls(
    task: Task, features: FeatureSet, files: Sequence[Path]
) -> tuple[dict[str, FeatureSet], dict[str, str]]:
    """Other features of the same clips, and the checksums of their files, by the name of the control."""
    controls: dict[str, FeatureSet] = {}
    checksums = {}
    for file in files:
        control, source = _read(task, file, "audiosep")
        path = source.path
        name = path.stem if path.stem not in controls else f"{path.parent.name}/{path.stem}"
        if name in controls:
            raise ConfigError(f"--control-features: two files are called {name}; rename one")
        dataset, wanted = (values.meta.get("dataset", task.name) for values in (control, features))
        refuse_other_data(task, dataset, path, wanted)
        control = control.pick(None, None)
        place = {clip_id: row for row, clip_id in enumerate(control.clip_ids)}
        missing = [clip_id for clip_id in features.clip_ids if clip_id not in place]
        if missing:
            raise ConfigError(
                f"--control-features {path} lacks {len(missing)} of the clips (first: {missing[0]}); extract it from "
                "the same data"
            )
        rows = [place[clip_id] for clip_id in features.clip_ids]
        controls[name] = replace(features, features=control.features[rows], meta=control.meta)
        check_fittable(controls[name], str(path))
        checksums[name] = source.sha256
    return controls, checksums
