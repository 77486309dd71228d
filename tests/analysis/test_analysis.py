"""What the analyses compute: properties of maps and measures, and that they read what was run."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from analysis import plots, visualize_features
from analysis.maps import balanced_rows, knn_purity, make_map, seeded_rows, silhouette
from analysis.plots import plot_heat
from analysis.scores import read_runs
from analysis.studies import STUDIES, find_study
from analysis.summary import read_references, summary_rows, summary_table, thesis_table, write_summary
from analysis.variants import (
    DEGRADATIONS,
    FACTORS,
    PLAIN,
    AblationEncoder,
    AblationRecord,
    ablate,
    add_noise,
    linear_cka,
    read_variants,
    write_effects,
)
from common.cli import classify_main
from common.config import ConfigError
from common.datasets import Prepared
from common.datasets.audio import limit_bandwidth
from common.encoder import POOLS, EncoderInfo, load_encoder
from common.encoder_name import EncoderKind
from common.errors import UserError
from common.features import FeatureFileError, FeatureSet
from common.files import PROJECT_ROOT
from common.text_table import as_latex
from tests.support.heads import CPU, draw_nothing, fit_config, noise_like, on_one_thread
from tests.support.plain_encoder import use_narrow_network

SIZE = 16


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """All of this file."""
    with on_one_thread():
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Each test's own numbers, so that they do not depend on the tests before it."""
    return np.random.default_rng(0)


def clusters(
    count: int = 60, n_classes: int = 4, spread: float = 0.5, seed: int = 0, size: int = SIZE, folds: int = 5
) -> FeatureSet:
    """A cluster per class, in folds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % n_classes
    centres = rng.standard_normal((n_classes, size))
    features = (spread * centres[labels] + rng.standard_normal((count, size))).astype(np.float32)
    return FeatureSet(
        torch.from_numpy(features),
        torch.from_numpy(labels),
        [f"class {label}" for label in range(n_classes)],
        [f"clip {row}" for row in range(count)],
        folds=torch.arange(count) // n_classes % folds + 1,
        meta={"dataset": "esc50"},
    )


def classify_clusters(folder: Path, seed: int = 0, *flags: str) -> None:
    """A finished run of ESC-50 in a new folder, with its feature file beside it; figures are empty files."""
    folder.mkdir(parents=True)
    clusters(seed=seed).save(folder / "features.pt")
    argv = ["--features", str(folder / "features.pt"), "--output-dir", str(folder), "--feature-dim", str(SIZE)]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        classify_main(STUDIES["esc50"].task, [*argv, "--epochs", "2", "--device", "cpu", *flags])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs: a, by both protocols, and b, by the tuned recipe. Tests do not change it."""
    folder = tmp_path_factory.mktemp("results")
    classify_clusters(folder / "a", 0, "--protocol", "both")
    classify_clusters(folder / "b", 1, "--recipe", "tuned")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn in this test, not rendered."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


# Measures


