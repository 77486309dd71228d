"""Every setting, declared once: its type, range, default, help text and flag are one field.

`ExtractConfig` holds the settings of an extraction, `FitConfig` those of a classification. Values come from these places,
each overriding the ones before: the defaults here, common/config.yaml, the task's config.yaml, the user's own file
(``--config``), the flags. ``python -m common.config`` prints common/config.yaml from the declarations.
"""

from __future__ import annotations

import difflib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo

from common.encoder_name import FORMS, EncoderName
from common.errors import UserError, first_problem
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


# A relative path in a file is relative to the project's root, one in a flag to the working directory: the base that
# the values of a source are validated with.
def _base(info: ValidationInfo) -> Path:
    return info.context["base"] if info.context else Path.cwd()


def _resolve(path: Path, info: ValidationInfo) -> Path:
    if str(path).startswith("hf:"):  # a data set of the hub
        return path
    return _base(info) / os.path.expanduser(path)  # noqa: PTH111 - pathlib's fails for users who do not exist


def _resolve_weights(value: str, info: ValidationInfo) -> str:
    is_path = value not in ("none", "zero") and not value.startswith("random:")
    return str(_resolve(Path(value), info)) if is_path else value


PlacePath = Annotated[Path, AfterValidator(_resolve)]
WeightsPath = Annotated[str, AfterValidator(_resolve_weights)]  # or random:SEED, none or zero
EncoderText = Annotated[str, AfterValidator(lambda name, info: str(EncoderName.parse(name).resolved(_base(info))))]


def setting(
    default: object, help_text: str, metavar: str = "", *, flag: str = "", unset: str = "", **constraints: Any
) -> Any:
    """Declare a setting. `flag`: its flag, if that has another name; the flag of a bool sets the opposite of `default`. `unset`:
    what None means. The rest are arguments of pydantic's Field."""
    extra: dict[str, Any] = {"flag": flag, "metavar": metavar, "unset": unset}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


def flag_of(kind: type[Settings], key: str) -> str:
    return extra_of(kind.model_fields[key])["flag"] or f"--{key.replace('_', '-')}"


def extra_of(field: FieldInfo) -> dict[str, str]:
    """Its ``flag``, ``metavar`` and ``unset``."""
    return cast(dict[str, str], field.json_schema_extra)


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class ExtractConfig(Settings):
    data_root: PlacePath | None = setting(
        None,
        "the unpacked data set; or a copy of it as a table, Parquet files, tars such as 'shards/{000..127}.tar', or "
        "hf:OWNER/NAME[:CONFIG][@REVISION] of the Hugging Face hub",
        "PLACE",
    )
    encoder: EncoderText = setting("audiosep", FORMS, "NAME")
    checkpoint: WeightsPath = setting(str(DEFAULT_CHECKPOINT), "AudioSep weights, or random:SEED (untrained)", "FILE")
    features: PlacePath | None = setting(None, "the .pt file to write, or a folder of parts", "FILE", flag="--output")
    layer: str | None = setting(
        None,
        "layers, with commas between them, or all; of AudioSep: pre_conv, encoder_block1 to encoder_block6, bottleneck",
        "NAMES",
        unset="the encoder's own, of AudioSep encoder_block6",
    )
    pool: str | None = setting(
        None,
        "pools, with commas between them, or all; of AudioSep: mean, std, max over time and frequency, or mean_time over "
        "time alone",
        "NAMES",
        unset="the encoder's own, of AudioSep mean",
    )
    padding: Literal["none", "official"] = setting(
        "none", "official: time padded with zeros as AudioSep's own forward does; or none", "NAME"
    )
    condition: WeightsPath = setting("none", "none, zero, or a .npy or .pt file of a 512-d CLAP embedding", "WHAT")
    precision: str = setting("fp32", "fp32, bf16, auto; on a GPU also tf32, fp16", "NAME")
    device: str = setting("auto", DEVICES, "NAME")
    part_size: int = setting(0, "most clips in a part: what a kill may cost; 0: 64, on a GPU 1024", "N", ge=0, le=10**6)
    workers: int = setting(0, "threads that decode audio; 0: one per core", "N", ge=0, le=1024)
    allow_missing: StrictBool = setting(False, "leave out clips whose files are missing, counted and recorded")
    trust_remote_code: StrictBool = setting(False, "run the code that a model of hf: brings; read it first")


