"""Write AudioSep's encoder as a folder that transformers loads without this project: python -m common.export FOLDER."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.entry import run
from common.flags import Parser

FORMATS = ("hf",)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(lambda: _export(argv))


def _export(argv: Sequence[str] | None) -> None:
    parser = Parser(__doc__, prog="python -m common.export")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; it is created")
    parser.add_argument("--format", choices=FORMATS, default="hf", help="hf: Hugging Face transformers (default: hf)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="the weights, or random:SEED (default: the project's usual file)"
    )
    parser.add_argument(
        "--condition", default="none", metavar="FILE", help="none, zero, or a .npy or .pt file (default: none)"
    )
    parser.add_argument("--padding", default="none", metavar="NAME", help="none or official (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a folder that is not empty")
    given = parser.parse_args(argv)
    from common.export import export_hugging_face

    written = export_hugging_face(given.folder, given.checkpoint, given.condition, given.padding, given.overwrite)
    for path in written:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")


if __name__ == "__main__":
    main()
