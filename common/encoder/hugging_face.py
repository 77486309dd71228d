"""Audio encoders of Hugging Face transformers, with their own feature extractors: HuBERT, wav2vec 2.0, WavLM, AST...

transformers is an optional extra: ``pip install -r requirements-encoders.txt``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from common.arrays import Array
from common.encoder.plug_in import POOLS, PlugIn, PluginError, tensors_sha256
from common.encoder.protocol import Output
from common.encoder_name import EncoderName

LAST, POOLER = "last_hidden_state", "pooler_output"
UNUSED = ("masked_spec_embed", "mask_token")  # weights that only training uses


class TransformersEncoder(PlugIn):
    """An `Encoder` from a model of transformers.

    Its outputs: ``last_hidden_state`` and every ``hidden_state_N`` (0: what enters the first block), pooled over time,
    and ``pooler_output`` where the model has one. Clips share a batch only if they have the same length: models with
    group normalisation change with padding, even if it is masked.
    """

    is_thread_safe = True  # transformers collects hidden states per thread

    def __init__(self, name: EncoderName, device: torch.device, trust_remote_code: bool = False) -> None:
        """Load both; PluginError if transformers is missing, the model cannot be loaded, or it is no audio encoder."""
        self.name, self.device = name, device
        self._extractor, self._model = _load(name, trust_remote_code)
        self._model = self._model.eval().requires_grad_(False).to(device)
        rate = getattr(self._extractor, "sampling_rate", None)
        if not isinstance(rate, int):
            raise PluginError(f"{name}: its feature extractor has no sampling_rate, so it is not an audio model")
        self.sample_rate = rate
        second = 0.1 * np.random.default_rng(0).standard_normal(rate).astype(np.float32)
        self.outputs = self._find_outputs(second)
        self.default_output = self.outputs[0]
        self.pad_to = self.find_min_samples()
        # Whether the feature extractor pads or cuts every clip to one length.
        inputs = [self._inputs(np.tile(second, times)[None]) for times in (1, 2)]
        self.is_fixed_length = all(value.shape == inputs[1][key].shape for key, value in inputs[0].items())
        extractor = {f"extractor {key}": value for key, value in self._extractor.to_dict().items()}
        settings = {**self._model.config.to_dict(), **extractor}
        # A short checksum of what computes.
        decisive = {key: value for key, value in settings.items() if not re.search(r"path|version|hash|dtype", key)}
        checksum = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]
        code = f"transformers {type(self._model).__name__}, settings {checksum}"
        code += ", clips of one length" * self.is_fixed_length
        code += ", frames of the clip" * hasattr(self._extractor, "n_samples")
        self.info = self.describe(self._model, tensors_sha256(self._model), code, self.pad_to, ("transformers",))

    @torch.no_grad()
    def states(self, audio: Array, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """As `PlugIn.states`."""
        with_hidden = not set(layers) <= {LAST, POOLER}
        try:
            result = self._model(**self._inputs(audio), output_hidden_states=with_hidden, return_dict=True)
            states = {LAST: result.last_hidden_state}
        except torch.OutOfMemoryError:
            raise  # it says nothing about the clip
        except Exception as error:
            raise PluginError(f"{self.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        states |= {f"hidden_state_{number}": state for number, state in enumerate(result.get("hidden_states") or ())}
        states = {layer: self._frames_of(state, audio.shape[1]) for layer, state in states.items()}
        if result.get(POOLER) is not None:
            states[POOLER] = result[POOLER]
        return states

    def _frames_of(self, state: torch.Tensor, samples: int) -> torch.Tensor:
        """(N, time, D), of the clip alone where its extractor pads to a number of samples, as Whisper's does to 30 s."""
        if state.ndim == 4:  # (N, D, frequency, time), as of CLAP
            return state.flatten(2).transpose(1, 2)
        if state.ndim == 3 and (padded := getattr(self._extractor, "n_samples", None)):
            return state[:, : max(1, -(-samples * state.shape[1] // padded))]
        return state

    def _inputs(self, audio: Array) -> dict[str, torch.Tensor]:
        """What the feature extractor makes of clips of one length."""
        # CLAP's would draw a part of a longer clip at random.
        whole = audio[:, : getattr(self._extractor, "nb_max_samples", None)]
        inputs = self._extractor(list(whole), sampling_rate=self.sample_rate, return_tensors="pt")
        return {key: value.to(self.device) for key, value in inputs.items()}

    def _find_outputs(self, waveform: Array) -> tuple[Output, ...]:
        """Every output that the model has, found by embedding a second of noise."""
        outputs = []
        try:
            states = self.states(waveform[None], ["hidden_state_0"])
        except PluginError as error:
            kind = type(self._model).__name__
            raise PluginError(
                f"{error}; its {kind} fails on sound, as a codec or synthesiser does; neither is an encoder"
            ) from error
        for layer, values in states.items():
            if layer == POOLER and values.ndim == 2:
                outputs.append(Output(layer, "", values.shape[1]))
            elif values.ndim == 3:
                outputs += [Output(layer, pool, values.shape[2]) for pool in POOLS]
        if not outputs or outputs[0].layer != LAST:
            raise PluginError(f"{self.name}: its {LAST} is not (clips, time, numbers), so it cannot be pooled")
        return tuple(outputs)


def _load(name: EncoderName, trust_remote_code: bool) -> tuple[Any, Any]:
    """Feature extractor and model, in float32."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        install = "pip install -r requirements-encoders.txt"
        raise PluginError(f"{name} needs transformers, which is not installed: {install}") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": name.place, "trust_remote_code": trust_remote_code}
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(**source)
        model, loaded = transformers.AutoModel.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "it brings its own code; read that code, and if you trust it, add --trust-remote-code"
        raise PluginError(f"{name} cannot be loaded: {text[:300]}") from error
    # Missing weights would be drawn at random. UNUSED ones are set to 0, so that the checksum is the same every time.
    encoder = getattr(model, "audio_model", model)  # without CLAP's encoder of texts
    if getattr(model.config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
    used = {id(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = [str(key) for what in ("missing_keys", "mismatched_keys") for key in loaded[what]]
    missing = [key for key in missing if key not in tensors or id(tensors[key]) in used]
    if needed := [key for key in missing if not key.endswith(UNUSED)]:
        raise PluginError(
            f"{name} lacks {len(needed)} of its weights (first: {needed[0]}), which would be random; give a complete checkpoint"
        )
    for key, parameter in model.named_parameters():
        if key in missing:
            parameter.data.zero_()
    return extractor, encoder
