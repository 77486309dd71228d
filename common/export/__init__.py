"""The encoder as files that other libraries load: ``python -m common.export FOLDER``."""

from common.export.hugging_face import ExportError, export_hugging_face

__all__ = ["ExportError", "export_hugging_face"]
