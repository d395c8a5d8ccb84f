"""The page builder: self-contained, escaped, deterministic, whole or not at all."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from sightline import html
from sightline.errors import SightlineError

HOSTILE = "<script>alert('x')</script> & \"quoted\" é"
VOID = {"meta", "img", "input", "br", "path", "use"}


class Checker(HTMLParser):
    """Collects text and tags, and fails on a tag that is closed without having been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small_figure() -> Figure:
    with rc_context(html.FIGURE_STYLE):
        figure = Figure(figsize=(3, 2), layout="constrained")
        figure.add_subplot().plot([0, 1, 2], [0, 1, 0])
    return figure


def full_page() -> html.Page:
    page = html.Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)]).section(HOSTILE, HOSTILE).subsection(HOSTILE).text(HOSTILE).code(HOSTILE)
    page.details(HOSTILE, [HOSTILE]).numbers([html.Number(HOSTILE, HOSTILE, HOSTILE)])
    page.table([HOSTILE, "n", "bar"], [[html.Named(HOSTILE, HOSTILE), 12345, html.Bar(0.5, 0.4, 0.6)], [HOSTILE, 2, html.Bar(0.1)]])
    states = [html.Picture(noise(60, 40), HOSTILE, HOSTILE, state) for state in ("plain", "query", "right", "wrong")]
    page.picture_strip([*states, html.Picture(None, HOSTILE)], lead=states[1], note=HOSTILE).picture_pairs([(states[0], states[3])])
    linked = html.Picture(noise(60, 40), HOSTILE, HOSTILE, link=f"file:///{HOSTILE}")
    page.gallery([linked, html.Picture(None, HOSTILE)], lead=states[1]).panels([[linked, linked]]).legend([(HOSTILE, HOSTILE)])
    page.section("Figures").plots([html.Plot(small_figure(), HOSTILE, HOSTILE, HOSTILE)])
    return page.plots([html.Plot(small_figure(), "again", "again")])


def test_all_text_is_escaped_and_all_tags_are_closed():
    text = full_page().render()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "script" not in {tag for tag, _ in checker.seen}
    assert "".join(checker.words).count("<script>") >= 14
    images = [attributes for tag, attributes in checker.seen if tag == "img"]
    assert len(images) == 11
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert images[6]["alt"].startswith("wrong: <script>")


def test_large_pictures_keep_their_aspect_and_are_enlarged_without_a_script():
    wide, thread = html.Picture(noise(1200, 400), "wide", link="file:///a%20b.jpg"), html.Picture(noise(1, 400), "thread")
    text = html.Page("t").gallery([wide, thread, html.Picture(None, "gone")], lead=wide).render()
    assert text.count('style="--r:2.500"') == 2
    assert 'style="--r:0.500"' in text
    assert text.count("<label class=zoom><input type=checkbox") == 3
    assert text.count('<a href="file:///a%20b.jpg">') == 2
    assert "clamp(160px" in text
    assert ".zoom input:checked+img" in text
    shown = [Image.open(io.BytesIO(base64.b64decode(found))).size for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    assert shown[0][0] >= 320
    assert "<script" not in text


def test_nothing_is_asked_of_the_network():
    text = full_page().render()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|<link|srcset|url\((?!#)", text)


def test_two_figures_share_no_ids_and_follow_the_colour_of_the_page():
    text = full_page().render()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert reference in ids
    assert "currentColor" in text
    assert html.INK not in text


def test_the_same_page_is_the_same_bytes():
    assert full_page().render() == full_page().render()


def test_numbers_are_set_right_and_grouped():
    text = html.Page("t").table(["n", "p", "name"], [[12345, "9.50\u202f%", "x"], [0.25, "1.00\u202f%", "y"]]).render()
    assert "<td class=number>12,345</td><td class=number>9.50" in text
    assert "<td class=number>0.2500</td>" in text
    assert "<td>x</td>" in text


@pytest.mark.parametrize("size", [(1, 1), (4000, 30), (900, 900)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_thumbnails_stay_small(size, mode):
    content = base64.b64decode(html.thumbnail_uri(noise(*size).convert(mode)).partition(",")[2])
    assert len(content) <= html.THUMBNAIL_BYTES
    assert content[:3] == b"\xff\xd8\xff"


def test_write_makes_folders_and_leaves_nothing_else(tmp_path):
    path = html.Page("title").text("text").write(tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_name_that_is_no_unicode_is_written_all_the_same(tmp_path):
    assert b"caf?" in html.Page("caf\udce9").write(tmp_path / "page.html").read_bytes()


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    path = html.Page("old").write(tmp_path / "page.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SightlineError, match="no space left"):
        html.Page("new").write(path)
    assert "old" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1
