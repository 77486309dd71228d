"""The settings of an extraction, which decide whether earlier work can be used."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import soundfile
import torch
from pydantic import JsonValue

from common.encoder import Encoder, Output
from common.extraction.clip_list import ClipList
from common.features import SEVERAL, Provenance
from common.files import describe_difference

NOT_DECISIVE = ("release", "parameters", "min_samples", "default_output", "versions")
PACKAGES = ("torch", "numpy", "soundfile", "soxr")


@dataclass(frozen=True)
class ExtractionSettings:
    """The settings of an extraction: the part of its feature file's provenance that is known from the start, and the numbers
    per clip."""

    provenance: Provenance
    width: int

    @classmethod
    def of(cls, clips: ClipList, encoder: Encoder, outputs: Sequence[Output]) -> ExtractionSettings:
        is_one = len(outputs) == 1
        provenance = Provenance(
            dataset=clips.dataset,
            kind=encoder.info.kind.value,
            encoder=encoder.info.encoder,
            checkpoint=encoder.info.checkpoint,
            release=encoder.info.release,
            code=encoder.info.code,
            padding=encoder.info.padding,
            condition=encoder.info.condition,
            precision=encoder.info.precision,
            layer=outputs[0].layer if is_one else SEVERAL,
            pool=outputs[0].pool if is_one else SEVERAL,
            sample_rate=encoder.sample_rate,
            parameters=encoder.info.parameters,
            min_samples=encoder.info.min_samples,
            clips=len(clips),
            clip_list=clips.fingerprint(),
            device=encoder.device.type,
        )
        if not is_one:
            provenance["outputs"] = [(output.layer, output.pool, output.width) for output in outputs]
            first = encoder.default_output if encoder.default_output in outputs else outputs[0]
            provenance["default_output"] = (first.layer, first.pool)
        provenance["versions"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in (*PACKAGES, *encoder.info.packages)},
            "libsndfile": soundfile.__libsndfile_version__,
        }
        if encoder.device.type == "cpu":
            provenance["versions"]["instructions"] = torch.backends.cpu.get_cpu_capability()
        return cls(provenance, sum(output.width for output in outputs))

    def difference_from_file(self, meta: Provenance) -> str:
        """How a finished file was made differently, in words; empty if it was not."""
        ignored = (*NOT_DECISIVE, "device")
        return describe_difference(meta, {key: value for key, value in self.provenance.items() if key not in ignored})

    @cached_property
    def of_parts(self) -> dict[str, JsonValue]:
        """What parts of one extraction share. A part knows its clips by itself. Rounding differs between devices."""
        ignored = (*NOT_DECISIVE, "clips", "clip_list")
        return {key: value for key, value in self._json.items() if key not in ignored}

    @cached_property
    def notes(self) -> dict[str, JsonValue]:
        """What parts note beside."""
        return {key: value for key, value in self._json.items() if key in NOT_DECISIVE}

    @cached_property
    def _json(self) -> dict[str, JsonValue]:
        return dict(json.loads(json.dumps(self.provenance)))
