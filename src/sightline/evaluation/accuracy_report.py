"""The page of a classifier's accuracy: the numbers, the classes it takes for each other, and the images that explain them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from sightline.contracts import IntArray
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.errors import counted
from sightline.evaluation.accuracy import Accuracy, Guesses
from sightline.evaluation.run import Confusion, confusions
from sightline.html import INK, SERIES, Bar, Cell, Named, Number, Page, Picture, Plot, plot_axes

NUM_CLASSES, NUM_CONFUSED, NUM_PAIRS, NUM_WORST, NUM_BEST, NUM_NAMED = 10, 12, 6, 24, 12, 500
NUM_BINS = 10
MEANINGS = {"accuracy@1": "images whose class is the first guess", "accuracy@5": "images whose class is among the first five"}
Thumbnail = Callable[[Records, int], Image.Image | None]


def accuracy_page(
    guesses: Guesses,
    records: Records,
    *,
    facts: Sequence[tuple[str, str]] = (),
    bad_files: Sequence[str] = (),
    command: str = "",
    thumbnail: Thumbnail = readable_thumbnail,
) -> Page:
    """Return the page of the accuracy of ``guesses`` about ``records``.

    ``facts`` are shown in the header; ``bad_files`` are "name: reason" lines.
    """
    accuracy = Accuracy.of(guesses)
    page = Page(
        "Accuracy report",
        f"{counted(accuracy.num_images, 'image')}, a classifier of {counted(accuracy.num_classes, 'class', 'classes')}",
        facts,
    )
    view = _View(guesses, records, thumbnail)
    _add_numbers(page, accuracy, guesses)
    _add_classes(page, guesses)
    _add_confusions(page, view)
    _add_images(page, view)
    if bad_files:
        page.section("Unreadable files", f"{counted(len(bad_files), 'file')} took no part.")
        page.details(f"Show {min(len(bad_files), NUM_NAMED):,} of {len(bad_files):,}", bad_files[:NUM_NAMED])
    page.section("Method", "How it was measured.")
    page.text("Each image is resized, cropped in the centre and given to the model once; its guess is the class with the largest logit.")
    page.text("Probabilities are the softmax of the logits. Intervals: 95 % percentile bootstrap over the images.")
    page.text("Classes are matched by name; a class of the classifier that no image shows is still one that it can guess.")
    if command:
        page.text("Made by:").code(command)
    return page


class _View:
    """The guesses with names and pictures by place among them."""

    def __init__(self, guesses: Guesses, records: Records, thumbnail: Thumbnail) -> None:
        self.guesses, self.records, self.thumbnail = guesses, records, thumbnail

    def picture(self, place: int) -> Picture:
        """Return an image under its own class, and below it the first guess where that is another."""
        guesses = self.guesses
        said = f"{guesses.probability[place]:.2f}"
        if not guesses.is_right[place]:
            said = (
                f"taken for {guesses.class_names[guesses.classes[place, 0]]}, {said}; its own class {guesses.target_probability[place]:.2f}"
            )
        image = self.thumbnail(self.records, int(guesses.rows[place]))
        return Picture(image, guesses.class_names[guesses.targets[place]], said, "right" if guesses.is_right[place] else "wrong")

    def example(self, label: int) -> Picture:
        """Return the image of a class that the classifier is surest of, or the class's name alone where none was measured."""
        own = np.flatnonzero(self.guesses.targets == label)
        name = self.guesses.class_names[label]
        if not len(own):
            return Picture(None, name, "no image of it was measured")
        surest = own[self.guesses.target_probability[own].argmax()]
        return Picture(self.thumbnail(self.records, int(self.guesses.rows[surest])), name, "an image of that class")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}\u202f%"


