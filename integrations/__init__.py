"""AudioSep's encoder where other people's tools expect it: benchmark suites, transformers, ONNX. Nothing here is imported
by the rest of the project, except by `common/export.py` and `analysis/suite_protocols.py`.
"""

import common  # noqa: F401  # says what is missing, before any other import fails
