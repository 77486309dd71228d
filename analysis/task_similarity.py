"""How alike the features of tasks are, and of layers, pools and conditions.

Different tasks have different clips, so measures that pair clips (CKA) cannot compare them. Instead, this compares
distributions (Frechet distance). Linear CKA compares layers, pools and conditions of the same clips, if
analysis/ablation.py has extracted them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import new_parser, output_folder, runs_for
from common.config import ConfigError
from common.files import write_json
from common.flags import add_figure_format, run


def main() -> None:
    parser = new_parser(__doc__)
    most = "at most N per task, sampled by class (default: 2000)"
    parser.add_argument("--max-clips", type=int, default=2000, metavar="N", help=most)
    add_figure_format(parser)
    arguments = parser.parse_args()
    if arguments.max_clips < 50:
        raise ConfigError("--max-clips must be at least 50")
    from analysis.plots import plot_heat
    from analysis.similarity import SIMILARITY_FILE, cka_of_variants, comparable, compare_tasks

    runs = runs_for(arguments)
    folder = output_folder(arguments)
    tasks = comparable(runs, arguments.max_clips)
    heats = [cka_of_variants(path) for path in sorted(folder.glob("ablation_*.pt"))]
    if len(tasks) > 1:
        record = compare_tasks(tasks, next(run.encoder for run in runs if run.study.name in tasks))
        write_json(folder / SIMILARITY_FILE, record.model_dump_json())
        heats.append(record.heat())
    if not heats:
        raise ConfigError("nothing to compare: run a second task, or analysis/ablation.py for layers and pools")
    for heat in heats:
        plot_heat(heat, folder / f"{heat.name}.{arguments.figure_format}")
        print(f"\n{heat.title}\n{heat.values.to_string(float_format='{:.2f}'.format)}")
    print(f"-> {folder}: {', '.join(heat.name for heat in heats)}")


if __name__ == "__main__":
    run(main)
