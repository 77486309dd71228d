"""Draw embeddings in the plane, by t-SNE or UMAP: python analysis/visualize_features.py TASK_OR_FOLDER_OR_EMBEDDINGS."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import find_run, new_parser, output_folder
from common.config import ConfigError, ScalerName
from common.flags import add_figure_format, run, user_path

METHODS = ("tsne", "umap")
COLOURS = ("class", "fold", "split", "group")


def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    text = "such as esc50; the folder of a run; or embeddings, also of sounds without labels"
    add("task", metavar="TASK", help=text)
    add("--method", choices=(*METHODS, "both"), default="both", help="(default: both)")
    add("--scaler", choices=get_args(ScalerName), default="standard", help="(default: standard)")
    add("--colour", choices=COLOURS, default="class", help="what colours show (default: class)")
    most = "at most N, sampled by class; 0: all (default: 5000)"
    add("--max-clips", type=int, default=5000, metavar="N", help=most)
    add("--seed", type=int, default=0, metavar="N", help="of the sample and the map (default: 0)")
    add_figure_format(parser)
    arguments = parser.parse_args()
    if arguments.max_clips < 0 or not 0 <= arguments.seed < 2**32:
        raise ConfigError("--max-clips must be 0 or more, --seed from 0 to 4294967295")
    from analysis.maps import TITLES, make_map
    from analysis.plots import plot_map
    from common.features import SEGMENT, FeatureSet

    place, colour = user_path(arguments.task), arguments.colour
    is_file = place.is_file() or any(place.glob("part-*.parquet"))
    if is_file:
        features = FeatureSet.load(place).pick(None, None)
        subject, encoder, name = place.name, features.meta.get("encoder", "unknown"), place.stem
    else:
        run = find_run(arguments)
        features, subject, encoder, name = run.features, run.study.task.title, run.encoder, run.study.name
    if colour == "class" and not features.class_names:
        values: Sequence[str] = [SEGMENT.sub("", clip_id) for clip_id in features.clip_ids]
        names, colour = sorted(set(values)), "file"
    elif colour == "class":
        names = [*features.class_names, "no label"]  # of several labels a clip, the rarest
        values = [names[label] for label in features.strata]
        names = names[: len(names) - (features.strata >= 0).all()]
    else:
        folds = None if features.folds is None else [f"fold {fold}" for fold in features.folds.tolist()]
        columns = {"fold": folds, "split": features.splits, "group": features.groups}
        has = {name: column for name, column in columns.items() if column is not None}
        if colour not in has:
            raise ConfigError(f"these features have no {colour}s; colour by {' or '.join(['class', *has])}")
        values = has[colour]
        names = sorted(set(values), key=lambda value: (len(value), value) if colour == "fold" else (0, value))
    folder = arguments.output or place.parent if is_file else output_folder(arguments)
    for method in METHODS if arguments.method == "both" else (arguments.method,):
        drawn = make_map(features, method, arguments.scaler, arguments.max_clips, arguments.seed)
        title = f"{subject}: {TITLES[method]} of the features, coloured by {colour}\nencoder: {encoder}"
        scaled = "" if arguments.scaler == "standard" else f"_{arguments.scaler}"
        path = folder / f"map_{name}_{method}_{colour}{scaled}.{arguments.figure_format}"
        plot_map(drawn.points, names, [values[row] for row in drawn.rows], title, drawn.caption, path)
        print(f"{drawn.caption}\n-> {path}")


if __name__ == "__main__":
    run(main)
