"""The clips most like a sound, or a varied choice of clips to label: python own_sounds/find.py SOUND EMBEDDINGS... -k 20."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.config import ConfigError
from common.files import refuse_unwritable, write_atomically, write_csv
from common.flags import Parser, run, user_path
from common.text_table import as_text
from own_sounds.predict import add_encoder, encoder_of

if TYPE_CHECKING:
    from common.arrays import Array
    from common.features import Provenance
    from own_sounds.search import Match

SHOWN_S = 30.0  # of a clip, in the page
COLUMNS = ["path", "label", "start", "end", "group"]
TEMPLATE = Path(__file__).resolve().with_name("template")


def find_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _find(_parser().parse_args(argv)))


def _find(arguments: argparse.Namespace) -> None:
    paths, count = arguments.paths, arguments.diverse or arguments.k
    if count < 1:
        raise ConfigError("give a number of clips of at least 1")
    if len(paths) < 2 and not arguments.diverse:
        raise ConfigError("give a sound and then files of embeddings, or files alone with --diverse N")
    for place in (arguments.csv, arguments.html, arguments.label and arguments.table):
        if place:
            refuse_unwritable(place)
    from common.heads import fit_scaler
    from own_sounds.search import Collection, nearest, varied

    collection = Collection.load(paths if arguments.diverse else paths[1:], arguments.audio)
    embeddings, made_by = collection.embeddings, collection.made_by
    scaler = fit_scaler("whiten" if arguments.whiten else "standard", embeddings)
    if arguments.diverse:
        title, matches = f"{count} clips to label", [collection.match(row) for row in varied(embeddings, scaler, count)]
    else:
        title, query = f"{count} clips most like {paths[0].name}", _embedding_of(paths[0], made_by, arguments)
        pairs = zip(*nearest(query, embeddings, scaler, count), strict=True)
        matches = [collection.match(row, cosine) for row, cosine in pairs]
    print(_table(matches))
    written = []
    if arguments.csv:
        rows = [[rank, *_cells(match, match.label), match.similarity] for rank, match in enumerate(matches, start=1)]
        write_csv(arguments.csv, [["rank", *COLUMNS, "similarity"], *rows])
        written.append(arguments.csv)
    if arguments.label:
        add_to_table(matches, arguments.label, arguments.table)
        written.append(arguments.table)
    if arguments.html:
        write_page(matches, title, arguments.label or "", int(made_by.get("sample_rate", 16_000)), arguments.html)
        written.append(arguments.html)
    print(f"-> {', '.join(map(str, written))}" if written else "Listen and label: the same with --html FILE")


def _embedding_of(sound: Path, made_by: Provenance, flags: argparse.Namespace) -> Array:
    """The embedding (D,) of a file, or of a segment of it written as FILE#2.5-7.5, by the encoder of the embeddings."""
    import torch

    from common.datasets.audio import read_audio
    from common.heads import outputs_behind
    from own_sounds.search import clip_of

    clip, encoder = clip_of(sound.name, sound.parent), encoder_of(made_by, flags)
    outputs = outputs_behind(made_by, encoder, "the embeddings were made with")
    embedded = encoder.embed_outputs([read_audio(clip.path, encoder.sample_rate, clip.start_s, clip.end_s)], outputs)
    return torch.cat([embedded[output][0] for output in outputs]).numpy()


def _table(matches: Sequence[Match]) -> str:
    rows = []
    for rank, match in enumerate(matches, start=1):
        similarity = "" if match.similarity is None else f"{match.similarity:.3f}"
        rows.append([str(rank), similarity, match.label, match.name])
    return as_text([["", "similarity", "label", "clip"], *rows], left=4)


def _cells(match: Match, label: str) -> list[str]:
    """A row of a table that `probe.py` takes; segments of a file are one group."""
    clip = match.clip
    start, end = ("" if moment is None else str(moment) for moment in (clip.start_s, clip.end_s))
    return [str(clip.path), label, start, end, clip.path.name]


def add_to_table(matches: Sequence[Match], label: str, path: Path) -> None:
    """Append clips to a table with the columns COLUMNS, unless they are in it; ConfigError if it is another table."""
    import pandas as pd

    chosen = pd.DataFrame([_cells(match, label) for match in matches], columns=COLUMNS)
    listed = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else chosen[:0]
    if list(listed) != COLUMNS:
        raise ConfigError(f"{path} does not have the columns {', '.join(COLUMNS)}; give another --table")
    table = pd.concat([listed, chosen]).drop_duplicates(["path", "start", "end"])
    write_csv(path, [COLUMNS, *table.to_numpy().tolist()])
    n_known = len(listed) + len(chosen) - len(table)
    before = f"; {n_known} were in it before, and keep their labels" * bool(n_known)
    print(f"{len(chosen) - n_known} clips of {label!r} added to {path}{before}")


def write_page(matches: Sequence[Match], title: str, label: str, sample_rate: int, path: Path) -> None:
    """Write a page that shows and plays the clips, and makes a table of the labels that are typed."""
    from common.datasets.audio import read_audio
    from common.page import as_json, environment, picture_uri, sound_uri, spectrogram
    from common.progress import progress_bar

    shown = []
    for match in progress_bar(iterable=matches, desc="drawing", unit="clip"):
        waveform = read_audio(match.clip.path, sample_rate, match.clip.start_s, match.clip.end_s)
        waveform = waveform[: round(SHOWN_S * sample_rate)]
        decibels = spectrogram(waveform, sample_rate, 300, 80)
        shown.append((match, picture_uri(decibels), sound_uri(waveform, sample_rate)))
    rows = [_cells(match, "") for match in matches]
    template = environment(TEMPLATE).get_template("find.html")
    data = as_json({"columns": COLUMNS, "rows": rows})
    write_atomically(path, template.render(title=title, shown=shown, label=label, data=data).encode())


def _parser() -> Parser:
    parser = Parser(__doc__)
    text = "the sound to look for (a file, or FILE#2.5-7.5 of it), then embeddings, as embed.py and probe.py write them"
    parser.add_argument("paths", nargs="+", type=user_path, metavar="SOUND EMBEDDINGS", help=text)
    parser.add_argument("-k", type=int, default=20, metavar="N", help="clips to find (default: 20)")
    text = "without a sound: choose N clips that differ, one of every k-means cluster, to label them"
    parser.add_argument("--diverse", type=int, metavar="N", help=text)
    parser.add_argument("--whiten", action="store_true", help="compare whitened embeddings, not standardised ones")
    text = "the folder from which the clips' paths count (default: as probe.py noted it, or where the embeddings are)"
    parser.add_argument("--audio", type=user_path, metavar="FOLDER", help=text)
    text = "write a page to look, listen and label: what is typed there is saved as a table that probe.py takes"
    parser.add_argument("--html", type=user_path, metavar="FILE", help=text)
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write what was found as a table")
    text = "the class that the clips are added to --table as, and have in the page until another is typed"
    parser.add_argument("--label", metavar="NAME", help=text)
    text = "a table of labels, for probe.py (default: labels.csv)"
    parser.add_argument("--table", type=user_path, default=Path("labels.csv"), metavar="FILE", help=text)
    add_encoder(parser)
    return parser


if __name__ == "__main__":
    find_main()
