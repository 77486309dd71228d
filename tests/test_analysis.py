"""What the analyses compute: properties of maps and measures, and that they read what was run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT_ROOT

from analysis import page, similarity, visualize_features
from analysis.ablation_features import DEGRADATIONS, GRID, SEPARATOR, ViewsEncoder, add_noise, read_views, width_of
from analysis.ablation_scores import ablate
from analysis.maps import knn_purity, make_map, project, silhouette
from analysis.studies import STUDIES, balanced_rows, find_study, read_runs, seeded_rows
from analysis.summary import read_references, summary_rows, summary_table, write_summary
from analysis.transfer import transfer_costs
from common.cli import classify_main
from common.config import ConfigError, load_config
from common.datasets.audio import limit_bandwidth
from common.evaluation.tables import as_latex
from common.features import FeatureSet

RNG = np.random.default_rng(0)


def grouped(count: int = 120, n_classes: int = 4, spread: float = 0.5, seed: int = 0, size: int = 384) -> FeatureSet:
    """Clusters a class, in five folds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % n_classes
    centres = rng.standard_normal((n_classes, size))
    features = (spread * centres[labels] + rng.standard_normal((count, size))).astype(np.float32)
    ids = [f"clip {row}" for row in range(count)]
    folds = torch.arange(count) // n_classes % 5 + 1
    names = [f"class {label}" for label in range(n_classes)]
    return FeatureSet(
        torch.from_numpy(features), torch.from_numpy(labels), names, ids, folds=folds, meta={"dataset": "esc50"}
    )


def classified(folder: Path, seed: int = 0, *flags: str) -> None:
    folder.mkdir(parents=True)
    features = grouped(seed=seed)
    features.save(folder / "features.pt")
    argv = ["--features", str(folder / "features.pt"), "--output-dir", str(folder), "--epochs", "2", "--device", "cpu"]
    classify_main(STUDIES["esc50"].task, [*argv, *flags])


# Measures


def test_frechet_distance_of_known_normals() -> None:
    first = RNG.standard_normal((200_000, 2))
    second = first * (2, 3) + (1, 0)
    # |m|^2 + sum (s1 - s2)^2 for aligned axes
    assert similarity.frechet_distance(first, second) == pytest.approx(1 + 1 + 4, rel=0.02)
    assert similarity.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_symmetric_and_does_not_see_rotations() -> None:
    first, second = RNG.standard_normal((300, 6)), RNG.standard_normal((200, 6)) @ RNG.standard_normal((6, 6))
    rotation = np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    distance = similarity.frechet_distance(first, second)
    assert similarity.frechet_distance(second, first) == pytest.approx(distance)
    assert similarity.frechet_distance(first @ rotation, second @ rotation) == pytest.approx(distance)


def test_mmd_is_nothing_for_one_distribution_and_something_for_two() -> None:
    rows = RNG.standard_normal((600, 10))
    assert abs(similarity.mmd(rows[:300], rows[300:])) < 0.01
    assert similarity.mmd(rows[:300], rows[300:] + 1) > 0.1


def test_subspaces() -> None:
    basis = np.eye(20)
    assert similarity.subspace_overlap(basis[:, :4], basis[:, :4]) == 1
    assert similarity.subspace_overlap(basis[:, :4], basis[:, 4:8]) == 0
    assert similarity.subspace_overlap(basis[:, :4], basis[:, 2:6]) == 0.5
    flat = RNG.standard_normal((100, 3)) @ RNG.standard_normal((3, 20))
    assert similarity.subspace_overlap(
        similarity.principal_subspace(flat, 3), similarity.principal_subspace(3 * flat + 7, 3)
    ) == pytest.approx(1)


def test_cka_does_not_see_rotation_scale_and_shift_but_sees_other_clips() -> None:
    rows = RNG.standard_normal((500, 8))
    rotation = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
    assert similarity.linear_cka(rows, 3 * rows @ rotation + 1) == pytest.approx(1)
    assert similarity.linear_cka(rows, rows[RNG.permutation(500)]) < 0.1


def test_two_versions_of_one_data_set_have_no_transfer_and_still_a_report() -> None:
    matrix = [[0.0, 0.1], [0.1, 0.0]]
    own = {"scaler": {"own": {"accuracy": 0.5}}, "subspace": {"own": {"accuracy": 0.5}}}
    record = {"tasks": {"v1": 9, "v2": 9}, "transfer": {"v1": own, "v2": own}}
    charts = page._similarity({**record, "frechet": matrix, "mmd": matrix, "subspace": matrix})
    assert {chart["words"] for chart in charts[:3]} == {"largest between v2 and v1, 0.10"}
    assert [chart["z"] for chart in charts[3:]] == [[[None, None], [None, None]]] * 2


