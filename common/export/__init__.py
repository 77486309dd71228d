"""The encoder as files that other libraries load: ``python -m common.export FOLDER``, or ``--format onnx FILE``."""

from common.export.hugging_face import ExportError, export_hugging_face
from common.export.onnx import export_onnx

__all__ = ["ExportError", "export_hugging_face", "export_onnx"]
