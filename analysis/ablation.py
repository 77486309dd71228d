"""What each choice is worth: one factor at a time against the baseline, and a grid: python analysis/ablation.py TASK.

Baseline: encoder_block6, mean pool, no condition, the whole clip, the recipe's scaler; both heads, by the task's
official division. Layers and pools come from one forward pass, all else from one pass over the audio.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.studies import find_study, output_folder, parser_of
from common.cli import leave_to_recipe, run
from common.config import ConfigError, load_config

FACTORS = ("layer", "pool", "condition", "scaler", "duration", "bandwidth", "noise")
HEADS_OF_GRID = {"none": (), "linear": ("linear",), "both": ("linear", "three_layer")}


def main() -> None:
    given = _flags()
    from analysis.effects import ablate, write_effects
    from analysis.views import ViewsEncoder, extract_views
    from common.checkpoint import CheckpointError
    from common.encoder import resolve_device
    from common.train import check_fittable

    study = find_study(given.task)
    flags = {key: getattr(given, key) for key in ("checkpoint", "device", "epochs", "seeds", "recipe")}
    given_flags = {key: value for key, value in flags.items() if value is not None}
    config = load_config(study.task.folder / "config.yaml", None, given_flags)
    leave_to_recipe(config, given_flags)
    config |= {flag.key: flag.default for flag in study.task.flags}
    try:
        device = resolve_device("auto" if given.device is None else given.device)
        encoder = ViewsEncoder(config["checkpoint"], device, given.factors, given.condition)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config["device"] = str(device)
    folder = output_folder(given)
    output = folder / f"ablation_{study.name}.pt"
    root = study.data_root(given.data)
    features, views = extract_views(study, encoder, root, output, given.max_clips, given.workers, given.overwrite)
    features, own_words = study.task.prepare(features, config, config["random_seed"])
    check_fittable(features, str(output))
    record = ablate(features, views, given.factors, HEADS_OF_GRID[given.grid], config)
    record |= {"task": study.name, "title": study.task.title, "encoder": encoder.info}
    record["division"] = own_words or record["division"]
    write_effects(record, folder)


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


if __name__ == "__main__":
    run(main)