def test_a_transfer_from_the_same_distribution_costs_little_and_from_another_much() -> None:
    target, alike = grouped(seed=1), grouped(seed=1)
    alike = replace(alike, features=alike.features + 0.01)
    # A scaler that knows one huge dimension wrongly: the noise of the others drowns.
    strange = replace(alike, features=alike.features * torch.logspace(-3, 3, 384))
    config = load_config(STUDIES["esc50"].task.folder / "config.yaml", None, {"epochs": 20, "device": "cpu"})
    costs = transfer_costs(target, {"alike": alike, "strange": strange}, config)
    assert abs(costs["scaler"]["alike"]["difference"]) < 0.1
    assert costs["scaler"]["strange"]["difference"] < -0.2
    own = costs["scaler"]["own"]["accuracy"]
    assert costs["scaler"]["strange"]["accuracy"] == pytest.approx(own + costs["scaler"]["strange"]["difference"])


# Maps


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_map_keeps_neighbours_and_is_repeatable(method: str) -> None:
    features = grouped(spread=2)
    drawn = make_map(features, method, "standard", 0, seed=3)
    again = make_map(features, method, "standard", 0, seed=3)
    np.testing.assert_array_equal(drawn.points, again.points)
    assert knn_purity(drawn.points, features.labels.numpy()) > 0.9
    assert "all 120 clips" in drawn.caption


def test_a_sampled_map_says_so_and_shows_every_class() -> None:
    features = grouped(count=400, n_classes=40)
    drawn = make_map(features, "tsne", "whiten", 60, seed=0)
    assert len(drawn.rows) < 90
    assert set(features.labels[drawn.rows].tolist()) == set(range(40))
    assert f"{len(drawn.rows)} of 400 clips" in drawn.caption
    assert len(np.unique(drawn.rows)) == len(drawn.rows)


def test_purity_and_silhouette() -> None:
    labels = np.repeat([0, 1], 50)
    apart = RNG.standard_normal((100, 5)) + 100 * labels[:, None]
    assert knn_purity(apart, labels) == 1
    assert silhouette(apart, labels, 0) > 0.9
    assert knn_purity(RNG.standard_normal((4000, 5)), np.arange(4000) % 2) == pytest.approx(0.5, abs=0.03)
    assert silhouette(apart, np.zeros(100), 0) is None
    assert knn_purity(apart, np.zeros(100)) is None


def test_a_map_of_two_clips_is_no_error() -> None:
    assert project(np.zeros((2, 5)), "tsne", 0).shape == (2, 2)
    with pytest.raises(ValueError, match="tsne, umap"):
        project(np.zeros((9, 5)), "pca", 0)


def test_a_balanced_sample_leaves_a_small_test_side_its_clips() -> None:
    sides = np.array(["train"] * 9000 + ["valid"] * 700 + ["test"] * 300)
    labels = np.arange(10_000) % 10
    rows = balanced_rows(labels, sides, 1200)
    counts = dict(zip(*np.unique(sides[rows], return_counts=True), strict=True))
    assert counts == {"test": 300, "train": 450, "valid": 450}
    assert np.bincount(labels[rows]).tolist() == [120] * 10
    np.testing.assert_array_equal(balanced_rows(labels, sides, 0), np.arange(10_000))


def test_a_sample_takes_of_every_stratum_in_proportion() -> None:
    strata = np.array([0] * 900 + [1] * 90 + [2] * 10)
    rows = seeded_rows(strata, 100)
    assert np.bincount(strata[rows]).tolist() == [90, 9, 1]
    np.testing.assert_array_equal(rows, seeded_rows(strata, 100))
    np.testing.assert_array_equal(seeded_rows(strata, 0), np.arange(1000))


# Views of an ablation


