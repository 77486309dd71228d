"""The clips of a report: where they are on the map, what is said of them, what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from analysis.maps import FeatureMap
from analysis.plots import PALETTE
from analysis.scores import Run
from common.datasets.audio import AudioError, read_audio
from common.page import picture_uri, spectrogram
from common.progress import progress_bar
from own_sounds.search import clip_of

SHOWN_S = 10.0  # of every clip
SAMPLE_RATE = 32_000
COLUMNS, N_MELS = 240, 64


def of_run(run: Run, drawn: FeatureMap) -> dict[str, object]:
    """What the page's script knows of a run: the clips of its map, and the better head's confusion matrix."""
    protocol = run.first_protocol
    clips, points = tested_clips(run).iloc[drawn.rows], drawn.points.astype(float)
    x, y = ((points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)).round(4).T
    table = clips.assign(x=x, y=1 - y).astype(object)
    return {
        "task": run.study.name,
        "names": run.features.class_names,
        "colours": [PALETTE[label % len(PALETTE)] for label in range(len(run.features.class_names))],
        "confusion": protocol.heads[protocol.best_head].confusion,
        "seeds": len(protocol.seeds),
        **{str(name): column.tolist() for name, column in table.where(table.notna(), None).items()},
    }


def tested_clips(run: Run) -> pd.DataFrame:
    """All clips of a run, in order: ``clip``, ``truth``, ``label``; of those tested, what the better head says with the first
    seed, ``said``, and how sure it is, ``sure``."""
    features, protocol = run.features, run.first_protocol
    predictions = run.read_predictions()
    logits = predictions.logits[protocol.best_head].astype(float)
    probabilities = softmax(logits, axis=1).max(axis=1) if predictions.labels.ndim == 1 else np.abs(logits).min(axis=1)
    table = predictions.table.assign(sure=probabilities.round(3), said=predictions.table[protocol.best_head])
    table = table[table["seed"] == protocol.seeds[0]].drop_duplicates("clip_id").set_index("clip_id")
    clips = pd.DataFrame({"clip": features.clip_ids, "truth": features.label_texts, "label": features.strata})
    return clips.join(table[["said", "sure"]], on="clip")


def draw_sounds(runs: Sequence[Run], audio: Mapping[str, Path], most: int) -> dict[str, dict[str, str]]:
    """Task -> clip -> its spectrogram as an address: of at most so many clips of every task, half of them those that its runs
    get wrong most surely, then those that they get right; `audio` are the tasks' data roots."""
    pictures: dict[str, dict[str, str]] = {}
    for task, root in audio.items():
        tested = pd.concat([tested_clips(run) for run in runs if run.study.name == task])
        ranked = tested.dropna(subset="said").sort_values("sure", ascending=False).drop_duplicates("clip")
        is_wrong = ranked["said"] != ranked["truth"]
        chosen = pd.concat([ranked[is_wrong].head(most // 2), ranked[~is_wrong]]).head(most)["clip"]
        pictures[task], unreadable = {}, 0
        for name in progress_bar(iterable=chosen, desc=f"spectrograms of {task}", unit="clip", leave=False):
            clip = clip_of(name, root)
            try:
                waveform = read_audio(clip.path, SAMPLE_RATE, clip.start_s, clip.end_s)[: round(SHOWN_S * SAMPLE_RATE)]
            except AudioError:
                unreadable += 1
                continue
            pictures[task][name] = picture_uri(spectrogram(waveform, SAMPLE_RATE, COLUMNS, N_MELS))
        if unreadable:
            print(f"{task}: {unreadable} of {len(chosen)} clips cannot be read in {root}, and have no spectrogram")
    return pictures
