"""The clips most like a sound, or a varied choice of clips to label: python own_sounds/find.py SOUND EMBEDDINGS... -k 20."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

import common  # noqa: F401  # first: it says what is missing

# isort: split
import numpy as np

from common.arrays import Array
from common.config import ConfigError
from common.datasets import Clip
from common.files import write_atomically, write_csv
from common.flags import Parser, run, user_path
from common.text_table import as_text
from own_sounds.predict import add_encoder, encoder_of
from own_sounds.sounds import Source, absolute

if TYPE_CHECKING:
    from common.features import FeatureSet, Provenance
    from common.heads.scalers import Scaler

BLOCK = 1 << 13  # rows compared at a time
MOST_CLUSTERED = 100_000  # clips from which a varied choice is made; of more, a random sample
SHOWN_S = 30.0  # of a clip, in the page
COLUMNS = ["path", "label", "start", "end", "group"]
TEMPLATE = Path(__file__).resolve().with_name("template")


class Found(NamedTuple):
    """A clip that was found or chosen."""

    clip: Clip
    name: str  # its id in the file of embeddings
    known_label: str  # the label that it already has there; empty without one
    similarity: float | None  # cosine; None for a varied choice


@dataclass(frozen=True, eq=False)
class Collection:
    """Embeddings of clips in one or several files, all of one encoder and output."""

    sets: list[FeatureSet]
    roots: list[Path]  # of every set, the folder from which the paths of its clips count

    @classmethod
    def load(cls, paths: Sequence[Path], audio: Path | None) -> Collection:
        """UserError: a file cannot be read, its sounds are not found, or it is of another encoder than the first."""
        from common.features import FeatureSet
        from common.heads import require_equal

        sets = [FeatureSet.load(path).pick(None, None) for path in paths]
        for path, other in zip(paths[1:], sets[1:], strict=True):
            require_equal(sets[0].meta, other.meta, f"{paths[0]} was made with", f"{path} with")
        return cls(sets, [_root_of(path, one, audio) for path, one in zip(paths, sets, strict=True)])

    @property
    def made_by(self) -> Provenance:
        return self.sets[0].meta

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def embeddings(self) -> Array:
        """(N, D) float32, of all sets one after another; of a single folder, on the disk."""
        values = [one.features.numpy() for one in self.sets]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def found(self, row: int, similarity: float | None = None) -> Found:
        """The clip of a row."""
        from common.features import label_texts

        for one, root in zip(self.sets, self.roots, strict=True):
            if row < len(one):
                name = one.clip_ids[row]
                labels = label_texts(one.labels[row : row + 1].numpy(), one.class_names) if one.class_names else [""]
                return Found(clip_of(name, root), name, labels[0], similarity)
            row -= len(one)
        raise IndexError(row)


def clip_of(clip_id: str, root: Path) -> Clip:
    """The clip that an id means, such as ``night.wav#2.5-7.5``."""
    from common.features import SEGMENT

    match = SEGMENT.search(clip_id)
    path = root / SEGMENT.sub("", clip_id)
    if match is None or (path.exists() is False and (root / clip_id).exists()):
        return Clip(root / clip_id)
    start_s, end_s = (None if text is None else float(text) for text in match.groups())
    return Clip(path, start_s=start_s, end_s=end_s)


def _root_of(path: Path, features: FeatureSet, audio: Path | None) -> Path:
    """Where the sounds of a file of embeddings are. ConfigError if the first is not there."""
    probed = Source.load(path if path.is_dir() else path.parent)
    places = [audio] if audio else [*([probed[1]] if probed else []), path.parent, Path.cwd()]
    for place in places:
        if clip_of(features.clip_ids[0], place).path.exists():
            return absolute(place)
    raise ConfigError(
        f"{path} is of clips such as {features.clip_ids[0]}, which is not in {places[0]}; say where the sounds are: --audio FOLDER"
    )


def _unit_rows(embeddings: Array, scaler: Scaler) -> Iterator[tuple[int, Array]]:
    """Blocks of scaled rows, of length 1, each with the number of its first row."""
    for start in range(0, len(embeddings), BLOCK):
        rows = scaler(embeddings[start : start + BLOCK])
        yield start, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(query: Array, embeddings: Array, scaler: Scaler, count: int) -> tuple[Array, Array]:
    """The rows most like a query (D,) among (N, D) embeddings, exactly: (K,) int64 row numbers and (K,) cosines of scaled
    embeddings, best first, of equals the first."""
    ((_, (target,)),) = _unit_rows(query[None], scaler)
    rows, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    for start, block in _unit_rows(embeddings, scaler):
        rows = np.concatenate([rows, np.arange(start, start + len(block))])
        cosines = np.concatenate([cosines, block @ target])
        best = np.argsort(-cosines, kind="stable")[:count]
        rows, cosines = rows[best], cosines[best]
    return rows, cosines


