"""Every setting, declared once: its type, range, default, help text and flag are one field.

`ExtractConfig` holds the settings of an extraction, `FitConfig` those of a classification. Values come from these places,
each overriding the ones before: the defaults here, common/config.yaml, the task's config.yaml, the user's own file
(``--config``), the flags. ``python -m common.config`` prints common/config.yaml from the declarations.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from common.encoder_name import FORMS, EncoderName, EncoderNameError
from common.errors import UserError
from common.files import PROJECT_ROOT

COMMON_CONFIG = Path(__file__).resolve().with_name("config.yaml")
DEFAULT_CHECKPOINT = Path("pretrained_models") / "AudioSep" / "pytorch_model.bin"

ProtocolName = Literal["official", "random"]
RecipeName = Literal["paper", "tuned"]
FigureFormat = Literal["png", "pdf", "svg"]
DEVICES = "auto, cpu, mps, cuda or cuda:N"
ScalerName = Literal["standard", "whiten", "none"]


class ConfigError(UserError):
    """A configuration file or a flag is wrong."""


def setting(
    default: object, help_text: str, flag: str, metavar: str = "", *, is_path: bool = False, **constraints: Any
) -> Any:
    """Declare a setting.

    Args:
        default: its value if nothing else is given.
        help_text: for ``--help`` and common/config.yaml.
        flag: its flag on the command line. A switch (a bool) sets the opposite of `default`.
        metavar: the placeholder for the value in ``--help``.
        is_path: a relative path in a file is relative to the project's root, one in a flag to the working directory.
        constraints: arguments of pydantic's Field, such as ``ge`` and ``le``.
    """
    extra: JsonDict = {"flag": flag, "metavar": metavar, "is_path": is_path}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


class Settings(BaseModel):
    """Base of the two configurations: immutable, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: object, info: Any) -> object:
        """Otherwise ``epochs: true`` would be taken as 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("not a number")
        return value


def _check_encoder(name: str) -> str:
    EncoderName.parse(name)
    return name


class ExtractConfig(Settings):
    """The settings of an extraction."""

    data_root: Path | None = setting(None, "the unpacked data set", "--data-root", "FOLDER", is_path=True)
    encoder: Annotated[str, AfterValidator(_check_encoder)] = setting(
        "audiosep", FORMS, "--encoder", "NAME", is_path=True
    )
    checkpoint: str = setting(
        str(DEFAULT_CHECKPOINT),
        "AudioSep weights, or random:SEED (untrained, as a control)",
        "--checkpoint",
        "FILE",
        is_path=True,
    )
    features: Path | None = setting(None, "the feature file to write", "--output", "FILE", is_path=True)
    layer: str | None = setting(
        None,
        "layers, with commas between them, or all; of AudioSep: pre_conv, encoder_block1 to encoder_block6, bottleneck",
        "--layer",
        "NAMES",
    )
    pool: str | None = setting(
        None,
        "pools, with commas between them, or all; of AudioSep: mean, std, max over time and frequency, or mean_time over "
        "time alone",
        "--pool",
        "NAMES",
    )
    padding: Literal["none", "official"] = setting(
        "none", "official: time padded with zeros as AudioSep's own forward does; or none", "--padding", "NAME"
    )
    condition: str = setting(
        "none", "none, zero, or a .npy or .pt file of a 512-d CLAP embedding", "--condition", "WHAT", is_path=True
    )
    precision: str = setting("fp32", "fp32, bf16, auto; on a GPU also tf32, fp16", "--precision", "NAME")
    device: str = setting("cuda", DEVICES, "--device", "NAME")
    workers: int = setting(0, "threads that decode audio; 0: one per core", "--workers", "N", ge=0, le=1024)
    allow_missing: StrictBool = setting(
        False, "leave out clips whose files are missing, counted and recorded", "--allow-missing"
    )
    trust_remote_code: StrictBool = setting(
        False, "run the code that a model of hf: brings; read it first", "--trust-remote-code"
    )


class FitConfig(Settings):
    """The settings of a classification.

    `epochs`, `batch_size`, `learning_rate`, `hidden_dim`, `scaler` and `whiten_eps` are None if the recipe decides.
    """

    encoder: Annotated[str, AfterValidator(_check_encoder)] = setting(
        "audiosep", FORMS, "--encoder", "NAME", is_path=True
    )
    features: Path | None = setting(None, "the feature file to read", "--features", "FILE", is_path=True)
    use_layer: str | None = setting(
        None, "of a file with several outputs: the layer, or several joined by +", "--layer", "NAMES"
    )
    use_pool: str | None = setting(
        None, "of a file with several outputs: the pool, or several joined by +", "--pool", "NAMES"
    )
    output_dir: Path | None = setting(
        None, "where results, figures and trained heads go", "--output-dir", "FOLDER", is_path=True
    )
    epochs: int | None = setting(
        100,
        "epochs; the best on validation clips is kept, or the last if there are none",
        "--epochs",
        "N",
        ge=1,
        le=10**6,
    )
    batch_size: int | None = setting(8, "clips per step", "--batch-size", "N", ge=1, le=2**20)
    learning_rate: float | None = setting(1e-3, "Adam's learning rate", "--learning-rate", "X", ge=1e-12, le=1e3)
    protocol: Literal[ProtocolName, "both"] = setting(
        "official", "official, random (leaks related clips), or both", "--protocol", "NAME"
    )
    recipe: RecipeName = setting(
        "paper", "paper, or tuned: the best settings found for the same heads", "--recipe", "NAME"
    )
    scaler: ScalerName | None = setting(None, "standard, whiten or none", "--scaler", "NAME")
    whiten_eps: float | None = setting(None, "shrinkage of whitening, 0 to 1", "--whiten-eps", "X", ge=1e-9, le=1.0)
    seeds: int = setting(1, "repeat with N seeds", "--seeds", "N", ge=1, le=1000)
    hidden_dim: int | None = setting(256, "width of the three-layer head", "--hidden-dim", "N", ge=1, le=2**16)
    feature_dim: int | None = setting(
        None, "the embedding size that the feature file must have", "--feature-dim", "N", ge=1, le=2**20
    )
    train_test_split: float = setting(
        0.2,
        "share of test clips if there are no official folds or splits",
        "--train-test-split",
        "X",
        ge=0.01,
        le=0.99,
    )
    random_seed: int = setting(
        42, "seed of initial weights, clip order and random splits", "--seed", "N", ge=0, le=2**32 - 1
    )
    device: str = setting("cuda", DEVICES, "--device", "NAME")
    refit: StrictBool = setting(
        True, "refitting on training and validation clips after the epoch is chosen", "--no-refit"
    )
    probes: StrictBool = setting(
        False, "also score logistic regression, nearest neighbours and nearest centroid", "--probes"
    )
    controls: StrictBool = setting(False, "also fit the heads on shuffled labels", "--controls")
    control_features: tuple[Path, ...] | None = setting(
        None,
        "other features of the same clips, to evaluate as controls",
        "--control-features",
        "FILE",
        is_path=True,
        min_length=1,
    )
    label_fractions: tuple[Annotated[float, Field(ge=1e-6, le=1.0)], ...] | None = setting(
        None, "shares of the labels to train on, such as 0.01 0.1 1", "--label-fractions", "X", min_length=1
    )
    markdown: StrictBool = setting(False, "write the table as result.md too", "--markdown")
    figure_format: FigureFormat = setting("png", "png, pdf or svg", "--figure-format", "NAME")


# What the tuned recipe sets itself, unless the user chose a value.
RECIPE_SETTINGS = ("epochs", "batch_size", "learning_rate", "hidden_dim")
# What `checkpoint` and `condition` may be instead of a file.
NOT_PATHS = ("none", "zero")
# Shown in --help instead of the default None.
UNSET = {
    "layer": "the encoder's own, of AudioSep encoder_block6",
    "pool": "the encoder's own, of AudioSep mean",
    "use_layer": "the encoder's own, or the file's only one",
    "use_pool": "the encoder's own, or the file's only one",
    "feature_dim": "any",
    "scaler": "the recipe's",
    "whiten_eps": "the recipe's, or chosen on validation clips",
    "control_features": "none",
    "label_fractions": "none",
}
# key -> its declaration; `features` and `device` belong to both configurations and have the same type in both.
FIELDS: dict[str, FieldInfo] = {**ExtractConfig.model_fields, **FitConfig.model_fields}
Config = TypeVar("Config", ExtractConfig, FitConfig)


def load_config(
    kind: type[Config], task_config: Path, own: Path | None = None, flags: Mapping[str, object] | None = None
) -> Config:
    """Merge the configurations; later sources override earlier ones.

    Args:
        kind: `ExtractConfig` or `FitConfig`.
        task_config: the task's config.yaml, which may be missing.
        own: the user's file.
        flags: setting -> value as given on the command line.

    Raises:
        ConfigError: a file is missing or not a YAML mapping, a key is unknown, or a value has a wrong type or range.
    """
    values = _resolve_paths({key: field.default for key, field in kind.model_fields.items()}, PROJECT_ROOT)
    for path in (COMMON_CONFIG, *([task_config] if task_config.exists() else [])):
        values |= _resolve_paths(_validated(read_config(path), str(path)), PROJECT_ROOT)
    chosen = _resolve_paths(_validated(read_config(own), str(own)), PROJECT_ROOT) if own else {}
    chosen |= _resolve_paths(_validated(flags or {}, "the command line"), Path.cwd())
    values |= chosen
    if kind is FitConfig and values["recipe"] == "tuned":
        values |= {key: None for key in RECIPE_SETTINGS if key not in chosen}
    return kind(**{key: values[key] for key in kind.model_fields})


def read_config(path: Path) -> dict[str, object]:
    """A configuration file's keys and values; ConfigError if it cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration {path} not found") from error
    except (
        yaml.YAMLError,
        ValueError,
        AttributeError,
        RecursionError,
        OSError,
    ) as error:  # AttributeError: !!timestamp x
        raise ConfigError(f"configuration {path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} must be a list of 'key: value' lines")
    return {str(key): value for key, value in values.items()}