def test_views_equal_what_the_encoder_gives_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "condition.npy", RNG.standard_normal(512).astype(np.float32))
    encoder = ViewsEncoder(
        "random:3", torch.device("cpu"), ("condition", "bandwidth", "noise"), tmp_path / "condition.npy"
    )
    waveforms = [
        0.1 * RNG.standard_normal(12_000).astype(np.float32),
        0.1 * RNG.standard_normal(20_000).astype(np.float32),
    ]
    rows = encoder.embed(waveforms)
    assert rows.shape == (2, encoder.embedding_size)
    start = dict(zip(encoder.views, np.cumsum([0, *map(width_of, encoder.views)])[:-1], strict=True))

    def view(name: str) -> torch.Tensor:
        return rows[:, start[name] : start[name] + width_of(name)]

    # Where the variance is computed too, the mean comes of another sum.
    torch.testing.assert_close(view("encoder_block6 mean"), encoder.plain.embed(waveforms), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        view("encoder_block2 std"), encoder.plain.embed(waveforms, "encoder_block2", "std"), rtol=1e-5, atol=1e-4
    )
    assert torch.equal(view("condition zero"), encoder.conditioned["condition zero"].embed(waveforms))
    own = next(name for name in encoder.views if name.startswith("condition ") and name != "condition zero")
    assert not torch.equal(view(own), view("condition zero"))
    noisy = DEGRADATIONS["noise, SNR 10 dB"]
    assert torch.equal(view("noise, SNR 10 dB")[1:], encoder.plain.embed([noisy(waveforms[1])]))
    assert "first 50 %" not in encoder.views
    assert set(GRID) < set(encoder.views)


def test_degradations() -> None:
    waveform = (0.1 * RNG.standard_normal(32_000)).astype(np.float32)
    noise = add_noise(10)(waveform) - waveform
    assert 10 * np.log10(np.square(waveform).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.1)
    np.testing.assert_array_equal(add_noise(10)(waveform), add_noise(10)(waveform))
    np.testing.assert_array_equal(add_noise(0)(np.zeros(100, np.float32)), np.zeros(100))
    narrow = limit_bandwidth(waveform, 32_000, 8_000)
    spectrum = np.square(np.abs(np.fft.rfft(narrow)))
    assert len(narrow) == len(waveform)
    assert spectrum[4_400:].sum() < 1e-4 * spectrum.sum()
    assert len(DEGRADATIONS["first 25 %"](waveform)) == 8_000
    assert len(DEGRADATIONS["first 25 %"](waveform[:1])) == 1
    assert len(limit_bandwidth(waveform[:7], 32_000, 8_000)) == 7


def test_an_ablation_finds_the_layer_that_knows_the_classes(tmp_path: Path) -> None:
    widths = [width_of(name) for name in (*GRID, "noise, SNR 0 dB")]
    features = grouped(count=80, spread=0, size=sum(widths))
    features.folds = features.folds % 2 + 1
    views, start = {}, 0
    for name, width in zip((*GRID, "noise, SNR 0 dB"), widths, strict=True):
        views[name] = slice(start, start := start + width)
    knows = torch.nn.functional.one_hot(features.labels, 4).float()
    features.features[:, views["encoder_block3 mean"]][:, :4] += 6 * knows
    features.features[:, views["encoder_block6 mean"]][:, :4] += 2 * knows
    config = load_config(
        STUDIES["esc50"].task.folder / "config.yaml",
        None,
        {"epochs": 5, "device": "cpu", "batch_size": 16, "learning_rate": 1e-2},
    )
    record = ablate(features, views, ("layer", "noise"), ("linear",), config)
    best = record["effects"][0]
    assert (best["factor"], best["name"]) == ("layer", "encoder_block3") or best["name"].startswith("all layers")
    noise = next(effect for effect in record["effects"] if effect["factor"] == "noise")
    assert noise["linear"]["difference"] < -0.1
    base = record["baseline"]["linear"]["accuracy"]
    for effect in record["effects"]:
        assert effect["linear"]["accuracy"] == pytest.approx(base + effect["linear"]["difference"])
    assert len(record["grid"]) == 8 * 3 * 3
    found = max(record["grid"], key=lambda entry: entry["linear"]["accuracy"])
    assert (found["layer"], found["pool"]) == ("encoder_block3", "mean")


def test_a_file_of_views_is_recognised(tmp_path: Path) -> None:
    names = (*GRID, "up to 4 kHz")
    features = grouped(count=10, n_classes=2, size=sum(map(width_of, names)))
    replace(features, meta={"layer": "views", "pool": SEPARATOR.join(names)}).save(tmp_path / "views.pt")
    _, views = read_views(tmp_path / "views.pt")
    assert views["up to 4 kHz"].stop == features.features.shape[1]
    assert views["pre_conv std"] == slice(32, 64)
    features.save(tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="holds no views"):
        read_views(tmp_path / "plain.pt")


