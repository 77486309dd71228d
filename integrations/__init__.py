"""Adapters of the encoders to other tools: benchmark suites, transformers, ONNX. The rest of the project imports none of
them, except `common/export.py` and `analysis/suite_protocols.py`.
"""

import common  # says what is missing, before any other import fails
