"""A trained head on any audio: classes and probabilities per file, or as a timeline of windows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import DEFAULT_CHECKPOINT, DEVICES, ConfigError
from common.encoder_name import EncoderKind, EncoderName
from common.entry import run
from common.errors import UserError
from common.files import PROJECT_ROOT, write_csv
from common.flags import Parser, add_figure_format, user_path
from common.progress import progress_bar
from common.text_table import as_text
from own_sounds.embedding import add_windows
from own_sounds.files import Windows, expand, windows_of

if TYPE_CHECKING:
    import torch

    from common.encoder import Encoder
    from common.features import Provenance
    from common.heads import TrainedHead


NONE = "none of these"


class PredictionError(UserError):
    """No file could be read."""


@dataclass(frozen=True)
class Prediction:
    """What a head says of a file, or of a window of one.

    Attributes:
        file: the audio file.
        start_s, end_s: the window; None: all of the file.
        probabilities: of each class, in the head's order.
        distance: to the nearest clip that the head has learned from; None if "none of these" was not asked for.
        is_unknown: whether that makes it none of these.
    """

    file: Path
    start_s: float | None
    end_s: float | None
    probabilities: list[float]
    distance: float | None = None
    is_unknown: bool = False

    def top(self, names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The most probable classes, best first."""
        order = sorted(range(len(names)), key=lambda label: -self.probabilities[label])
        return [(names[label], self.probabilities[label]) for label in order[:count]]


@dataclass(frozen=True)
class Unknown:
    """How a sound that is none of the head's classes is told.

    Attributes:
        threshold: the distance beyond which it is.
        rate: the share of clips of the known classes that lie beyond it too.
        held_out: clips that the threshold was set by.
    """

    threshold: float
    rate: float
    held_out: int

    @classmethod
    def of(cls, head: TrainedHead, rate: float) -> Unknown:
        """For a false-alarm rate; ConfigError, NoneOfTheseError if there is no such threshold."""
        if not 0 < rate < 1:
            raise ConfigError(
                f"--none-of-these {rate:g} is not between 0 and 1; it is a false-alarm rate, such as 0.05"
            )
        if head.known is None:
            raise ConfigError(
                "the head does not know how far unheard clips of its classes lie from those it has learned from; train it "
                "again with --overwrite, on data with folds or validation clips"
            )
        return cls(head.known.threshold(rate), rate, len(head.known.held_out))

    def explained(self, has_windows: bool) -> str:
        """What the words mean, in lines."""
        lines = [
            f"{NONE}: farther than {self.threshold:.4g} from the clips that the head has learned from. About {self.rate:.1%} or less "
            f"of clips of the known classes are so by mistake (set by {self.held_out:,} held-out clips).",
            "How many sounds of other classes it finds is not known: sounds like the known ones are missed.",
        ]
        if has_windows:
            lines.append("The rate is that of whole clips. A window of another length may be marked far more often.")
        return "\n".join(lines)


def predict_main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(lambda: _predict(argv))


