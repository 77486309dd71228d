"""Adapters of the encoders to other tools: benchmark suites, transformers, ONNX. Only `common/export.py` imports them."""

import common  # says what is missing, before any other import fails
