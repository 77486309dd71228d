"""Frozen encoders: waveforms -> embeddings. AudioSep, log-mel statistics as a control, and any other as a plug-in.

What it offers is listed in ``__init__.pyi`` and imported when it is first used, so that commands start without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
