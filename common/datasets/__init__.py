"""What a data set is to the rest of the project: a list of clips, and the task that they belong to."""

from common.datasets.clip import LABEL_SEPARATOR as LABEL_SEPARATOR
from common.datasets.clip import Clip as Clip
from common.datasets.clip import count as count
from common.datasets.labels import Labels as Labels
from common.datasets.labels import read_indicators as read_indicators
from common.datasets.labels import read_labels as read_labels
from common.datasets.layout import DatasetError as DatasetError
from common.datasets.layout import DatasetMissingError as DatasetMissingError
from common.datasets.layout import DatasetNote as DatasetNote
from common.datasets.layout import download_command as download_command
from common.datasets.layout import layout_error as layout_error
from common.datasets.layout import plain_name as plain_name
from common.datasets.layout import read_csv as read_csv
from common.datasets.layout import read_metadata as read_metadata
from common.datasets.layout import read_text as read_text
from common.datasets.task import Division as Division
from common.datasets.task import DivisionKind as DivisionKind
from common.datasets.task import Flag as Flag
from common.datasets.task import Metric as Metric
from common.datasets.task import Prepared as Prepared
from common.datasets.task import Task as Task
from common.datasets.task import Variants as Variants
from common.datasets.task import use_as_is as use_as_is