class FitConfig(Settings):
    """The settings of a classification; RECIPE_SETTINGS, the scaler and its shrinkage are None if the recipe decides."""

    encoder: EncoderText = setting("audiosep", FORMS, "NAME")
    features: PlacePath | None = setting(None, "the feature file to read", "FILE")
    use_layer: str | None = setting(
        None,
        "of several outputs: the layer, or several joined by +",
        "NAMES",
        unset="the encoder's own",
        flag="--layer",
    )
    use_pool: str | None = setting(
        None, "of several outputs: the pool, or several joined by +", "NAMES", unset="the encoder's own", flag="--pool"
    )
    output_dir: PlacePath | None = setting(None, "where results, figures and trained heads go", "FOLDER")
    epochs: int | None = setting(
        100, "epochs; the best on validation clips is kept, or the last if there are none", "N", ge=1, le=10**6
    )
    batch_size: int | None = setting(8, "clips per step", "N", ge=1, le=2**20)
    learning_rate: float | None = setting(1e-3, "Adam's learning rate", "X", ge=1e-12, le=1e3)
    protocol: Literal[ProtocolName, "both"] = setting(
        "official", "official, random (leaks related clips), or both", "NAME"
    )
    recipe: RecipeName = setting("paper", "paper, or tuned: the best settings found for the same heads", "NAME")
    scaler: ScalerName | None = setting(None, "standard, whiten or none", "NAME", unset="the recipe's")
    whiten_eps: float | None = setting(
        None, "shrinkage of whitening", "X", ge=1e-9, le=1.0, unset="the recipe's, or chosen on validation clips"
    )
    seeds: int = setting(1, "repeat with N seeds", "N", ge=1, le=1000)
    hidden_dim: int | None = setting(256, "width of the three-layer head", "N", ge=1, le=2**16)
    feature_dim: int | None = setting(None, "embedding size that features must have", "N", ge=1, le=2**20, unset="any")
    train_test_split: float = setting(
        0.2, "share of test clips without official folds or splits", "X", ge=0.01, le=0.99
    )
    random_seed: int = setting(42, "seed of weights, order and random splits", "N", ge=0, le=2**32 - 1, flag="--seed")
    device: str = setting("auto", DEVICES, "NAME")
    refit: StrictBool = setting(True, "refitting on all but the test clips once the epoch is chosen", flag="--no-refit")
    probes: StrictBool = setting(False, "also score logistic regression, nearest neighbours and nearest centroid")
    controls: StrictBool = setting(False, "also fit the heads on shuffled labels")
    control_features: tuple[PlacePath, ...] | None = setting(
        None, "other features of the same clips, to evaluate as controls", "FILE", min_length=1, unset="none"
    )
    shots: tuple[Annotated[int, Field(ge=1)], ...] | None = setting(
        None, "clips of every class to train on, such as 1 2 4 8 16", "N", min_length=1, unset="none"
    )
    draws: int = setting(10, "random draws of these clips", "N", ge=1, le=1000)
    markdown: StrictBool = setting(False, "write the table as result.md too")
    figure_format: FigureFormat = setting("png", "png, pdf or svg", "NAME")
    plain: StrictBool = setting(False, "figures without titles, for print, beside the others as NAME_plain")


# What the tuned recipe sets itself, unless the user chose a value.
RECIPE_SETTINGS = ("epochs", "batch_size", "learning_rate", "hidden_dim")
Config = TypeVar("Config", ExtractConfig, FitConfig)


class _Everything(ExtractConfig, FitConfig):
    """All settings: every source is validated against them, whichever script reads it."""


def load_config(
    kind: type[Config], task_config: Path, user_file: Path | None = None, flags: Mapping[str, object] | None = None
) -> Config:
    """Merge the configurations: common/config.yaml, the task's, which may be missing, the user's, and the flags (setting ->
    value as given). ConfigError: one cannot be read, a key is unknown, or a value has a wrong type or range."""
    values = _read_values(COMMON_CONFIG)
    if task_config.exists():
        values |= _read_values(task_config)
    chosen = _read_values(user_file) if user_file else {}
    chosen |= _validated(flags or {}, Path.cwd())
    values |= chosen
    if kind is FitConfig and values["recipe"] == "tuned":
        values |= {key: None for key in RECIPE_SETTINGS if key not in chosen}
    return kind.model_construct(**{key: values[key] for key in kind.model_fields})


def _read_values(path: Path) -> dict[str, Any]:
    """A configuration file's values, validated; ConfigError if it cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration {path} not found") from error
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError, OSError) as error:  # of !!timestamp x, say
        raise ConfigError(f"configuration {path} cannot be read: {first_problem(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} must be a list of 'key: value' lines")
    return _validated({str(key): value for key, value in values.items()}, PROJECT_ROOT, path)


def _validated(values: Mapping[str, object], base: Path, path: Path | None = None) -> dict[str, Any]:
    """The values of a file, or of the command line, as their declared types; relative paths count from `base`."""
    fields = _Everything.model_fields
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(fields)}"
            raise ConfigError(f"{path}: unknown key {key}; {hint}")
    try:
        checked = _Everything.model_validate(dict(values), context={"base": base})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key, message = str(problem["loc"][0]), problem["msg"].removeprefix("Value error, ")
        place = f"{path}: {key}" if path else flag_of(_Everything, key)
        shown = "null" if values[key] is None else repr(values[key])
        raise ConfigError(f"{place}: {message}, not {shown}") from error
    for key in RECIPE_SETTINGS:  # None stands for the recipe's own value; users cannot write it
        if key in values and values[key] is None:
            raise ConfigError(f"{path}: {key}: Input should be a number, not null")
    return {key: getattr(checked, key) for key in values}


def as_yaml() -> str:
    """The text of common/config.yaml, generated from the declarations."""
    lines = [
        "# The experiment configuration that all tasks share, printed by `python -m common.config`. A task's own config.yaml,",
        "# a file given with --config, and the flags override it, in this order. A key that is not here is an error.",
        "# Relative paths are relative to the project's root. null: the task's own default, or what the comment says.",
    ]
    shared = {key: field for key, field in FitConfig.model_fields.items() if key not in ExtractConfig.model_fields}
    for title, fields in (("Extraction", ExtractConfig.model_fields), ("Heads and evaluation", shared)):
        lines += ["", f"# {title}"]
        for key, field in fields.items():
            unset = extra_of(field)["unset"]
            text = (field.description or "") + (f"; null: {unset}" if unset else "")
            lines += [f"# {line}" for line in textwrap.wrap(text, 118)]
            lines.append(yaml.safe_dump({key: field.default}).strip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_yaml(), end="")
