"""What a trained head hears in any audio: python own_sounds/predict.py HEAD.pt FILE_OR_FOLDER..."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError
from common.datasets import LABEL_SEPARATOR, Clip, Sounds
from common.datasets.rows import TABLES
from common.encoder_name import EncoderKind, EncoderName
from common.errors import UserError
from common.files import PROJECT_ROOT, refuse_unwritable, write_csv
from common.flags import Parser, add_figure_format, run, user_path
from common.progress import progress_bar
from common.text_table import as_text
from own_sounds.sounds import INPUTS, add_columns, clips_in
from own_sounds.windows import Windows, add_windows

if TYPE_CHECKING:
    from tqdm import tqdm

    from common.encoder import Encoder
    from common.features import Provenance
    from common.heads import Threshold, TrainedHead
    from own_sounds.timeline import Event, Heard

NONE = "none of these"
LITTLE = 0.15  # share of unheard classes' clips that is hardly more than the false alarms


def predict_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _predict(argv))


def _predict(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise ConfigError("--top must be at least 1")
    windows = Windows.of_flags(arguments.window, arguments.hop)
    for flag in ("plot", "events", "html"):
        if getattr(arguments, flag) and windows is None:
            raise ConfigError(f"--{flag} shows what is heard over time; add --window S")
    if arguments.events and arguments.events.suffix in TABLES:
        raise ConfigError(
            f"--events {arguments.events}: give a folder; events.csv and files for Raven and Audacity go into it"
        )
    if arguments.threshold is not None and not (arguments.events or arguments.html):
        raise ConfigError("--threshold is that of events; add --events FOLDER or --html FILE")
    for place in (
        arguments.csv,
        arguments.html,
        *(folder and folder / "x" for folder in (arguments.events, arguments.plot)),
    ):
        if place:
            refuse_unwritable(place)
    sounds = clips_in(arguments.paths, arguments)
    from common.heads import TrainedHead
    from own_sounds.timeline import find_events, write_events

    head = TrainedHead.load(arguments.head)
    encoder = encoder_of(head.encoder, arguments)
    head.outputs_of(encoder)  # refuses a different encoder before any file is read
    threshold = None if arguments.none_of_these is None else none_of_these(head, arguments.none_of_these)
    thresholds = thresholds_of(head, arguments.threshold) if arguments.events or arguments.html else None
    heard = listen(head, encoder, sounds, windows, threshold and threshold.distance)
    events = [find_events(one, head, thresholds) for one in heard] if thresholds else None
    rows = [row for one in heard for row in _rows(one, head)]
    if arguments.json:
        _print_json(rows, head.class_names, arguments.top)
    elif events is not None:
        _print_events(heard, events)
    else:
        _print_table(rows, head.class_names, arguments.top, is_multilabel=head.scaling is not None)
    if threshold is not None and head.known:
        print(_explain(threshold, arguments.none_of_these, head.known.found), file=sys.stderr)
    written = [_write_table(rows, head.class_names, arguments.csv)] if arguments.csv else []
    if arguments.events and events is not None:
        written += write_events(heard, events, arguments.events)
    if arguments.html and events is not None:
        from own_sounds.timeline_page import write_page

        write_page(heard, events, head.class_names, encoder.sample_rate, arguments.html)
        written.append(arguments.html)
    if arguments.plot:
        written += _plot(heard, head.class_names, arguments.plot, arguments.figure_format)
    if written:
        print(f"-> {', '.join(map(str, written))}", file=sys.stderr)
    failed = len(sounds.clips) - len(heard)
    if failed:
        print(f"{failed} of {len(sounds.clips)} files failed; each is named above", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("head", type=user_path, metavar="HEAD.pt", help="a trained head, as classification writes it")
    parser.add_argument("paths", nargs="+", type=user_path, metavar="FILE_OR_FOLDER", help=INPUTS)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes that are printed (default: 5)")
    add_windows(parser)
    add_columns(parser)
    text = "mark sounds far from all training sounds as 'none of these'; RATE: share of known sounds that may be marked by mistake"
    parser.add_argument("--none-of-these", type=float, metavar="RATE", help=text)
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write a row of probabilities per file or window")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    text = "write the events: adjacent windows in which a class is heard, as CSV and for Raven and Audacity; needs --window"
    parser.add_argument("--events", type=user_path, metavar="FOLDER", help=text)
    text = "probability from which a class is heard in a window (default: for every class, as set on held-out clips)"
    parser.add_argument("--threshold", type=float, metavar="P", help=text)
    text = "write a page to look at and listen to: spectrogram, probabilities, events; needs --window"
    parser.add_argument("--html", type=user_path, metavar="FILE", help=text)
    parser.add_argument("--plot", type=user_path, metavar="FOLDER", help="draw a timeline of each file; needs --window")
    add_figure_format(parser)
    add_encoder(parser)
    return parser


def add_encoder(parser: Parser) -> None:
    """Add the flags that say where an encoder that is known by its name and weights is."""
    parser.add_argument("--encoder", metavar="NAME", help="where the encoder is, if it is a plug-in")
    text = "the weights that were used (default: the usual file, or random:SEED)"
    parser.add_argument("--checkpoint", metavar="FILE", help=text)
    parser.add_argument("--condition", metavar="FILE", help="the condition that was used, if a file")
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a model of hf: brings")


def encoder_of(provenance: Provenance, flags: argparse.Namespace) -> Encoder:
    """The encoder that embeddings were made with; ConfigError if a flag must say where its module or condition is."""
    from common.encoder import new_encoder, resolve_device

    kind, label = EncoderKind(str(provenance.get("kind", "audiosep"))), str(provenance.get("encoder"))
    if kind is EncoderKind.ELSEWHERE:
        raise ConfigError(f"the embeddings are of {label}, whose encoder is not known here; it cannot hear audio")
    built_in = EncoderKind.LOGMEL if kind is EncoderKind.LOGMEL else EncoderKind.AUDIOSEP
    name = EncoderName.parse(flags.encoder or (label if kind.is_plug_in else built_in)).resolved(Path.cwd())
    if name.is_file and not flags.encoder:
        raise ConfigError(f"the embeddings are of {label}; say where that is: --encoder hear:FOLDER/{label[5:]}")
    trained_with = str(provenance.get("checkpoint", ""))
    usual = trained_with if trained_with.startswith("random:") else str(PROJECT_ROOT / DEFAULT_CHECKPOINT)
    condition = flags.condition or str(provenance.get("condition", "none"))
    if condition.startswith("sha256:"):
        raise ConfigError("the embeddings were made with a condition from a file; give it: --condition FILE")
    return new_encoder(
        name,
        flags.checkpoint or usual,
        resolve_device(flags.device),
        precision=str(provenance.get("precision", "fp32")),
        condition=condition,
        padding=str(provenance.get("padding", "none")),
        trust_remote_code=flags.trust_remote_code,
    )


def none_of_these(head: TrainedHead, rate: float) -> Threshold:
    """The distance beyond which a sound is none of the classes; ConfigError or NoneOfTheseError if the head has too few held-out
    clips for that rate of false alarms."""
    if not 0 < rate < 1:
        raise ConfigError(f"--none-of-these {rate:g} is not between 0 and 1; give a false-alarm rate such as 0.05")
    if head.known is None:
        raise ConfigError(
            "the head was trained without held-out clips, so it has no threshold for --none-of-these; train it again "
            "with --overwrite, on data with folds or validation clips"
        )
    return head.known.threshold(rate)


def thresholds_of(head: TrainedHead, threshold: float | None) -> list[float]:
    """The probability of every class from which it is heard; ConfigError if the head has none and none is given."""
    if threshold is not None:
        if not 0 < threshold < 1:
            raise ConfigError(f"--threshold {threshold:g} is not between 0 and 1")
        return [threshold] * len(head.class_names)
    if head.thresholds is None:
        raise ConfigError(
            "the head was trained without held-out clips, so it has no thresholds; give one: --threshold 0.5"
        )
    return head.thresholds


def listen(
    head: TrainedHead, encoder: Encoder, sounds: Sounds, windows: Windows | None, threshold: float | None = None
) -> list[Heard]:
    """What a head hears in every clip, with one window in memory at a time; clips that cannot be read are named and left out.
    UserError if none can be read."""
    from common.datasets.audio import AudioError
    from common.datasets.containers import name_of

    cuts: list[tuple[Clip, list[Clip]]] = []
    heard: list[Heard] = []
    for clip in sounds.clips:
        try:
            cuts.append((clip, windows.of_clip(clip) if windows else [clip]))
        except AudioError as error:
            print(f"failed: {error}", file=sys.stderr)
    unit = "window" if windows else "file"
    with progress_bar(total=sum(len(parts) for _, parts in cuts), desc="listening", unit=unit) as bar:
        for clip, parts in cuts:
            try:
                heard.append(_listen_to(head, encoder, clip, parts, name_of(clip.path, sounds.root), threshold, bar))
            except AudioError as error:
                bar.write(f"failed: {error}", file=sys.stderr)
    if not heard:
        raise UserError(f"none of the {len(sounds.clips)} files could be read; each is named above")
    return heard


def _listen_to(
    head: TrainedHead,
    encoder: Encoder,
    clip: Clip,
    windows: list[Clip],
    name: str,
    threshold: float | None,
    bar: tqdm[Any],
) -> Heard:
    import numpy as np

    from common.datasets.audio import read_audio
    from own_sounds.timeline import Heard

    probabilities, distances = [], []
    for window in windows:
        waveform = read_audio(window.path, encoder.sample_rate, window.start_s, window.end_s)
        of_classes, distance = head.answer(encoder, [waveform])
        probabilities.append(of_classes[0].numpy())
        distances.append(np.nan if distance is None else distance[0])
        bar.update()
    far = np.array(distances, np.float32)
    is_unknown = far > (np.inf if threshold is None else threshold)
    return Heard(clip, name, windows, np.stack(probabilities), None if threshold is None else far, is_unknown)


def _explain(threshold: Threshold, rate: float, found: float | None) -> str:
    """What the mark means, what is known of its errors, and what is not."""
    clips, groups = f"{threshold.n_clips:,} held-out clips", threshold.n_groups
    if threshold.is_promised:
        known = f"At most about {rate:.1%} of clips of the known classes are marked by mistake, judging by {clips} of {groups:,} "
        known += "recordings, speakers or other groups that no training clip is from."
    else:
        why = "which may be of the same recordings as training clips"
        why = why if groups is None else f"of only {groups} groups ({math.ceil(1 / rate) - 1} would tell)"
        known = f"{rate:.1%} of {clips} are farther, {why}: how many clips of new recordings are marked by mistake is not known."
    missed = "How many sounds of other classes are marked is not known."
    if found is not None:
        missed = (
            f"At a rate of 5 %, {found:.0%} of the clips of a class are marked when the head does not know that class"
        )
        missed += "." if found > LITTLE else ": with this encoder the mark finds little but very different sounds."
    windows = "Windows of a different length than the training clips may be marked far more often."
    return f"{NONE}: farther than {threshold.distance:.4g} from every training clip. {known} {missed} {windows}"


class Row(NamedTuple):
    """The answer for a window, or for a whole file."""

    name: str
    clip: Clip
    labels: list[str]  # the class, or with several labels a clip those from their thresholds on, most probable first
    probabilities: list[float]  # (C,)
    mark: dict[str, object]  # the distance, and whether it is none of the classes, if that was asked for

    @property
    def place(self) -> dict[str, object]:
        """The file and window, for files."""
        return {"file": str(self.clip.path), "start_s": self.clip.start_s, "end_s": self.clip.end_s}

    def top(self, names: Sequence[str]) -> list[tuple[str, float]]:
        """The classes and their probabilities, best first."""
        return sorted(zip(names, self.probabilities, strict=True), key=lambda pair: -pair[1])


def _rows(heard: Heard, head: TrainedHead) -> Iterator[Row]:
    for place, (window, labels) in enumerate(zip(heard.windows, heard.labels(head), strict=True)):
        mark: dict[str, object] = {}
        if heard.distances is not None:
            mark = {"distance": float(heard.distances[place]), "none_of_these": bool(heard.is_unknown[place])}
        yield Row(heard.name, window, labels, heard.probabilities[place].tolist(), mark)


def _print_table(rows: Sequence[Row], names: Sequence[str], count: int, is_multilabel: bool) -> None:
    """Print the most probable classes; with several labels a clip, those that are predicted."""
    if is_multilabel:
        longest = max(len(row.labels) + bool(row.mark.get("none_of_these")) for row in rows)
        count = max(1, min(count, longest))
    count, has_windows = min(count, len(names)), rows[0].clip.start_s is not None
    table = [["file", *["seconds"] * has_windows, *(f"{rank}." for rank in range(1, count + 1))]]
    for row in rows:
        chosen = row.top(names)
        if is_multilabel:
            chosen = [(name, probability) for name, probability in chosen if name in row.labels]
        answers = [f"{name} {100 * probability:.1f} %" for name, probability in chosen[:count]]
        answers += [""] * (count - len(answers))
        if row.mark.get("none_of_these"):
            answers = [NONE, *answers[:-1]]
        window = [f"{row.clip.start_s:.2f}-{row.clip.end_s:.2f}"] if has_windows else []
        table.append([row.name, *window, *answers])
    print(as_text(table, left=len(table[0])))


def _print_events(heard: Sequence[Heard], events: Sequence[Sequence[Event]]) -> None:
    """Print the events of every file, by time."""
    table = [["file", "seconds", "class", "probability"]]
    for one, found in zip(heard, events, strict=True):
        for event in found:
            seconds = f"{event.start_s:.2f}-{event.end_s:.2f}"
            table.append([one.name, seconds, event.label, f"{100 * event.probability:.1f} %"])
    print(as_text(table, left=3) if len(table) > 1 else "no events")


def _print_json(rows: Sequence[Row], names: Sequence[str], count: int) -> None:
    answers = []
    for row in rows:
        top = [{"class_name": name, "probability": share} for name, share in row.top(names)[:count]]
        answers.append({**row.place, **row.mark, "labels": row.labels, "classes": top})
    print(json.dumps(answers, indent=1))


def _write_table(rows: Sequence[Row], names: Sequence[str], path: Path) -> Path:
    """Write a row per file or window, with every probability."""
    table: list[list[object]] = [[*rows[0].place, "class_name", *rows[0].mark, *names]]
    for row in rows:
        mark = [int(cell) if isinstance(cell, bool) else cell for cell in row.mark.values()]
        table.append([*row.place.values(), LABEL_SEPARATOR.join(row.labels), *mark, *row.probabilities])
    write_csv(path, table)
    return path


def _plot(heard: Sequence[Heard], names: Sequence[str], folder: Path, figure_format: str) -> list[Path]:
    """Draw a timeline of every file."""
    from own_sounds.timeline import file_names, plot_timeline

    paths = []
    for one, name in zip(heard, file_names(heard), strict=True):
        paths.append(folder / f"{name}_timeline.{figure_format}")
        plot_timeline(one, names, paths[-1])
    return paths


if __name__ == "__main__":
    predict_main()
