"""What a trained head hears in any audio: python own_sounds/predict.py HEAD.pt FILE_OR_FOLDER..."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError
from common.datasets import LABEL_SEPARATOR, Clip
from common.encoder_name import EncoderKind, EncoderName
from common.errors import UserError
from common.files import PROJECT_ROOT, write_csv
from common.flags import Parser, add_figure_format, run, user_path
from common.progress import progress_bar
from common.text_table import as_text
from own_sounds.sounds import INPUTS, add_columns, clips_in
from own_sounds.timeline import Prediction, Windows, add_windows, plot_timeline

if TYPE_CHECKING:
    from common.encoder import Encoder
    from common.features import Provenance
    from common.heads import TrainedHead

NONE = "none of these"


def predict_main(argv: Sequence[str] | None = None) -> None:
    run(lambda: _predict(argv))


def _predict(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top < 1:
        raise ConfigError("--top must be at least 1")
    windows = Windows.of_flags(arguments.window, arguments.hop)
    if arguments.plot and windows is None:
        raise ConfigError("--plot draws timelines; add --window S")
    clips = clips_in(arguments.paths, arguments).clips
    from common.datasets.audio import AudioError
    from common.heads import TrainedHead

    head = TrainedHead.load(arguments.head)
    encoder = encoder_of(head.encoder, arguments)
    head.outputs_of(encoder)  # refuses a different encoder before any file is read
    threshold = None if arguments.none_of_these is None else threshold_of(head, arguments.none_of_these)
    predictions, failed = [], 0
    for clip in progress_bar(iterable=clips, desc="listening", unit="file"):
        try:
            predictions += list(listen(head, encoder, clip, windows, threshold))
        except AudioError as error:
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
    if not predictions:
        raise UserError(f"none of the {len(clips)} files could be read; each is named above")
    if arguments.json:
        _print_json(predictions, head.class_names, arguments.top)
    else:
        _print_table(predictions, head.class_names, arguments.top, is_multilabel=head.rule is not None)
    if threshold is not None and head.known:
        print(_explain(threshold, arguments.none_of_these, len(head.known.held_out)), file=sys.stderr)
    if arguments.csv:
        _write_table(predictions, head.class_names, arguments.csv)
    if arguments.plot:
        _plot(predictions, head.class_names, arguments.plot, arguments.figure_format)
    if failed:
        print(f"{failed} of {len(clips)} files failed; each is named above", file=sys.stderr)


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
    parser.add_argument("--plot", type=user_path, metavar="FOLDER", help="draw a timeline of each file; needs --window")
    add_figure_format(parser)
    parser.add_argument("--encoder", metavar="NAME", help="where the head's encoder is, if it is a plug-in")
    text = "the weights that the head was trained with (default: the usual file, or the head's random:SEED)"
    parser.add_argument("--checkpoint", metavar="FILE", help=text)
    parser.add_argument("--condition", metavar="FILE", help="the condition that the head was trained with, if a file")
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a model of hf: brings")
    return parser


def encoder_of(provenance: Provenance, flags: argparse.Namespace) -> Encoder:
    """The encoder that a head was trained with; ConfigError if a flag must say where its module or condition is."""
    from common.encoder import new_encoder, resolve_device

    kind, label = EncoderKind(str(provenance.get("kind", "audiosep"))), str(provenance.get("encoder"))
    if kind is EncoderKind.ELSEWHERE:
        raise ConfigError(f"the head was trained on {label}, whose encoder is not known here; it cannot hear audio")
    built_in = EncoderKind.LOGMEL if kind is EncoderKind.LOGMEL else EncoderKind.AUDIOSEP
    name = EncoderName.parse(flags.encoder or (label if kind.is_plug_in else built_in)).resolved(Path.cwd())
    if name.is_file and not flags.encoder:
        raise ConfigError(f"the head was trained on {label}; say where that is: --encoder hear:FOLDER/{label[5:]}")
    trained_with = str(provenance.get("checkpoint", ""))
    usual = trained_with if trained_with.startswith("random:") else str(PROJECT_ROOT / DEFAULT_CHECKPOINT)
    condition = flags.condition or str(provenance.get("condition", "none"))
    if condition.startswith("sha256:"):
        raise ConfigError("the head was trained with a condition from a file; give it: --condition FILE")
    return new_encoder(
        name,
        flags.checkpoint or usual,
        resolve_device(flags.device),
        precision=str(provenance.get("precision", "fp32")),
        condition=condition,
        padding=str(provenance.get("padding", "none")),
        trust_remote_code=flags.trust_remote_code,
    )


def threshold_of(head: TrainedHead, rate: float) -> float:
    """The distance from the training clips beyond which a sound is none of these; ConfigError or NoneOfTheseError if the
    head has too few held-out clips for that rate of false alarms."""
    if not 0 < rate < 1:
        raise ConfigError(f"--none-of-these {rate:g} is not between 0 and 1; give a false-alarm rate such as 0.05")
    if head.known is None:
        raise ConfigError(
            "the head was trained without held-out clips, so it has no threshold for --none-of-these; train it again "
            "with --overwrite, on data with folds or validation clips"
        )
    from common.heads import conformal_threshold

    return conformal_threshold(head.known.held_out, rate)


def listen(
    head: TrainedHead, encoder: Encoder, clip: Clip, windows: Windows | None, threshold: float | None = None
) -> Iterator[Prediction]:
    """A prediction for a clip, or for each of its windows, with one in memory at a time; AudioError if unreadable."""
    from common.datasets.audio import read_audio

    for cut in windows.of_clip(clip) if windows else [clip]:
        of_classes, distances = head.answer(
            encoder, [read_audio(cut.path, encoder.sample_rate, cut.start_s, cut.end_s)]
        )
        probabilities = of_classes[0].tolist()
        prediction = Prediction(cut.path, cut.start_s, cut.end_s, probabilities, head.labels_of(probabilities))
        if threshold is not None and distances is not None:
            distance = float(distances[0])
            prediction = replace(prediction, distance=distance, is_unknown=distance > threshold)
        yield prediction


def _explain(threshold: float, rate: float, held_out: int) -> str:
    """What the mark means."""
    return (
        f"{NONE}: farther than {threshold:.4g} from every training clip. At most about {rate:.1%} of clips of the known "
        f"classes are marked by mistake, judging by {held_out:,} held-out clips; windows of a different length may be "
        "marked far more often. Sounds that resemble a known class are missed; how many is not known."
    )


def _print_table(predictions: Sequence[Prediction], names: Sequence[str], count: int, is_multilabel: bool) -> None:
    """Print the most probable classes; with several labels a clip, those that are predicted."""
    if is_multilabel:
        longest = max(len(prediction.labels) + prediction.is_unknown for prediction in predictions)
        count = max(1, min(count, longest))
    count, has_windows = min(count, len(names)), predictions[0].start_s is not None
    table = [["file", *["seconds"] * has_windows, *(f"{rank}." for rank in range(1, count + 1))]]
    for prediction in predictions:
        chosen = prediction.top(names, len(names))
        if is_multilabel:
            chosen = [(name, probability) for name, probability in chosen if name in prediction.labels]
        answers = [f"{name} {100 * probability:.1f} %" for name, probability in chosen[:count]]
        answers += [""] * (count - len(answers))
        if prediction.is_unknown:
            answers = [NONE, *answers[:-1]]
        window = [f"{prediction.start_s:.2f}-{prediction.end_s:.2f}"] if has_windows else []
        table.append([prediction.file.name, *window, *answers])
    print(as_text(table, left=len(table[0])))


def _print_json(predictions: Sequence[Prediction], names: Sequence[str], count: int) -> None:
    rows = []
    for prediction in predictions:
        top = [{"class_name": name, "probability": share} for name, share in prediction.top(names, count)]
        rows.append({**prediction.place, **prediction.mark, "labels": prediction.labels, "classes": top})
    print(json.dumps(rows, indent=1))


def _write_table(predictions: Sequence[Prediction], names: Sequence[str], path: Path) -> None:
    """Write a row per file or window, with every probability."""
    rows = []
    for prediction in predictions:
        cells = {**prediction.place, "class_name": LABEL_SEPARATOR.join(prediction.labels), **prediction.mark}
        rows.append(cells | dict(zip(names, prediction.probabilities, strict=True)))
    numbers = ([int(cell) if isinstance(cell, bool) else cell for cell in row.values()] for row in rows)
    write_csv(path, [list(rows[0]), *numbers])
    print(f"-> {path}", file=sys.stderr)


def _plot(predictions: Sequence[Prediction], names: Sequence[str], folder: Path, figure_format: str) -> None:
    """Draw a timeline of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in dict.fromkeys(prediction.file for prediction in predictions):
        path = folder / f"{file.stem}_timeline.{figure_format}"
        plot_timeline([prediction for prediction in predictions if prediction.file == file], names, path)
        print(f"-> {path}", file=sys.stderr)


if __name__ == "__main__":
    predict_main()
