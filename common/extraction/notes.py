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
            f"nearly silent once mono and at the encoder's rate: {len(silent):,} of {len(table):,} clips, such as "
            f"{silent['clip'].iloc[0]}; they are silence, their channels cancel out, or their sound is above the rate"
        )
    is_whole = table["clip"].map(lambda clip: SEGMENT.search(clip) is None)  # segments of one file share its checksum
    copies = table[table.duplicated("checksum", keep=False) & is_whole]
    for columns, what in ((["label"], "labels"), (["fold", "split"], "folds or splits")):
        first = copies.drop_duplicates(["checksum", *columns])  # of every value that a file's copies have
        different = first[first.duplicated("checksum", keep=False)]
        if len(different):
            pair = " and ".join(different[different["checksum"] == different["checksum"].iloc[0]]["clip"].iloc[:2])
            yield f"copies of one file under several names have different {what}: {different['checksum'].nunique():,} files, such as {pair}"
