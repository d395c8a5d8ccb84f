"""The page of answers: every answer with its picture, similarity and metadata; hostile names are text."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sightline.contracts import Hit, Hits
from sightline.search import page as search_page
from sightline.search.page import write_page


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("query.png", "<b>one.png", "two.png")]
    for path, colour in zip(paths, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (30, 20), colour).save(path)
    return paths


def test_answers_are_shown_with_what_is_known_of_them(pictures: list[Path], tmp_path: Path) -> None:
    query, one, two = pictures
    hits = Hits((Hit(0, str(one), 0.98765, {"label": "cup & saucer", "camera": 3}), Hit(1, str(two), 0.5), Hit(2, "/gone.jpg", 0.25)))
    written = write_page(tmp_path / "new" / "page.html", [query], [hits], command="sightline search")
    text = written.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 3
    assert text.count("not readable") == 1
    assert "cup &amp; saucer" in text
    assert "0.988, camera 3" in text
    assert "two.png" in text
    assert "<b>one" not in text
    assert "sightline search" in text
    assert f'<a href="{two.as_uri()}">' in text
    assert "label class=zoom" in text


def test_what_all_answers_share_is_not_told_in_each(pictures: list[Path], tmp_path: Path) -> None:
    hits = Hits(tuple(Hit(number, str(path), 0.5, {"split": "test", "camera": number}) for number, path in enumerate(pictures)))
    text = write_page(tmp_path / "page.html", pictures[:1], [hits]).read_text(encoding="utf-8")
    assert "0.500, camera 1" in text
    assert "split test" not in text


def test_many_answers_are_enlarged_less(pictures: list[Path], tmp_path: Path) -> None:
    Image.effect_noise((900, 900), 80).save(pictures[1])
    sizes = [
        write_page(tmp_path / f"{num}.html", pictures[:1], [Hits(tuple(Hit(id, str(pictures[1]), 0.5) for id in range(num)))])
        .stat()
        .st_size
        / num
        for num in (20, 200)
    ]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_a_similarity_of_regions_is_is_told(pictures: list[Path], tmp_path: Path) -> None:
    whole = write_page(tmp_path / "a.html", pictures[:1], [Hits((Hit(0, str(pictures[1]), 0.5),))]).read_text(encoding="utf-8")
    assert "1 answer, closest first; similarity is a cosine, 1 for the same picture" in whole
    region = Hits((Hit(0, str(pictures[1]), 0.5, box=(0.0, 0.0, 9.0, 9.0)),))
    regions = write_page(tmp_path / "b.html", pictures[:1], [region], box=(0.0, 0.0, 9.0, 9.0), regions=True).read_text(encoding="utf-8")
    assert "1 for the same picture" not in regions
    assert "of a large box not every patch is compared, so the same picture may stay below 1" in regions


def test_a_query_without_answers_says_so(pictures: list[Path], tmp_path: Path) -> None:
    text = write_page(tmp_path / "page.html", pictures[:2], [Hits(()), Hits((Hit(0, str(pictures[2]), 0.5),))]).read_text(encoding="utf-8")
    assert text.count("Nothing in the index matches.") == 1
    assert "Answers to 2 pictures" in text


def test_pictures_are_bounded(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_page, "MAX_PICTURES", 3)
    hits = Hits(tuple(Hit(number, str(pictures[1]), 0.5) for number in range(2)))
    text = write_page(tmp_path / "page.html", pictures[:2], [hits, hits]).read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 2 + 3
    assert "1 more answer not shown" in text
