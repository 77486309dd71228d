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
from common.files import write_atomically
from common.flags import run as run_script
from common.flags import user_path

if TYPE_CHECKING:
    from analysis.maps import FeatureMap

MAX_TSNE_CLIPS = 5000  # clips; above, UMAP, which is faster


def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data", type=user_path, metavar="FOLDER", help="where the data sets' folders are (default: data)")
    most = "at most N per map, sampled by class (default: 5000)"
    add("--max-clips", type=int, default=5000, metavar="N", help=most)
    most = "spectrograms of at most N clips a task, those of the surest errors and hits (default: 400)"
    add("--spectrograms", type=int, default=400, metavar="N", help=most)
    arguments = parser.parse_args()
    if arguments.max_clips < 10 or arguments.spectrograms < 0:
        raise ConfigError("--max-clips must be at least 10, --spectrograms 0 or more")
    from analysis.compare import compare_encoders
    from analysis.report_page.clips import draw_sounds
    from analysis.report_page.page import ReportedRun, render
    from analysis.variants import AblationRecord
    from common.progress import progress_bar

    runs, folder = runs_for(arguments), output_folder(arguments)
    ablations = {record.task: record for record in map(AblationRecord.load, sorted(folder.glob("ablation_*.json")))}
    reported = []
    for run in progress_bar(iterable=runs, desc="maps", unit="run"):
        ablation = ablations.get(run.study.name)
        if ablation and ablation.encoder.checkpoint != run.record.features.checkpoint:
            ablation = None  # of another encoder: it says nothing about this run
        drawn = _map(run, folder, arguments.max_clips)
        reported.append(ReportedRun(run, drawn, run.study.data_root(arguments.data), ablation))
    compared = compare_encoders(runs, folder)
    audio = {shown.run.study.name: shown.audio for shown in reported if shown.audio.is_dir()}
    spectrograms = draw_sounds(runs, audio, arguments.spectrograms)
    page = render(reported, folder, compared, spectrograms)
    path = folder / "report.html"
    write_atomically(path, page.encode())
    print(f"{len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB -> {path}")


def _map(run: Run, folder: Path, most: int) -> FeatureMap:
    """A run's map; the map of the same features is computed only once."""
    import numpy as np

    from analysis.maps import FeatureMap, make_map

    method = "tsne" if min(most, len(run.features)) <= MAX_TSNE_CLIPS else "umap"
    # A task may choose other rows of the same file.
    rows = hashlib.sha256("\n".join(run.features.clip_ids).encode()).hexdigest()
    kept = folder / "maps" / f"{run.record.features.sha256[:16]}_{rows[:8]}_{method}_{most}.npz"
    if kept.exists():
        try:
            with np.load(kept, allow_pickle=False) as content:
                return FeatureMap(content["rows"], content["points"], str(content["caption"]))
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            print(f"{kept} is damaged ({str(error)[:100]}); the map is computed again", file=sys.stderr)
    drawn = make_map(run.features, method, "standard", most, seed=0)
    buffer = io.BytesIO()
    np.savez(buffer, **drawn._asdict())
    write_atomically(kept, buffer.getvalue())
    return drawn


if __name__ == "__main__":
    run_script(main)