def test_cka_does_not_see_rotation_scale_and_shift_but_sees_other_clips(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((500, 8))
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    assert linear_cka(rows, 3 * rows @ rotation + 1) == pytest.approx(1)
    assert linear_cka(rows, rows[rng.permutation(500)]) < 0.1


def test_an_analysis_that_cannot_be_read_says_what_to_run_again(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"tasks": {}}')
    with pytest.raises(UserError, match=r"own\.json is not a record of this project .*; run analysis/\w+\.py again"):
        AblationRecord.load(tmp_path / "own.json")


# Maps


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_a_map_keeps_neighbours_and_is_repeatable(method: str) -> None:
    features = clusters(spread=4)
    shown = make_map(features, method, "standard", 0, seed=3)
    again = make_map(features, method, "standard", 0, seed=3)
    np.testing.assert_array_equal(shown.points, again.points)
    assert shown.points.shape == (60, 2)
    assert knn_purity(shown.points, features.labels.numpy()) > 0.9
    assert "all 60 clips" in shown.caption


def test_a_sampled_map_says_so_and_shows_every_class() -> None:
    features = clusters(count=120, n_classes=20)
    shown = make_map(features, "tsne", "whiten", 30, seed=0)
    assert len(shown.rows) < 45
    assert set(features.labels[shown.rows].tolist()) == set(range(20))
    assert f"{len(shown.rows)} of 120 clips" in shown.caption
    assert len(np.unique(shown.rows)) == len(shown.rows)


def test_purity_and_silhouette_by_hand(rng: np.random.Generator) -> None:
    labels = np.repeat([0, 1], 50)
    apart = rng.standard_normal((100, 5)) + 100 * labels[:, None]
    assert knn_purity(apart, labels) == 1
    assert silhouette(apart, labels, 0) > 0.9
    assert knn_purity(rng.standard_normal((4000, 5)), np.arange(4000) % 2) == pytest.approx(0.5, abs=0.03)
    assert "nearest neighbours" in make_map(clusters(), "tsne", "none", 0, seed=0).caption
    assert "nearest neighbours" not in make_map(clusters(n_classes=1), "tsne", "none", 0, seed=0).caption


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


# Variants of an ablation


def test_variants_equal_what_the_encoder_gives_alone(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_narrow_network(monkeypatch)
    np.save(tmp_path / "condition.npy", rng.standard_normal(512).astype(np.float32))
    factors = ("condition", "bandwidth", "noise")
    encoder = AblationEncoder("random:3", CPU, factors, tmp_path / "condition.npy")
    waveforms = [(0.1 * rng.standard_normal(samples)).astype(np.float32) for samples in (10_000, 14_000)]
    embedded = encoder.embed_outputs(waveforms, encoder.outputs)
    assert list(embedded) == list(encoder.outputs)
    by_name = {output.name: rows for output, rows in embedded.items()}
    assert all(len(rows) == 2 for rows in by_name.values())
    assert torch.equal(by_name["encoder_block6 mean"], encoder.plain.embed(waveforms))
    assert torch.equal(by_name["encoder_block2 mean"], encoder.plain.embed(waveforms, "encoder_block2"))
    assert torch.equal(by_name["condition zero"], load_encoder("random:3", CPU, condition="zero").embed(waveforms))
    (own,) = (name for name in by_name if name.startswith("condition ") and name != "condition zero")
    assert not torch.equal(by_name[own], by_name["condition zero"])
    assert not torch.equal(by_name["condition zero"], by_name["encoder_block6 mean"])
    noisy = DEGRADATIONS["noise"]["SNR 10 dB"]
    assert torch.equal(by_name["noise SNR 10 dB"][1:], encoder.plain.embed([noisy(waveforms[1])]))
    assert "duration first 50 %" not in by_name
    assert set(PLAIN) < set(embedded)
    for pool in POOLS:
        assert torch.equal(by_name[f"encoder_block6 {pool}"], encoder.plain.embed(waveforms, pool=pool))
    assert encoder.default_output.name == "encoder_block6 mean"
    assert {output.layer for output in encoder.outputs} & set(FACTORS) == set(factors)
    (asked,) = (output for output in encoder.outputs if output.name == "bandwidth up to 4 kHz")
    assert list(encoder.embed_outputs(waveforms, [asked])) == [asked]
    assert (encoder.info, encoder.device) == (encoder.plain.info, CPU)


def test_degradations_change_the_sound_as_named(rng: np.random.Generator) -> None:
    waveform = (0.1 * rng.standard_normal(32_000)).astype(np.float32)
    noise = add_noise(10, waveform) - waveform
    assert 10 * np.log10(np.square(waveform).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.1)
    np.testing.assert_array_equal(add_noise(10, waveform), add_noise(10, waveform))
    np.testing.assert_array_equal(add_noise(0, np.zeros(100, np.float32)), np.zeros(100))
    narrow = limit_bandwidth(waveform, 32_000, 8_000)
    spectrum = np.square(np.abs(np.fft.rfft(narrow)))
    assert len(narrow) == len(waveform)
    assert spectrum[4_400:].sum() < 1e-4 * spectrum.sum()
    assert len(DEGRADATIONS["duration"]["first 25 %"](waveform)) == 8_000
    assert len(DEGRADATIONS["duration"]["first 25 %"](waveform[:1])) == 1
    assert len(limit_bandwidth(waveform[:7], 32_000, 8_000)) == 7


@pytest.fixture(scope="module")
def ablation() -> AblationRecord:
    """Of outputs of four numbers, among which block 3's mean says the class, block 6's mean less clearly."""
    outputs = [(output.layer, output.pool, 4) for output in PLAIN] + [("noise", "SNR 0 dB", 4)]
    features = clusters(count=80, spread=0, size=4 * len(outputs), folds=2)
    features = replace(features, meta={"outputs": outputs})
    columns = features.output_columns
    knows = torch.nn.functional.one_hot(features.labels, 4).float()
    features.features[:, columns["encoder_block3 mean"]] += 6 * knows
    features.features[:, columns["encoder_block6 mean"]] += 3 * knows
    config = fit_config(epochs=4, batch_size=16, learning_rate=1e-2, hidden_dim=8, refit=False)
    info = EncoderInfo(EncoderKind.UNTRAINED, "AudioSep ResUNet30", "random:0", "untrained", "none", "fp32")
    return ablate(Prepared(features), STUDIES["esc50"].task, info, config, ("layer", "noise"))


def test_an_ablation_finds_the_layer_that_knows_the_classes(ablation: AblationRecord) -> None:
    best = ablation.effects[0]
    assert (best.factor, best.name) == ("layer", "encoder_block3") or best.name.startswith("all layers")
    noise = next(effect for effect in ablation.effects if effect.factor == "noise")
    assert noise.head == "linear" and noise.difference < -0.1
    for effect in ablation.effects:
        base = ablation.baseline[effect.head]
        assert effect.score == pytest.approx(base + effect.difference)
    assert len(ablation.effects) == 2 * (7 + 1 + 1)
    assert {effect.name: effect.dimensions for effect in ablation.effects}["all layers side by side"] == 8 * 4
    assert ablation.division == "official folds 1, 2"


def test_the_effects_are_written_as_they_are(ablation: AblationRecord, tmp_path: Path, drawn: list[Figure]) -> None:
    write_effects(ablation, tmp_path)
    assert AblationRecord.load(tmp_path / "ablation_esc50.json") == ablation
    with (tmp_path / "ablation_esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["head"]) for row in rows] == [
        (effect.name, effect.head) for effect in ablation.effects
    ]
    assert float(rows[0]["score"]) == ablation.effects[0].score
    assert [float(row["holm_p_value"]) for row in rows] == [effect.holm_p_value for effect in ablation.effects]
    (figure,) = drawn
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"{effect.name} ({effect.factor})" for effect, _ in ablation.variants]


def test_a_file_of_variants_is_recognised(tmp_path: Path) -> None:
    outputs = [("pre_conv", "mean", 2), ("pre_conv", "std", 3), ("up to 4 kHz", "", 4)]
    features = replace(clusters(count=10, n_classes=2, size=9), meta={"outputs": outputs})
    features.save(tmp_path / "variants.pt")
    assert read_variants(tmp_path / "variants.pt").output_columns == {
        "pre_conv mean": slice(0, 2),
        "pre_conv std": slice(2, 5),
        "up to 4 kHz": slice(5, 9),
    }
    clusters(count=10, n_classes=2).save(tmp_path / "plain.pt")
    with pytest.raises(FeatureFileError, match="holds no variants"):
        read_variants(tmp_path / "plain.pt")


# Figures


def test_a_heat_map_shows_its_numbers(drawn: list[Figure]) -> None:
    values = np.array([[0.0, np.nan], [-1.2, 2.0]])
    plot_heat(pd.DataFrame(values, ["a", "b"], ["c", "d"]), "title", "caption", Path("unused.png"))
    axes = drawn[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0.00", (0, 1): "-1.20", (1, 1): "2.00"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c", "d"]


# Runs and their summary


def test_every_study_names_scripts_and_data_that_exist() -> None:
    archives = yaml.safe_load((PROJECT_ROOT / "common" / "download" / "archives.yaml").read_text())
    for study in STUDIES.values():
        for script in (*study.extract, study.classify):
            assert (PROJECT_ROOT / script).is_file()
        for name, *only in study.download:
            parts = {archive.get("part") for archive in archives[name]["archives"]}
            assert not only or only[1] in parts
    references, sources = read_references()
    assert set(references) <= set(STUDIES)
    assert {score.source for known in references.values() for score in known.published} <= set(sources)
    assert find_study("librispeech").name == "librispeech_train-clean-100"
    assert find_study("speech_commands_v1").name == "speech_commands_v1"
    with pytest.raises(ConfigError, match="choose one of esc50"):
        find_study("esc5O")


def test_a_summary_says_what_the_records_say(results: Path, tmp_path: Path) -> None:
    runs = read_runs(results)
    rows = summary_rows(runs)
    assert [row.protocol.kind for row in rows] == ["official", "random", "official"]
    assert [row.run.record.config.recipe for row in rows] == ["paper", "paper", "tuned"]
    for row, (one, name) in zip(rows, [(runs[0], "official"), (runs[0], "random"), (runs[1], "official")], strict=True):
        heads = json.loads((one.folder / "result.json").read_text())["protocols"][name]["heads"]
        for head, scored in row.protocol.heads.items():
            assert scored.score == heads[head]["mean"]["accuracy"]
    paths = write_summary(rows, tmp_path)
    table = summary_table(rows, is_wide=True)
    assert f"{100 * rows[0].protocol.heads['linear'].score:.1f}" in table[1]
    text = {path.suffix: path.read_text() for path in paths}
    with (tmp_path / "summary.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(row["task"], row["protocol"], float(row["linear"])) for row in written] == [
        (row.run.study.name, row.protocol.kind, row.protocol.heads["linear"].score) for row in rows
    ]
    shown = [line.split(" | ") for line in text[".md"].splitlines() if line.startswith("| ESC-50 ")]
    assert len(shown) == len(rows)
    assert r"\toprule" in text[".tex"]
    assert "85/88" not in "".join(text.values())  # nobody measured them
    with_stated = {path.suffix: path.read_text() for path in write_summary(rows, tmp_path, with_stated=True)}
    assert "85/88" in with_stated[".md"] and "nobody measured them" in with_stated[".md"]
    assert "example_linear" in with_stated[".csv"] and with_stated[".tex"] == text[".tex"]
    # A sample's scores do not stand beside published ones of all clips.
    assert all(row.is_sample and not row.references.published for row in rows)
    assert "No published score for esc50: only 60 of its 2,000 clips were used." in text[".md"]


def test_the_table_for_a_thesis_stands_alone(results: Path, tmp_path: Path) -> None:
    """A row for every task and encoder, and a caption that says of what encoder, recipe and seeds the numbers are."""
    rows = summary_rows(read_runs(results))
    text = thesis_table(rows)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert body.count(r"\\") == 2 and "random" not in body and "& paper &" in body and "& tuned &" in body
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    for words in (rows[0].run.encoder.replace("_", r"\_"), "paper recipe, seed", "tuned recipe", r"95 \% intervals"):
        assert words in caption
    assert text.startswith(r"% The document needs \usepackage{booktabs}.")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_the_table(results: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.tex").write_text(thesis_table(summary_rows(read_runs(results))))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{summary}\end{document}"
    (tmp_path / "thesis.tex").write_text(document)
    program = str(shutil.which("pdflatex"))
    done = subprocess.run(
        [program, "-halt-on-error", "thesis.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "thesis.pdf").stat().st_size > 1000


def test_latex_escapes_what_latex_reads() -> None:
    text = as_latex([["a_b", "50 %"], ["x & y", "±1"]])
    assert r"a\_b & 50 \% \\" in text
    assert r"x \& y & $\pm$1 \\" in text


def test_records_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"task": "esc50"}')
    with pytest.raises(ConfigError, match=r"result\.json is not a record of this project .*classify again"):
        read_runs(tmp_path)


def test_a_record_of_an_unknown_task_is_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (results / "a" / "result.json").read_text().replace('"task": "esc50"', '"task": "piano"', 1)
    (tmp_path / "result.json").write_text(re.sub(r'"checksum": "\w+"', '"checksum": null', text))
    assert read_runs(tmp_path) == []
    assert "result.json is of piano" in capsys.readouterr().err


def test_a_run_reads_its_rows_and_predictions(results: Path) -> None:
    one = read_runs(results)[0]
    assert torch.equal(one.features.features, clusters(seed=0).features)
    for name in ("official", "random"):
        table = one.predictions(name)
        assert {"linear", "three_layer"} <= set(table.columns)
        hits = table["linear"] == table["class_name"]
        assert hits.groupby(table["split"]).mean().mean() == pytest.approx(
            one.record.protocols[name].heads["linear"].score
        )


def test_changed_features_are_refused(results: Path, tmp_path: Path) -> None:
    one = read_runs(results)[0]
    noise_like(clusters(), seed=5, size=SIZE).save(tmp_path / "features.pt")
    moved = one.record.config.model_copy(update={"features": tmp_path / "features.pt"})
    changed = replace(one, record=one.record.model_copy(update={"config": moved}))
    with pytest.raises(FeatureFileError, match=r"has changed since .*result\.json"):
        _ = changed.features


# Scripts


def run_script(name: str, *flags: object) -> int:
    """Run a script of analysis/ as its own file would be, without the seconds of a new process; its exit status."""
    script = str(PROJECT_ROOT / "analysis" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script, *map(str, flags)])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_nothing_run_yet_is_one_line_with_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("report", "--results", tmp_path) == 2
    printed = capsys.readouterr()
    assert "python esc50_feature_fc/extract_esc50_features_audiosep.py" in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.fixture
def visualize(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script that draws maps, by t-SNE, of the runs in `results`."""

    def call(*flags: str) -> None:
        where = ("--results", str(results), "--output", str(tmp_path))
        monkeypatch.setattr("sys.argv", ["visualize_features.py", *flags, *where, "--method", "tsne"])
        visualize_features.main()

    return call


def test_a_map_is_of_the_folder_or_file_that_is_named(
    visualize: Callable[..., None], results: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    """A folder's own run, and embeddings without labels, coloured by their recordings."""
    visualize(str(results / "b"))
    (record,) = (run.record for run in read_runs(results / "b"))
    assert record.features.title in drawn[0].axes[0].get_title()
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32))
    names = [f"{'night' if row < 20 else 'day'}.wav#{row}-{row + 1}" for row in range(40)]
    FeatureSet(values, torch.full((40,), -1), [], names).save(tmp_path / "season.pt")
    visualize(str(tmp_path / "season.pt"))
    legend = drawn[1].axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["day.wav", "night.wav"]


def test_a_map_of_a_run_shows_every_clip_in_its_colour(visualize: Callable[..., None], drawn: list[Figure]) -> None:
    visualize("esc")
    (figure,) = drawn
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [f"class {label}" for label in range(4)]
    assert [len(dots.get_offsets()) for dots in axes.collections] == [15] * 4
    visualize("esc", "--colour", "fold", "--max-clips", "20")
    axes = drawn[1].axes[0]
    assert len(axes.collections) == 5
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 20


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("esc50", "--colour", "group"), "these features have no groups; colour by class or fold"),
        (("nsynth",), "nsynth has not been run yet; to get it: python nsynth_feature_fc/extract"),
        (("piano",), "choose one of esc50"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_explained(
    flags: tuple[str, ...], said: str, visualize: Callable[..., None]
) -> None:
    with pytest.raises(ConfigError, match=said):
        visualize(*flags)


def test_p_values_of_an_ablation_are_corrected_for_their_number(ablation: AblationRecord) -> None:
    """Holm: the k-th smallest of n is multiplied by n - k + 1, and none is below a smaller one's."""
    ordered = sorted((effect.p_value, effect.holm_p_value) for effect in ablation.effects)
    highest = 0.0
    for rank, (p_value, corrected) in enumerate(ordered):
        highest = max(highest, min(1.0, p_value * (len(ordered) - rank)))
        assert corrected == pytest.approx(highest)
