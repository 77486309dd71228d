"""Any encoder with the interface of HEAR 2021 (https://hearbenchmark.com/hear-api.html): a module, or a .py file.

The module has ``load_model(path)``, ``get_scene_embeddings(audio, model)`` and, perhaps,
``get_timestamp_embeddings(audio, model)``; examples are in examples/encoders/. Beyond the interface, its model may have
these attributes: `min_samples`, the length to which the module itself pads shorter clips; `weights_file`, the path of
weights that are not torch parameters; `version`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import operator
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from common.encoder.embedding import Embeds
from common.encoder.plug_in import (
    POOLS,
    PluginError,
    by_length,
    find_min_samples,
    n_parameters,
    pool_over_time,
    tensors_sha256,
)
from common.encoder.protocol import EncoderInfo, Output, Waveform
from common.encoder.waveforms import check_waveforms
from common.encoder_name import EncoderName
from common.files import sha256_of

SCENE, TIMESTAMPS = "scene", "timestamps"
NEEDED = ("load_model", "get_scene_embeddings")


class HearEncoder(Embeds):
    """An `Encoder` from a HEAR module.

    Its outputs: ``scene``, and the timestamp embeddings pooled over time. The clips of a call share a batch only if they
    have the same length, and nothing is padded but clips shorter than `min_samples`: by the module if it says how long that
    is, else by zeros at the end.
    """

    def __init__(self, name: EncoderName, device: torch.device) -> None:
        """Import the module and load its model.

        Raises:
            PluginError: a file is missing, the module lacks a function, or one of them fails.
        """
        self.name, self.device = name, device
        self._module = _import(name)
        missing = [function for function in NEEDED if not callable(getattr(self._module, function, None))]
        if missing:
            raise PluginError(f"{name} has no {' and no '.join(missing)}; a HEAR module needs {' and '.join(NEEDED)}")
        if name.weights and not Path(name.weights).exists():
            raise PluginError(f"{name}: weights {name.weights} not found")
        self._model = self._call("load_model", name.weights) if name.weights else self._call("load_model")
        if isinstance(self._model, nn.Module):
            self._model = self._model.eval().requires_grad_(False).to(device)
        self.sample_rate = self._attribute("sample_rate")
        outputs = [Output(SCENE, "", self._attribute("scene_embedding_size"))]
        if callable(getattr(self._module, "get_timestamp_embeddings", None)):
            width = self._attribute("timestamp_embedding_size")
            outputs += [Output(TIMESTAMPS, pool, width) for pool in POOLS]
        self.outputs, self.default_output = tuple(outputs), outputs[0]
        self._pad_to = 1
        declared = getattr(self._model, "min_samples", None)
        self.min_samples = declared or find_min_samples(self, str(name))
        if not declared:
            self._pad_to = self.min_samples
        self.info = self._describe()

    def embed_outputs(self, waveforms: Sequence[Waveform], outputs: Sequence[Output]) -> dict[Output, torch.Tensor]:
        """As `Encoder.embed_outputs`; PluginError if the module fails, or returns something else than it should."""
        checked = check_waveforms(waveforms, self._pad_to)
        embeddings = {output: torch.empty(len(checked), output.width) for output in outputs}
        for rows in by_length(checked, self.sample_rate):
            audio = torch.from_numpy(np.stack([checked[row] for row in rows])).to(self.device)
            if any(output.layer == SCENE for output in outputs):
                scene = self._embed("get_scene_embeddings", audio, 2)
            if any(output.layer == TIMESTAMPS for output in outputs):
                frames = self._embed("get_timestamp_embeddings", audio, 3)
            for output in outputs:
                values = scene if output.layer == SCENE else pool_over_time(frames, output.pool)
                if values.shape[1] != output.width:
                    raise PluginError(f"{self.name}: {output.name} has {values.shape[1]} numbers, not {output.width}")
                embeddings[output][rows] = values
        return embeddings

    @torch.no_grad()
    def _embed(self, function: str, audio: torch.Tensor, ndim: int) -> torch.Tensor:
        """The embeddings that a function of the module gives for (N, samples): float32 on the CPU, of `ndim` dimensions."""
        result = self._call(function, audio.clone(), self._model)  # a module may change its input
        values = result[0] if isinstance(result, (tuple, list)) and len(result) else result
        try:
            values = values if torch.is_tensor(values) else torch.as_tensor(np.asarray(values))
        except TypeError as error:
            raise PluginError(f"{self.name}: {function} gave a {type(result).__name__}, not embeddings") from error
        if values.ndim != ndim or len(values) != len(audio) or not values.is_floating_point() or 0 in values.shape:
            raise PluginError(
                f"{self.name}: {function} gave {values.dtype} of shape {tuple(values.shape)} for audio of shape "
                f"{tuple(audio.shape)}; it should be floating-point, with one row per sound and {ndim} dimensions"
            )
        return values.detach().to("cpu", torch.float32)

    def _call(self, function: str, *arguments: object) -> Any:
        """Call a function of the module; whatever it raises becomes a PluginError that names the line."""
        try:
            return getattr(self._module, function)(*arguments)
        except Exception as error:
            if function == "load_model" and not arguments and "required positional argument" in str(error):
                raise PluginError(f"{self.name}: load_model needs weights; give them: {self.name}:WEIGHTS") from error
            frames = [
                frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._module.__file__
            ]
            place = f" (line {frames[-1].lineno})" if frames else ""
            raise PluginError(f"{self.name}: {function}{place}: {type(error).__name__}: {error}") from error

    def _attribute(self, attribute: str) -> int:
        value = getattr(self._model, attribute, None)
        try:
            number = operator.index(value)  # type: ignore[arg-type]  # numpy's whole numbers too
        except TypeError:
            number = 0
        if number < 1:
            raise PluginError(f"{self.name}: the model's {attribute} is {value!r}; HEAR asks for a whole number")
        return number

    def _describe(self) -> EncoderInfo:
        weights = getattr(self._model, "weights_file", None) or self.name.weights
        checkpoint = _weights_sha256(self.name, Path(weights)) if weights else "none"
        if not weights and isinstance(self._model, nn.Module) and self._model.state_dict():
            checkpoint = tensors_sha256(self._model)
        source = self._module.__file__
        code = f"sha256:{hashlib.sha256(Path(source).read_bytes()).hexdigest()}" if source else "unknown"
        version = getattr(self._model, "version", getattr(self._module, "__version__", ""))
        return EncoderInfo(
            kind=self.name.kind,
            encoder=self.name.label,
            checkpoint=checkpoint,
            release="plug-in",
            condition="none",
            precision="fp32",
            code=f"{code}, {version}" if version else code,
            parameters=n_parameters(self._model),
            min_samples=self.min_samples,
        )


def _weights_sha256(name: EncoderName, path: Path) -> str:
    """``sha256:<hex>`` of a file, or of all files of a folder; PluginError if it is missing."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise PluginError(f"{name}: weights {path} not found")
    sums = [sha256_of(file) for file in files]
    return f"sha256:{sums[0] if path.is_file() else hashlib.sha256(''.join(sums).encode()).hexdigest()}"


def _import(name: EncoderName) -> ModuleType:
    """The module that a name means; PluginError if it is missing or cannot be imported."""
    path = Path(name.place).resolve()
    try:
        if not name.is_file:
            return importlib.import_module(name.place)
        if not path.is_file():
            raise PluginError(f"{name.place} not found; give the HEAR module's file: hear:FILE.py")
        spec = importlib.util.spec_from_file_location(f"hear_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except PluginError:
        raise
    except ImportError as error:
        beside = path.parent / f"{error.name}.py"
        hint = f"; it is beside the file: set PYTHONPATH={path.parent}" if error.name and beside.is_file() else ""
        raise PluginError(f"{name} cannot be imported: {error}{hint}") from error
    except Exception as error:
        raise PluginError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
