"""A report as HTML: what stands in it, as plain data, put into the template with its style, script and chart library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs

from analysis.comparison import COSTS, MEASURES, covers_zero
from analysis.studies import STUDIES, Run, encoder_words
from analysis.summary import notes, summary_rows, summary_table
from common.classify import run_title
from common.heads import HEADS
from common.tables import percent, remarks, score_table

PARTS = Path(__file__).resolve().with_name("template")
PAIRS = 12  # confusions that are named
CLASSES = 60  # bars of a chart; of more classes, the best and the worst


def render(
    runs: Sequence[Run],
    maps: Sequence[Mapping[str, Any]],
    audio: Sequence[Path],
    ablations: Mapping[str, Mapping[str, Any]],
    similarity: Mapping[str, Any] | None,
    folder: Path,
) -> str:
    """The page.

    Args:
        runs: what is reported, in order.
        maps: of each run: ``rows``, ``points`` (M, 2) and ``caption``.
        audio: of each run, the data root that its clips are played from.
        ablations: task -> what analysis/ablation.py has written of it.
        similarity: what analysis/task_similarity.py has written.
        folder: where the page will lie; the sounds' folders are named relative to it.
    """
    rows = summary_rows(runs)
    sections, tasks = [], {}
    for number, (one, drawn, root) in enumerate(zip(runs, maps, audio, strict=True)):
        section = _section(one, number, len([other for other in runs if other.study is one.study]) > 1, drawn)
        link = Path(os.path.relpath(root, folder)).as_posix()
        ablation = ablations.get(one.study.name)
        # Of another encoder than this run's, it would say nothing of it.
        if ablation and ablation["encoder"]["checkpoint"] != one.record["features"].get("checkpoint"):
            ablation = None
        section["audio_words"] = (
            f"Click a dot to play its clip, from {link}."
            if root.is_dir()
            else f"Clips play from {link}, once the data set is there."
        )
        if ablation:
            base = ablation["baseline"]
            section["ablation"] = (
                "One change at a time, against the baseline (encoder_block6, mean pool, no condition, whole clip: linear "
                f"{percent(base['linear']['accuracy'])} %, three-layer {percent(base['three_layer']['accuracy'])} %); "
                f"{ablation['clips']:,} clips, {ablation['division']}; 95 % intervals by groups."
            )
        sections.append(section)
        tasks[section["id"]] = {
            **_charts(one, section["head_name"]),
            "map": _map(one, section["head_name"], drawn),
            "audio": quote(link),
            "ablation": ablation["effects"] if ablation else None,
        }
    charts = _similarity(similarity) if similarity else []
    untrained = [row["encoder"].startswith("untrained") for row in rows]
    there = {one.study.name for one in runs}
    data = {"summary": [_summary_point(row) for row in rows], "tasks": tasks, "similarity": charts}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        task_count=len(there),
        encoders=list(dict.fromkeys(row["encoder"] for row in rows)),
        untrained="all" if all(untrained) else "some" if any(untrained) else "",
        facts=_facts(rows),
        summary=summary_table(rows, is_wide=True),
        summary_notes=notes(rows),
        missing=[study.name for study in STUDIES.values() if study.is_main and study.name not in there],
        similarity=charts,
        compared="" if not similarity else similarity["words"],
        sections=sections,
        style=(PARTS / "report.css").read_text(encoding="utf-8"),
        script=(PARTS / "report.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        # What ends a script element must not stand in one, whatever a clip is called.
        data=json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _facts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader should take away, said in sentences made of the rows."""
    facts = []
    honest = [row for row in rows if row["protocol"] != "random"]
    for row in honest:
        sentence = (
            f"{row['title']}{', tuned recipe' if row['recipe'] == 'tuned' else ''}: {percent(row[row['best']])} % with the {row['best'].replace('_', '-')} head"
            + (
                f" (95 %: {percent(row['best_low'])} to {percent(row['best_high'])})"
                if row["best_low"] is not None
                else ""
            )
            + f", against {percent(row['majority_class'])} % by always saying the most frequent class"
        )
        if row["untrained_encoder"] is not None:
            sentence += f" and {percent(row['untrained_encoder'])} % with an untrained encoder"
        if row["published"] and not row["encoder"].startswith("untrained"):
            name, score, _ = row["published"][0]
            sentence += f"; the best published probe listed here, {name}, has {score:.1f} %"
        facts.append(sentence + ".")
    by_folder = {(row["folder"], row["protocol"]): row for row in rows}
    gains = [
        (100 * (random[kind] - row[kind]), row["title"], kind)
        for row in honest
        if (random := by_folder.get((row["folder"], "random")))
        for kind in HEADS
    ]
    if gains:
        gain, title, kind = max(gains)
        facts.append(
            f"A random division, which puts related clips on both sides, changes scores by up to {gain:+.1f} points "
            f"({title}, {kind.replace('_', '-')} head)."
        )
    return facts


def _summary_point(row: Mapping[str, Any]) -> dict[str, Any]:
    published = [score / 100 for _, score, _ in row["published"]]
    label = row["task"] if row["recipe"] == "paper" else f"{row['task']} ({row['recipe']})"
    keys = ("protocol", "linear", "three_layer", "majority_class", "untrained_encoder", "intervals")
    return {"label": label, **{key: row[key] for key in keys}, "published_best": max(published, default=None)}


