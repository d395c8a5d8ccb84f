"""The evaluation report: one HTML file with the numbers, how they came about, and the pictures that explain them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.contracts import Descriptors, IntArray, Ranking
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.errors import counted
from sightline.evaluation import figures
from sightline.evaluation.measured import NUM_KEPT, Measured
from sightline.evaluation.metrics import average_precision, first_rank, trapezoid_average_precision
from sightline.evaluation.ranks import DoubleArray
from sightline.evaluation.run import confusions, near_duplicates, separation
from sightline.evaluation.trials import Trial
from sightline.html import Bar, Cell, Named, Number, Page, Picture, Plot
from sightline.search.neighbours import nearest

NUM_SHOWN = NUM_KEPT
NUM_CARDS = 5
NUM_WORST, NUM_BEST, NUM_CONFUSED, NUM_PAIRS = 16, 6, 12, 24
NUM_NAMED = 500
CARDS = ("recall@1", "map@r", "map", "r_precision", "mrr")
MEANINGS = {
    "map@r": "average precision within the first R answers, R a query's number of positives",
    "r_precision": "share of positives among the first R answers",
    "map": "average precision over the whole gallery",
    "mrr": "one over the rank of the first right answer",
}
TRAPEZOID = "area under precision over recall by trapezoids, junk taken out"
MEANINGS_AT_K = {
    "recall": "queries with a right answer among the first {k:,}",
    "mp": "share of right answers among the first {k:,}, or up to the last one if that is sooner",
    "map": "average precision of the first {k:,} answers",
}
Thumbnail = Callable[[Records, int], Image.Image | None]


@dataclass(frozen=True, eq=False)
class Collection:
    """Descriptors and the records they point into."""

    descriptors: Descriptors
    records: Records


def report_page(
    measured: Measured,
    trial: Trial,
    *,
    title: str,
    command: str,
    facts: Sequence[tuple[str, str]] = (),
    train: Collection | None = None,
    bad_files: Sequence[str] = (),
    duplicate_threshold: float = 0.95,
    thumbnail: Thumbnail = readable_thumbnail,
    device: str = "cpu",
) -> Page:
    """Return the report of a measurement as one page of a few MB at most.

    ``facts`` are shown in the header (model, data, date, ...); ``bad_files`` are "name: reason" lines; with ``train`` the report lists
    pairs of training and evaluation images that are nearly the same.
    """
    view = _View(trial, measured, thumbnail, device)
    summary = f"{measured.protocol}: {counted(measured.num_queries, 'query', 'queries')}, {measured.num_gallery:,} to search, {measured.num_groups:,} {view.groups}"
    page = Page(title, summary, facts)
    _add_numbers(page, measured, view.groups)
    _add_curves(page, view)
    _add_queries(page, view)
    if trial.labels is not None:
        _add_confusions(page, view, *trial.labels)
    if train is not None:
        _add_duplicates(page, view, train, duplicate_threshold)
    if bad_files:
        page.section("Unreadable files", f"{counted(len(bad_files), 'file')} took no part, neither as query nor as answer.")
        page.details(f"Show {min(len(bad_files), NUM_NAMED):,} of {len(bad_files):,}", bad_files[:NUM_NAMED])
    _add_method(page, view, command)
    return page


class _View:
    """The trial with what the sections share: names and pictures by places among queries and gallery, what is right, each query's AP."""

    def __init__(self, trial: Trial, measured: Measured, thumbnail: Thumbnail, device: str) -> None:
        self.trial, self.measured, self.records, self.thumbnail, self.device = trial, measured, trial.records, thumbnail, device
        self.setting = measured.setting
        self.ranks = measured.ranks[self.setting]
        self.truth = trial.truths[self.setting]
        self.positives, self.junk = self.truth.positives, self.truth.junk
        self.average_precision = (average_precision if trial.labels is not None else trapezoid_average_precision)(self.ranks)
        self.groups = "classes" if trial.labels is not None else "groups of queries that share a positive"

    def name(self, label: int) -> str:
        return self.records.class_names[label]

    def caption(self, row: int) -> str:
        if self.trial.labels is not None and self.records.labels is not None:
            return self.name(self.records.labels[row])
        return Path(self.records.paths[row]).stem

    def query_picture(self, query: int, note: str = "") -> Picture:
        row = int(self.trial.query_rows[query])
        return Picture(self.thumbnail(self.records, row), self.caption(row), note, "query")

    def answer_picture(self, query: int, answer: int, similarity: float) -> Picture:
        row = int(self.trial.gallery_rows[answer])
        image, caption = self.thumbnail(self.records, row), self.caption(row)
        if answer in self.junk[query]:
            return Picture(image, caption, f"{similarity:.3f}, does not count")
        return Picture(image, caption, f"{similarity:.3f}", "right" if answer in self.positives[query] else "wrong")

    def of_several_classes(self, queries: IntArray, most: int) -> IntArray:
        if self.trial.labels is None:
            return queries[:most]
        _, first = np.unique(self.trial.labels[0][queries], return_index=True)
        return queries[np.sort(first)][:most]

    def closest(self, queries: IntArray, k: int) -> Ranking:
        if self.measured.reranked is not None:
            return Ranking(self.measured.reranked.rows[queries, :k], self.measured.reranked.similarity[queries, :k])
        own = None if self.trial.self_rows is None else self.trial.self_rows[queries]
        return nearest(self.trial.queries[queries], self.trial.gallery, k, own, device=self.device)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}\u202f%"