def _add_numbers(page: Page, accuracy: Accuracy, guesses: Guesses) -> None:
    page.section("Numbers", "Shares of the images, with 95 % confidence intervals.")
    ranges = {name: f"{100 * low:.2f}\u00a0to\u00a0{100 * high:.2f}" for name, (low, high) in accuracy.intervals.items()}
    page.numbers([Number(name, _percent(value), ranges[name]) for name, value in accuracy.metrics.items()])
    rows: list[list[Cell]] = [
        [Named(name, MEANINGS[name]), _percent(value), ranges[name], Bar(value, *accuracy.intervals[name])]
        for name, value in accuracy.metrics.items()
    ]
    page.table(["metric", "mean", "95 % interval", ""], rows)
    page.plots([_confidence(guesses)])


def _confidence(guesses: Guesses) -> Plot:
    """Return how often guesses are right over how sure they are: above the line the classifier is too modest, below it too sure."""
    place = np.minimum((guesses.probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    num = np.bincount(place, minlength=NUM_BINS)
    filled = num > 0
    sure = np.bincount(place, weights=guesses.probability, minlength=NUM_BINS)[filled] / num[filled]
    right = np.bincount(place, weights=guesses.is_right, minlength=NUM_BINS)[filled] / num[filled]
    gap = float(np.abs(sure - right) @ num[filled] / num.sum())
    figure, axes = plot_axes("probability of the first guess, %", "right, %")
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    axes.plot(100 * sure, 100 * right, color=SERIES[0], marker="o")
    caption = f"On the dotted line a probability means what it says; the mean distance from it is {100 * gap:.1f} points."
    return Plot(figure, "How sure, how right", "Share of right guesses over their probability", caption)


def _add_classes(page: Page, guesses: Guesses) -> None:
    labels, of_image, num = np.unique(guesses.targets, return_inverse=True, return_counts=True)
    right = np.bincount(of_image, weights=guesses.is_right) / num
    page.section("Classes", f"The {min(NUM_CLASSES, len(labels))} that are recognised least, of {len(labels):,}.")
    rows: list[list[Cell]] = [
        [guesses.class_names[labels[place]], int(num[place]), _percent(right[place]), Bar(float(right[place]))]
        for place in np.argsort(right, kind="stable")[:NUM_CLASSES]
    ]
    page.table(["class", "images", "accuracy@1", ""], rows)


def _add_confusions(page: Page, view: _View) -> None:
    guesses = view.guesses
    num_wrong = int((~guesses.is_right).sum())
    page.section("Confusions", f"Classes taken for each other. The first guess was another class for {num_wrong:,} images.")
    confused: list[Confusion] = confusions(guesses.targets, np.arange(len(guesses.class_names)), guesses.classes[:, 0], most=NUM_CONFUSED)
    if not confused:
        page.text("None.")
        return
    rows: list[list[Cell]] = [[guesses.class_names[one.label], guesses.class_names[one.mistaken_for], one.count] for one in confused]
    page.table(["class", "taken for", "times"], rows)
    page.picture_pairs([(view.picture(one.query), view.example(one.mistaken_for)) for one in confused[:NUM_PAIRS]])


def _add_images(page: Page, view: _View) -> None:
    guesses = view.guesses
    wrong, right = np.flatnonzero(~guesses.is_right), np.flatnonzero(guesses.is_right)
    worst = wrong[np.argsort(guesses.target_probability[wrong], kind="stable")]
    page.section("Worst images", "Those whose own class was given the least probability; at most three of a class.")
    page.picture_strip([view.picture(place) for place in _at_most(worst, guesses.targets, 3)[:NUM_WORST]])
    if not len(worst):
        page.text("None: every first guess is right.")
    best = right[np.argsort(-guesses.probability[right], kind="stable")]
    page.section("Best images", "Those that were recognised with the most probability; one of a class.")
    page.picture_strip([view.picture(place) for place in _at_most(best, guesses.targets, 1)[:NUM_BEST]])
    if not len(best):
        page.text("None: every first guess is wrong.")


def _at_most(places: IntArray, targets: IntArray, num: int) -> list[int]:
    """Return the places in order, no more than ``num`` of one class."""
    seen: dict[int, int] = {}
    kept = []
    for place in places.tolist():
        label = int(targets[place])
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= num:
            kept.append(place)
    return kept