def _section(one: Run, number: int, has_siblings: bool, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says of one run."""
    record = one.record
    official = record["protocols"][_first(one)]
    best = max(official["heads"], key=lambda kind: official["heads"][kind]["mean"]["accuracy"])
    names = record["features"]["class_names"]
    short = one.study.task.title + (f" ({one.folder.name})" if has_siblings else "")
    features = record["features"]
    made = f"Features: {features.get('layer', 'unknown layer')}, {features.get('pool', 'unknown')} pool, "
    failed = features.get("counts", {}).get("failed", 0)
    return {
        "id": f"run{number}",
        "short": short,
        "title": short,
        "about": f"{features['clips']:,} clips, {len(names)} classes. Encoder: {encoder_words(record)}. {made}"
        f"condition {features.get('condition', 'unknown')}."
        + (f" {failed} clips could not be read and are left out, named in the feature file." if failed else ""),
        "protocols": [
            {
                "name": name,
                "title": run_title(one.study.task, record, protocol),
                "table": score_table(protocol),
                "remarks": remarks(protocol),
            }
            for name, protocol in one.protocols.items()
        ],
        "division": official["protocol"][:1].upper() + official["protocol"][1:],
        "head": best.replace("_", "-"),
        "head_name": best,
        "pairs": _pairs(np.array(official["heads"][best]["confusion"]), names, len(official["seeds"])),
        "class_names": names,
        "classes_cut": f"the {CLASSES // 2} best and the {CLASSES // 2} worst of {len(names)}"
        if len(names) > CLASSES
        else "",
        "map_caption": drawn["caption"],
        "record": str(one.folder / "result.json"),
        "ablation": "",
    }


def _first(one: Run) -> str:
    return next(iter(one.protocols))


def _pairs(confusion: np.ndarray, names: Sequence[str], n_seeds: int) -> list[list[str]]:
    """The most frequent confusions, by the share of the true class."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    table = [["true", "said", "% of the true class", "clips" if n_seeds == 1 else "clips, mean of seeds"]]
    for flat in np.argsort(-share, axis=None, kind="stable")[:PAIRS]:
        true, said = np.unravel_index(flat, share.shape)
        if share[true, said] > 0:
            table.append(
                [
                    names[true],
                    names[said],
                    percent(float(share[true, said])),
                    f"{confusion[true, said] / n_seeds:,.{int(n_seeds > 1)}f}",
                ]
            )
    return table if len(table) > 1 else [*table, ["none", "-", "-", "0"]]


def _charts(one: Run, best: str) -> dict[str, Any]:
    """What the charts of one run show."""
    protocol = one.protocols[_first(one)]
    names = one.record["features"]["class_names"]
    scored = protocol["heads"][best]
    classes = [
        {"name": name, "f1": f1, "precision": precision, "recall": recall, "clips": round(clips)}
        for name, f1, precision, recall, clips in zip(
            names, *(scored["per_class"][key] for key in ("f1", "precision", "recall", "clips")), strict=True
        )
    ]
    classes.sort(key=lambda each: -each["f1"])
    if len(classes) > CLASSES:
        classes = classes[: CLASSES // 2] + classes[-CLASSES // 2 :]
    curves = {}
    for kind, head in protocol["heads"].items():
        fits = head["splits"]
        validated = [fit["valid_accuracy"] for fit in fits if fit["valid_accuracy"]]
        curves[kind] = {
            "train_loss": _rounded(np.mean([fit["train_loss"] for fit in fits], axis=0)),
            "valid_accuracy": _rounded(np.mean(validated, axis=0)) if validated else [],
            "epoch": float(np.median([fit["epoch"] for fit in fits])),
        }
    return {"class_names": names, "confusion": scored["confusion"], "f1": classes, "curves": curves}


def _rounded(values: np.ndarray, digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


def _map(one: Run, best: str, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The points of a map, with what the better head says of each clip where it is tested."""
    features, points = one.features, drawn["points"]
    label_of = {name: label for label, name in enumerate(features.class_names)}
    said = one.predictions(_first(one))[best]
    clips = [features.clip_ids[row] for row in drawn["rows"]]
    return {
        "x": _rounded(points[:, 0], 2),
        "y": _rounded(points[:, 1], 2),
        "bounds": {
            axis: [float(values.min()), float(values.max())] for axis, values in zip("xy", points.T, strict=True)
        },
        "label": features.labels[drawn["rows"]].tolist(),
        "said": [label_of[said[clip]] if clip in said else -1 for clip in clips],
        "clip": clips,
    }


def _similarity(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The heat maps between tasks."""
    names = list(record["tasks"])
    charts = [
        {
            "id": f"similarity-{key}",
            "title": title,
            "caption": f"{how[:1].upper()}{how[1:]}.",
            "z": record[key],
            "digits": 2,
            "diverging": False,
        }
        for key, (title, how) in MEASURES.items()
    ]
    for key, title in COSTS.items() if record["transfer"] else ():
        values = [
            [
                round(100 * record["transfer"][target][key][source]["difference"], 2)
                if source in record["transfer"][target][key] and source != target
                else None
                for source in names
            ]
            for target in names
        ]
        uncertain = [[covers_zero(record["transfer"][target][key].get(source)) for source in names] for target in names]
        caption = "Points of accuracy (linear head) of the row’s task, prepared by what was fitted on the column’s clips; red: loss; in brackets: the 95 % interval covers 0."
        charts.append(
            {
                "id": f"transfer-{key}",
                "title": title,
                "caption": caption,
                "z": values,
                "digits": 1,
                "diverging": True,
                "uncertain": uncertain,
            }
        )
    for chart in charts:
        most = [
            (abs(value), row, column)
            for row, each in enumerate(chart["z"])
            for column, value in enumerate(each)
            if value is not None and row != column
        ]
        _, row, column = max(most, default=(0, 0, 0))
        largest = f"largest between {names[row]} and {names[column]}, {chart['z'][row][column]:.2f}" if most else ""
        chart["words"] = largest or "nothing to compare"
    return [{**chart, "rows": names, "columns": names} for chart in charts]
