"""The name of an encoder, as in ``--encoder``: audiosep, logmel, hear:MODULE_OR_FILE.py[:WEIGHTS], hf:NAME_OR_FOLDER."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from common.errors import UserError

FORMS = "audiosep, logmel, hear:MODULE_OR_FILE.py[:WEIGHTS] or hf:NAME_OR_FOLDER"


class EncoderKind(StrEnum):
    """The kinds of encoders. A name has every kind but UNTRAINED, which its weights decide, and ELSEWHERE."""

    AUDIOSEP = "audiosep"
    UNTRAINED = "untrained"  # AudioSep's network with random weights
    LOGMEL = "logmel"  # log-mel statistics, which are no network
    HEAR = "hear"  # a module with the interface of HEAR 2021
    TRANSFORMERS = "hf"  # a model of Hugging Face transformers
    ELSEWHERE = "elsewhere"  # embeddings that another program has made

    @property
    def is_plug_in(self) -> bool:
        return self in (EncoderKind.HEAR, EncoderKind.TRANSFORMERS)


BUILT_IN = (EncoderKind.AUDIOSEP, EncoderKind.LOGMEL)
PLUG_INS = (EncoderKind.HEAR, EncoderKind.TRANSFORMERS)


class EncoderNameError(UserError):
    """An encoder's name cannot be understood."""


@dataclass(frozen=True)
class EncoderName:
    kind: EncoderKind  # any but UNTRAINED and ELSEWHERE
    place: str = ""  # of "hear" a module, or the path of a .py file; of "hf" a model's name, or a folder
    weights: str = ""  # the path of a HEAR module's weights

    @classmethod
    def parse(cls, text: str) -> EncoderName:
        """Read a name; EncoderNameError if it has none of the forms."""
        if text in BUILT_IN:
            return cls(EncoderKind(text))
        prefix, _, place = text.partition(":")
        if prefix not in PLUG_INS or not place:
            missing = f"; {prefix} needs something after a colon" if prefix in PLUG_INS else ""
            raise EncoderNameError(f"encoder {text!r} is unknown{missing}: give {FORMS}")
        kind = EncoderKind(prefix)
        if kind is EncoderKind.TRANSFORMERS:
            return cls(kind, place)
        # A file may have a colon in its path (C:\...), so its name ends at .py.
        match = re.fullmatch(r"(.+?\.py|[^:]*)(?::(.*))?", place, re.DOTALL)
        assert match
        return cls(kind, match[1], match[2] or "")

    def __str__(self) -> str:
        return ":".join(part for part in (self.kind, self.place, self.weights) if part)

    @property
    def is_file(self) -> bool:
        return self.kind is EncoderKind.HEAR and self.place.endswith(".py")

    @property
    def label(self) -> str:
        """The name without folders, as files and results record it, such as ``"hear:yamnet.py"``."""
        if self.kind is EncoderKind.TRANSFORMERS:
            is_folder = Path(self.place).is_dir()
            return f"hf:{Path(self.place).resolve().name if is_folder else self.place}"
        return str(replace(self, place=Path(self.place).name, weights=Path(self.weights).name))

    @property
    def slug(self) -> str:
        """A short form for file names, such as ``"yamnet"`` or ``"hubert-base-ls960"``."""
        return slug_of(self.kind, self.label)

    def resolved(self, base: Path) -> EncoderName:
        """The same with relative paths taken from `base`."""
        # pathlib's expanduser fails for users who do not exist.
        place, weights = (os.path.expanduser(text) for text in (self.place, self.weights))  # noqa: PTH111
        path = base / place
        if self.is_file or (self.kind is EncoderKind.TRANSFORMERS and path.is_dir()):
            place = str(path)
        return replace(self, place=place, weights=str(base / weights) if weights else "")


def slug_of(kind: EncoderKind | None, label: str) -> str:
    """A short form for file names of an encoder; that of AudioSep if the kind is unknown."""
    if kind in (None, EncoderKind.AUDIOSEP, EncoderKind.UNTRAINED):
        return EncoderKind.AUDIOSEP.value
    if kind is EncoderKind.LOGMEL:
        return kind.value
    if kind is EncoderKind.ELSEWHERE:
        return re.sub(r"[^\w-]+", "_", label)
    name = EncoderName.parse(label)
    parts = [name.place.removesuffix(".py").rpartition("/")[2], Path(name.weights).stem]
    slug = re.sub(r"[^\w.-]+", "_", "_".join(part for part in parts if part))
    return f"{name.kind}_{slug}" if slug in BUILT_IN else slug


def file_of(file_name: str, slug: str) -> str:
    """The name of a feature file of another encoder: ``esc50_features_audiosep.pt`` -> ``esc50_features_logmel.pt``."""
    if slug == "audiosep":
        return file_name
    if "audiosep" in file_name:
        return file_name.replace("audiosep", slug)
    stem, dot, ending = file_name.rpartition(".")
    return f"{stem}_{slug}{dot}{ending}"
