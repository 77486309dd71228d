"""Configuration: the mission's values, the order in which they are overridden, wrong ones named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import PROJECT_ROOT

from common.config import COMMON_CONFIG, ConfigError, load_config


@pytest.fixture
def task_config(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text("data_root: data/Somewhere\nepochs: 50\n")
    return path


def test_the_unified_configuration() -> None:
    config = yaml.safe_load(COMMON_CONFIG.read_text())
    expected = {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "epochs": 100,
        "feature_dim": 384,
        "hidden_dim": 256,
        "train_test_split": 0.2,
        "random_seed": 42,
        "device": "cuda",
    }
    assert {key: config[key] for key in expected} == expected


def test_later_sources_override_earlier_ones(task_config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("epochs: 20\nlearning_rate: 1e-2\n")  # YAML 1.1 reads 1e-2 as text
    assert load_config(task_config)["epochs"] == 50
    assert load_config(task_config)["batch_size"] == 8
    config = load_config(task_config, own)
    assert (config["epochs"], config["learning_rate"]) == (20, 0.01)
    assert load_config(task_config, own, {"epochs": "7"})["epochs"] == 7


def test_paths_in_files_count_from_the_project_and_in_flags_from_here(
    task_config: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(task_config)["data_root"] == str(PROJECT_ROOT / "data" / "Somewhere")
    assert load_config(task_config, None, {"data_root": "here"})["data_root"] == str(tmp_path / "here")
    assert load_config(task_config, None, {"data_root": "/there"})["data_root"] == str(Path("/there"))
    assert load_config(task_config, None, {"checkpoint": "random:3"})["checkpoint"] == "random:3"
    assert load_config(task_config)["condition"] == "none"
    assert load_config(task_config, None, {"condition": "query.npy"})["condition"] == str(tmp_path / "query.npy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "unknown key epoch; did you mean epochs?"),
        ("zzz: 3", "the keys are"),
        ("epochs: ten", "epochs must be a whole number from 1"),
        ("epochs: 0", "epochs must be a whole number from 1"),
        ("epochs: 1.5", "epochs must be a whole number"),
        ("epochs: true", "epochs must be"),
        ("epochs:", "epochs must be"),
        ("epochs: .inf", "epochs must be"),
        ("data_root: ~nosuchuser/x", "~nosuchuser"),
        ("device: null", "device must be text, not null"),
        ("learning_rate: -1", "learning_rate must be a number from"),
        ("learning_rate: .nan", "learning_rate must be a number from"),
        ("train_test_split: 1", "train_test_split must be"),
        ("layer: [a]", "layer must be text"),
        ("- a\n- b", "key: value"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_wrong_files_are_named(text: str, words: str, task_config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(task_config, own)
    assert str(own) in str(error.value) or "nosuchuser" in text
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(task_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        load_config(task_config, tmp_path / "nowhere.yaml")