def _interval(measured: Measured, name: str) -> str:
    if name not in measured.intervals:
        return ""
    low, high = measured.intervals[name]
    return f"{100 * low:.2f}\u00a0to\u00a0{100 * high:.2f}"


def _meaning(name: str) -> str:
    name, _, setting = name.partition("/")
    kind, _, k = name.partition("@")
    if kind in MEANINGS_AT_K and k.isdecimal():
        return MEANINGS_AT_K[kind].format(k=int(k))
    return TRAPEZOID if name == "map" and setting else MEANINGS.get(name, "")


def _cards(measured: Measured) -> list[str]:
    if measured.by_labels:
        return [name for name in CARDS if name in measured.metrics]
    first = next(iter(measured.metrics)).partition("/")[0]
    of_settings = [name for name in measured.metrics if len(measured.ranks) == 1 or name.partition("/")[0] == first]
    return of_settings[:NUM_CARDS]


def _add_numbers(page: Page, measured: Measured, groups: str) -> None:
    page.section("Numbers", f"Means over the queries, with 95 % confidence intervals from resampling whole {groups}.")
    page.numbers([Number(name, _percent(measured.metrics[name]), _interval(measured, name)) for name in _cards(measured)])
    rows: list[list[Cell]] = []
    for name, value in measured.metrics.items():
        low, high = measured.intervals.get(name, (None, None))
        rows.append([Named(name, _meaning(name)), _percent(value), _interval(measured, name), Bar(value, low, high)])
    page.table(["metric", "mean", "95 % interval", ""], rows)
    if not measured.intervals:
        page.text(f"There are no intervals: fewer than two {groups} were measured.", quiet=True)
    for setting, num_skipped in measured.num_skipped.items():
        if num_skipped:
            where = f" in the setting {setting}" if setting else ""
            page.text(f"{num_skipped:,} queries have no other image to find{where} and were left out of the means.", quiet=True)


def _add_curves(page: Page, view: _View) -> None:
    trial = view.trial
    apart = separation(trial.queries, trial.gallery, view.truth, trial.self_rows, device=view.device)
    plots = [
        Plot(figures.recall_curve(view.ranks), "Recall@K", "Recall at K over K", "Queries with a right answer among the first K."),
        Plot(
            figures.precision_curve(view.ranks), "Precision and recall", "Precision over recall", "Interpolated, averaged over the queries."
        ),
        Plot(
            figures.separation_histogram(apart),
            "Similarities",
            "Histogram of the similarities of positives and of each query's closest negative",
            "The less they overlap, the better one threshold can say that nothing matches.",
        ),
    ]
    page.section("Curves", f"In the setting {view.setting}." if view.setting else "")
    if trial.labels is None:
        page.plots(plots)
        return
    labels, num_queries, precision = _per_class(view, trial.labels[0])
    page.plots([*plots, Plot(figures.class_histogram(precision), "Classes", "Histogram of mean average precision over classes")])
    rows: list[list[Cell]] = [
        [view.name(labels[place]), int(num_queries[place]), _percent(precision[place]), Bar(precision[place])]
        for place in np.argsort(precision, kind="stable")[:NUM_SHOWN]
    ]
    page.subsection("The hardest classes").table(["class", "queries", "map", ""], rows)


def _per_class(view: _View, query_labels: IntArray) -> tuple[IntArray, IntArray, DoubleArray]:
    answerable = view.ranks.answerable
    labels, of_query = np.unique(query_labels[answerable], return_inverse=True)
    num_queries = np.bincount(of_query)
    return labels, num_queries, np.bincount(of_query, weights=view.average_precision[answerable]) / num_queries


