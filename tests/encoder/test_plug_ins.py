"""Encoders from outside: HEAR modules and transformers' models, from the command line to the scores, and their check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from common.cli import classify_main, extract_main
from common.datasets import Clip, DatasetNote
from common.datasets.audio import read_audio
from common.encoder import LogMelStatistics, Output, PluginError, load_encoder, new_encoder
from common.encoder.check import main
from common.encoder.hear import HearEncoder
from common.encoder.measure import CheckRecord, check_encoder
from common.encoder_name import EncoderKind, EncoderName, file_of, slug_of
from common.evaluation.record import RunRecord
from common.extraction import ClipList, ThisProcess, Threads, extract, runner
from common.extraction.runner import embed_in_batches
from common.features import FeatureFileError, FeatureSet
from esc50_feature_fc.esc50 import TASK
from tests.support.heads import on_one_thread
from tests.support.plain_encoder import use_narrow_network
from tests.support.samples import noise, write_wav

CPU = torch.device("cpu")
# A small encoder at 8 kHz: energies of a random projection of frames of 400 samples; shorter clips are an error.
MODULE = """
import torch

class Model(torch.nn.Module):
    sample_rate = 8000
    scene_embedding_size = timestamp_embedding_size = 6

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.projection = torch.nn.Parameter(torch.randn(400, 6, generator=generator))

def load_model(model_file_path=""):
    return Model(int(open(model_file_path).read()) if model_file_path else 0)

def get_timestamp_embeddings(audio, model):
    frames = audio.unfold(1, 400, 200) @ model.projection
    times = 25.0 + 25.0 * torch.arange(frames.shape[1]).expand(len(audio), -1)
    return frames.square(), times

def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].mean(dim=1)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(MODULE)
    return path


def changed(path: Path, before: str, after: str) -> str:
    """The module with one change, as `--encoder` takes it."""
    assert before in MODULE
    path.write_text(MODULE.replace(before, after))
    return f"hear:{path}"


def load(name: str) -> HearEncoder:
    return HearEncoder(EncoderName.parse(name), CPU)


@pytest.mark.parametrize(
    ("text", "parsed", "slug"),
    [
        ("audiosep", EncoderName(EncoderKind.AUDIOSEP), "audiosep"),
        ("logmel", EncoderName(EncoderKind.LOGMEL), "logmel"),
        ("hear:panns_hear", EncoderName(EncoderKind.HEAR, "panns_hear"), "panns_hear"),
        ("hear:panns_hear:w/best.pt", EncoderName(EncoderKind.HEAR, "panns_hear", "w/best.pt"), "panns_hear_best"),
        ("hear:a/b/enc.py", EncoderName(EncoderKind.HEAR, "a/b/enc.py"), "enc"),
        (r"hear:C:\x\enc.py:C:\w.pt", EncoderName(EncoderKind.HEAR, r"C:\x\enc.py", r"C:\w.pt"), None),
        (
            "hf:facebook/hubert-base-ls960",
            EncoderName(EncoderKind.TRANSFORMERS, "facebook/hubert-base-ls960"),
            "hubert-base-ls960",
        ),
    ],
)
def test_names_of_encoders_are_parsed(text: str, parsed: EncoderName, slug: str | None) -> None:
    assert EncoderName.parse(text) == parsed
    assert str(parsed) == text
    assert slug in (None, parsed.slug)


def test_files_are_called_after_their_encoder() -> None:
    assert file_of("esc50_features_audiosep.pt", "audiosep") == "esc50_features_audiosep.pt"
    assert file_of("esc50_features_audiosep.pt", "logmel") == "esc50_features_logmel.pt"
    assert file_of("nsynth_train_features.pt", "logmel") == "nsynth_train_features_logmel.pt"
    assert slug_of(EncoderKind.UNTRAINED, "AudioSep ResUNet30") == slug_of(None, "") == "audiosep"
    assert slug_of(LogMelStatistics.info.kind, LogMelStatistics.info.encoder) == "logmel"


