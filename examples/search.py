"""Index a folder of pictures and search it: by picture, by filter, and with examples to be more or less like.

python examples/search.py photos/ photos.index timm:vit_small_patch16_224 query.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import sightline
from sightline.workflows.indexing import index


def main(photos: str, path: str, model: str, picture: str) -> None:
    # Creates the index, or brings it up to date: unchanged pictures are not embedded again.
    _, text = index(Path(path), model=model, images=Path(photos))
    print(text)

    with sightline.open(path) as searcher:
        answer = searcher.search(picture, k=5)
        print(f"searched: {answer.searched}, {sum(answer.timings_ms.values()):.1f} ms")
        show(answer)

        # More like the first result and less like the last, without loading the picture again.
        best, worst = answer.hits[0].id, answer.hits[-1].id
        show(searcher.search(sightline.Query(id=best, negatives=(worst,)), k=5))

        # Filters read a manifest's columns, and the class folder as `label`.
        label = answer.hits[0].metadata["label"]
        show(searcher.search(picture, k=5, where=f'label != "{label}"'))


def show(answer: sightline.Answer) -> None:
    for hit in answer.hits:
        print(f"  {hit.similarity:.3f}  {hit.id:4}  {hit.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
