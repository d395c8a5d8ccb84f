"""Re-ranking: ``parse("k-reciprocal,k1=20")`` is a function from a Ranking to a Ranking; `base` holds the contract, the catalog the names."""

from __future__ import annotations

import dataclasses

from sightline import catalog
from sightline.errors import UsageError, nearest
from sightline.recipe import override
from sightline.search.rerank.base import Chain, Reranker


def parse(text: str) -> Reranker:
    """Return the re-ranker that ``text`` names, such as ``query-expansion,num=3+k-reciprocal``: ``+`` chains, ``key=value`` sets.

    Raises:
        UsageError: an unknown name or setting, or a value that cannot be; the message gives the nearest one.
    """
    stages = tuple(_stage(part.strip()) for part in text.split("+"))
    return stages[0] if len(stages) == 1 else Chain(stages)


def _stage(text: str) -> Reranker:
    name, *settings = (part.strip() for part in text.split(","))
    reranker: Reranker = catalog.find("rerankers", name)()
    known = [item.name for item in dataclasses.fields(reranker)]  # type: ignore[arg-type]
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key not in known:
            raise UsageError(f"re-ranker '{name}' has no setting '{key}'{nearest(key, known)}")
    return override(reranker, settings)
