"""Embeddings of any audio files, as a feature file or a table; resumed and saved like any extraction."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import extract_task
from common.config import ConfigError, ExtractConfig, load_config
from common.datasets import Clip, Task
from common.entry import run
from common.errors import UserError
from common.files import ODD_LETTERS, write_atomically
from common.flags import Arguments, Parser, add_settings, add_shared, user_path
from own_sounds.files import Windows, expand, windows_of
from own_sounds.probing import EXTRACT
from own_sounds.sounds import FOLDER

if TYPE_CHECKING:
    from common.features import FeatureSet

FORMATS = (".pt", ".npz", ".parquet", ".csv")


def embed_main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(lambda: _embed(argv))


def _embed(argv: Sequence[str] | None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "paths", nargs="+", type=user_path, metavar="FILE_OR_FOLDER", help="audio files, or folders of them"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=user_path, metavar="FILE", help=f"what to write: {', '.join(FORMATS)}"
    )
    add_windows(parser)
    task = _task(Path("NAME"))
    add_settings(parser, ExtractConfig, task, EXTRACT)
    add_shared(parser)
    parser.add_argument("--shard", metavar="I/N", help="embed only shard i of n, for job arrays")
    given = vars(parser.parse_args(argv))
    output: Path = given["output"]
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output {output}: give a name that ends in {', '.join(FORMATS)}")
    flags = {key: given[key] for key in EXTRACT if given.get(key) is not None}
    config = load_config(ExtractConfig, task.config_file, given["config"], flags)
    files = expand(given["paths"])
    windows = Windows.given(given["window"], given["hop"])
    clips = [clip for path in files for clip in _clips(path, windows)]
    root = Path(os.path.commonpath([path.parent for path in files]))
    arguments = Arguments([task], config, {}, given["overwrite"], given["shard"])
    features_file = output.with_suffix(".pt")
    features = extract_task(_task(output), clips, root, features_file, arguments)
    if features is not None and output.suffix != ".pt":
        write_table(features, output)
        print(f"-> {output}")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Add the flags that cut long files."""
    parser.add_argument(
        "--window", type=float, metavar="S", help="cut files into windows of S seconds (default: whole files)"
    )
    parser.add_argument(
        "--hop", type=float, metavar="S", help="seconds from one window to the next (default: the window)"
    )


def _clips(path: Path, windows: Windows | None) -> list[Clip]:
    """The file, or its windows. A file that cannot be opened is kept whole, so that the extraction names it."""
    if windows is None:
        return [Clip(path, "")]
    try:
        return [
            Clip(path, "", start_s=start, end_s=end) for start, end in windows_of(path, windows.window_s, windows.hop_s)
        ]
    except UserError:
        return [Clip(path, "")]


def _task(output: Path) -> Task:
    """A task without classes, for the extraction."""
    name = f"embeddings_{output.stem}"
    return Task(name, output.stem, FOLDER, lambda root: [], None, f"{name}.pt", {})


def write_table(features: FeatureSet, path: Path) -> None:
    """Write the embeddings as .npz, .csv or .parquet.

    Raises:
        ConfigError: .parquet needs pyarrow, which is not installed.
    """
    import numpy as np

    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, features=features.features.numpy(), clip_ids=np.array(features.clip_ids))
    elif path.suffix == ".csv":
        buffer.write(features.to_pandas().to_csv(index=False).encode(errors=ODD_LETTERS))
    else:
        try:
            features.to_pandas().to_parquet(buffer, index=False)
        except ImportError as error:
            raise ConfigError("--output .parquet needs pyarrow: pip install pyarrow; or write .csv or .npz") from error
    write_atomically(path, buffer.getvalue())
