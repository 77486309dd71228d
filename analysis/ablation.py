"""What each choice is worth: one factor at a time against the baseline, and a grid: python analysis/ablation.py TASK.

Baseline: encoder_block6, mean pool, no condition, the whole clip, the recipe's scaler; both heads, by the task's
official division. Layers and pools come from one forward pass, all else from one pass over the audio.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.effects import ablate
from analysis.pictures import plot_effects
from analysis.studies import Study, find_study, output_folder, parser_of, seeded_rows
from analysis.views import BASE_LAYER, BASE_POOL, SEPARATOR, ViewsEncoder, read_views
from common.checkpoint import CheckpointError
from common.cli import run
from common.config import ConfigError, load_config
from common.encoder import resolve_device
from common.extract import extract
from common.features import FeatureSet
from common.files import write_atomically
from common.heads import HEADS
from common.tables import as_text, percent, range_of
from common.train import check_fittable

FACTORS = ("layer", "pool", "condition", "scaler", "duration", "bandwidth", "noise")
HEADS_OF_GRID = {"none": (), "linear": ("linear",), "both": tuple(HEADS)}


def main() -> None:
    given = _flags()
    study = find_study(given.task)
    flags = {key: getattr(given, key) for key in ("checkpoint", "device", "epochs", "seeds", "recipe")}
    config = load_config(study.task.folder / "config.yaml", None, {k: v for k, v in flags.items() if v is not None})
    for flag in study.task.flags:
        config[flag.name.removeprefix("--").replace("-", "_")] = flag.choices[0] if flag.choices else None
    try:
        device = resolve_device("auto" if given.device is None else given.device)
        encoder = ViewsEncoder(config["checkpoint"], device, given.factors, given.condition)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config["device"] = str(device)
    folder = output_folder(given)
    features, views = _views(study, encoder, given, folder)
    features, own_words = study.task.prepare(features, config, config["random_seed"])
    check_fittable(features, str(folder))
    record = ablate(features, views, given.factors, HEADS_OF_GRID[given.grid], config)
    record |= {"task": study.name, "title": study.task.title, "encoder": encoder.info}
    record["division"] = own_words or record["division"]
    _write(record, folder)


def _flags() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("task", metavar="TASK", help="such as esc50")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data sets' folders lie (default: data)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="AudioSep weights, or random:SEED (default: as configured)"
    )
    parser.add_argument("--condition", type=Path, metavar="FILE", help="a 512-d embedding, for factor condition")
    parser.add_argument(
        "--factors", nargs="+", choices=FACTORS, default=FACTORS, metavar="NAME", help=", ".join(FACTORS)
    )
    parser.add_argument(
        "--grid",
        choices=HEADS_OF_GRID,
        default="linear",
        help="heads of the grid layer x pool x scaler (default: linear)",
    )
    parser.add_argument(
        "--max-clips", type=int, default=2000, metavar="N", help="more are sampled by class; 0: all (default: 2000)"
    )
    parser.add_argument("--recipe", metavar="NAME", help="paper or tuned (default: as configured)")
    parser.add_argument("--epochs", type=int, metavar="N", help="(default: as configured)")
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: as configured)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode audio (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="views made with other settings may be replaced")
    return parser.parse_args()


def _views(
    study: Study, encoder: ViewsEncoder, given: argparse.Namespace, folder: Path
) -> tuple[FeatureSet, dict[str, slice]]:
    """Every view of every clip, or of a sample: one pass over the audio, saved, resumed and found again."""
    root = study.data_root(given.data)
    clips = [clip for task in study.extract.values() for clip in task.read_clips(root)]
    strata = [f"{clip.class_name} {clip.fold} {clip.split}" for clip in clips]
    picked = seeded_rows(np.unique(strata, return_inverse=True)[1], given.max_clips)
    print(f"{study.task.title}: {len(picked):,} of {len(clips):,} clips, {len(encoder.views)} views of each")
    output = folder / f"ablation_{study.name}.pt"
    extract(
        [clips[index] for index in picked],
        root,
        encoder,
        output,
        dataset=study.name,
        class_order=study.task.class_names,
        layer="views",
        pool=SEPARATOR.join(encoder.views),
        workers=given.workers,
        overwrite=given.overwrite,
    )
    return read_views(output)


def _write(record: dict[str, Any], folder: Path) -> None:
    """The table on the terminal; json, csv and png in `folder`."""
    base = record["baseline"]
    table = [["factor", "variant", *(cell for kind in HEADS for cell in (kind.replace("_", "-"), "against, 95 %"))]]
    table.append(["", "baseline", *(cell for kind in HEADS for cell in (percent(base[kind]["accuracy"]), ""))])
    for effect in record["effects"]:
        cells = [effect["factor"], effect["name"]]
        for kind in HEADS:
            scored = effect[kind]
            against = f"{100 * scored['difference']:+.1f} ({range_of(scored['difference_interval'])})"
            cells += [percent(scored["accuracy"]), against]
        table.append(cells)
    heads = record["heads"]
    print(
        f"\n{record['title']}: {record['clips']:,} clips, {record['division']}, {record['recipe']} recipe, {len(record['seeds'])} seed(s)"
    )
    print(as_text(table))
    print(f"three-layer minus linear head: {100 * heads['difference']:+.1f} points, 95 % {range_of(heads['interval'])}")
    for kind in HEADS if record["grid"] else ():
        scored = [entry for entry in record["grid"] if kind in entry]
        if scored:
            best = max(scored, key=lambda entry: entry[kind]["accuracy"])
            print(
                f"best of {len(scored)} in the grid, {kind.replace('_', '-')}: {best['layer']}, {best['pool']} pool, scaler "
                f"{best['scaler']}: {percent(best[kind]['accuracy'])} (a maximum over test scores, not a score)"
            )
    name = f"ablation_{record['task']}"
    write_atomically(folder / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("factor", "variant", "dimensions", "head", "accuracy", "difference", "low", "high", "p_value"))
    for effect in record["effects"]:
        for kind in HEADS:
            scored = effect[kind]
            interval = scored["difference_interval"] or ("", "")
            figures = (scored["accuracy"], scored["difference"], *interval, scored["p_value"])
            rows.writerow((effect["factor"], effect["name"], effect["dimensions"], kind, *figures))
    write_atomically(folder / f"{name}.csv", text.getvalue().encode())
    drawn = [
        {"name": f"{effect['name']} ({effect['factor']})"}
        | {
            kind: {"difference": effect[kind]["difference"], "interval": effect[kind]["difference_interval"]}
            for kind in HEADS
        }
        for effect in record["effects"]
    ]
    caption = (
        f"Baseline: {BASE_LAYER}, {BASE_POOL} pool, no condition, whole clip: linear {percent(base['linear']['accuracy'])} %, "
        f"three-layer {percent(base['three_layer']['accuracy'])} %. {record['clips']:,} clips, {record['division']}, "
        f"{record['recipe']} recipe, {len(record['seeds'])} seed(s); 95 % intervals by groups."
    )
    plot_effects(drawn, f"{record['title']}: what each choice is worth", caption, folder / f"{name}.png")
    print(f"-> {', '.join(str(folder / f'{name}.{suffix}') for suffix in ('json', 'csv', 'png'))}")


if __name__ == "__main__":
    run(main)
