"""The settings of an extraction, which decide whether earlier work can be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.datasets import Clip, DatasetError
from common.encoder import Encoder, Output
from common.features import SEVERAL, Provenance
from common.files import describe_difference

NOT_DECISIVE = ("release", "device", "parameters", "min_samples", "default_output")


@dataclass(frozen=True)
class ClipList:
    """The clips of an extraction, in the order of the file's rows.

    Attributes:
        clips: the clips.
        root: the data root, to which clip ids are relative.
        dataset: the task's name.
        class_names: every class in its official order; None: alphabetical. Only classes that occur are kept.
    """

    clips: Sequence[Clip]
    root: Path
    dataset: str
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """DatasetError if there are no clips, or if one is of a class that is not in `class_names`."""
        if not self.clips:
            raise DatasetError(
                f"no clips of {self.dataset} were found in {self.root}; give its folder with --data-root"
            )
        for clip in self.clips:
            if self.class_names is not None and clip.class_name and clip.class_name not in self.class_names:
                raise DatasetError(
                    f"{clip.path} is of class {clip.class_name!r}, which is not among the {len(self.class_names)} classes of "
                    f"{self.dataset}; add it to the task's class_names"
                )

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def clip_ids(self) -> list[str]:
        """The id of every clip; DatasetError if two are the same."""
        clip_ids = [clip.clip_id(self.root) for clip in self.clips]
        seen: set[str] = set()
        for clip_id in clip_ids:
            if clip_id in seen:
                raise DatasetError(
                    f"{clip_id} is listed twice by the data set under {self.root}; unpack the data set again"
                )
            seen.add(clip_id)
        return clip_ids

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of the clips' ids, labels, splits, folds and groups."""
        listing = hashlib.sha256()
        for clip_id, clip in zip(self.clip_ids, self.clips, strict=True):
            listing.update(
                f"{clip_id}\t{clip.class_name}\t{clip.split}\t{clip.fold}\t{clip.group}\n".encode(
                    errors="surrogatepass"
                )
            )
        return f"sha256:{listing.hexdigest()}"


@dataclass(frozen=True)
class ExtractionSettings:
    """The settings of an extraction: the part of its feature file's provenance that is known from the start.

    Work from one kind of device is not continued on another, since rounding differs.
    """

    provenance: Provenance

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
            clip_list=clips.fingerprint,
            device=encoder.device.type,
        )
        if not is_one:
            provenance["outputs"] = [(output.layer, output.pool, output.width) for output in outputs]
            first = encoder.default_output if encoder.default_output in outputs else outputs[0]
            provenance["default_output"] = (first.layer, first.pool)
        return cls(provenance)

    @property
    def decisive(self) -> dict[str, object]:
        """The settings that a finished file must share to be used; the others follow from them."""
        return {key: value for key, value in self.provenance.items() if key not in NOT_DECISIVE}

    def difference_from_file(self, meta: Provenance) -> str:
        """How a finished file was made differently, in words; empty if it was not."""
        return describe_difference(meta, self.decisive)

    def difference_from_work(self, earlier: Mapping[str, object]) -> str:
        """How unfinished work was made differently, in words; empty if it was not."""
        return describe_difference(earlier, json.loads(self.as_json()))

    def as_json(self) -> str:
        """The settings as the folder of unfinished work records them."""
        return json.dumps({**self.decisive, "device": self.provenance["device"]}, sort_keys=True)

    @cached_property
    def identity(self) -> str:
        """A checksum, to recognise work made with the same settings."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()
