"""Everything that was run, as one self-contained HTML page: no network, no server, nothing beside it but the sounds.

Clips play from the data sets' folders, where --data (or the configuration) says they are.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.studies import Run, output_folder, parser_of, runs_for
from common.cli import run
from common.config import ConfigError
from common.files import write_atomically

TSNE_TO = 5000  # clips; UMAP, the faster one, from there on


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the data sets' folders lie (default: data)")
    parser.add_argument(
        "--max-clips", type=int, default=5000, metavar="N", help="of a map; more are sampled by class (default: 5000)"
    )
    given = parser.parse_args()
    if given.max_clips < 10:
        raise ConfigError("--max-clips must be at least 10")
    from analysis.page import render
    from common.progress import progress_bar

    runs = runs_for(given)
    folder = output_folder(given)
    maps = [_map(one, folder, given.max_clips) for one in progress_bar(iterable=runs, desc="maps", unit="run")]
    ablations = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("ablation_*.json"))]
    similarity = folder / "similarity.json"
    page = render(
        runs,
        maps,
        [one.study.data_root(given.data) for one in runs],
        {ablation["task"]: ablation for ablation in ablations},
        json.loads(similarity.read_text(encoding="utf-8")) if similarity.exists() else None,
        folder,
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    print(f"{len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB -> {path}")


def _map(one: Run, folder: Path, most: int) -> dict[str, Any]:
    """A run's map; the same features are not put into the plane twice."""
    method = "tsne" if min(most, len(one.features)) <= TSNE_TO else "umap"
    # Of these very rows: a task may choose other ones of the same file.
    rows = hashlib.sha256("\n".join(one.features.clip_ids).encode()).hexdigest()
    kept = folder / "maps" / f"{one.record['features']['sha256'][:16]}_{rows[:8]}_{method}_{most}.npz"
    if kept.exists():
        with np.load(kept) as content:
            return {**content, "caption": str(content["caption"])}
    from analysis.maps import make_map

    drawn = make_map(one.features, method, "standard", most, seed=0)
    made = {"rows": drawn.rows, "points": drawn.points, "caption": drawn.caption}
    buffer = io.BytesIO()
    np.savez(buffer, **made)
    kept.parent.mkdir(exist_ok=True)
    write_atomically(kept, buffer.getvalue())
    return made


if __name__ == "__main__":
    run(main)