def varied(embeddings: Array, scaler: Scaler, count: int) -> Array:
    """(K,) int64 rows, one of every k-means cluster, the nearest to its centre; clusters with most clips first."""
    from sklearn.cluster import KMeans

    sample = np.arange(len(embeddings))
    if len(sample) > MOST_CLUSTERED:
        sample = np.sort(np.random.default_rng(0).choice(len(sample), MOST_CLUSTERED, replace=False))
    units = np.concatenate([block for _, block in _unit_rows(embeddings[sample], scaler)])
    clusters = KMeans(min(count, len(units)), n_init=1, random_state=0).fit(units)
    distances = clusters.transform(units)
    order = np.argsort(-np.bincount(clusters.labels_), kind="stable")
    return np.array([sample[distances[:, cluster].argmin()] for cluster in order])


def find_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _find(_parser().parse_args(argv)))


def _find(arguments: argparse.Namespace) -> None:
    paths: list[Path] = arguments.paths
    count = arguments.diverse or arguments.k
    if count < 1:
        raise ConfigError("give a number of clips of at least 1")
    if len(paths) < 2 and not arguments.diverse:
        raise ConfigError("give a sound and then files of embeddings, or files alone with --diverse N")
    collection = Collection.load(paths if arguments.diverse else paths[1:], arguments.audio)
    embeddings = collection.embeddings
    from common.heads import fit_scaler

    scaler = fit_scaler("whiten", embeddings) if arguments.whiten else fit_scaler("standard", embeddings)
    if arguments.diverse:
        found = [collection.found(int(row)) for row in varied(embeddings, scaler, count)]
    else:
        query = _embedding_of(paths[0], collection.made_by, arguments)
        pairs = zip(*nearest(query, embeddings, scaler, count), strict=True)
        found = [collection.found(int(row), float(cosine)) for row, cosine in pairs]
    print(_table(found))
    written = []
    if arguments.csv:
        rows = [[rank, *_cells(one, one.known_label), one.similarity] for rank, one in enumerate(found, start=1)]
        write_csv(arguments.csv, [["rank", *COLUMNS, "similarity"], *rows])
        written.append(arguments.csv)
    ranks = _ranks(arguments.ranks, len(found))
    if arguments.label is not None:
        add_to_table([found[rank - 1] for rank in ranks], arguments.label, arguments.table)
        written.append(arguments.table)
    if arguments.html:
        what = f"{len(found)} clips to label" if arguments.diverse else f"{len(found)} clips most like {paths[0].name}"
        labels = [arguments.label or "" if rank in ranks else "" for rank in range(1, len(found) + 1)]
        write_page(found, labels, what, int(collection.made_by.get("sample_rate", 16_000)), arguments.html)
        written.append(arguments.html)
    if written:
        print(f"-> {', '.join(map(str, written))}")
    elif not arguments.diverse:
        print("Listen: the same with --html FILE. Make them clips of a class: --label NAME")


def _embedding_of(sound: Path, made_by: Provenance, flags: argparse.Namespace) -> Array:
    """The embedding (D,) of a file, or of a segment of it written as FILE#2.5-7.5, by the encoder of the embeddings."""
    from common.datasets.audio import read_audio
    from common.heads import outputs_behind

    clip = clip_of(sound.name, sound.parent)
    encoder = encoder_of(made_by, flags)
    outputs = outputs_behind(made_by, encoder, "the embeddings were made with")
    embedded = encoder.embed_outputs([read_audio(clip.path, encoder.sample_rate, clip.start_s, clip.end_s)], outputs)
    return np.concatenate([embedded[output][0].numpy() for output in outputs])


def _table(found: Sequence[Found]) -> str:
    has_labels = any(one.known_label for one in found)
    table = [["", "clip", *["label"] * has_labels, "similarity"]]
    for rank, one in enumerate(found, start=1):
        similarity = "" if one.similarity is None else f"{one.similarity:.3f}"
        table.append([str(rank), one.name, *[one.known_label] * has_labels, similarity])
    return as_text(table if found[0].similarity is not None else [row[:-1] for row in table], left=2 + has_labels)


