"""Extraction: clips + encoder -> FeatureSet."""

from common.extraction.extract import ExtractionError, ExtractOptions, default_workers, extract
from common.extraction.settings import ClipList
from common.extraction.shards import Shard, ShardError

__all__ = [
    "ClipList",
    "ExtractOptions",
    "ExtractionError",
    "Shard",
    "ShardError",
    "default_workers",
    "extract",
]
