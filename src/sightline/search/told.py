"""What several sources say of one item, laid over each other: a manifest over a folder, of two alike the one that is looked at now."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from sightline.data.manifest import MANIFEST_SUFFIXES
from sightline.index.filters import Value
from sightline.index.items import Source


class Told:
    """What the sources of an index say of its items, beside what the source at ``place`` says now."""

    def __init__(self, sources: Iterable[Source], place: str) -> None:
        self.is_manifest = _is_manifest(place)
        self.before: dict[int, str] = {}
        self.others: dict[int, list[tuple[bool, str]]] = {}
        for source in sources:
            for id, brought in source.brought.items():
                if source.place == place:
                    self.before[id] = brought.facts
                else:
                    self.others.setdefault(id, []).append((_is_manifest(source.place), brought.facts))

    def merged(self, id: int, own: Mapping[str, Value]) -> dict[str, Value]:
        """Return what all sources say of an item, where this one says ``own``."""
        others = self.others.get(id, [])
        if not others:
            return dict(own)
        below = [json.loads(facts) for is_manifest, facts in others if is_manifest <= self.is_manifest]
        above = [json.loads(facts) for is_manifest, facts in others if is_manifest > self.is_manifest]
        return {key: value for facts in (*below, own, *above) for key, value in facts.items()}

    def kept(self, id: int, current: Mapping[str, Value]) -> dict[str, Value]:
        """Return those of an item's ``current`` metadata that no source has told: they were put there in Python, and stay."""
        told = [facts for _, facts in self.others.get(id, [])] + [self.before.get(id, "{}")]
        keys = {key for facts in told for key in json.loads(facts)}
        return {key: value for key, value in current.items() if key not in keys}


def _is_manifest(place: str) -> bool:
    return os.path.splitext(place)[1].lower() in MANIFEST_SUFFIXES