@pytest.mark.usefixtures("no_figures")
def test_a_hear_module_goes_from_audio_to_scores(
    module: Path, esc50_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own rate, own file, own folder of results; a second run has nothing to do, and changed code is refused."""
    monkeypatch.setattr(type(TASK), "features_of", lambda self, slug: tmp_path / file_of(self.features_file, slug))
    monkeypatch.setattr(type(TASK), "output_dir_of", lambda self, slug: tmp_path / "results" / slug)
    flags = ["--data-root", str(esc50_root), "--encoder", f"hear:{module}"]
    extract_main(TASK, flags)
    features = FeatureSet.load(tmp_path / "esc50_features_tiny.pt")
    assert features.features.shape == (10, 6)
    assert (features.meta["encoder"], features.meta["sample_rate"]) == ("hear:tiny.py", 8000)
    assert (features.meta["layer"], features.meta["pool"], features.meta["min_samples"]) == ("scene", "", 400)
    assert features.meta["parameters"] == 2400
    assert features.meta["code"].startswith("sha256:")
    own = load(f"hear:{module}")
    path = esc50_root / features.clip_ids[3].removeprefix("ESC-50-master/")
    waveform = read_audio(path, 8000)
    assert torch.equal(own.embed_outputs([waveform], own.outputs[:1])[own.outputs[0]][0], features.features[3])
    extract_main(TASK, flags)
    assert "Nothing to do" in capsys.readouterr().out
    changed(module, "square()", "abs()")
    with pytest.raises(SystemExit):
        extract_main(TASK, flags)
    assert "was made with different settings (code" in capsys.readouterr().err
    classify_main(TASK, ["--encoder", f"hear:{module}", "--epochs", "2"])
    record = RunRecord.load(tmp_path / "results" / "tiny" / "result.json")
    assert (record.features.encoder, record.features.width) == ("hear:tiny.py", 6)
    # The file says which encoder made it.
    classify_main(TASK, ["--features", str(tmp_path / "esc50_features_tiny.pt"), "--epochs", "2"])
    assert "Nothing to do" in capsys.readouterr().out


def test_other_weights_of_a_module_give_other_embeddings(module: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").write_text(str(seed))
    plain, same, other = (
        load(f"hear:{module}{end}") for end in ("", f":{tmp_path / 'seed0'}", f":{tmp_path / 'seed1'}")
    )
    assert plain.info.checkpoint.startswith("sha256:")
    assert len({plain.info.checkpoint, same.info.checkpoint, other.info.checkpoint}) == 3  # of tensors, of files
    sounds = [noise(0, 8000)]
    scene = plain.outputs[0]
    assert torch.equal(plain.embed_outputs(sounds, [scene])[scene], same.embed_outputs(sounds, [scene])[scene])
    assert not torch.equal(plain.embed_outputs(sounds, [scene])[scene], other.embed_outputs(sounds, [scene])[scene])


def test_clips_of_any_lengths_are_the_same_alone_and_in_company(module: Path) -> None:
    encoder = load(f"hear:{module}")
    assert [output.name for output in encoder.outputs] == [
        "scene",
        "timestamps mean",
        "timestamps std",
        "timestamps max",
    ]
    sounds = [noise(seed, samples) for seed, samples in enumerate([8000, 1, 8000, 12_345, 400, 8000])]
    together = encoder.embed_outputs(sounds, encoder.outputs)
    for row, sound in enumerate(sounds):
        for output, values in encoder.embed_outputs([sound], encoder.outputs).items():
            torch.testing.assert_close(values[0], together[output][row], rtol=1e-5, atol=1e-6)
    frames = torch.from_numpy(sounds[3]).unfold(0, 400, 200) @ encoder._model.projection.detach()
    expected = {
        "mean": frames.square().mean(0),
        "std": frames.square().std(0, correction=0),
        "max": frames.square().amax(0),
    }
    for pool, values in expected.items():
        torch.testing.assert_close(together[Output("timestamps", pool, 6)][3], values, rtol=1e-5, atol=1e-5)


def test_the_shortest_clip_is_found_and_shorter_ones_are_padded(module: Path, tmp_path: Path) -> None:
    assert load(f"hear:{module}").info.min_samples == 400
    encoder = load(changed(module, "timestamp_embedding_size = 6", "timestamp_embedding_size = 6; min_samples = 777"))
    assert encoder.info.min_samples == 777  # the module pads by itself, so nothing is done here
    with pytest.raises(PluginError):
        encoder.embed_outputs([noise(0, 300)], encoder.outputs)
    module.write_text(MODULE)
    clips = [
        Clip(write_wav(tmp_path / f"{index}.wav", index, seconds, 8000), ("a",))
        for index, seconds in enumerate([0.03, 1])
    ]
    encoder = load(f"hear:{module}")
    assert extract(
        ThisProcess(encoder, encoder.outputs[:1], Threads.shared()),
        ClipList(clips, tmp_path, "test"),
        tmp_path / "f.pt",
    )
    features = FeatureSet.load(tmp_path / "f.pt")
    assert features.meta["counts"] == {"clips": 2, "extracted": 2, "failed": 0, "padded": 1}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("import torch", "import no_such_package", "cannot be imported: No module named 'no_such_package'"),
        ("import torch", "import torch\n1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def get_scene_embeddings", "def scene", "has no get_scene_embeddings; a HEAR module needs"),
        ("sample_rate = 8000", "rate = 8000", "the model's sample_rate is None; HEAR asks for a whole number"),
        (
            "    return Model(",
            "    raise OSError('no weights')\n    return Model(",
            r"load_model \(line \d+\): OSError: no weights",
        ),
        ("[0].mean(dim=1)", "[0]", r"gave torch.float32 of shape \(1, \d+, 6\) for audio of shape"),
        (".square(), times", ".square() * float('nan'), times", "gives NaN or infinity for 10 s of noise"),
        ("scene_embedding_size = ", "scene_embedding_size = 5; ", "scene has 6 numbers, not 5"),
    ],
    ids=["package", "import", "function", "rate", "load", "shape", "nan", "width"],
)
def test_modules_that_do_not_work_are_explained(before: str, after: str, message: str, module: Path) -> None:
    name = changed(module, before, after)
    with pytest.raises(PluginError, match=message):
        load(name)


def test_missing_files_are_explained(module: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere.py not found; give the HEAR module's file"):
        load(f"hear:{tmp_path / 'nowhere.py'}")
    with pytest.raises(PluginError, match=r"weights nowhere\.pt not found"):
        load(f"hear:{module}:nowhere.pt")
    (tmp_path / "beside_it.py").touch()
    with pytest.raises(PluginError, match=r"it is beside the file: set PYTHONPATH="):
        load(changed(module, "import torch\n", "import torch\nimport beside_it\n"))


@pytest.mark.parametrize("what", [{"condition": "zero"}, {"precision": "bf16"}, {"padding": "official"}])
def test_what_only_audiosep_has_is_refused(what: dict[str, str], module: Path) -> None:
    for name in (EncoderName(EncoderKind.LOGMEL), EncoderName.parse(f"hear:{module}")):
        with pytest.raises(PluginError, match="is for AudioSep alone"):
            new_encoder(name, "random:0", CPU, **what)


@pytest.mark.parametrize("call_s", [0.0, 100.0], ids=["alone", "in a batch"])
def test_clips_on_which_a_module_fails_are_named(
    call_s: float, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "embed_in_batches", lambda *given: embed_in_batches(*given[:3], call_s))
    name = changed(
        module, "    frames = ", "    if len(audio[audio.abs() > 0.9]): raise RuntimeError('too loud')\n    frames = "
    )
    clips = [Clip(write_wav(tmp_path / f"{index}.wav", index, 0.5, 8000), ("a",)) for index in range(4)]
    loud = np.zeros(4000, np.float32)
    loud[7] = 0.99
    sys.modules["soundfile"].write(clips[2].path, loud, 8000)
    encoder = load(name)
    assert extract(
        ThisProcess(encoder, encoder.outputs[:1], Threads.shared()),
        ClipList(clips, tmp_path, "test"),
        tmp_path / "f.pt",
    )
    features = FeatureSet.load(tmp_path / "f.pt")
    assert features.clip_ids == ["0.wav", "1.wav", "3.wav"]
    ((clip, reason),) = features.meta["failed"]
    assert clip == "2.wav" and "RuntimeError: too loud" in reason


def hubert(folder: Path) -> Path:
    """A tiny random HuBERT, saved as transformers saves models."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.HubertConfig(**sizes, conv_dim=(8,) * 7, num_conv_pos_embeddings=16)
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return folder


def test_hubert_gives_what_transformers_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hubert(tmp_path / "tiny-hubert")
    with on_one_thread():
        encoder = new_encoder(EncoderName.parse(f"hf:{folder}"), "", CPU)
        layers = ["last_hidden_state", "hidden_state_0", "hidden_state_1", "hidden_state_2"]
        assert list(dict.fromkeys(output.layer for output in encoder.outputs)) == layers
        assert (encoder.default_output, encoder.sample_rate) == (Output("last_hidden_state", "mean", 16), 16_000)
        assert encoder.info.min_samples == 400  # of its convolutions
        assert encoder.info.encoder == "hf:tiny-hubert"
        assert encoder.info.code.startswith("transformers HubertModel, settings ")
        sounds = [noise(0, 16_000), noise(1, 5000), noise(2, 16_000)]
        embedded = encoder.embed_outputs(sounds, encoder.outputs)
        transformers = sys.modules["transformers"]
        model, extractor = (
            kind.from_pretrained(folder) for kind in (transformers.AutoModel, transformers.AutoFeatureExtractor)
        )
        for row, sound in enumerate(sounds):
            inputs = extractor(sound, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                states = model.eval()(**inputs, output_hidden_states=True)
            for layer, frames in zip(layers, (states.last_hidden_state, *states.hidden_states), strict=True):
                expected = {"mean": frames[0].mean(0), "std": frames[0].std(0, correction=0), "max": frames[0].amax(0)}
                for pool, values in expected.items():
                    torch.testing.assert_close(embedded[Output(layer, pool, 16)][row], values, rtol=1e-4, atol=1e-5)
        main([f"hf:{folder}", "--layer", "hidden_state_1", "--json", str(tmp_path / "check.json")])
    assert "DOES NOT HOLD" not in capsys.readouterr().out
    record = CheckRecord.load(tmp_path / "check.json")
    assert not [item for item in record.properties if item.holds is False]
    assert record.output == "hidden_state_1 mean"


def test_missing_weights_and_other_settings_are_noticed(tmp_path: Path) -> None:
    """Weights that are not there would be random; other settings of the feature extractor give other features."""
    folder = hubert(tmp_path / "tiny-hubert")
    with on_one_thread():
        name = EncoderName.parse(f"hf:{folder}")
        info = new_encoder(name, "", CPU).info
        settings = folder / "preprocessor_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_normalize": False}))
        other = new_encoder(name, "", CPU).info
        assert (info.checkpoint, info.code) != (other.checkpoint, other.code) and info.checkpoint == other.checkpoint
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        kept = {key: value for key, value in weights.items() if "masked_spec_embed" not in key}
        safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        assert new_encoder(name, "", CPU).info.checkpoint == new_encoder(name, "", CPU).info.checkpoint
        kept = {key: value for key, value in kept.items() if "layers.1." not in key}
        safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(PluginError, match=r"lacks \d+ of its weights .* which would be random"):
            new_encoder(name, "", CPU)


