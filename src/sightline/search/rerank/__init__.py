"""Re-ranking: ``parse("k-reciprocal,k1=20")`` is a function from a Ranking to a Ranking; `base` holds the contract, the catalog the names."""

from __future__ import annotations

from sightline import catalog
from sightline.search.rerank.base import Chain, Reranker
from sightline.settings import configured


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
    return configured(reranker, f"re-ranker '{name}'", settings)
