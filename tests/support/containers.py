"""The same clips as Parquet with bytes, and as a tar in WebDataset's layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_parquet(
    path: Path, files: Sequence[Path], columns: Mapping[str, Sequence[object]], names: Sequence[str] = ()
) -> Path:
    """As `datasets` writes it, in row groups of three; `names` are those of the ClassLabel ``label``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = pa.array([{"bytes": file.read_bytes(), "path": file.name} for file in files], AUDIO)
    table = pa.table({"audio": audio, **{name: pa.array(list(cells)) for name, cells in columns.items()}})
    features = {"audio": {"_type": "Audio"}} | (
        {"label": {"names": list(names), "_type": "ClassLabel"}} if names else {}
    )
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(noted), path, row_group_size=3)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