def test_a_named_encoder_must_be_the_one_of_the_file(
    module: Path, esc50_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.pt"
    extract_main(TASK, ["--data-root", str(esc50_root), "--encoder", f"hear:{module}", "--output", str(file)])
    with pytest.raises(SystemExit):
        classify_main(TASK, ["--features", str(file), "--encoder", "logmel", "--output-dir", str(tmp_path / "o")])
    assert "was made by hear:tiny.py, not by logmel" in capsys.readouterr().err
    assert EncoderName.parse("hear:audiosep.py").slug == "hear_audiosep"


def test_a_model_that_makes_every_clip_equally_long_says_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ASTConfig(**sizes, max_length=64, num_mel_bins=16, patch_size=16)
    transformers.ASTModel(config).save_pretrained(tmp_path)
    transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=16).save_pretrained(tmp_path)
    with on_one_thread():
        encoder = new_encoder(EncoderName.parse(f"hf:{tmp_path}"), "", CPU)
        assert encoder.info.code.startswith("transformers ASTModel, settings ")
        assert encoder.info.code.endswith(", clips of one length")
        assert "pooler_output" in {output.layer for output in encoder.outputs}
        record = check_encoder(encoder)
    assert not [item for item in record.properties if item.holds is False]
    (end,) = (item for item in record.properties if item.name == "another last second of 30 s")
    assert end.measured == "changes nothing"  # of a clip, it hears 0.64 s


