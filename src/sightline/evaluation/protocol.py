"""The contract of a protocol: from an encoder and a data set to an ``Evaluation``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from sightline import catalog
from sightline.data.images import BadFiles
from sightline.errors import UsageError, nearest
from sightline.evaluation.evaluation import Evaluation
from sightline.html import Page
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.settings import configured


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an evaluation beside its protocol; each protocol ``takes`` some and refuses the others.

    ``dataset``, ``verify``: see ``data.reading.read_data``. ``split`` is the part to measure. ``train_data`` holds the train part where that is
    another folder. ``distractors`` is a folder or manifest of images to search too. ``rerank`` names a re-ranker of the ``rerank_top`` closest.
    ``model`` is where the model lies, whose run knows the classes that it was trained on. ``for_page`` asks for what a page shows besides.
    """

    dataset: str = "auto"
    verify: bool = True
    split: str = "auto"
    train_data: Path | None = None
    distractors: Path | None = None
    rerank: str = ""
    rerank_top: int | None = None
    model: str = ""
    precision: Precision = "auto"
    for_page: bool = False


class Protocol(ABC):
    """A way to measure a model; its settings are the fields of a frozen, keyword-only dataclass, all with defaults."""

    takes: ClassVar[frozenset[str]] = frozenset()

    def check(self, data: Path, options: Options) -> None:
        """Pass a data set and options that suit the protocol, before anything is trained or embedded.

        Raises:
            UsageError: an option is none of this protocol's.
            DataError: the data set is not there, or lacks what the protocol needs.
        """
        given = [item.name for item in fields(options) if getattr(options, item.name) != item.default]
        wrong = [name for name in given if name not in {*self.takes, "model", "precision", "for_page"}]
        if wrong:
            flags = [{"verify": "--no-verify"}.get(name, f"--{name.replace('_', '-')}") for name in wrong]
            raise UsageError(
                f"--protocol {name_of(self)} does not use {' and '.join(flags)}: leave {'it' if len(wrong) < 2 else 'them'} out"
            )

    @abstractmethod
    def measure(self, encoder: Encoder, data: Path, bad_files: BadFiles, options: Options = Options()) -> Evaluation:
        """Return the measures of ``encoder`` on the data set in ``data``.

        Raises:
            UsageError, DataError: the data set is not what it should be; the message says what is missing.
        """

    @abstractmethod
    def page(self, evaluation: Evaluation, encoder: Encoder, bad_files: Sequence[str], command: str) -> Page:
        """Return the page of an evaluation; ``bad_files`` are "path: reason" lines."""


def name_of(protocol: Protocol) -> str:
    """Return the name of a protocol, without its settings."""
    return getattr(protocol, "name", "") or type(protocol).__name__.lower()


def parse(text: str) -> Protocol:
    """Return the protocol that ``text`` names, such as ``davis,context=7``: ``key=value`` sets a field of it.

    Raises:
        UsageError: an unknown name or setting, or a value that cannot be; the message gives the nearest one.
    """
    name, *settings = (part.strip() for part in text.split(","))
    known = [*catalog.names("protocols"), *catalog.names("benchmarks")]
    if name not in known:
        raise UsageError(f"unknown protocol '{name}'{nearest(name, known)}")
    if name in catalog.names("benchmarks"):
        from sightline.evaluation.retrieval import Judged

        return Judged(benchmark=text)
    protocol: Protocol = catalog.find("protocols", name)()
    return configured(protocol, f"protocol '{name}'", settings)
