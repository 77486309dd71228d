"""Tables as text: CSV in any dialect, and the label files of Raven and Audacity, every row with its place in the file."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.datasets.clip import AUDIO_SUFFIXES
from common.datasets.layout import DatasetError, DatasetMissingError, DatasetNote

SEPARATORS = "\t;,"
TABLES = (".csv", ".tsv", ".txt")  # what text tables are called
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
WHICH_ENCODING = "say which it is, such as --encoding latin-1 (cp1252, big5, gbk ...), or save it as UTF-8"
# What an annotation file's name has after that of its recording.
ANNOTATION = re.compile(r"(\.BirdNET)?(\.Table\.\d+)?(\.selections?)?(\.table)?\.txt$", re.IGNORECASE)
NUMBER = r"\s*-?\d+(?:[.,]\d+)?\s*"
AUDACITY = re.compile(rf"({NUMBER})\t({NUMBER})(?:\t([^\t]*))?")
# Columns of Raven.
BEGIN, END, OFFSET = "Begin Time (s)", "End Time (s)", "File Offset (s)"
FILE, BEGIN_PATH = "Begin File", "Begin Path"


@dataclass(frozen=True)
class Rows:
    """The rows of a table."""

    columns: dict[str, list[str]]  # name -> a cell per row, without blanks around it
    places: list[str]  # of every row, for messages: "sounds.csv line 3"
    file: Path  # the table; or the folder, if it is of several files
    audio: str | None = None  # the column whose paths lead into containers: every row is a whole clip
    origin: str = ""  # as in `Sounds`

    @property
    def folder(self) -> Path:
        """From which paths count."""
        return self.file if self.file.is_dir() else self.file.parent

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def joined(cls, tables: Sequence[Rows], folder: Path, origin: str = "") -> Rows:
        """The rows of several files, with the columns of all."""
        names = dict.fromkeys(name for rows in tables for name in rows.columns)
        columns = {
            name: [cell for rows in tables for cell in rows.columns.get(name, [""] * len(rows))] for name in names
        }
        return cls(columns, [place for rows in tables for place in rows.places], folder, tables[0].audio, origin)


def as_cell(value: object) -> str:
    """A value of a typed table as text; empty for None and NaN."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bytes):
        return value.decode().strip()
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return str(value).strip()


def read_text(path: Path, fix: str = "get it again", encoding: str | None = None) -> str:
    """A text file in UTF-8 or UTF-16, or in `encoding`. DatasetError: it is neither; the message ends with `fix`."""
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); {fix}") from error
    except LookupError as error:
        raise DatasetError(f"--encoding {encoding} is unknown; give one such as latin-1, cp1252, big5, gbk") from error
    except UnicodeDecodeError as error:
        what = encoding or "UTF-8 or UTF-16"
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path} cannot be read: not text in {what} (line {line}); {fix}") from error
    if "\0" in text:
        raise DatasetError(f"{path} cannot be read: it is not text; {fix}")
    return text


def separator_of(header: str) -> str:
    """What separates the names in the first line of a table: a tab, a semicolon or a comma."""
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), ())))


