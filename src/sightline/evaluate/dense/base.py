"""The contract of a dense protocol: from an encoder and a data set in its own layout to measures, by their usual names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sightline.data.images import BadFiles
from sightline.html import Picture
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision


@dataclass(frozen=True)
class DenseResult:
    """What was measured: ``metrics`` by their usual names (``j&f``, ``miou``, ``ap``), each 0..1, and how.

    ``groups`` are the same measures by sequence or class; ``counts`` how many of each thing were measured (frames, objects, images).
    """

    protocol: str
    metrics: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[tuple[Picture, ...], ...] = ()
    """Pictures in rows of those that belong side by side."""
    colours: tuple[tuple[str, str], ...] = ()
    """What the pictures' colours mean: (name, ``#rrggbb``)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data, the pictures left out."""
        return {
            "protocol": self.protocol,
            "metrics": dict(self.metrics),
            "counts": dict(self.counts),
            "settings": dict(self.settings),
            "groups": {name: dict(values) for name, values in self.groups.items()},
        }


class DenseProtocol(ABC):
    """A way to measure patch features; its settings are the fields of a frozen, keyword-only dataclass, all with defaults.

    ``learns`` is whether something is fitted on a train part, which may lie in another folder than what is measured.
    """

    learns: ClassVar[bool] = False

    @abstractmethod
    def measure(
        self,
        encoder: Encoder,
        root: Path,
        bad_files: BadFiles,
        *,
        train_root: Path | None = None,
        precision: Precision = "auto",
        num_shown: int = 0,
    ) -> DenseResult:
        """Return the measures of ``encoder`` on the data set in ``root``, with up to ``num_shown`` pictures.

        What is fitted is fitted on the train part of the set in ``train_root``, of the same classes; None is ``root`` itself.

        Raises:
            DataError: the layout is not what it should be; the message says what is missing.
        """
