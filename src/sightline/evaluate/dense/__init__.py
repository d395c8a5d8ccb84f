"""Dense protocols: what patch features are worth, place by place. ``parse("davis,context=7")`` is one; `base` holds the contract, the catalog the names."""

from __future__ import annotations

from sightline import catalog
from sightline.evaluate.dense.base import DenseProtocol
from sightline.settings import configured


def parse(text: str) -> DenseProtocol:
    """Return the dense protocol that ``text`` names, such as ``davis,context=7``: ``key=value`` sets a field of it.

    Raises:
        UsageError: an unknown name or setting, or a value that cannot be; the message gives the nearest one.
    """
    name, *settings = (part.strip() for part in text.split(","))
    protocol: DenseProtocol = catalog.find("dense_protocols", name)()
    return configured(protocol, f"protocol '{name}'", settings)
