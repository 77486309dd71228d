"""What a trained head hears in any audio: python own_sounds/predict.py HEAD.pt FILE_OR_FOLDER..."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError
from common.datasets import LABEL_SEPARATOR, Sounds
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
    from common.encoder import Encoder
    from common.features import Provenance
    from common.heads import Threshold, TrainedHead
    from own_sounds.timeline import Event, Heard

NONE = "none of these"


def predict_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _predict(_parser().parse_args(argv)))


def _refuse_wrong(arguments: argparse.Namespace) -> None:
    """ConfigError or OutputError, before any work."""
    if arguments.top < 1:
        raise ConfigError("--top must be at least 1")
    for flag in ("plot", "events", "html"):
        if getattr(arguments, flag) and arguments.window is None:
            raise ConfigError(f"--{flag} shows what is heard over time; add --window S")
    if arguments.events and arguments.events.suffix in TABLES:
        raise ConfigError(
            f"--events {arguments.events}: give a folder; events.csv and files for Raven and Audacity go into it"
        )
    if arguments.threshold is not None and not (arguments.events or arguments.html):
        raise ConfigError("--threshold is that of events; add --events FOLDER or --html FILE")
    for flag, share in (("--none-of-these", arguments.none_of_these), ("--threshold", arguments.threshold)):
        if share is not None and not 0 < share < 1:
            raise ConfigError(f"{flag} {share:g} is not between 0 and 1")
    files = [folder / "x" for folder in (arguments.events, arguments.plot) if folder]
    for file in (arguments.csv, arguments.html, *files):
        if file:
            refuse_unwritable(file)


def _predict(arguments: argparse.Namespace) -> None:
    _refuse_wrong(arguments)
    windows = Windows(arguments.window, arguments.hop)
    sounds = clips_in(arguments.paths, arguments)
    from common.heads import TrainedHead
    from own_sounds.timeline import file_names, find_events, plot_timeline, write_events, write_page

    head = TrainedHead.load(arguments.head)
    encoder = encoder_of(head.encoder, arguments)
    head.outputs_of(encoder)  # refuses a different encoder before any file is read
    threshold, thresholds = thresholds_of(head, arguments)
    heard = listen(head, encoder, sounds, windows, threshold and threshold.distance)
    events = [find_events(recording, head, thresholds) for recording in heard] if thresholds else []
    if arguments.json:
        _print_json(heard, head, arguments.top)
    elif thresholds:
        _print_events(heard, events)
    else:
        _print_table(heard, head, arguments.top)
    if threshold is not None and head.known:
        print(_explain(threshold, arguments.none_of_these, head.known.found), file=sys.stderr)
    written = []
    if arguments.csv:
        _write_table(heard, head, arguments.csv)
        written.append(arguments.csv)
    if arguments.events:
        written += write_events(heard, events, arguments.events)
    if arguments.html:
        write_page(heard, events, head.class_names, encoder.sample_rate, arguments.html)
        written.append(arguments.html)
    if arguments.plot:
        for recording, name in zip(heard, file_names(heard), strict=True):
            written.append(arguments.plot / f"{name}_timeline.{arguments.figure_format}")
            plot_timeline(recording, head.class_names, written[-1])
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


def thresholds_of(head: TrainedHead, flags: argparse.Namespace) -> tuple[Threshold | None, list[float] | None]:
    """The distance beyond which a sound is none of the classes, and the probability of every class from which it is heard, as far
    as flags ask for them; ConfigError or NoneOfTheseError if the head has too few held-out clips."""
    has_events, mark, thresholds = flags.events or flags.html, None, None
    if flags.none_of_these is not None and head.known:
        from common.heads import conformal_threshold

        mark = conformal_threshold(head.known.held_out, head.known.groups, flags.none_of_these)
    if has_events:
        thresholds = [flags.threshold] * len(head.class_names) if flags.threshold else head.thresholds
    if (has_events and thresholds is None) or (flags.none_of_these is not None and mark is None):
        raise ConfigError(
            "the head was trained without held-out clips, so it has no thresholds; train it again with --overwrite, on data with "
            "folds or validation clips, or give that of events: --threshold 0.5"
        )
    return mark, thresholds


def listen(
    head: TrainedHead, encoder: Encoder, sounds: Sounds, windows: Windows, threshold: float | None
) -> list[Heard]:
    """What a head hears in every clip, with one window in memory at a time; clips that cannot be read are named and left out.
    UserError if none can be read."""
    import numpy as np
    import torch

    from common.datasets.audio import AudioError, read_audio
    from common.datasets.containers import name_of
    from own_sounds.timeline import Heard

    cuts = [windows.of_clip(clip) for clip in sounds.clips]
    heard: list[Heard] = []
    with progress_bar(total=sum(map(len, cuts)), desc="listening", unit="window") as bar:
        for clip, parts in zip(sounds.clips, cuts, strict=True):
            answers = []
            try:
                for part in parts:
                    waveform = read_audio(part.path, encoder.sample_rate, part.start_s, part.end_s)
                    answers.append(head.answer(encoder, [waveform]))
                    bar.update()
            except AudioError as error:
                bar.write(f"failed: {error}", file=sys.stderr)
                continue
            probabilities = torch.cat([of_classes for of_classes, _ in answers]).numpy()
            distances, is_unknown = None, np.zeros(len(parts), bool)
            if threshold is not None:
                distances = np.concatenate([distance for _, distance in answers if distance is not None])
                is_unknown = distances > threshold
            heard.append(Heard(clip, name_of(clip.path, sounds.root), parts, probabilities, distances, is_unknown))
    if not heard:
        raise UserError(f"none of the {len(sounds.clips)} files could be read; each is named above")
    return heard


def _explain(threshold: Threshold, rate: float, found: float | None) -> str:
    """What the mark means, what is known of its errors, and what is not."""
    clips, groups = f"{threshold.n_clips:,} held-out clips", threshold.n_groups
    if threshold.is_promised:
        known = f"at most about {rate:.1%} of clips of new groups are marked by mistake, judging by {clips} of {groups:,} groups"
    else:
        why = f"of only {groups} groups ({math.ceil(1 / rate) - 1} would tell)"
        why = why if groups is not None else "which may be of the same recordings as training clips"
        known = (
            f"{rate:.1%} of {clips} are farther, {why}: how many of new recordings are marked by mistake is not known"
        )
    missed = "not measured" if found is None else f"{found:.0%} at a rate of 5 % (below 15 %, it finds little)"
    text = f"{NONE}: farther than {threshold.distance:.4g} from every training clip; {known}. Of classes that the head does not know, "
    return (
        f"{text}it marks: {missed}. Windows of a different length than the training clips may be marked far more often."
    )


def _print_table(heard: Sequence[Heard], head: TrainedHead, most: int) -> None:
    """Print the most probable classes; with several labels a clip, those that are predicted."""
    has_windows = heard[0].windows[0].start_s is not None
    table = []
    for one in heard:
        for window, probabilities, is_unknown in one.rows():
            of_class = dict(zip(head.class_names, probabilities, strict=True))
            shown = (
                head.labels_of(probabilities) if head.scaling else sorted(of_class, key=lambda name: -of_class[name])
            )
            answers = [NONE] * is_unknown + [f"{name} {100 * of_class[name]:.1f} %" for name in shown]
            seconds = [f"{window.start_s:.2f}-{window.end_s:.2f}"] if has_windows else []
            table.append([one.name, *seconds, *answers[:most]])
    width = max(map(len, table))
    ranks = [f"{rank}." for rank in range(1, width - has_windows)]
    filled = [cells + [""] * (width - len(cells)) for cells in table]
    print(as_text([["file", *["seconds"] * has_windows, *ranks], *filled], left=width))


def _print_events(heard: Sequence[Heard], events: Sequence[Sequence[Event]]) -> None:
    """Print the events of every file, by time."""
    table = [["file", "seconds", "class", "probability"]]
    for one, found in zip(heard, events, strict=True):
        for event in found:
            seconds = f"{event.start_s:.2f}-{event.end_s:.2f}"
            table.append([one.name, seconds, event.label, f"{100 * event.probability:.1f} %"])
    print(as_text(table, left=3) if len(table) > 1 else "no events")


def _print_json(heard: Sequence[Heard], head: TrainedHead, most: int) -> None:
    answers = []
    for one in heard:
        for place, (window, probabilities, is_unknown) in enumerate(one.rows()):
            answer = {"file": str(window.path), "start_s": window.start_s, "end_s": window.end_s}
            if one.distances is not None:
                answer |= {"distance": float(one.distances[place]), "none_of_these": is_unknown}
            ranked = sorted(zip(head.class_names, probabilities, strict=True), key=lambda pair: -pair[1])
            classes = [{"class_name": name, "probability": probability} for name, probability in ranked[:most]]
            answers.append({**answer, "labels": head.labels_of(probabilities), "classes": classes})
    print(json.dumps(answers, indent=1))


def _write_table(heard: Sequence[Heard], head: TrainedHead, path: Path) -> None:
    """Write a row per file or window, with every probability."""
    marks = [] if heard[0].distances is None else ["distance", "none_of_these"]
    table: list[list[object]] = [["file", "start_s", "end_s", "class_name", *marks, *head.class_names]]
    for one in heard:
        for place, (window, probabilities, is_unknown) in enumerate(one.rows()):
            mark = [] if one.distances is None else [float(one.distances[place]), int(is_unknown)]
            label = LABEL_SEPARATOR.join(head.labels_of(probabilities))
            table.append([window.path, window.start_s, window.end_s, label, *mark, *probabilities])
    write_csv(path, table)


if __name__ == "__main__":
    predict_main()
