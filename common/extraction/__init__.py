"""Extraction: clips + encoder -> embeddings, in parts."""

from common.extraction.clip_list import ClipList as ClipList
from common.extraction.extract import ExtractionError as ExtractionError
from common.extraction.extract import ExtractOptions as ExtractOptions
from common.extraction.extract import extract as extract
from common.extraction.runner import ThisProcess as ThisProcess
from common.extraction.runner import Threads as Threads
from common.extraction.share import ShardError as ShardError
from common.extraction.share import Share as Share
