"""The contract of a dense protocol: from an encoder and a data set in its own layout to measures of its patch features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from sightline.data.images import BadFiles
from sightline.errors import UsageError
from sightline.evaluation.evaluation import Evaluation
from sightline.evaluation.protocol import Options, Protocol, name_of
from sightline.html import Number, Page
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision

NUM_SHOWN = 18
"""Pictures on a page, three an image or sequence."""


class DenseProtocol(Protocol):
    """A way to measure patch features.

    ``learns`` is whether something is fitted on a train part, which may lie in another folder than what is measured.
    """

    learns: ClassVar[bool] = False

    @abstractmethod
    def run(
        self,
        encoder: Encoder,
        root: Path,
        bad_files: BadFiles,
        *,
        train_root: Path | None = None,
        precision: Precision = "auto",
        num_shown: int = 0,
    ) -> Evaluation:
        """Return the measures of ``encoder`` on the data set in ``root``, with up to ``num_shown`` pictures.

        What is fitted is fitted on the train part of the set in ``train_root``, of the same classes; None is ``root`` itself.

        Raises:
            DataError: the layout is not what it should be; the message says what is missing.
        """

    def check(self, data: Path, options: Options) -> None:
        """See ``Protocol.check``."""
        own, left = self._with(options)
        if options.train_data is not None and not self.learns:
            raise UsageError(f"--protocol {name_of(self)} learns from nothing: leave --train-data out")
        super(DenseProtocol, own).check(data, replace(left, train_data=None))

    def measure(self, encoder: Encoder, data: Path, bad_files: BadFiles, options: Options = Options()) -> Evaluation:
        """See ``Protocol.measure``."""
        own, _ = self._with(options)
        num_shown = NUM_SHOWN if options.for_page else 0
        found = own.run(encoder, data, bad_files, train_root=options.train_data, precision=options.precision, num_shown=num_shown)
        if options.train_data is None:
            return found
        return replace(found, settings={**found.settings, "train_data": str(options.train_data)})

    def _with(self, options: Options) -> tuple[Self, Options]:
        """Return the protocol with ``split`` and ``verify`` as its own settings of that meaning, and the options that are left.

        Raises:
            UsageError: it sets one of them already.
        """
        default = {item.name: item.default for item in fields(self)}  # type: ignore[arg-type]
        own_split = next((name for name in ("split", "part") if name in default), "")
        changes: dict[str, Any] = {}
        if options.split != "auto" and own_split:
            changes[own_split], options = options.split, replace(options, split="auto")
        if not options.verify and "verify" in default:
            changes["verify"], options = False, replace(options, verify=True)
        for name, value in changes.items():
            if getattr(self, name) not in (default[name], value):
                raise UsageError(f"--protocol {name_of(self)} has {name}={getattr(self, name)} already: say it once")
        from sightline.settings import configured

        settings = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in changes.items()]
        return configured(self, f"protocol '{name_of(self)}'", settings), options

    def page(self, evaluation: Evaluation, encoder: Encoder, bad_files: Sequence[str], command: str) -> Page:
        """See ``Protocol.page``."""
        counts = ", ".join(f"{num:,} {name}" for name, num in evaluation.counts.items())
        page = Page(
            "Dense evaluation",
            f"{evaluation.protocol}: {counts}",
            [("model", f"{evaluation.model} ({evaluation.fingerprint})"), ("data", evaluation.data)],
        )
        page.section("Numbers").numbers([Number(name, f"{100 * value:.1f} %") for name, value in evaluation.metrics.items()])
        if evaluation.groups:
            names = list(dict.fromkeys(name for values in evaluation.groups.values() for name in values))
            rows = [
                [group, *(f"{100 * values[name]:.1f}" if name in values else "-" for name in names)]
                for group, values in evaluation.groups.items()
            ]
            page.section("One by one", "Per cent.").table(["", *names], rows)
        if evaluation.shown:
            page.section("Pictures", "A click enlarges a picture.")
            if evaluation.colours:
                page.legend(evaluation.colours)
            page.panels(evaluation.shown)
        settings = [(name.replace("_", " "), str(value)) for name, value in evaluation.settings.items() if value not in ("", None)]
        page.section("Method").table(["setting", "value"], settings)
        if bad_files:
            page.details("Files that could not be read", bad_files)
        if command:
            page.text("Made by:").code(command)
        return page
