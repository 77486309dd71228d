"""Report everything that was run as one self-contained HTML page: no network, no server, no other files but the sounds.

Clips play from the data sets' folders, where --data (or the configuration) says they are.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project, whether installed or not

from analysis.scores import Run, new_parser, output_folder, runs_for
from common.config import ConfigError
from common.entry import run
from common.files import write_atomically
from common.flags import user_path

if TYPE_CHECKING:
    from analysis.ablation_scores import AblationRecord
    from analysis.report_page.page import DrawnMap

MAX_TSNE_CLIPS = 5000  # clips; above, UMAP, which is faster


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", type=user_path, metavar="FOLDER", help="where the data sets' folders are (default: data)"
    )
    parser.add_argument(
        "--max-clips", type=int, default=5000, metavar="N", help="at most N per map, sampled by class (default: 5000)"
    )
    arguments = parser.parse_args()
    if arguments.max_clips < 10:
        raise ConfigError("--max-clips must be at least 10")
    from analysis.ablation_scores import AblationRecord
    from analysis.compare import compare_encoders, read_costs
    from analysis.report_page.page import ReportedRun, render
    from analysis.task_distances import SIMILARITY_FILE, SimilarityRecord
    from common.progress import progress_bar

    runs = runs_for(arguments)
    folder = output_folder(arguments)
    ablations = {record.task: record for record in map(AblationRecord.load, sorted(folder.glob("ablation_*.json")))}
    similarity = folder / SIMILARITY_FILE
    reported = [
        ReportedRun(
            run, _map(run, folder, arguments.max_clips), run.study.data_root(arguments.data), _own(run, ablations)
        )
        for run in progress_bar(iterable=runs, desc="maps", unit="run")
    ]
    compared = compare_encoders(runs, read_costs(folder))
    page = render(reported, SimilarityRecord.load(similarity) if similarity.exists() else None, folder, compared)
    path = folder / "report.html"
    write_atomically(path, page.encode())
    print(f"{len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB -> {path}")


def _own(run: Run, ablations: dict[str, AblationRecord]) -> AblationRecord | None:
    """The ablation of a run's task, if it is of the same encoder; another one would say nothing about this run."""
    ablation = ablations.get(run.study.name)
    return ablation if ablation and ablation.encoder.checkpoint == run.record.features.checkpoint else None


def _map(run: Run, folder: Path, most: int) -> DrawnMap:
    """A run's map; the map of the same features is computed only once."""
    import numpy as np

    from analysis.maps import make_map
    from analysis.report_page.page import DrawnMap

    method = "tsne" if min(most, len(run.features)) <= MAX_TSNE_CLIPS else "umap"
    # A task may choose other rows of the same file.
    rows = hashlib.sha256("\n".join(run.features.clip_ids).encode()).hexdigest()
    kept = folder / "maps" / f"{run.record.features.sha256[:16]}_{rows[:8]}_{method}_{most}.npz"
    if kept.exists():
        try:
            with np.load(kept, allow_pickle=False) as content:
                return DrawnMap(content["rows"], content["points"], str(content["caption"]))
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            print(f"{kept} is damaged ({str(error)[:100]}); the map is computed again", file=sys.stderr)
    drawn = make_map(run.features, method, "standard", most, seed=0)
    buffer = io.BytesIO()
    np.savez(buffer, rows=drawn.rows, points=drawn.points, caption=drawn.caption)
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, buffer.getvalue())
    return DrawnMap(drawn.rows, drawn.points, drawn.caption)


if __name__ == "__main__":
    run(main)
