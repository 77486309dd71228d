"""How the embeddings of a feature file were made, as the file records it."""

from __future__ import annotations

import torch
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

# The part of a file's provenance that says how its embeddings were computed.
ENCODER_SETTINGS = (
    *("encoder", "checkpoint", "code", "release", "condition", "padding", "precision"),
    *("layer", "pool", "sample_rate"),
)
# The part that several files of one encoder share.
SHARED = (*ENCODER_SETTINGS, "outputs", "default_output", "parameters", "min_samples")
# The part that has an entry per clip.
PER_CLIP = ("failed", "samples", "audio_checksums", "audio_stamps")
SEVERAL = "several"  # stands for the layer and the pool of a file with several outputs


class Counts(TypedDict, total=False):
    """How many clips an extraction was given, how many it embedded, how many failed, how many of those because their files are
    not there, and how many of the embedded ones were padded to the encoder's minimum."""

    clips: int
    extracted: int
    failed: int
    missing: int
    padded: int


@with_config(ConfigDict(arbitrary_types_allowed=True, extra="allow"))
class Provenance(TypedDict, total=False):
    """How a feature file was made, as the file records it; empty for the original project's files.

    `encoder` to `sample_rate`: how the embeddings were computed; what `common.encoder.EncoderInfo` says of each. `code` and
    `padding` are left out where they say nothing. `outputs`: (layer, pool, width) of each part of a row, if there are
    several, and `default_output` the one that is meant if none is named. `clips` and `clip_list`: number and fingerprint of the requested clips. `failed`: (clip id,
    reason). `samples` and `audio_checksums`: (N,) int64, each waveform's length and a checksum of its file's content;
    files of earlier versions have `audio_stamps` in its place, which looked only at three places of a file.
    """

    dataset: str
    encoder: str
    checkpoint: str
    release: str
    code: str
    condition: str
    padding: str
    precision: str
    parameters: int | None
    min_samples: int
    layer: str
    pool: str
    sample_rate: int
    outputs: list[tuple[str, str, int]]
    default_output: tuple[str, str]
    clips: int
    clip_list: str
    device: str
    counts: Counts
    failed: list[tuple[str, str]]
    samples: torch.Tensor
    audio_checksums: torch.Tensor
    audio_stamps: torch.Tensor
    versions: dict[str, str]


_PROVENANCE = TypeAdapter(Provenance)
_JSON = TypeAdapter(dict[str, JsonValue])


def read_provenance(meta: object) -> Provenance:
    """What a file says of how its embeddings were made; ValueError says which entry is wrong."""
    try:
        provenance = _PROVENANCE.validate_python(meta)
        # Entries that this version does not know are recorded with results, as JSON.
        _JSON.validate_python(
            {key: value for key, value in provenance.items() if key not in Provenance.__annotations__}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))[:100]
        raise ValueError(f"{place}: {problem['msg'][:200]}") from error
    return provenance
