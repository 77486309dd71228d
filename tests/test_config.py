"""Configuration: the unified values, the order in which they are overridden, wrong ones named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.config import COMMON_CONFIG, ConfigError, ExtractConfig, FitConfig, as_yaml, load_config
from common.files import PROJECT_ROOT


@pytest.fixture
def task_config(tmp_path: Path) -> Path:
    """A task's configuration with two values."""
    path = tmp_path / "task.yaml"
    path.write_text("data_root: data/Somewhere\nepochs: 50\n")
    return path


def test_the_unified_configuration_has_the_values_of_the_paper(tmp_path: Path) -> None:
    config = yaml.safe_load(COMMON_CONFIG.read_text())
    expected = {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "epochs": 100,
        "feature_dim": None,
        "hidden_dim": 256,
        "train_test_split": 0.2,
        "random_seed": 42,
        "device": "auto",
    }
    assert {key: config[key] for key in expected} == expected
    (tmp_path / "empty.yaml").touch()
    loaded = load_config(FitConfig, tmp_path / "empty.yaml")
    assert loaded.model_dump(include=set(expected)) == expected


def test_the_common_file_is_what_the_declarations_say() -> None:
    assert COMMON_CONFIG.read_text() == as_yaml()


def test_later_sources_override_earlier_ones(task_config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("epochs: 20\nlearning_rate: 1e-2\n")  # YAML 1.1 reads 1e-2 as text
    assert load_config(FitConfig, task_config).epochs == 50
    assert load_config(FitConfig, task_config).batch_size == 8
    config = load_config(FitConfig, task_config, own)
    assert (config.epochs, config.learning_rate) == (20, 0.01)
    assert load_config(FitConfig, task_config, own, {"epochs": "7"}).epochs == 7


def test_the_tuned_recipe_decides_what_no_user_has_chosen(task_config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("hidden_dim: 9\n")
    config = load_config(FitConfig, task_config, own, {"recipe": "tuned", "epochs": "7"})
    # The task's own 50 epochs and the common batch size are nobody's choice.
    assert (config.epochs, config.hidden_dim, config.batch_size, config.learning_rate) == (7, 9, None, None)


def test_paths_in_files_count_from_the_project_and_in_flags_from_here(
    task_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def loaded(**flags: object) -> ExtractConfig:
        return load_config(ExtractConfig, task_config, None, flags)

    assert loaded().data_root == PROJECT_ROOT / "data" / "Somewhere"
    assert loaded(data_root="here").data_root == tmp_path / "here"
    assert loaded(data_root="/there").data_root == Path("/there")
    assert loaded(checkpoint="random:3").checkpoint == "random:3"
    assert loaded(checkpoint="weights.bin").checkpoint == str(tmp_path / "weights.bin")
    assert loaded().condition == "none"
    assert loaded(condition="query.npy").condition == str(tmp_path / "query.npy")
    several = load_config(FitConfig, task_config, None, {"control_features": ["a.pt", "/b.pt"]})
    assert several.control_features == (tmp_path / "a.pt", Path("/b.pt"))


def test_paths_in_the_name_of_an_encoder_are_resolved_like_others(
    task_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()

    def given(kind: type[ExtractConfig] | type[FitConfig], encoder: str) -> str:
        return load_config(kind, task_config, None, {"encoder": encoder}).encoder

    for kind in (ExtractConfig, FitConfig):
        assert given(kind, "hear:own.py") == f"hear:{tmp_path / 'own.py'}"
        assert given(kind, "hear:own.py:own.bin") == f"hear:{tmp_path / 'own.py'}:{tmp_path / 'own.bin'}"
        assert given(kind, "hear:a/own.py:/b/own.bin") == f"hear:{tmp_path / 'a' / 'own.py'}:/b/own.bin"
        assert given(kind, "hear:package.module:own.bin") == f"hear:package.module:{tmp_path / 'own.bin'}"
        assert given(kind, "hear:~/own.py") == f"hear:{Path.home() / 'own.py'}"
        assert given(kind, "hf:model") == f"hf:{tmp_path / 'model'}"
        for name in ("audiosep", "logmel", "hear:package.module", "hear:/a/own.py", "hf:facebook/hubert-base-ls960"):
            assert given(kind, name) == name


@pytest.mark.parametrize("name", ["hubert", "hear", "hear:", "hf:", "logmel:own.py", ""])
@pytest.mark.parametrize("kind", [ExtractConfig, FitConfig])
def test_a_wrong_encoder_is_named(
    name: str, kind: type[ExtractConfig] | type[FitConfig], task_config: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"encoder": name}))
    for file, flags in ((own, {}), (None, {"encoder": name})):
        with pytest.raises(ConfigError) as error:
            load_config(kind, task_config, file, flags)
        forms = "audiosep, logmel, hear:MODULE_OR_FILE.py[:WEIGHTS] or hf:NAME_OR_FOLDER"
        setting = f"{file}: encoder" if file else "--encoder"
        assert str(error.value).startswith(f"{setting}: encoder {name!r} is unknown") and forms in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "unknown key epoch; did you mean epochs?"),
        ("zzz: 3", "the keys are"),
        ("epochs: ten", "epochs: Input should be a valid integer"),
        ("epochs: 0", "epochs: Input should be greater than or equal to 1, not 0"),
        ("epochs: 1.5", "epochs: Input should be a valid integer"),
        ("epochs:", "epochs: Input should be a number, not null"),
        ("epochs: .inf", "epochs: Input should be a finite number"),
        ("device: null", "device: Input should be a valid string, not null"),
        ("learning_rate: -1", "learning_rate: Input should be greater than or equal to"),
        ("learning_rate: .nan", "learning_rate: Input should be a finite number"),
        ("train_test_split: 1", "train_test_split: Input should be less than or equal to 0.99"),
        ("layer: [a]", "layer: Input should be a valid string"),
        ("encoder: [a]", "encoder: Input should be a valid string"),
        ("use_pool: 3", "use_pool: Input should be a valid string"),
        ("padding: zeros", "padding: Input should be 'none' or 'official', not 'zeros'"),
        ("trust_remote_code: 1", "trust_remote_code: Input should be a valid boolean"),
        ("probes: 1", "probes: Input should be a valid boolean"),
        ("shots: [1, 0]", "shots: Input should be greater than or equal to 1, not [1, 0]"),
        ("recipe: best", "recipe: Input should be 'paper' or 'tuned', not 'best'"),
        ("- a\n- b", "key: value"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_wrong_files_are_named(text: str, words: str, task_config: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    # What is a setting of the other configuration is checked all the same.
    for kind in (FitConfig, ExtractConfig):
        with pytest.raises(ConfigError) as error:
            load_config(kind, task_config, own)
        assert str(own) in str(error.value)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_configuration_is_named(task_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        load_config(FitConfig, task_config, tmp_path / "nowhere.yaml")
