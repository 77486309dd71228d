from .hugging_face import ExportError, export_hugging_face
from .onnx import export_onnx

__all__ = ["ExportError", "export_hugging_face", "export_onnx"]