def parse_csv(text: str, path: Path, fix: str) -> Rows:
    """The rows of a CSV with a header, separated by tabs, semicolons or commas, as the header shows.

    Quotes belong to the text where tabs separate, unless the header has some. Empty lines are left out; so are columns without
    a name. DatasetError: a line has more or fewer cells than the header, or an unbalanced quote; or there are no rows. The
    message names the file `path`, and ends with `fix`.
    """
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    mark = separator_of(header)
    if re.fullmatch("sep=.", header):  # as Excel writes
        lines[lines.index(header)] = ""
        return parse_csv("\n".join(lines), path, fix)
    has_quotes = mark != "\t" or '"' in header
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=mark,
        quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE,
        strict=True,
        skipinitialspace=mark != "\t",
    )
    records: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for cells in reader:
            records.append((start, [cell.strip() for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path} line {start} cannot be read ({error}): a quote is missing, or within a cell; {fix}"
        ) from error
    filled = [(line, cells) for line, cells in records if any(cells)]
    if len(filled) < 2:
        raise DatasetError(f"{path} lists no clips; {fix}")
    n_empty = sum(not any(cells) for line, cells in records if line < filled[-1][0])
    if n_empty:
        warnings.warn(f"{path}: {n_empty} empty lines are left out", DatasetNote, stacklevel=2)
    return _as_rows(path, filled, mark, fix)


def _as_rows(path: Path, records: Sequence[tuple[int, list[str]]], mark: str, fix: str) -> Rows:
    names = list(records[0][1])
    while not names[-1]:
        names.pop()
    name, count = Counter(filter(None, names)).most_common(1)[0]
    if count > 1:
        raise DatasetError(f"{path} has {count} columns called {name}; rename them")
    fewest = min(len(cells) for _, cells in records[1:])
    if mark == "\t" and fewest - 1 == len(names) == len(records[0][1]):  # R has names of rows, without a header
        names.insert(0, "")
    for line, cells in records[1:]:
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise DatasetError(
                f"{path} line {line} has {len(cells)} cells, but {len(names)} are named ({', '.join(names)}); put a cell "
                f"that holds {mark!r} in quotes"
            )
    columns = {name: [cells[place] for _, cells in records[1:]] for place, name in enumerate(names) if name}
    return Rows(columns, [f"{path} line {line}" for line, _ in records[1:]], path)


def read_columns(path: Path, columns: Sequence[str], fix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The place of every row of a CSV, and its cells in these columns; errors as for `read_text` and `parse_csv`."""
    rows = parse_csv(read_text(path, fix), path, fix)
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        has = ", ".join(list(rows.columns)[:10])
        raise DatasetError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has {has}); {fix}"
        )
    return zip(rows.places, zip(*(rows.columns[name] for name in columns), strict=True), strict=True)


def annotation_files(files: Sequence[Path]) -> list[Path]:
    """The label files of Raven and Audacity among files, as far as they name their recordings or lie beside them."""
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    return [
        path
        for path in texts
        if (_recording_of(path) and (is_raven(path) or is_audacity(path)))
        or BEGIN_PATH in _first_line(path).split("\t")
    ]


def _recording_of(path: Path) -> Path | None:
    """The recording beside a label file: ``night.wav`` of ``night.Table.1.selections.txt``."""
    stem = ANNOTATION.sub("", path.name)
    beside = (path.with_name(f"{stem}{suffix}") for suffix in sorted(AUDIO_SUFFIXES))
    return next(
        (file for lower in beside for file in (lower, lower.with_suffix(lower.suffix.upper())) if file.exists()), None
    )


def is_raven(path: Path) -> bool:
    """Whether a file is a selection table of Raven."""
    return BEGIN in _first_line(path).split("\t")


def is_audacity(path: Path) -> bool:
    """Whether a file holds labels of Audacity."""
    return AUDACITY.fullmatch(_first_line(path)) is not None


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(4096).decode("utf-8-sig", "replace").rstrip("\r\n")


def read_raven(path: Path, encoding: str | None = None) -> Rows:
    """The selections of a table of Raven, with a column ``path``: of the begin path, if that is there, or the begin file beside
    the table, if it is named, or the recording of the same name. A selection with a row for each view counts once.
    DatasetError: it cannot be read, or there is no recording."""
    rows = parse_csv(read_text(path, WHICH_ENCODING, encoding), path, "save it with Raven again")
    recording = _recording_of(path)
    paths = rows.columns.get(BEGIN_PATH, [])
    is_there = bool(paths) and all(Path(name).is_file() for name in set(paths))
    if recording is None and FILE not in rows.columns and not is_there:
        raise _no_recording(path)
    keys = [rows.columns.get("Selection", rows.places)]
    keys += [rows.columns[name] for name in (BEGIN, END, FILE) if name in rows.columns]
    first: dict[tuple[str, ...], int] = {}  # a selection's rows differ in their view alone
    for row, key in enumerate(zip(*keys, strict=True)):
        first.setdefault(key, row)
    kept = list(first.values())
    columns = {name: [cells[row] for row in kept] for name, cells in rows.columns.items()}
    files = columns[BEGIN_PATH] if is_there else columns.get(FILE) or [(recording or path).name] * len(kept)
    columns["path"] = [str(path.parent / file) for file in files]
    if OFFSET in columns:  # begin and end count from the first of several files
        try:
            times = [[float(cell.replace(",", ".")) for cell in columns[name]] for name in (BEGIN, END, OFFSET)]
        except (ValueError, KeyError) as error:
            raise DatasetError(f"{path}: {BEGIN}, {END} and {OFFSET} must be numbers ({error})") from error
        spans = [(offset, round(offset + end - begin, 6)) for begin, end, offset in zip(*times, strict=True)]
        columns[BEGIN], columns[END] = (list(map(str, moments)) for moments in zip(*spans, strict=True))
    elif len(set(files)) > 1:
        raise DatasetError(
            f"{path} has selections of several files without {OFFSET}; add that column in Raven, and save again"
        )
    return Rows(columns, [rows.places[row] for row in kept], path)


def read_audacity(path: Path, encoding: str | None = None) -> Rows:
    """The labels that Audacity has exported, of the recording beside the file; lines with a range of frequencies are passed
    over. DatasetError: a line is not a label, or there is no recording."""
    recording = _recording_of(path)
    if recording is None:
        raise _no_recording(path)
    columns: dict[str, list[str]] = {"path": [], "start": [], "end": [], "label": []}
    places = []
    for line, text in enumerate(read_text(path, WHICH_ENCODING, encoding).splitlines(), start=1):
        if not text.strip() or text.startswith("\\"):
            continue
        label = AUDACITY.fullmatch(text)
        if label is None:
            raise DatasetError(
                f"{path} line {line} ({text[:60]!r}) is not a label of Audacity: start, end and text between tabs"
            )
        for name, cell in zip(columns, (str(recording), *label.groups(default="")), strict=True):
            columns[name].append(cell.strip())
        places.append(f"{path} line {line}")
    return Rows(columns, places, path)


def _no_recording(path: Path) -> DatasetError:
    name = f"{ANNOTATION.sub('', path.name)}.wav"
    return DatasetMissingError(f"{path} has no recording beside it; put it there as {name}, or .flac, .mp3 and so on")
