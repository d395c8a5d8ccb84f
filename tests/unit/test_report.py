"""The report holds the numbers, the queries and how they came about, in one bounded file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.contracts import Descriptors
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.evaluation import protocols, report
from sightline.evaluation.measured import Measured, measure
from sightline.evaluation.trials import label_trial


def scene(num_classes: int, per_class: int, noise: float, splits: tuple[str, ...] | None = None) -> report.Collection:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    vectors = generator.standard_normal((num_classes, 8))[labels] + noise * generator.standard_normal((len(labels), 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    paths = tuple(f"class-{label}/{row}.jpg" for row, label in enumerate(labels))
    names = tuple(f"<class {label}>" for label in range(num_classes))
    return report.Collection(Descriptors(vectors, np.arange(len(labels))), Records(Path("pictures"), paths, labels, names, splits))


def thumbnail(records: Records, row: int) -> Image.Image | None:
    return None if row % 7 == 3 else Image.new("RGB", (30, 20), (row % 256, 90, 90))


def write(tmp_path: Path, collection: report.Collection, **more) -> tuple[str, Measured]:
    trial = label_trial(collection.descriptors, collection.records, protocols.auto_rows(collection.records))
    measured = measure(trial, num_resamples=50)
    page = report.report_page(measured, trial, title="A title", command="sightline evaluate M", thumbnail=thumbnail, **more)
    path = page.write(tmp_path / "report.html")
    return path.read_text(encoding="utf-8"), measured


def test_report_of_a_middling_model(tmp_path):
    collection = scene(8, 6, 0.9)
    train = report.Collection(Descriptors(collection.descriptors.vectors[:3], np.arange(3)), collection.records)
    text, measured = write(tmp_path, collection, train=train, bad_files=["a.jpg: zero bytes"], facts=[("model", "M")])
    assert f"{100 * measured.metrics['map@r']:.2f}" in text
    for expected in ("Worst queries", "Best queries", "Confusions", "3 pairs of a training", "a.jpg: zero bytes", "sightline evaluate M"):
        assert expected in text
    assert "negative that ties with a positive" in text
    assert "&lt;class 0&gt;" in text
    assert "<class" not in text
    assert min(text.count("class=wrong"), text.count("class=right")) > 0
    assert "not readable" in text


def test_report_of_a_perfect_model_says_so(tmp_path):
    text, _ = write(tmp_path, scene(4, 3, 0.0))
    assert "every query has all its positives before all others" in text
    assert "for 0 queries" in text


def test_report_in_query_gallery(tmp_path):
    splits = ("query", "gallery", "gallery") * 5
    text, measured = write(tmp_path, scene(5, 3, 0.5, splits))
    assert measured.protocol == "query-gallery"
    assert "the query split asks the gallery split" in text


def test_report_of_queries_of_one_class_has_no_intervals(tmp_path):
    text, _ = write(tmp_path, scene(2, 3, 0.3, ("query", "gallery", "gallery") + ("gallery",) * 3))
    assert "fewer than two classes" in text


def test_pictures_are_bounded_however_many_queries(tmp_path):
    text, _ = write(tmp_path, scene(60, 10, 3.0))
    most = (report.NUM_WORST + report.NUM_BEST) * (report.NUM_SHOWN + 1) + report.NUM_CONFUSED
    assert text.count("<img") + text.count("class=missing") <= most


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_an_unreadable_file_has_no_thumbnail(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert readable_thumbnail(Records(tmp_path, ("a.jpg",)), 0) is None