def test_without_transformers_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        PluginError, match=r"transformers, which is not installed: pip install -r requirements-encoders.txt"
    ):
        new_encoder(EncoderName.parse("hf:facebook/hubert-base-ls960"), "", CPU)


def test_a_folder_without_an_audio_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(PluginError, match="cannot be loaded"):
        new_encoder(EncoderName.parse(f"hf:{tmp_path}"), "", CPU)


def test_the_check_passes_the_built_in_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)
    with on_one_thread():
        for own in (load_encoder("random:2024", "cpu"), LogMelStatistics()):
            record = check_encoder(own)
            assert not [item for item in record.properties if item.holds is False]
            assert {each.measured for each in record.properties[:4]} == {"to the last bit"}
            assert record.speed > 0


@pytest.mark.parametrize(
    ("change", "property_"),
    [
        (("torch.randn(400, 6, generator=generator)", "torch.randn(400, 6)"), None),
        (("[0].mean(dim=1)", "[0].mean(dim=1) + torch.rand(1)"), "the same twice"),
        (("[0].mean(dim=1)", "[0].mean(dim=1) / audio.abs().max()"), "alone as in a batch"),
        (("[0].mean(dim=1)", "[0].mean(dim=1) / audio.norm(dim=1, keepdim=True)"), "silence: finite numbers"),
        (("[0].mean(dim=1)", "[0].mean(dim=1) * 0"), "different sounds differ"),
        (
            (
                "    frames = ",
                "    audio = audio[:, int(torch.randint(0, max(1, audio.shape[1] - 24000), ())):]\n    frames = ",
            ),
            "the same twice",
        ),
    ],
    ids=["nothing", "random", "batch", "silence", "dead", "crop"],
)
def test_the_check_finds_what_is_wrong(
    change: tuple[str, str], property_: str | None, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = changed(module, *change)
    if property_ is None:
        main([name])
    else:
        with pytest.raises(SystemExit) as ended:
            main([name])
        assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("DOES NOT HOLD")]
    assert bool(failed) == (property_ is not None)
    assert property_ is None or any(property_ in line for line in failed)


