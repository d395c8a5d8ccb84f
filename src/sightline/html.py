"""One self-contained HTML page: text, numbers, tables, pictures and figures in a single file that asks nothing of the network."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from PIL import Image

from sightline.errors import explain_os_error
from sightline.html_style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THUMBNAIL_PX = 160
THUMBNAIL_BYTES = 8192
LARGE_PX, LARGE_BYTES = 640, 65_536
IMAGE_QUALITY = 88
INK = "#010203"
"""Draw in this colour what should take the page's text colour, in light and dark; ``FIGURE_STYLE`` does so for axes and text."""

SERIES = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444")
"""Colours of lines and bars that read on a light and on a dark page."""

PLOT_INCHES = (5.0, 3.0)

FIGURE_STYLE: dict[str, object] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, and the file stays small
    "svg.hashsalt": "sightline",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "lines.linewidth": 2,
}
"""Give it to ``matplotlib.rc_context`` around the making of a figure."""

State = Literal["plain", "query", "right", "wrong"]
_MARK = {"plain": "", "query": "query", "right": "✓", "wrong": "✗"}
_SPOKEN = {"plain": "", "query": "query: ", "right": "right: ", "wrong": "wrong: "}


@dataclass(frozen=True)
class Picture:
    """An image (None: it could not be read) with a caption, a smaller note below it, and a frame that says how it fared.

    ``link`` is the address that the caption leads to, such as the file's own.
    """

    image: Image.Image | None
    caption: str
    note: str = ""
    state: State = "plain"
    link: str = ""


@dataclass(frozen=True)
class Number:
    """A number on a card: what it is, its value as text, and a small note such as its interval."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A table cell that draws a value in 0..1 and, where given, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Named:
    """A table cell with a name and, smaller below it, what it means."""

    name: str
    note: str


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure from ``plot_axes``, its title and caption, and in words what it shows (``alt``)."""

    figure: Figure
    title: str
    alt: str
    caption: str = ""


Cell = str | int | float | Bar | Named


