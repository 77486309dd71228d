"""Write AudioSep's encoder for use without this project: python -m common.export FOLDER, or --format onnx FILE.onnx.

The folder is for Hugging Face transformers: AutoModel.from_pretrained(FOLDER, trust_remote_code=True). The ONNX file holds clips
of any length; those of a call must have one length.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.entry import run
from common.flags import Parser, user_path

FORMATS = ("hf", "onnx")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(lambda: _export(argv))


def _export(argv: Sequence[str] | None) -> None:
    parser = Parser(__doc__, prog="python -m common.export")
    parser.add_argument(
        "place", type=user_path, metavar="FOLDER_OR_FILE", help="where to: a folder for hf, a file for onnx"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="hf", help="hf: Hugging Face transformers; or onnx (default: hf)"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="the weights, or random:SEED (default: the project's usual file)"
    )
    parser.add_argument(
        "--condition", default="none", metavar="FILE", help="none, zero, or a .npy or .pt file (default: none)"
    )
    parser.add_argument("--padding", default="none", metavar="NAME", help="none or official (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a folder that is not empty")
    given = parser.parse_args(argv)
    from common.export import ExportError, export_hugging_face, export_onnx

    if given.format == "onnx" and given.padding != "none":
        raise ExportError("--padding official is for --format hf alone")
    if given.format == "onnx":
        written = export_onnx(given.place, given.checkpoint, given.condition, given.overwrite)
    else:
        written = export_hugging_face(given.place, given.checkpoint, given.condition, given.padding, given.overwrite)
    for path in written:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")


if __name__ == "__main__":
    main()