def test_one_extraction_keeps_several_outputs_and_a_classification_picks(
    module: Path, esc50_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "all.pt"
    flags = ["--data-root", str(esc50_root), "--encoder", f"hear:{module}", "--output", str(file)]
    extract_main(TASK, [*flags, "--layer", "all", "--pool", "mean,std"])
    features = FeatureSet.load(file)
    assert list(features.output_columns) == ["scene", "timestamps mean", "timestamps std"]
    assert features.features.shape == (10, 18)
    scene = features.pick(None, None)  # the encoder's default
    assert (scene.meta["layer"], scene.features.shape) == ("scene", (10, 6))
    joined = features.pick("scene+timestamps", "std+mean")
    assert torch.equal(joined.features, features.features[:, [*range(6), *range(12, 18), *range(6, 12)]])
    assert (joined.meta["layer"], joined.meta["pool"]) == ("scene+timestamps", "std+mean")
    for layers, pools, message in (
        ("bottleneck", None, "--layer bottleneck is not in the feature file, which holds: scene, timestamps mean"),
        ("timestamps", "max", "--pool max of timestamps is not in the feature file"),
    ):
        with pytest.raises(FeatureFileError, match=message):
            features.pick(layers, pools)
    classify = ["--features", str(file), "--output-dir", str(tmp_path / "out"), "--epochs", "2"]
    classify_main(TASK, [*classify, "--layer", "timestamps", "--pool", "mean+std"])
    record = RunRecord.load(tmp_path / "out" / "result.json")
    assert (record.features.width, record.features.layer, record.features.pool) == (12, "timestamps", "mean+std")
    with pytest.raises(SystemExit):
        classify_main(TASK, [*classify, "--layer", "timestamps"])
    assert "holds the results of another run (use_pool" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["WhisperModel", "WhisperForAudioClassification"])
