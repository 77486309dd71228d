"""What each suite's protocol makes of the same features: python analysis/suite_protocols.py esc50 [--features FILE].

Repeats the classifier, division and choice of epoch of MTEB and X-ARES on one feature file, beside the official division with
validation clips. Only the protocol differs. For tasks with official folds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.studies import find_study
from common.config import ConfigError, FitConfig, load_config
from common.flags import Parser, run, user_path
from common.text_table import as_markdown, as_text, percent


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("task", metavar="TASK", help="one with official folds: esc50 or urbansound8k")
    parser.add_argument("--features", type=user_path, metavar="FILE", help="the feature file (default: the task's own)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of this project's heads (default: as configured)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of heads and X-ARES (default: 3)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    arguments = parser.parse_args()
    from common.evaluation.load_features import load_features
    from integrations.suite_protocols import protocol_rows

    task = find_study(arguments.task).task
    flags = {key: value for key in ("features", "epochs", "seeds") if (value := getattr(arguments, key)) is not None}
    config = load_config(FitConfig, task.config_file, None, {**flags, "device": "cpu"})
    prepared, source = load_features(task, config, {})
    if prepared.features.folds is None or prepared.features.is_multilabel:
        raise ConfigError(
            f"{task.title} has no official folds with one label a clip, on which these protocols differ; choose esc50 or urbansound8k"
        )
    table = [["suite", "protocol", "accuracy, %"]]
    for suite, protocol, score in protocol_rows(prepared, config, config.seeds):
        table.append([suite, protocol, percent(score)])
    print(f"{task.title}, {source.files}, {config.seeds} seeds")
    print((as_markdown if arguments.markdown else as_text)(table, left=2))


if __name__ == "__main__":
    run(main)