def _ranks(text: str | None, count: int) -> list[int]:
    """The ranks, from 1, that a text such as ``1-5,8`` means; ConfigError if it means none of these."""
    if text is None:
        return list(range(1, count + 1))
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        ranks = [rank for part in ends for rank in range(part[0], part[-1] + 1)]
    except ValueError as error:
        raise ConfigError(f"--ranks {text!r} is not such as 1-5,8") from error
    if not ranks or not set(ranks) <= set(range(1, count + 1)):
        raise ConfigError(f"--ranks {text} must be from 1 to {count}, the clips that were found")
    return ranks


def _cells(found: Found, label: str) -> list[object]:
    """A row of a table that `probe.py` takes; segments of a file are one group."""
    clip = found.clip
    return [clip.path, label, clip.start_s, clip.end_s, clip.path.name]


def add_to_table(found: Sequence[Found], label: str, path: Path) -> None:
    """Append clips to a table with the columns COLUMNS, unless they are in it; ConfigError if it is another table."""
    rows = [COLUMNS]
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if rows[:1] != [COLUMNS]:
            raise ConfigError(f"{path} does not have the columns {', '.join(COLUMNS)}; give another --table")
    listed = {(path, start, end) for path, _, start, end, _ in rows}
    new = [["" if cell is None else str(cell) for cell in _cells(one, label)] for one in found]
    added = [row for row in new if (row[0], row[2], row[3]) not in listed]
    write_csv(path, [*rows, *added])
    before = f"; {len(new) - len(added)} were in it before, and keep their labels" * (len(added) < len(new))
    print(f"{len(added)} clips of {label!r} added to {path}{before}")


def write_page(found: Sequence[Found], labels: Sequence[str], title: str, sample_rate: int, path: Path) -> None:
    """Write a page that shows and plays the clips, and makes a table of the labels that are typed."""
    from common.datasets.audio import read_audio
    from common.page import as_json, environment, loudest, picture_uri, sound_uri, spectrogram
    from common.progress import progress_bar

    shown = []
    for one in progress_bar(iterable=found, desc="drawing", unit="clip"):
        waveform = read_audio(one.clip.path, sample_rate, one.clip.start_s, one.clip.end_s)[
            : round(SHOWN_S * sample_rate)
        ]
        decibels = spectrogram(waveform, sample_rate, 300, 80)
        shown.append((one, picture_uri(decibels, loudest(decibels)), sound_uri(waveform, sample_rate)))
    rows = [["" if cell is None else str(cell) for cell in _cells(one, "")] for one in found]
    template = environment(TEMPLATE).get_template("find.html")
    data = as_json({"columns": COLUMNS, "rows": rows})
    write_atomically(path, template.render(title=title, shown=shown, labels=labels, data=data).encode())


def _parser() -> Parser:
    parser = Parser(__doc__)
    text = "the sound to look for (a file, or FILE#2.5-7.5 of it), then embeddings, as embed.py writes them; with --diverse, embeddings alone"
    parser.add_argument("paths", nargs="+", type=user_path, metavar="SOUND EMBEDDINGS", help=text)
    parser.add_argument("-k", type=int, default=20, metavar="N", help="clips to find (default: 20)")
    text = "in place of a sound: choose N clips that differ, one of every k-means cluster, to label them"
    parser.add_argument("--diverse", type=int, metavar="N", help=text)
    text = "compare whitened embeddings, not standardised ones"
    parser.add_argument("--whiten", action="store_true", help=text)
    text = "the folder from which the clips' paths count (default: as probe.py noted it, or where the embeddings are)"
    parser.add_argument("--audio", type=user_path, metavar="FOLDER", help=text)
    text = "write a page to look, listen and label: what is typed there is saved as a table that probe.py takes"
    parser.add_argument("--html", type=user_path, metavar="FILE", help=text)
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write what was found as a table")
    text = "add the clips to --table as clips of this class"
    parser.add_argument("--label", metavar="NAME", help=text)
    parser.add_argument("--ranks", metavar="LIST", help="of these, such as 1-5,8 (default: all)")
    text = "the table of labels, for probe.py (default: labels.csv)"
    parser.add_argument("--table", type=user_path, default=Path("labels.csv"), metavar="FILE", help=text)
    add_encoder(parser)
    return parser


if __name__ == "__main__":
    find_main()
