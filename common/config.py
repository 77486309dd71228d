"""The experiment configuration: common/config.yaml, the task's config.yaml, one's own file, the flags."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECT_ROOT = Path(__file__).resolve().parent.parent
COMMON_CONFIG = Path(__file__).resolve().with_name("config.yaml")
PATHS = ("checkpoint", "condition", "data_root", "features", "output_dir")
NOT_PATHS = ("none", "zero", "logmel")  # what a condition or a checkpoint may be beside a file
MAY_BE_NULL = ("data_root", "features", "output_dir", "scaler", "whiten_eps", "control_features", "label_fractions")
# Of the numbers in the configuration: the smallest and largest that make sense.
RANGES = {
    "batch_size": (1, 2**20),
    "learning_rate": (1e-12, 1e3),
    "epochs": (1, 10**6),
    "hidden_dim": (1, 2**16),
    "feature_dim": (1, 2**16),
    "train_test_split": (0.01, 0.99),
    "random_seed": (0, 2**32 - 1),
    "workers": (0, 1024),
    "seeds": (1, 1000),
    "whiten_eps": (1e-9, 1.0),
    "label_fraction": (1e-6, 1.0),  # each of label_fractions
}
CHOICES = {
    "protocol": ("official", "random", "both"),
    "recipe": ("paper", "tuned"),
    "scaler": ("standard", "whiten", "none"),
}
SWITCHES = ("refit", "probes", "controls", "markdown")
LISTS = ("control_features", "label_fractions")


class ConfigError(ValueError):
    """A configuration file or flag is wrong; the message is one line."""


def load_config(task_config: Path, own: Path | None = None, flags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merge the configurations, later ones over earlier: common, the task's, `own`, `flags`.

    Relative paths in files count from the project's root, those in `flags` from the working directory.

    Raises:
        ConfigError: a file is missing or no YAML mapping, a key is unknown, or a value has a wrong type or range.
    """
    config = read_config(COMMON_CONFIG)
    sources = [(str(task_config), read_config(task_config))]
    if own is not None:
        sources.append((str(own), read_config(own)))
    for source, values in [*sources, ("the command line", dict(flags or {}))]:
        for key, value in values.items():
            if key not in config:
                near = difflib.get_close_matches(key, config, 1)
                hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(config)}"
                raise ConfigError(f"{source}: unknown key {key}; {hint}")
            config[key] = _check(key, value, source)
    for key in (*PATHS, "control_features"):
        base = Path.cwd() if key in (flags or {}) else PROJECT_ROOT
        value = config[key]
        if isinstance(value, list):
            config[key] = [str(base / _expand_user(key, item)) for item in value]
        elif value is not None and value not in NOT_PATHS and not value.startswith("random:"):
            config[key] = str(base / _expand_user(key, value))
    return config


def _expand_user(key: str, value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key} {value}: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file's own keys and values; ConfigError where it cannot be read."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration {path} not found") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"configuration {path} cannot be read: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} must be a list of 'key: value' lines")
    return {str(key): value for key, value in values.items()}


def _check(key: str, value: Any, source: str) -> Any:
    """The value with its right type; YAML reads 1e-3 as text, for one."""
    if value is None and key in MAY_BE_NULL:
        return None
    if key in CHOICES and value not in CHOICES[key]:
        raise ConfigError(f"{source}: {key} must be one of {', '.join(CHOICES[key])}, not {value!r}")
    if key in SWITCHES:
        if not isinstance(value, bool):
            raise ConfigError(f"{source}: {key} must be true or false, not {value!r}")
        return value
    if key in LISTS:
        if not isinstance(value, list):
            raise ConfigError(f"{source}: {key} must be a list, not {value!r}")
        if key == "label_fractions":
            return [_check("label_fraction", item, source) for item in value]
        return [str(item) for item in value]
    if key not in RANGES:
        if not isinstance(value, (str, Path)):
            raise ConfigError(f"{source}: {key} must be text, not {'null' if value is None else repr(value)}")
        return str(value)
    low, high = RANGES[key]
    kind = float if isinstance(low, float) else int
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if isinstance(value, bool) or number is None or number != float(value) or not low <= number <= high:
        raise ConfigError(
            f"{source}: {key} must be {'a number' if kind is float else 'a whole number'} "
            f"from {low:g} to {high:g}, not {value!r}"
        )
    return number
