"""The encoder as files that other libraries load: ``python -m common.export FOLDER``, or ``--format onnx FILE``.

What it offers is listed in ``__init__.pyi`` and imported when it is first used, so that commands start without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
