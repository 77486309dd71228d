"""Extraction: clips + encoder -> embeddings, in parts."""

from common.extraction.clip_list import ClipList
from common.extraction.extract import ExtractOptions, extract
from common.extraction.runner import ThisProcess, Threads
from common.extraction.work import ExtractionError
from common.flags import Share
