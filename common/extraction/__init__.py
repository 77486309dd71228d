"""Extraction: clips + encoder -> embeddings, in parts."""

from common.extraction.clip_list import ClipList
from common.extraction.extract import ExtractionError, ExtractOptions, extract
from common.extraction.runner import Threads
from common.extraction.share import ShardError, Share

__all__ = [
    "ClipList",
    "ExtractOptions",
    "ExtractionError",
    "ShardError",
    "Share",
    "Threads",
    "extract",
]