def _add_queries(page: Page, view: _View) -> None:
    answerable = np.flatnonzero(view.ranks.answerable)
    by_precision = answerable[np.lexsort((-first_rank(view.ranks)[answerable], view.average_precision[answerable]))]
    # Among perfect answers those with the most to find say more than those with a single positive.
    by_success = answerable[np.lexsort((-view.ranks.num_positives[answerable], -view.average_precision[answerable]))]
    whose = "similarity" if view.measured.reranked is None else "similarity as the re-ranker has it"
    intro = f"Each query with its {NUM_SHOWN} closest answers and their {whose}"
    intro += (
        "; at most one query of a class." if view.trial.labels is not None else f", in the setting {view.setting}." * bool(view.setting)
    )
    page.section("Worst queries", intro)
    worst = [query for query in view.of_several_classes(by_precision, NUM_WORST) if view.average_precision[query] < 1]
    _add_strips(page, view, np.array(worst, np.int64))
    if not worst:
        page.text("None: every query has all its positives before all others.")
    page.section("Best queries", intro)
    _add_strips(page, view, view.of_several_classes(by_success, NUM_BEST))


def _add_strips(page: Page, view: _View, queries: IntArray) -> None:
    found = view.closest(queries, NUM_SHOWN)
    first, num_positives = first_rank(view.ranks), view.ranks.num_positives
    for place, query in enumerate(queries.tolist()):
        answers = [
            view.answer_picture(query, answer, float(similarity))
            for answer, similarity in zip(found.rows[place].tolist(), found.similarity[place], strict=True)
        ]
        note = (
            f"average precision {view.average_precision[query]:.2f}; first right answer at rank {int(first[query]):,}; "
            f"{num_positives[query]:,} to find"
        )
        page.picture_strip(answers, lead=view.query_picture(query, view.records.paths[int(view.trial.query_rows[query])]), note=note)


def _add_confusions(page: Page, view: _View, query_labels: IntArray, gallery_labels: IntArray) -> None:
    wrong = np.flatnonzero(first_rank(view.ranks) > 1)  # NaN, a query without positives, compares False
    page.section("Confusions", f"Classes taken for each other. The closest answer was of another class for {len(wrong):,} queries.")
    found = view.closest(wrong, 1)
    answers = np.full(len(query_labels), -1, np.int64)
    answers[wrong] = found.rows[:, 0]
    confused = confusions(query_labels, gallery_labels, answers, most=NUM_CONFUSED)
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
    trial = view.trial
    rows, places = np.unique(np.concatenate([trial.query_rows, trial.gallery_rows]), return_index=True)
    vectors = np.concatenate([trial.queries, trial.gallery])[places]
    found = near_duplicates(vectors, train.descriptors.vectors, threshold=threshold, most=NUM_PAIRS, device=view.device)
    page.section(
        "Near-duplicates",
        f"{found.num_found:,} pairs of a training and an evaluation image with a similarity of {threshold:g} or more, among "
        f"{len(train.descriptors):,} training and {len(rows):,} evaluation images. Images seen in training flatter the numbers.",
    )
    pairs = []
    for place, other, similarity in zip(found.rows.tolist(), found.other_rows.tolist(), found.similarity.tolist(), strict=True):
        row, train_row = int(rows[place]), int(train.descriptors.rows[other])
        measured_one = Picture(view.thumbnail(view.records, row), view.records.paths[row], f"evaluation, {similarity:.3f}")
        pairs.append((measured_one, Picture(view.thumbnail(train.records, train_row), train.records.paths[train_row], "training")))
    page.picture_pairs(pairs)


def _add_method(page: Page, view: _View, command: str) -> None:
    measured = view.measured
    asked = "the queries ask the gallery, and what does not count for a query is taken out of its ranking"
    if view.trial.self_rows is not None:
        asked = "every image asks all the others; it is never its own answer, left out by its row and not by its similarity"
        asked += f"; {measured.left_out} is left out too" if measured.left_out else ""
    elif measured.by_labels:
        asked = f"the query split asks the gallery split, and {measured.left_out or 'nothing'} is left out"
    page.section("Method", "How it was measured.")
    page.text(f"Protocol: {measured.protocol}: {asked}.")
    page.text(f"Ties: {measured.tie_rule}. Similarities are exact inner products in float32; no approximate index took part.")
    if measured.rerank_top is not None:
        page.text(f"The {measured.rerank_top:,} closest of each query were re-ranked; what lies behind them keeps its rank.")
    skipped = ", ".join(f"{num:,}{f' ({setting})' if setting else ''}" for setting, num in measured.num_skipped.items())
    page.text(f"{measured.num_queries:,} queries, of which without a positive and so skipped: {skipped}.")
    page.text(f"Intervals: 95 % percentile bootstrap of whole {view.groups}, since their queries are not independent.")
    page.text("Made by:").code(command)
