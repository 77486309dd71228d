"""What each choice is worth: one factor at a time against the baseline: python analysis/ablation.py TASK.

Baseline: encoder_block6, mean pool, no condition, the whole clip, the recipe's scaler; both heads, by the task's
official division. Layers and pools come from one forward pass, everything from one pass over the audio.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import new_parser, output_folder
from analysis.studies import find_study
from common.config import ExtractConfig, FitConfig, load_config
from common.datasets import Division
from common.flags import add_figure_format, add_settings, run, user_path

FACTORS = ("layer", "pool", "condition", "scaler", "duration", "bandwidth", "noise")
EXTRACTION = ("checkpoint", "workers", "allow_missing")  # settings that flags change
FITTING = ("recipe", "epochs", "seeds", "device")


def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("task", metavar="TASK", help="such as esc50")
    add("--data", type=user_path, metavar="FOLDER", help="where the data sets' folders are (default: data)")
    add_settings(parser, ExtractConfig, None, EXTRACTION)
    add("--condition", type=user_path, metavar="FILE", help="a 512-d embedding, for the factor condition")
    add("--factors", nargs="+", choices=FACTORS, default=FACTORS, metavar="NAME", help=", ".join(FACTORS))
    most = "at most N, sampled by class; 0: all (default: 2000)"
    add("--max-clips", type=int, default=2000, metavar="N", help=most)
    add_settings(parser, FitConfig, None, FITTING)
    add("--overwrite", action="store_true", help="replace features that were made with different settings")
    add_figure_format(parser)
    arguments = parser.parse_args()
    from analysis.plots import plot_heat
    from analysis.variants import AblationEncoder, ablate, cka_of_variants, extract_variants, write_effects
    from common.datasets.places import read_task
    from common.encoder.device import resolve_device
    from common.extraction import ExtractOptions, ThisProcess, Threads
    from common.heads import check_fittable

    study = find_study(arguments.task)
    task = study.task
    flags = {name: value for name, value in vars(arguments).items() if value is not None}
    config = load_config(FitConfig, task.config_file, None, {key: flags[key] for key in FITTING if key in flags})
    chosen = {key: flags[key] for key in EXTRACTION if key in flags}
    how = load_config(ExtractConfig, task.config_file, None, chosen)
    root = study.data_root(arguments.data)
    clips = [clip for part in study.extract.values() for clip in read_task(part, root).clips]
    encoder = AblationEncoder(how.checkpoint, resolve_device(config.device), arguments.factors, arguments.condition)
    folder = output_folder(arguments)
    output = folder / f"ablation_{study.name}.pt"
    maker = ThisProcess(encoder, encoder.outputs, Threads.shared(decode=how.workers))
    options = ExtractOptions(arguments.overwrite, allow_missing=how.allow_missing)
    features = extract_variants(task, maker, clips, root, output, arguments.max_clips, options)
    flags = {flag.key: flag.default for flag in task.flags}
    prepared = task.prepare(features, Division(flags, config.train_test_split, config.random_seed))
    check_fittable(prepared.features, str(output))
    record = ablate(prepared, task, encoder.info, config, arguments.factors)
    write_effects(record, folder, arguments.figure_format)
    caption = f"Linear CKA of the same {len(features):,} clips; 1: alike up to rotation and one scale."
    path = folder / f"cka_{study.name}.{arguments.figure_format}"
    plot_heat(cka_of_variants(features), f"{study.name}: how alike the variants are", caption, path)
    print(f"-> {path}")


if __name__ == "__main__":
    run(main)
