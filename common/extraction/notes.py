"""What the clips of an extraction have that their owner may not know."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.features import SEGMENT, FeatureSet

SILENT = 1e-3  # -60 dB


def notes_on(features: FeatureSet) -> Iterator[str]:
    """Sentences on clips that are nearly silent, and on copies of one file that may be on two sides of a division or have two
    labels."""
    table = pd.DataFrame(
        {
            "clip": list(features.clip_ids),
            "is_silent": features.meta["peaks"].numpy() < SILENT,
            "checksum": features.meta["audio_checksums"].numpy(),
            "label": features.label_texts,
            "fold": None if features.folds is None else features.folds.numpy(),
            "split": features.splits,
        }
    )
    silent = table[table["is_silent"]]
    if len(silent):
        yield (
            f"{len(silent):,} clips are nearly silent once they are mono and at the encoder's rate, such as {silent['clip'].iloc[0]}: "
            "their channels cancel out, or their sound is above the rate"
        )
    is_whole = table["clip"].map(lambda clip: SEGMENT.search(clip) is None)  # segments of one file share its checksum
    copies = table[table.duplicated("checksum", keep=False) & is_whole]
    for columns, what in ((["label"], "labels"), (["fold", "split"], "folds or splits")):
        n_values = copies.groupby("checksum")[columns].nunique().max(axis=1)
        different = copies[copies["checksum"].isin(n_values[n_values > 1].index)]
        if len(different):
            pair = different[different["checksum"] == different["checksum"].iloc[0]]["clip"].iloc[:2]
            yield f"{len(different):,} clips are copies of one file under several names with different {what}, such as {' and '.join(pair)}"
