"""Embed audio files with any encoder: python own_sounds/embed.py FILE_OR_FOLDER... -o embeddings.pt (.npz, .csv, .parquet)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.cli import extract_task, print_status
from common.config import ConfigError, ExtractConfig, load_config
from common.datasets import Task
from common.flags import Arguments, Launch, Parser, add_launch, add_settings, add_shared, run, user_path
from own_sounds.sounds import FOLDER, INPUTS, add_columns, clips_in
from own_sounds.windows import Windows, add_windows

FORMATS = (".pt", ".npz", ".parquet", ".csv")
TASK = Task("embeddings", "embeddings", FOLDER, lambda root: [], None, "embeddings.pt", {})
SETTINGS = [key for key in ExtractConfig.model_fields if key not in ("data_root", "features")]


def embed_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _embed(argv))


def _embed(argv: Sequence[str] | None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="+", type=user_path, metavar="FILE_OR_FOLDER", help=INPUTS)
    text = f"what to write: {', '.join(FORMATS)}, or a folder of parts"
    parser.add_argument("-o", "--output", required=True, type=user_path, metavar="FILE", help=text)
    add_windows(parser)
    add_columns(parser)
    add_settings(parser, ExtractConfig, TASK, SETTINGS)
    add_shared(parser)
    add_launch(parser)
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    is_table = output.suffix in FORMATS[1:]
    if output.suffix not in (*FORMATS, ""):
        raise ConfigError(f"--output {output}: give a name that ends in {', '.join(FORMATS)}, or that of a folder")
    launch, features_file = Launch.of(arguments), output.with_suffix(".pt") if is_table else output
    if launch.status:
        print_status(features_file, launch.status)
        return
    task = replace(TASK, name=f"embeddings_{output.stem}", title=output.stem)
    settings = {key: value for key, value in vars(arguments).items() if key in SETTINGS and value is not None}
    config = load_config(ExtractConfig, task.config_file, arguments.config, settings)
    windows = Windows(arguments.window, arguments.hop)
    sounds = clips_in(arguments.paths, arguments)
    for remark in sounds.remarks:
        print(remark)
    cuts = (cut for clip in sounds.clips for cut in windows.of_clip(clip))  # there may be millions
    how = Arguments([task], config, {}, arguments.overwrite, launch)
    if not extract_task(task, sounds, features_file, how, cuts):
        return  # another process joins the parts
    if is_table:
        from common.feature_formats import write_embeddings
        from common.features import FeatureSet

        write_embeddings(FeatureSet.load(features_file), output)
        print(f"-> {output}")
    print(f"Look for similar sounds: python own_sounds/find.py SOUND {features_file} --audio {sounds.root}")


if __name__ == "__main__":
    embed_main()
