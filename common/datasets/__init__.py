"""What a data set is to the rest of the project: a list of clips, and the task that they belong to."""

from common.datasets.clip import LABEL_SEPARATOR, Clip
from common.datasets.labels import Labels, read_indicators, read_labels
from common.datasets.layout import (
    DatasetError,
    DatasetMissingError,
    DatasetNote,
    download_command,
    layout_error,
    plain_name,
    read_csv,
    read_metadata,
    read_text,
)
from common.datasets.task import Division, DivisionKind, Flag, Metric, OfficialCounts, Prepared, Task, Variants