def flag_of(field: FieldInfo) -> str:
    """The flag that sets a declared setting."""
    return str(_extra(field)["flag"])


def metavar_of(field: FieldInfo) -> str:
    """The placeholder for a declared setting's value in --help."""
    return str(_extra(field)["metavar"])


def is_list(field: FieldInfo) -> bool:
    """Whether a declared setting takes several values."""
    return any(get_origin(member) is tuple for member in _members(field.annotation))


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union other than None; for any other type, the type itself."""
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(each for each in get_args(annotation) if each is not type(None))


class _Everything(ExtractConfig, FitConfig):
    """All settings: every source is validated against them, whichever script reads it."""


def _validated(values: Mapping[str, object], source: str) -> dict[str, Any]:
    """The values converted to their declared types; YAML, for example, reads 1e-3 as text."""
    for key in values:
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(FIELDS)}"
            raise ConfigError(f"{source}: unknown key {key}; {hint}")
    try:
        checked = _Everything.model_validate(dict(values))
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise _wrong_value(source, key, values[key]) from error
    for key in RECIPE_SETTINGS:  # None stands for the recipe's own value; users cannot write it
        if key in values and values[key] is None:
            raise _wrong_value(source, key, None)
    return {key: getattr(checked, key) for key in values}


def _wrong_value(source: str, key: str, value: object) -> ConfigError:
    shown = "null" if value is None else repr(value)
    expected = FORMS if key == "encoder" else expectation(FIELDS[key])
    return ConfigError(f"{source}: {key} must be {expected}, not {shown}")


def expectation(field: FieldInfo) -> str:
    """What a declared setting accepts, in words, such as ``a whole number from 1 to 1000``."""
    (kind,) = _members(field.annotation)
    words = {bool: "true or false", str: "text", Path: "a path"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is tuple:
        (item, _) = get_args(kind)
        limits: object = getattr(item, "__metadata__", (None,))[0]
        return "a list of " + (_range("numbers", limits.metadata) if isinstance(limits, FieldInfo) else "paths")
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return _range("a whole number" if kind is int else "a number", field.metadata)


def _range(what: str, limits: Collection[Any]) -> str:
    low = next(each.ge for each in limits if hasattr(each, "ge"))
    high = next(each.le for each in limits if hasattr(each, "le"))
    return f"{what} from {low:.15g} to {high:.15g}"


def _resolve_paths(values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The values, with relative paths resolved against `base`."""

    def resolved(key: str, value: Any) -> Any:
        if value is None or not _extra(FIELDS[key])["is_path"]:
            return value
        if isinstance(value, tuple):
            return tuple(resolved(key, item) for item in value)
        if isinstance(value, str) and key != "encoder" and (value in NOT_PATHS or value.startswith("random:")):
            return value
        try:
            if key == "encoder":
                return str(EncoderName.parse(value).resolved(base))
            path = base / Path(value).expanduser()
        except (RuntimeError, EncoderNameError) as error:
            raise ConfigError(f"{key} {value}: {error}") from error
        return str(path) if isinstance(value, str) else path

    return {key: resolved(key, value) for key, value in values.items()}


def as_yaml() -> str:
    """The text of common/config.yaml, generated from the declarations."""
    lines = [
        "# The experiment configuration that all tasks share, printed by `python -m common.config`. A task's own config.yaml,",
        "# a file given with --config, and the flags override it, in this order. A key that is not here is an error.",
        "# Relative paths are relative to the project's root. null: the task's own default, or what the comment says.",
    ]
    for title, kind, keys in (
        ("Extraction", ExtractConfig, ExtractConfig.model_fields),
        (
            "Heads and evaluation",
            FitConfig,
            [key for key in FitConfig.model_fields if key not in ExtractConfig.model_fields],
        ),
    ):
        lines += ["", f"# {title}"]
        for key in keys:
            field = kind.model_fields[key]
            value = yaml.safe_dump(field.default, default_flow_style=True).removesuffix("\n...\n").strip()
            text = (field.description or "") + (f"; null: {UNSET[key]}" if key in UNSET else "")
            lines += [f"# {line}" for line in textwrap.wrap(text, 118)] + [f"{key}: {value}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_yaml(), end="")