def test_of_a_padded_clip_only_its_frames_are_pooled(kind: str, tmp_path: Path) -> None:
    """Also of a checkpoint that lacks the decoder, which is not used."""
    transformers = pytest.importorskip("transformers")
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 80}
    tokens = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    getattr(transformers, kind)(transformers.WhisperConfig(**sides, **widths, **tokens)).save_pretrained(tmp_path)
    transformers.WhisperFeatureExtractor().save_pretrained(tmp_path)
    with on_one_thread():
        encoder = new_encoder(EncoderName.parse(f"hf:{tmp_path}"), "", CPU)
        waveforms = [noise(seed, samples) for seed, samples in enumerate((9_600, 48_000, 500_000))]
        embeddings = encoder.embed(waveforms)
        model, extractor = (
            getattr(transformers, name).from_pretrained(tmp_path) for name in (kind, "AutoFeatureExtractor")
        )
        by_hand = model.encoder if kind == "WhisperForAudioClassification" else model.get_encoder()
        for waveform, embedding, frames in zip(waveforms, embeddings, (30, 150, 1500), strict=True):  # of 20 ms
            inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                states = by_hand.eval()(**inputs).last_hidden_state
            torch.testing.assert_close(embedding, states[0, :frames].mean(dim=0))


def test_clap_s_encoder_of_sounds_is_taken(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    sound = {"hidden_size": 128, "patch_embeds_hidden_size": 16, "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=16)
    transformers.ClapModel(config).save_pretrained(tmp_path)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(tmp_path)
    with on_one_thread():
        encoder = new_encoder(EncoderName.parse(f"hf:{tmp_path}"), "", CPU)
        waveforms = [noise(seed, samples) for seed, samples in enumerate((24_000, 96_000, 600_000))]  # 10 s are 480,000
        embeddings = encoder.embed(waveforms)
        torch.testing.assert_close(encoder.embed(waveforms), embeddings, rtol=0, atol=0)
        model, extractor = (
            kind.from_pretrained(tmp_path) for kind in (transformers.AutoModel, transformers.AutoFeatureExtractor)
        )
        inputs = extractor(waveforms[0], sampling_rate=48_000, return_tensors="pt")
        with torch.no_grad():
            states = model.audio_model.eval()(**inputs).last_hidden_state
        torch.testing.assert_close(embeddings[0], states[0].mean(dim=(1, 2)))


def test_a_codec_is_no_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16, "num_lstm_layers": 1}
    transformers.EncodecModel(transformers.EncodecConfig(**sizes)).save_pretrained(tmp_path)
    transformers.EncodecFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(PluginError, match="its EncodecModel fails on sound, as a codec or synthesiser does"):
        new_encoder(EncoderName.parse(f"hf:{tmp_path}"), "", CPU)


def test_an_encoder_that_depends_on_chance_is_noted(module: Path, tmp_path: Path) -> None:
    text = module.read_text()
    restless = tmp_path / "restless.py"
    restless.write_text(
        f"{text}\n\ntold = get_scene_embeddings\n\n\ndef get_scene_embeddings(audio, model):\n    return told(audio, model) + torch.rand(1)\n"
    )
    with pytest.warns(DatasetNote, match="gives one clip two embeddings"):
        new_encoder(EncoderName.parse(f"hear:{restless}"), "", CPU)


def test_one_file_need_not_be_a_list(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", seconds=0.5)
    encoder = load_encoder(encoder="logmel")
    assert torch.equal(encoder.embed_files(str(path)), encoder.embed_files([path]))
