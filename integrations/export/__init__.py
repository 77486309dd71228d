"""Write AudioSep's encoder for use without this project: python -m common.export FOLDER, or --format onnx FILE.onnx.

The folder is for Hugging Face transformers: AutoModel.from_pretrained(FOLDER, trust_remote_code=True). The ONNX graph takes
clips of any length; clips of the same call must have the same length.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError
from common.flags import Parser, user_path


class ExportError(UserError):
    """The export cannot be written."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, prog="python -m common.export")
    parser.add_argument("path", type=user_path, metavar="FOLDER_OR_FILE", help="a folder for hf, a file for onnx")
    parser.add_argument(
        "--format", choices=("hf", "onnx"), default="hf", help="hf (transformers) or onnx (default: hf)"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="or random:SEED (default: the project's usual file)")
    parser.add_argument("--condition", default="none", metavar="FILE", help="none, zero, .npy or .pt (default: none)")
    parser.add_argument("--padding", choices=("none", "official"), default="none", help="of time (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a folder that is not empty")
    arguments = parser.parse_args(argv)
    path, weights = arguments.path, (arguments.checkpoint, arguments.condition)
    if arguments.format == "hf":
        from integrations.export.hugging_face import export_hugging_face

        written = export_hugging_face(path, *weights, arguments.padding, arguments.overwrite)
    elif arguments.padding != "none":
        raise ExportError("--padding official is for --format hf alone")
    else:
        from integrations.export.onnx import export_onnx

        written = [export_onnx(path, *weights, arguments.overwrite)]
    for file in written:
        print(f"{file.stat().st_size / 1e6:8.2f} MB  {file}")