def plot_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the page's style, and its axes."""
    # Figure itself and not pyplot, which would keep every figure and look for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(FIGURE_STYLE):
        figure = Figure(figsize=PLOT_INCHES, layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def thumbnail_uri(image: Image.Image, *, side_px: int = THUMBNAIL_PX, most_bytes: int = THUMBNAIL_BYTES) -> str:
    """Return a ``data:`` address of a small JPEG of the image: at most ``side_px`` wide and high and ``most_bytes`` long."""
    while True:
        small = image.convert("RGB")
        small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        for quality in (80, 65, 50, 35):
            content = io.BytesIO()
            small.save(content, "JPEG", quality=quality, optimize=True)
            if content.tell() <= most_bytes or side_px <= 16:
                return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
        side_px = side_px * 3 // 4


class Page:
    """A page under construction. Each method adds to its end and returns the page; all text is escaped; ``write`` puts it on disk."""

    def __init__(self, title: str, subtitle: str = "", facts: Sequence[tuple[str, str]] = ()) -> None:
        self._title = title
        self._subtitle = subtitle
        self._facts = facts
        self._sections: list[tuple[str, str]] = []
        self._parts: list[str] = []
        self._num_figures = 0

    def section(self, title: str, intro: str = "") -> Self:
        """Begin a section; its title joins the contents at the top."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        if len(self._sections) > 1:
            self._parts.append("</section>")
        self._parts.append(f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{_text(title)}</h2>')
        return self.text(intro, quiet=True) if intro else self

    def subsection(self, title: str) -> Self:
        """Add a smaller heading."""
        self._parts.append(f"<h3>{_text(title)}</h3>")
        return self

    def text(self, text: str, *, quiet: bool = False) -> Self:
        """Add a paragraph; a quiet one is paler."""
        self._parts.append(f"<p{' class=quiet' if quiet else ''}>{_text(text)}</p>")
        return self

    def code(self, text: str) -> Self:
        """Add text as a machine would read it, such as a command."""
        self._parts.append(f"<pre tabindex=0><code>{_text(text)}</code></pre>")
        return self

    def details(self, summary: str, lines: Sequence[str]) -> Self:
        """Add lines that stay folded until somebody opens them."""
        items = "".join(f"<li>{_text(line)}</li>" for line in lines)
        self._parts.append(f"<details><summary>{_text(summary)}</summary><ul>{items}</ul></details>")
        return self

    def numbers(self, cards: Sequence[Number]) -> Self:
        """Add a row of cards, each with one number."""
        drawn = "".join(
            f"<div class=card><dt>{_text(card.label)}</dt><dd>{_text(card.value)}<small>{_text(card.note)}</small></dd></div>"
            for card in cards
        )
        self._parts.append(f"<dl class=cards>{drawn}</dl>")
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Self:
        """Add a table; columns of numbers are set to the right."""
        kinds = [_column_class([row[place] for row in rows]) for place in range(len(columns))]
        head = "".join(f"<th scope=col{kind}>{_text(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{kind}>{_cell(value)}</td>" for value, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows
        )
        self._parts.append(f"<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")
        return self

    def picture_strip(self, pictures: Sequence[Picture], *, lead: Picture | None = None, note: str = "") -> Self:
        """Add pictures side by side; ``lead``, such as the query they answer, stands before them, with ``note`` below."""
        shown = "".join(_picture(picture) for picture in pictures)
        if lead is None:
            self._parts.append(f"<div class=strip>{shown}</div>")
        else:
            below = f"<p class=quiet>{_text(note)}</p>" if note else ""
            self._parts.append(
                f"<div class=answer><div class=lead>{_picture(lead)}</div><div><div class=strip>{shown}</div>{below}</div></div>"
            )
        return self

    def gallery(self, pictures: Sequence[Picture], *, lead: Picture, side_px: int = LARGE_PX) -> Self:
        """Add pictures in their own aspect behind the one that they answer, each enlarged to ``side_px`` by a click."""
        shown = "".join(_large(picture, side_px) for picture in pictures)
        self._parts.append(f'<div class="answer found"><div class=lead>{_large(lead, side_px)}</div><div class=gallery>{shown}</div></div>')
        return self

    def panels(self, rows: Sequence[Sequence[Picture]]) -> Self:
        """Add rows of pictures that belong side by side, as wide as the page and each enlarged by a click."""
        for row in rows:
            shown = "".join(_large(picture, LARGE_PX) for picture in row)
            self._parts.append(f'<div class=panels style="--n:{len(row)}">{shown}</div>')
        return self

    def legend(self, colours: Sequence[tuple[str, str]]) -> Self:
        """Add what colours mean: (name, ``#rrggbb``)."""
        items = "".join(f'<li><i style="background:{_text(colour)}"></i>{_text(name)}</li>' for name, colour in colours)
        self._parts.append(f"<ul class=legend>{items}</ul>")
        return self

    def picture_pairs(self, pairs: Sequence[tuple[Picture, Picture]]) -> Self:
        """Add pictures two by two, each pair in a box of its own."""
        shown = "".join(f"<div class=pair>{_picture(one)}{_picture(other)}</div>" for one, other in pairs)
        self._parts.append(f"<div class=pairs>{shown}</div>")
        return self

    def image(self, image: Image.Image, *, alt: str) -> Self:
        """Add one picture at its own size, or as wide as the page where it is wider."""
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=IMAGE_QUALITY)
        encoded = base64.b64encode(stream.getvalue()).decode()
        self._parts.append(f'<figure class=wide><img src="data:image/jpeg;base64,{encoded}" alt="{_text(alt)}"></figure>')
        return self

    def plots(self, plots: Sequence[Plot]) -> Self:
        """Add figures, side by side where there is room, as SVG that follows the page's colours."""
        drawn = []
        for plot in plots:
            self._num_figures += 1
            below = f"<figcaption>{_text(plot.caption)}</figcaption>" if plot.caption else ""
            head = f"<h3>{_text(plot.title)}</h3>" if plot.title else ""
            svg = _svg(plot.figure, f"f{self._num_figures}-")
            drawn.append(f'<figure class=plot>{head}<div role=img aria-label="{_text(plot.alt)}">{svg}</div>{below}</figure>')
        self._parts.append(f"<div class=plots>{''.join(drawn)}</div>")
        return self

    def render(self) -> str:
        """Return the whole page."""
        facts = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in self._facts)
        contents = "".join(f'<a href="#{anchor}">{_text(title)}</a>' for anchor, title in self._sections)
        nav = f"<nav aria-label=Contents><div>{contents}</div></nav>" if len(self._sections) > 1 else ""
        # The policy makes it a promise: even a page with a hostile file name in it cannot ask anything of the network.
        return (
            '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
            "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
            f'<meta name=color-scheme content="light dark"><title>{_text(self._title)}</title><style>{STYLE}</style></head><body>'
            f"<header><p class=brand>Sightline</p><h1>{_text(self._title)}</h1>"
            f"<p class=subtitle>{_text(self._subtitle)}</p>{f'<dl class=facts>{facts}</dl>' if facts else ''}</header>{nav}"
            f"<main>{''.join(self._parts)}{'</section>' if self._sections else ''}</main></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page to ``path`` whole or not at all, making the folders above it, and return the path.

        Raises:
            SightlineError: the disk is full or the folder may not be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                    file.write(self.render())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise explain_os_error(error, f"writing the page {path}") from error
        return path


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _column_class(values: Sequence[Cell]) -> str:
    if values and all(isinstance(value, Bar) for value in values):
        return " class=bar"
    is_number = [isinstance(value, int | float) or (isinstance(value, str) and value.endswith("%")) for value in values]
    return " class=number" if values and all(is_number) else ""


def _cell(value: Cell) -> str:
    if isinstance(value, Bar):
        return _bar(value)
    if isinstance(value, Named):
        return f"{_text(value.name)}<small>{_text(value.note)}</small>"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _bar(bar: Bar) -> str:
    interval = ""
    if bar.low is not None and bar.high is not None:
        interval = f'<i style="left:{100 * bar.low:.2f}%;width:{100 * max(0.0, bar.high - bar.low):.2f}%"></i>'
    return f'<span class=gauge aria-hidden=true><b style="width:{100 * bar.value:.2f}%"></b>{interval}</span>'


def _picture(picture: Picture) -> str:
    return _figure(
        picture, "" if picture.image is None else f'<img src="{thumbnail_uri(picture.image)}" alt="{_alt(picture)}" loading=lazy>'
    )


def _large(picture: Picture, side_px: int) -> str:
    """Return a picture in its own aspect that a click, or the space bar, enlarges to the window: a box to tick, for pages run no scripts."""
    if picture.image is None:
        return _figure(picture, "", "--r:1")
    aspect = min(2.5, max(0.5, picture.image.width / picture.image.height))
    source = thumbnail_uri(picture.image, side_px=side_px, most_bytes=LARGE_BYTES * side_px // LARGE_PX)
    box = f'<input type=checkbox aria-label="enlarge {_alt(picture)}">'
    shown = f'<label class=zoom>{box}<img src="{source}" alt="{_alt(picture)}" loading=lazy></label>'
    return _figure(picture, shown, f"--r:{aspect:.3f}")


def _figure(picture: Picture, shown: str, style: str = "") -> str:
    shown = shown or f'<span class=missing role=img aria-label="{_alt(picture)}">not readable</span>'
    mark = f"<span class=mark aria-hidden=true>{_MARK[picture.state]}</span>" if _MARK[picture.state] else ""
    note = f"<small>{_text(picture.note)}</small>" if picture.note else ""
    name = f'<span title="{_text(picture.caption)}">{_text(picture.caption)}</span>'
    name = f'<a href="{_text(picture.link)}">{name}</a>' if picture.link else name
    styled = f' style="{style}"' if style else ""
    return f"<figure class={picture.state}{styled}><div class=frame>{shown}{mark}</div><figcaption>{name}{note}</figcaption></figure>"


def _alt(picture: Picture) -> str:
    return _text(f"{_SPOKEN[picture.state]}{picture.caption}")


def _svg(figure: Figure, prefix: str) -> str:
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context(FIGURE_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # text stays text: the reader's fonts draw it
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    # Two figures on one page would otherwise share ids, and the second would be clipped by the first.
    text = re.sub(r'id="', f'id="{prefix}', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