def _predict(argv: Sequence[str] | None) -> None:
    given = vars(_parser().parse_args(argv))
    if given["top"] < 1:
        raise ConfigError("--top must be at least 1")
    windows = Windows.given(given["window"], given["hop"])
    if given["plot"] and windows is None:
        raise ConfigError("--plot draws timelines; add --window S")
    files = expand(given["paths"])
    from common.datasets.audio import AudioError
    from common.encoder import resolve_device
    from common.heads import TrainedHead

    head = TrainedHead.load(given["head"])
    encoder = encoder_of(
        head.encoder,
        resolve_device(given["device"]),
        given["encoder"],
        given["checkpoint"],
        given["condition"],
        given["trust_remote_code"],
    )
    head.outputs_of(encoder)  # another one is refused before anything is read
    unknown = None if given["none_of_these"] is None else Unknown.of(head, given["none_of_these"])
    predictions, failed = [], 0
    for path in progress_bar(iterable=files, desc="listening", unit="file"):
        try:
            predictions += list(listen(head, encoder, path, windows, unknown))
        except AudioError as error:
            failed += 1
            print(f"failed: {error}", file=sys.stderr)
    if not predictions:
        raise PredictionError(f"none of the {len(files)} files could be read; each is named above")
    show = _show_json if given["json"] else _show_table
    show(predictions, head.class_names, given["top"])
    if unknown:
        print(unknown.explained(windows is not None), file=sys.stderr)
    if given["csv"]:
        _write_table(predictions, head.class_names, given["csv"])
    if given["plot"]:
        _plot(predictions, head.class_names, given["plot"], given["figure_format"])
    if failed:
        print(f"{failed} of {len(files)} files failed; each is named above", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("head", type=user_path, metavar="HEAD.pt", help="a trained head, as classification writes it")
    parser.add_argument(
        "paths", nargs="+", type=user_path, metavar="FILE_OR_FOLDER", help="audio files, or folders of them"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes that are printed (default: 5)")
    add_windows(parser)
    text = "call what is unlike all that the head has learned from none of these, by a distance beyond which this share of clips "
    text += "of the known classes lies by mistake, such as 0.05"
    parser.add_argument("--none-of-these", type=float, metavar="RATE", help=text)
    parser.add_argument(
        "--csv", type=user_path, metavar="FILE", help="write a row per file or window, with every probability"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=user_path, metavar="FOLDER", help="draw a timeline of each file; needs --window")
    add_figure_format(parser)
    parser.add_argument("--encoder", metavar="NAME", help="where the head's encoder is, if it is a plug-in")
    text = "the weights that the head was trained with (default: the usual file, or the head's random:SEED)"
    parser.add_argument("--checkpoint", metavar="FILE", help=text)
    parser.add_argument(
        "--condition", metavar="FILE", help="the condition that the head was trained with, if it was a file"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help=f"{DEVICES} (default: auto)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a model of hf: brings")
    return parser


def encoder_of(
    made: Provenance,
    device: torch.device,
    encoder: str | None = None,
    own_checkpoint: str | None = None,
    own_condition: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """The encoder that a head was trained on, as its provenance names it.

    Args:
        made: the provenance of the head's embeddings.
        device: where it computes.
        encoder, own_checkpoint, own_condition: where encoder, weights and condition are; None: the usual places.
        trust_remote_code: as for `new_encoder`.

    Raises:
        ConfigError: a plug-in's place is not known.
    """
    from common.encoder import new_encoder

    kind, label = EncoderKind(str(made.get("kind", "audiosep"))), str(made.get("encoder"))
    if encoder:
        name = EncoderName.parse(encoder).resolved(Path.cwd())
    elif kind.is_plug_in:
        name = EncoderName.parse(label)
        if name.is_file:
            raise ConfigError(f"the head was trained on {label}; say where that is: --encoder hear:FOLDER/{label[5:]}")
    else:
        name = EncoderName(EncoderKind.LOGMEL if kind is EncoderKind.LOGMEL else EncoderKind.AUDIOSEP)
    checkpoint, condition = str(made.get("checkpoint", "")), str(made.get("condition", "none"))
    usual = checkpoint if checkpoint.startswith("random:") else str(PROJECT_ROOT / DEFAULT_CHECKPOINT)
    if condition.startswith("sha256:") and not own_condition:
        raise ConfigError("the head was trained with a condition from a file; give it: --condition FILE")
    return new_encoder(
        name,
        own_checkpoint or usual,
        device,
        precision=str(made.get("precision", "fp32")),
        condition=own_condition or condition,
        padding=str(made.get("padding", "none")),
        trust_remote_code=trust_remote_code,
    )


def listen(
    head: TrainedHead, encoder: Encoder, path: Path, windows: Windows | None, unknown: Unknown | None = None
) -> Iterator[Prediction]:
    """What a head says of a file, or of each of its windows; only a window at a time is in memory.

    Raises:
        AudioError: the file cannot be read.
    """
    parts: list[tuple[float | None, float | None]] = [(None, None)]
    if windows is not None:
        parts = list(windows_of(path, windows.window_s, windows.hop_s))
    from common.datasets.audio import read_audio

    for start, end in parts:
        waveform = read_audio(path, encoder.sample_rate, start, end)
        answer = head.answer(encoder, [waveform])
        found = Prediction(path, start, end, answer.probabilities[0].tolist())
        if unknown is not None and answer.distances is not None:
            distance = float(answer.distances[0])
            found = replace(found, distance=distance, is_unknown=distance > unknown.threshold)
        yield found


def _show_table(predictions: Sequence[Prediction], names: Sequence[str], count: int) -> None:
    windowed = predictions[0].start_s is not None
    table = [["file", *["seconds"] * windowed, *(f"{place}." for place in range(1, 1 + min(count, len(names))))]]
    for each in predictions:
        said = [f"{name} {100 * share:.1f} %" for name, share in each.top(names, count)]
        if each.is_unknown:
            said = [NONE, *said][: len(said)]
        window = "" if each.start_s is None else f"{each.start_s:.2f}-{each.end_s:.2f}"
        table.append([each.file.name, *[window] * windowed, *said])
    print(as_text(table, left=len(table[0])))


def _show_json(predictions: Sequence[Prediction], names: Sequence[str], count: int) -> None:
    print(json.dumps([_as_json(each, names, count) for each in predictions], indent=1))


def _write_table(predictions: Sequence[Prediction], names: Sequence[str], path: Path) -> None:
    """Write a row per file or window, with every probability."""
    asked = predictions[0].distance is not None
    table: list[list[object]] = [
        ["file", "start_s", "end_s", "class_name", *["distance", "none_of_these"] * asked, *names]
    ]
    for each in predictions:
        told = [each.distance, int(each.is_unknown)] if asked else []
        table.append([each.file, each.start_s, each.end_s, each.top(names, 1)[0][0], *told, *each.probabilities])
    write_csv(path, table)
    print(f"-> {path}", file=sys.stderr)


def _as_json(prediction: Prediction, names: Sequence[str], count: int) -> dict[str, object]:
    asked = prediction.distance is not None
    told = {"distance": prediction.distance, "none_of_these": prediction.is_unknown} if asked else {}
    classes = [{"class_name": name, "probability": share} for name, share in prediction.top(names, count)]
    return {
        "file": str(prediction.file),
        "start_s": prediction.start_s,
        "end_s": prediction.end_s,
        **told,
        "classes": classes,
    }


def _plot(predictions: Sequence[Prediction], names: Sequence[str], folder: Path, figure_format: str) -> None:
    """Draw a timeline of each file that was cut into windows."""
    from own_sounds.timeline import plot_timeline

    folder.mkdir(parents=True, exist_ok=True)
    for file in dict.fromkeys(each.file for each in predictions):
        own = [each for each in predictions if each.file == file]
        spans = [(each.start_s or 0.0, each.end_s or 0.0) for each in own]
        path = folder / f"{file.stem}_timeline.{figure_format}"
        told = None if own[0].distance is None else [each.is_unknown for each in own]
        plot_timeline(spans, [each.probabilities for each in own], names, file.name, path, told)
        print(f"-> {path}", file=sys.stderr)
