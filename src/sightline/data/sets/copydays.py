"""INRIA Copydays: altered copies of 157 holiday photographs ask for their originals; one setting a kind of alteration.

Source: Douze, Jegou, Sandhawalia, Amsaleg & Schmid 2009, "Evaluation of GIST descriptors for web-scale image search"; searched among the
originals alone (and distractors), as in Caron et al. 2021, arXiv 2104.14294, section 4.2.1.

Departs: the script of the latter looks no further than the 20 closest; here the whole gallery is ranked, so an original behind them adds
its small share.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sightline.data.judged import Judged, Judgements, absent, check_complete
from sightline.data.listing import find_images
from sightline.data.records import Records
from sightline.errors import DataError

NUM_ORIGINALS, NUM_STRONG = 157, 229
BLOCKS = (
    "strong",
    *(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)),
    *(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80)),
)
LAYOUT = {
    "original": "157 photographs",
    "strong": "229 copies",
    "jpegqual": "157 copies in each of 3, 5, 8, 10, 15, 20, 30, 50 and 75",
    "crops": "157 copies in each of 10, 15, 20, 30, 40, 50, 60, 70 and 80",
}
WHERE = "INRIA's page of the Holidays and Copydays sets says where it is kept"
NUM_QUERIES = NUM_STRONG + NUM_ORIGINALS * (len(BLOCKS) - 1)
SAME_SCENE = 4
"""Files whose names begin with the same four figures show one scene: 200000.jpg and its copies 200001.jpg, 200002.jpg, ..."""


def read(root: Path, *, verify: bool = True) -> Judged:
    """Return the benchmark of the folder with ``original/``, ``strong/``, ``jpegqual/3`` to ``75`` and ``crops/10`` to ``80``.

    Each kind is a setting of its own, in which only its copies ask.

    Args:
        root: the data set's folder.
        verify: check the official counts; without, the kinds that are there are measured.

    Raises:
        DataError: a kind is missing, a copy has no original, or (``verify``) a count differs from the official one.
    """
    blocks = [block for block in BLOCKS if (root / block).is_dir()]
    if not blocks or not (root / "original").is_dir() or (verify and len(blocks) < len(BLOCKS)):
        lacking = {block.partition("/")[0] for block in ("original", *BLOCKS) if not (root / block).is_dir()}
        raise absent(root, "copydays", {f"{part}/": what for part, what in LAYOUT.items() if part in lacking}, WHERE)
    originals = find_images(root / "original")
    position = {name[:SAME_SCENE]: place for place, name in enumerate(originals)}
    asked = [(block, name) for block in blocks for name in find_images(root / block)]
    orphan = next((f"{block}/{name}" for block, name in asked if name[:SAME_SCENE] not in position), None)
    if orphan:
        raise DataError(f"{root / orphan} has no original that begins with the same {SAME_SCENE} figures: complete {root / 'original'}")
    nothing = np.empty(0, np.int64)
    settings = {
        block: Judgements(
            tuple(np.array([position[name[:SAME_SCENE]]], np.int64) if block == own else nothing for own, name in asked),
            (nothing,) * len(asked),
        )
        for block in blocks
    }
    judged = Judged(
        name="copydays" if verify else "copydays (not verified)",
        records=Records(root, (*(f"{block}/{name}" for block, name in asked), *(f"original/{name}" for name in originals))),
        query_rows=np.arange(len(asked)),
        gallery_rows=np.arange(len(asked), len(asked) + len(originals)),
        settings=settings,
        metrics=("map",),
    )
    if verify:
        check_complete(judged, NUM_QUERIES, NUM_ORIGINALS)
    return judged
