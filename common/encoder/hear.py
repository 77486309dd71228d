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
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.encoder.plug_in import POOLS, PlugIn, PluginError, tensors_sha256
from common.encoder.protocol import Output
from common.encoder_name import EncoderName
from common.files import sha256_of

SCENE, TIMESTAMPS = "scene", "timestamps"
FUNCTIONS = {SCENE: ("get_scene_embeddings", 2), TIMESTAMPS: ("get_timestamp_embeddings", 3)}  # with dimensions
NEEDED = ("load_model", "get_scene_embeddings")


class HearEncoder(PlugIn):
    """An `Encoder` from a HEAR module. Its outputs: ``scene``, and the timestamp embeddings pooled over time."""

    def __init__(self, name: EncoderName, device: torch.device) -> None:
        """Import the module and load its model; PluginError if a file or function is missing, or a function fails."""
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
        declared = getattr(self._model, "min_samples", None)  # the module pads by itself
        min_samples = declared or self.find_min_samples()
        self.pad_to = 1 if declared else min_samples
        code = f"sha256:{sha256_of(Path(str(self._module.__file__)))}"
        version = getattr(self._model, "version", getattr(self._module, "__version__", ""))
        code += f", {version}" * bool(version)
        self.info = self.describe(self._model, self._checkpoint(), code, min_samples)

    def states(self, audio: Array, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """As `PlugIn.states`."""
        on_device = torch.from_numpy(audio).to(self.device)
        return {layer: self._embed(*FUNCTIONS[layer], on_device) for layer in layers}

    @torch.no_grad()
    def _embed(self, function: str, ndim: int, audio: torch.Tensor) -> torch.Tensor:
        """What a function of the module gives for (N, samples): float32 on the CPU, of `ndim` dimensions."""
        result = self._call(function, audio.clone(), self._model)  # a module may change its input
        values = result[0] if isinstance(result, (tuple, list)) and len(result) else result
        try:
            values = torch.as_tensor(values if torch.is_tensor(values) else np.asarray(values))
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
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == self._module.__file__]
            place = f" (line {lines[-1]})" if lines else ""
            raise PluginError(f"{self.name}: {function}{place}: {type(error).__name__}: {error}") from error

    def _attribute(self, attribute: str) -> int:
        value = getattr(self._model, attribute, None)
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise PluginError(f"{self.name}: the model's {attribute} is {value!r}; HEAR asks for a whole number")
        return int(value)

    def _checkpoint(self) -> str:
        """``sha256:<hex>`` of the weights: a file, all files of a folder, or the model's tensors; ``none`` if it has none."""
        weights = getattr(self._model, "weights_file", None) or self.name.weights
        if not weights:
            has_tensors = isinstance(self._model, nn.Module) and self._model.state_dict()
            return tensors_sha256(self._model) if has_tensors else "none"
        path = Path(weights)
        if path.is_file():
            return f"sha256:{sha256_of(path)}"
        sums = "".join(sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file())
        if not sums:
            raise PluginError(f"{self.name}: weights {path} not found")
        return f"sha256:{hashlib.sha256(sums.encode()).hexdigest()}"


def _import(name: EncoderName) -> ModuleType:
    """The module that a name means; PluginError if it is missing or cannot be imported."""
    path = Path(name.place).resolve()
    if name.is_file and not path.is_file():
        raise PluginError(f"{name.place} not found; give the HEAR module's file: hear:FILE.py")
    try:
        if not name.is_file:
            return importlib.import_module(name.place)
        spec = importlib.util.spec_from_file_location(f"hear_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        problem = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ImportError) and error.name and (path.parent / f"{error.name}.py").is_file():
            problem += f"; it is beside the file: set PYTHONPATH={path.parent}"
        raise PluginError(f"{name} cannot be imported: {problem}") from error
