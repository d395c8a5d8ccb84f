"""The evaluation report: one HTML file with the numbers, how they came about, and the pictures that explain them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.contracts import Descriptors, IntArray
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.evaluate import figures
from sightline.evaluate.metrics import average_precision, first_rank
from sightline.evaluate.protocols import Measured, Protocol, rows_of
from sightline.evaluate.run import confusions, near_duplicates, separation
from sightline.html import Bar, Cell, Named, Number, Page, Picture, Plot
from sightline.search.neighbours import nearest

NUM_SHOWN = 10
NUM_WORST, NUM_BEST, NUM_CONFUSED, NUM_PAIRS = 16, 6, 12, 24
NUM_NAMED = 500
CARDS = ("recall@1", "map@r", "map", "r_precision", "mrr")
MEANINGS = {
    "map@r": "average precision within the first R answers, R a query's number of positives",
    "r_precision": "share of positives among the first R answers",
    "map": "average precision over the whole gallery",
    "mrr": "one over the rank of the first right answer",
}
Thumbnail = Callable[[Records, int], Image.Image | None]


@dataclass(frozen=True, eq=False)
class Collection:
    """Descriptors and the records they point into."""

    descriptors: Descriptors
    records: Records


def write_report(
    path: Path,
    measured: Measured,
    collection: Collection,
    protocol: Protocol,
    *,
    title: str,
    command: str,
    facts: Sequence[tuple[str, str]] = (),
    train: Collection | None = None,
    bad_files: Sequence[str] = (),
    duplicate_threshold: float = 0.95,
    thumbnail: Thumbnail = readable_thumbnail,
    device: str = "cpu",
) -> Path:
    """Write the report of a measurement to ``path`` as one self-contained file of a few MB at most, and return the path.

    ``facts`` are shown in the header (model, data, date, ...); ``bad_files`` are "name: reason" lines; with ``train`` the report lists
    pairs of training and evaluation images that are nearly the same.

    Raises:
        SightlineError: the file cannot be written.
    """
    view = _View(collection, protocol, measured, thumbnail, device)
    summary = f"{measured.protocol}: {measured.num_queries:,} queries, {measured.num_gallery:,} to search, {measured.num_classes:,} classes"
    page = Page(title, summary, facts)
    _add_numbers(page, measured)
    _add_curves(page, view)
    _add_queries(page, view)
    _add_confusions(page, view)
    if train is not None:
        _add_duplicates(page, view, train, duplicate_threshold)
    if bad_files:
        page.section("Unreadable files", f"{len(bad_files):,} files took no part, neither as query nor as answer.")
        page.details(f"Show {min(len(bad_files), NUM_NAMED):,} of {len(bad_files):,}", bad_files[:NUM_NAMED])
    _add_method(page, measured, command)
    return page.write(path)


class _View:
    """The measured descriptors as queries and gallery, with names and pictures by their positions there."""

    def __init__(self, collection: Collection, protocol: Protocol, measured: Measured, thumbnail: Thumbnail, device: str) -> None:
        descriptors, self.records = collection.descriptors, collection.records
        query_places = rows_of(descriptors, protocol.query_rows)
        gallery_places = rows_of(descriptors, protocol.searched_rows)
        self.measured = measured
        self.device = device
        self.queries, self.query_rows = descriptors.vectors[query_places], descriptors.rows[query_places]
        self.gallery, self.gallery_rows = descriptors.vectors[gallery_places], descriptors.rows[gallery_places]
        assert self.records.labels is not None
        self.query_labels, self.gallery_labels = self.records.labels[self.query_rows], self.records.labels[self.gallery_rows]
        self.self_rows = np.arange(len(self.queries)) if protocol.gallery_rows is None else None
        self.average_precision = average_precision(measured.ranks)
        self.thumbnail = thumbnail

    def name(self, label: int) -> str:
        return self.records.class_names[label]

    def query_picture(self, query: int, note: str = "") -> Picture:
        row = int(self.query_rows[query])
        return Picture(self.thumbnail(self.records, row), self.name(self.query_labels[query]), note, "query")

    def answer_picture(self, query: int, answer: int, similarity: float) -> Picture:
        label = self.gallery_labels[answer]
        image = self.thumbnail(self.records, int(self.gallery_rows[answer]))
        return Picture(image, self.name(label), f"{similarity:.3f}", "right" if label == self.query_labels[query] else "wrong")

    def own_rows(self, queries: IntArray) -> IntArray | None:
        return None if self.self_rows is None else self.self_rows[queries]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}\u202f%"


def _interval(measured: Measured, name: str) -> str:
    if name not in measured.intervals:
        return ""
    low, high = measured.intervals[name]
    return f"{100 * low:.2f}\u00a0to\u00a0{100 * high:.2f}"


def _meaning(name: str) -> str:
    if name.startswith("recall@"):
        return f"queries with a right answer among the first {int(name.partition('@')[2]):,}"
    return MEANINGS.get(name, "")


def _add_numbers(page: Page, measured: Measured) -> None:
    page.section("Numbers", "Means over the queries, with 95 % confidence intervals from resampling whole classes.")
    page.numbers([Number(name, _percent(measured.metrics[name]), _interval(measured, name)) for name in CARDS if name in measured.metrics])
    rows: list[list[Cell]] = []
    for name, value in measured.metrics.items():
        low, high = measured.intervals.get(name, (None, None))
        rows.append([Named(name, _meaning(name)), _percent(value), _interval(measured, name), Bar(value, low, high)])
    page.table(["metric", "mean", "95 % interval", ""], rows)
    if not measured.intervals:
        page.text("There are no intervals: fewer than two classes were measured.", quiet=True)
    if measured.num_skipped:
        page.text(
            f"{measured.num_skipped:,} queries have no other image of their class to find and were left out of the means.", quiet=True
        )


def _add_curves(page: Page, view: _View) -> None:
    ranks = view.measured.ranks
    labels, precision = _per_class(view)
    apart = separation(view.queries, view.query_labels, view.gallery, view.gallery_labels, view.self_rows, device=view.device)
    page.section("Curves").plots(
        [
            Plot(figures.recall_curve(ranks), "Recall@K", "Recall at K over K", "Queries with a right answer among the first K."),
            Plot(
                figures.precision_curve(ranks), "Precision and recall", "Precision over recall", "Interpolated, averaged over the queries."
            ),
            Plot(
                figures.separation_histogram(apart),
                "Similarities",
                "Histogram of the similarities of positives and of each query's closest negative",
                "The less they overlap, the better one threshold can say that nothing matches.",
            ),
            Plot(figures.class_histogram(precision), "Classes", "Histogram of mean average precision over classes"),
        ]
    )
    num_queries = dict(zip(*np.unique(view.query_labels, return_counts=True), strict=True))
    rows: list[list[Cell]] = [
        [view.name(labels[place]), int(num_queries[labels[place]]), _percent(precision[place]), Bar(precision[place])]
        for place in np.argsort(precision, kind="stable")[:NUM_SHOWN]
    ]
    page.subsection("The hardest classes").table(["class", "queries", "map", ""], rows)


def _per_class(view: _View) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    answerable = view.measured.ranks.answerable
    labels, of_query = np.unique(view.query_labels[answerable], return_inverse=True)
    return labels, np.bincount(of_query, weights=view.average_precision[answerable]) / np.bincount(of_query)


def _one_per_class(queries: IntArray, labels: IntArray, most: int) -> IntArray:
    _, first = np.unique(labels[queries], return_index=True)
    return queries[np.sort(first)][:most]


def _add_queries(page: Page, view: _View) -> None:
    ranks = view.measured.ranks
    answerable = np.flatnonzero(ranks.answerable)
    by_precision = answerable[np.lexsort((-first_rank(ranks)[answerable], view.average_precision[answerable]))]
    # Among perfect answers those with the most to find say more than those with a single positive.
    by_success = answerable[np.lexsort((-ranks.num_positives[answerable], -view.average_precision[answerable]))]
    intro = f"Each query with its {NUM_SHOWN} closest answers and their similarity; at most one query of a class."
    page.section("Worst queries", intro)
    worst = [query for query in _one_per_class(by_precision, view.query_labels, NUM_WORST) if view.average_precision[query] < 1]
    _add_strips(page, view, np.array(worst, np.int64))
    if not worst:
        page.text("None: every query has all its positives before all others.")
    page.section("Best queries", intro)
    _add_strips(page, view, _one_per_class(by_success, view.query_labels, NUM_BEST))


def _add_strips(page: Page, view: _View, queries: IntArray) -> None:
    found = nearest(view.queries[queries], view.gallery, NUM_SHOWN, view.own_rows(queries), device=view.device)
    first = first_rank(view.measured.ranks)
    num_positives = view.measured.ranks.num_positives
    for place, query in enumerate(queries.tolist()):
        answers = [
            view.answer_picture(query, answer, float(similarity))
            for answer, similarity in zip(found.rows[place].tolist(), found.similarity[place], strict=True)
        ]
        note = (
            f"average precision {view.average_precision[query]:.2f}; first right answer at rank {int(first[query]):,}; "
            f"{num_positives[query]:,} to find"
        )
        page.picture_strip(answers, lead=view.query_picture(query, view.records.paths[int(view.query_rows[query])]), note=note)


def _add_confusions(page: Page, view: _View) -> None:
    first = first_rank(view.measured.ranks)
    wrong = np.flatnonzero(first > 1)  # NaN, a query without positives, compares False
    page.section("Confusions", f"Classes taken for each other. The closest answer was of another class for {len(wrong):,} queries.")
    found = nearest(view.queries[wrong], view.gallery, 1, view.own_rows(wrong), device=view.device)
    answers = np.full(len(view.queries), -1, np.int64)
    answers[wrong] = found.rows[:, 0]
    confused = confusions(view.query_labels, view.gallery_labels, answers, most=NUM_CONFUSED)
    if not confused:
        page.text("None.")
        return
    rows: list[list[Cell]] = [[view.name(one.label), view.name(one.mistaken_for), one.count] for one in confused]
    page.table(["class", "taken for", "times"], rows)
    similarity = dict(zip(wrong.tolist(), found.similarity[:, 0].tolist(), strict=True))
    page.picture_pairs(
        [
            (view.query_picture(one.query), view.answer_picture(one.query, one.answer, similarity[one.query]))
            for one in confused[: NUM_CONFUSED // 2]
        ]
    )


def _add_duplicates(page: Page, view: _View, train: Collection, threshold: float) -> None:
    measured_rows = np.union1d(view.query_rows, view.gallery_rows)
    vectors = np.concatenate([view.queries, view.gallery])
    rows, places = np.unique(np.concatenate([view.query_rows, view.gallery_rows]), return_index=True)
    found = near_duplicates(vectors[places], train.descriptors.vectors, threshold=threshold, most=NUM_PAIRS, device=view.device)
    page.section(
        "Near-duplicates",
        f"{found.num_found:,} pairs of a training and an evaluation image with a similarity of {threshold:g} or more, among "
        f"{len(train.descriptors):,} training and {len(measured_rows):,} evaluation images. Images seen in training flatter the numbers.",
    )
    pairs = []
    for place, other, similarity in zip(found.rows.tolist(), found.other_rows.tolist(), found.similarity.tolist(), strict=True):
        row, train_row = int(rows[place]), int(train.descriptors.rows[other])
        measured_one = Picture(view.thumbnail(view.records, row), view.records.paths[row], f"evaluation, {similarity:.3f}")
        pairs.append((measured_one, Picture(view.thumbnail(train.records, train_row), train.records.paths[train_row], "training")))
    page.picture_pairs(pairs)


def _add_method(page: Page, measured: Measured, command: str) -> None:
    asked = "the query split asks the gallery split, and nothing is left out"
    if measured.protocol == "leave-one-out":
        asked = "every image asks all the others; it is never its own answer, left out by its row and not by its similarity"
    page.section("Method", "How it was measured.")
    page.text(f"Protocol: {measured.protocol}: {asked}.")
    page.text(f"Ties: {measured.tie_rule}. Similarities are exact inner products in float32; no approximate index took part.")
    page.text(f"{measured.num_queries:,} queries, {measured.num_skipped:,} of them without a positive and so skipped.")
    page.text("Intervals: 95 % percentile bootstrap of whole classes, since queries of one class are not independent.")
    page.text("Made by:").code(command)