# Runs and their summary


def test_every_study_names_scripts_and_data_that_exist() -> None:
    import yaml

    archives = yaml.safe_load((PROJECT_ROOT / "common" / "archives.yaml").read_text())
    for study in STUDIES.values():
        for script in (*study.extract, study.classify):
            assert (PROJECT_ROOT / script).is_file()
        for name, *only in study.download:
            parts = {archive.get("part") for archive in archives[name]["archives"]}
            assert not only or only[1] in parts
    assert set(read_references()) - {"sources"} <= set(STUDIES)
    assert find_study("librispeech").name == "librispeech_train-clean-100"
    assert find_study("speech_commands_v1").name == "speech_commands_v1"
    with pytest.raises(ConfigError, match="choose one of esc50"):
        find_study("esc5O")


def test_a_summary_says_what_the_records_say(tmp_path: Path) -> None:
    classified(tmp_path / "a", 0, "--protocol", "both")
    classified(tmp_path / "b", 1, "--recipe", "tuned")
    runs = read_runs(tmp_path)
    rows = summary_rows(runs)
    assert [row["protocol"] for row in rows] == ["official", "random", "official"]
    for row, (one, name) in zip(rows, [(runs[0], "official"), (runs[0], "random"), (runs[1], "official")], strict=True):
        heads = json.loads((one.folder / "result.json").read_text())["protocols"][name]["heads"]
        assert row["linear"] == heads["linear"]["mean"]["accuracy"]
        assert row["three_layer"] == heads["three_layer"]["mean"]["accuracy"]
    paths = write_summary(rows, tmp_path)
    table = summary_table(rows, is_wide=True)
    assert f"{100 * rows[0]['linear']:.1f}" in table[1]
    text = {path.suffix: path.read_text() for path in paths}
    assert text[".csv"].count("\n") == 4
    assert text[".md"].count("|\n") == 5
    assert r"\toprule" in text[".tex"]
    assert "85/88" in text[".tex"]
    assert "not measurements" in text[".md"]


def test_latex_escapes_what_latex_reads() -> None:
    text = as_latex([["a_b", "50 %"], ["x & y", "±1"]])
    assert r"a\_b & 50 \% \\" in text
    assert r"x \& y & $\pm$1 \\" in text


def test_records_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"task": "esc50"}')
    with pytest.raises(ConfigError, match=r"result\.json is not a record of this version.*protocols"):
        read_runs(tmp_path)


def test_changed_features_are_refused(tmp_path: Path) -> None:
    classified(tmp_path / "a")
    (one,) = read_runs(tmp_path)
    grouped(seed=5).save(tmp_path / "a" / "features.pt")
    with pytest.raises(ValueError, match=r"has changed since .*result\.json"):
        _ = one.features


def call(script: str, *flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROJECT_ROOT / script, *map(str, flags)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "script", ["summary", "visualize_features", "task_similarity", "ablation", "report", "reproduce"]
)
def test_help_explains(script: str) -> None:
    result = call(f"analysis/{script}.py", "--help")
    assert result.returncode == 0
    assert "default" in result.stdout


@pytest.mark.parametrize("script", ["task_similarity", "report"])
def test_nothing_run_yet_is_one_line_with_a_command(script: str, tmp_path: Path) -> None:
    result = call(f"analysis/{script}.py", "--results", tmp_path)
    assert result.returncode == 2
    assert "python esc50_feature_fc/extract_esc50_features_audiosep.py" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_maps_of_a_run_and_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classified(tmp_path / "a")

    def visualize(*flags: str) -> None:
        monkeypatch.setattr(
            "sys.argv", ["visualize_features.py", *flags, "--results", str(tmp_path), "--method", "tsne"]
        )
        visualize_features.main()

    visualize("esc")
    assert (tmp_path / "map_esc50_tsne_class.png").stat().st_size > 10_000
    for flags, said in (
        (("esc50", "--colour", "group"), "these features have no groups; colour by class or fold"),
        (("nsynth",), "nsynth has not been run yet; to get it: python nsynth_feature_fc/extract"),
        (("piano",), "choose one of esc50"),
    ):
        with pytest.raises(ConfigError, match=said):
            visualize(*flags)
