"""What a data set is to the rest of the project: a list of clips, and the task that they belong to."""

from common.datasets.clip import LABEL_SEPARATOR, Clip
from common.datasets.layout import (
    DatasetError,
    DatasetMissingError,
    DatasetNote,
    download_command,
    layout_error,
    plain_name,
)
from common.datasets.rows import read_columns, read_text
from common.datasets.tables import Sounds
from common.datasets.task import Copy, Division, DivisionKind, Flag, Metric, OfficialCounts, Prepared, Task, Variants
