"""The inspection of a model: what it is, the health of its descriptors, where it looks, what it finds and what it takes for the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.contracts import Descriptors, FloatArray, IntArray, Ranking
from sightline.data.images import BadImage
from sightline.data.loading import open_image
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.data.transforms import eval_transform
from sightline.errors import ModelError, explain_os_error
from sightline.html import Number, Page, Picture, Plot
from sightline.lens import draw, embedding
from sightline.lens.attention import asks_class_token, attention
from sightline.nn.encoder import Encoder
from sightline.nn.model_folder import write_text
from sightline.search.neighbours import nearest, nearest_of_other_class

MAX_SEARCHED = 20_000
"""Descriptors among which neighbours are sought (a seeded sample of more): exact, in seconds on two cores."""

MAX_DOTS = 10_000
NUM_EXAMPLES, NUM_NEIGHBOURS, NUM_PAIRS, NUM_HEADS, NUM_NAMED = 8, 10, 24, 12, 500
MAX_OF_CLASSES = 3
DUPLICATE_SIMILARITY = 0.95
CARDS = ("effective_rank", "mean_similarity", "uniformity", "alignment", "pair_auc", "hubness")

Thumbnail = Callable[[Records, int], Image.Image | None]


def inspect(
    encoder: Encoder,
    records: Records,
    descriptors: Descriptors,
    out: Path,
    *,
    title: str,
    command: str = "",
    bad_files: Sequence[str] = (),
    thumbnail: Thumbnail = readable_thumbnail,
) -> dict[str, Any]:
    """Write ``index.html`` and ``numbers.json`` about a model into the folder ``out`` and return the numbers.

    Args:
        encoder: the model.
        records: the images it is looked at with; without labels, what concerns classes is left out.
        descriptors: what the model made of them.
        out: the folder to write.
        title: what to call the model.
        command: how this came about.
        bad_files: "name: reason" of files that could not be read.
        thumbnail: gives the picture of a row of the records, or None.

    Raises:
        SightlineError: the folder cannot be written.
    """
    view = _View(records, descriptors, thumbnail)
    measures = embedding.health(
        view.vectors,
        view.labels,
        variances=view.variances,
        pairs=view.pairs,
        neighbours=view.ranking.rows,
        num_searched=len(view.searched),
    )
    model = _model_facts(encoder)
    page = Page(title, "What the model is, how its descriptors lie, where it looks and what it finds", _header(model, records, view))
    _add_health(page, measures)
    _add_shape(page, view)
    has_attention = _add_attention(page, view, encoder)
    _add_neighbours(page, view)
    num_mistakable = _add_hard_negatives(page, view)
    num_duplicates = _add_duplicates(page, view)
    if bad_files:
        page.section("Unreadable files", f"{len(bad_files):,} files took no part.")
        page.details(f"Show {min(len(bad_files), NUM_NAMED):,} of {len(bad_files):,}", bad_files[:NUM_NAMED])
    _add_method(page, view, command)
    numbers = {
        "model": {"name": title, **model},
        "images": len(descriptors),
        "classes": records.num_classes or None,
        "bad_files": len(bad_files),
        "metrics": {measure.name: None if math.isnan(measure.value) else measure.value for measure in measures},
        "energy": [round(float(share), 6) for share in embedding.energy(view.variances)],
        "closest_is_of_another_class": num_mistakable,
        "near_duplicates": num_duplicates,
        "searched": len(view.searched),
        "attention": has_attention,
        "command": command,
    }
    page.write(out / "index.html")
    try:
        write_text(out / "numbers.json", json.dumps(numbers, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"writing '{out / 'numbers.json'}'") from error
    return numbers


class _View:
    """The descriptors with their names and pictures; ``searched`` are the places (rows of ``vectors``) that neighbours are sought among."""

    def __init__(self, records: Records, descriptors: Descriptors, thumbnail: Thumbnail) -> None:
        self.records, self.vectors, self.rows = records, descriptors.vectors, descriptors.rows
        self.labels = None if records.labels is None else records.labels[self.rows]
        self.thumbnail = thumbnail
        num = len(self.vectors)
        self.searched: IntArray = np.sort(np.random.default_rng(0).permutation(num)[:MAX_SEARCHED])
        self.variances = embedding.spectrum(self.vectors)
        classes = np.zeros(num, np.int64) if self.labels is None else self.labels  # without labels all pairs are of one kind
        self.pairs = embedding.similarity_by_class(self.vectors, classes)
        among = self.vectors[self.searched]
        self.ranking: Ranking = nearest(among, among, NUM_NEIGHBOURS, np.arange(len(among)))

    def name(self, place: int) -> str:
        row = int(self.rows[place])
        return self.records.paths[row] if self.labels is None else self.records.class_names[self.labels[place]]

    def picture(self, place: int, note: str = "", *, beside: int | None = None) -> Picture:
        """Return the picture at a place, marked right or wrong by the class of the one it stands ``beside``."""
        image = self.thumbnail(self.records, int(self.rows[place]))
        if beside is None or self.labels is None:
            return Picture(image, self.name(place), note, "plain")
        return Picture(image, self.name(place), note, "right" if self.labels[place] == self.labels[beside] else "wrong")

    def examples(self) -> list[int]:
        """Return places spread evenly over the collection, which most often is ordered by class."""
        spread = np.linspace(0, len(self.searched) - 1, min(NUM_EXAMPLES, len(self.searched)))
        return [round(float(place)) for place in spread]


def _model_facts(encoder: Encoder) -> dict[str, Any]:
    return {
        "backbone": encoder.model.backbone,
        "pooling": encoder.model.pooling,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "width": encoder.dim,
        "image_px": encoder.image.image_px,
        "fingerprint": encoder.fingerprint,
    }


def _header(model: dict[str, Any], records: Records, view: _View) -> list[tuple[str, str]]:
    return [
        ("Backbone", f"{model['backbone']}, {model['pooling']} pooling"),
        ("Parameters", f"{model['parameters'] / 1e6:.1f} million"),
        ("Descriptor", f"{model['width']} numbers"),
        ("Image", f"{model['image_px']} x {model['image_px']} px"),
        ("Fingerprint", model["fingerprint"] or "not saved yet"),
        ("Looked at", f"{len(view.vectors):,} images" + (f" of {records.num_classes:,} classes" if view.labels is not None else "")),
    ]


# --- sections ---------------------------------------------------------------------------------------------------------------------


def _add_health(page: Page, measures: Sequence[embedding.Measure]) -> None:
    page.section("Descriptor health", "What the numbers say before any picture does.")
    page.numbers([Number(_spoken(one), _shown(one)) for one in measures if one.name in CARDS])
    page.table(["measure", "value", "what good looks like"], [[_spoken(one), _shown(one), one.good] for one in measures])


def _spoken(measure: embedding.Measure) -> str:
    return measure.name.replace("_", " ").replace("auc", "AUC").replace("percent", "%")


def _shown(measure: embedding.Measure) -> str:
    return "-" if math.isnan(measure.value) else f"{measure.value:.3g}" if abs(measure.value) < 100 else f"{measure.value:.0f}"


def _add_shape(page: Page, view: _View) -> None:
    shares = embedding.energy(view.variances)
    kinds = {"pairs": view.pairs.positive}
    if view.labels is not None:
        kinds = {"pairs of one class": view.pairs.positive, "pairs of two": view.pairs.negative}
    plots = [
        Plot(
            draw.energy_curve(shares, embedding.num_directions(shares, 0.9)),
            "Energy",
            "Cumulative share of variance over principal directions",
            "A steep start means that few directions are in use.",
        ),
        Plot(
            draw.similarity_histogram(kinds),
            "Similarities",
            "Histogram of the similarities of pairs",
            "" if view.labels is None else "The less the two overlap, the better one threshold can say that nothing matches.",
        ),
    ]
    legend: list[Picture] = []
    if len(view.vectors) > 2 and len(shares) > 1:
        plot, legend = _map(view, shares)
        plots.append(plot)
    page.section("Shape", "How the descriptors lie in their space.").plots(plots)
    if legend:
        page.picture_strip(legend)


def _map(view: _View, shares: embedding.Float64Array) -> tuple[Plot, list[Picture]]:
    """Return the map of the descriptors, and one picture of each coloured class in its colour."""
    chosen = view.searched[:: -(-len(view.searched) // MAX_DOTS)]
    labels = np.full(len(chosen), -1) if view.labels is None else view.labels[chosen]
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    largest = np.sort(present[np.argsort(-counts, kind="stable")][: draw.NUM_COLOURS])
    colours = draw.class_colours(len(largest))
    colour_of = np.full(len(chosen), -1, np.int64)
    legend = []
    for number, label in enumerate(largest.tolist()):
        colour_of[labels == label] = number
        image = view.thumbnail(view.records, int(view.rows[chosen[np.argmax(labels == label)]]))
        legend.append(Picture(draw.framed(image or Image.new("RGB", (8, 8)), colours[number]), view.records.class_names[label]))
    places = embedding.principal_map(view.vectors[chosen])
    figure = draw.principal_plot(places, colour_of, colours, (float(shares[0]), float(shares[1] - shares[0])))
    which = f" The {len(largest)} largest classes are in colour." if legend else ""
    return Plot(figure, "Map", "The descriptors along their first two principal directions", f"Each dot is an image.{which}"), legend


def _add_attention(page: Page, view: _View, encoder: Encoder) -> bool:
    asks = "the class token looks" if asks_class_token(encoder) else "the patches look, on average,"
    page.section(
        "Attention",
        f"Where {asks} in the last block, and attention rolled out over all blocks. Each map is stretched from its least to its most "
        "attended patch.",
    )
    transform = eval_transform(encoder.image)
    for place in (int(view.searched[example]) for example in view.examples()):
        try:
            pixels = transform.pixels(open_image(view.records, int(view.rows[place]), transform.short_px), 0)
            seen = attention(encoder, transform.normalise(pixels[None])[0])
        except BadImage:
            continue  # it has gone since it was embedded
        except ModelError as error:
            page.text(f"None to show: {error}.")
            return False
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        maps = [("all heads", seen.mean), ("rollout", seen.rollout)]
        maps += [(f"head {number}", heat) for number, heat in enumerate(seen.heads[:NUM_HEADS], 1)]
        pictures = [Picture(draw.overlay(image, heat.numpy()), name) for name, heat in maps]
        page.picture_strip(pictures, lead=Picture(image, view.name(place), "as the model sees it"))
    return True


def _add_neighbours(page: Page, view: _View) -> None:
    page.section("Nearest neighbours", "What the model finds most like an image, closest first, with their similarity.")
    for example in view.examples():
        query = int(view.searched[example])
        answers = [
            view.picture(int(view.searched[row]), f"{similarity:.3f}", beside=query)
            for row, similarity in zip(view.ranking.rows[example], view.ranking.similarity[example], strict=True)
        ]
        row = int(view.rows[query])
        page.picture_strip(answers, lead=Picture(view.thumbnail(view.records, row), view.name(query), view.records.paths[row], "query"))


def _add_hard_negatives(page: Page, view: _View) -> int | None:
    """Add the closest pairs of different classes; return how many images have such a one closer than any of their own class."""
    if view.labels is None:
        return None
    among = view.labels[view.searched]
    found = nearest_of_other_class(view.vectors[view.searched], among)
    first = view.ranking.rows[:, :1]
    num_mistakable = int((among[first[:, 0]] != among).sum()) if first.size else 0
    page.section(
        "Hard negatives",
        "The closest pairs of different classes: what training has to pull apart, or a wrong label. "
        f"For {num_mistakable:,} of {len(among):,} images the closest one is of another class.",
    )
    _add_pairs(page, view, pairs_of(found, -np.inf), among)
    return num_mistakable


def _add_duplicates(page: Page, view: _View) -> int:
    """Add the closest pairs of all; return how many pairs are as similar as near-duplicates."""
    found = pairs_of(Ranking(view.ranking.rows[:, :1], view.ranking.similarity[:, :1]), DUPLICATE_SIMILARITY)
    page.section(
        "Near-duplicates",
        f"{len(found[0]):,} pairs of an image and its closest one have a similarity of {DUPLICATE_SIMILARITY:g} or more. "
        "Copies on both sides of a split flatter every number.",
    )
    _add_pairs(page, view, found)
    return len(found[0])


def pairs_of(closest: Ranking, least: float) -> tuple[IntArray, FloatArray]:
    """Return the unordered pairs (row, its closest) int64 ``[P, 2]`` of similarity ``least`` or more, each once, most similar first."""
    if not closest.rows.size:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    good = np.flatnonzero((closest.rows[:, 0] >= 0) & (closest.similarity[:, 0] >= least))
    pairs = np.sort(np.stack([good, closest.rows[good, 0]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    similarity = closest.similarity[good[first], 0]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarity))
    return pairs[order], similarity[order]


def varied(pairs: IntArray, labels: IntArray | None, most: int) -> list[int]:
    """Return up to ``most`` positions in ``pairs`` ``[P, 2]``, in order, that show much: no row is in two of them.

    With ``labels`` no two classes meet more than ``MAX_OF_CLASSES`` times.
    """
    chosen: list[int] = []
    seen: set[int] = set()
    times: Counter[tuple[int, int]] = Counter()
    for position, (one, other) in enumerate(pairs.tolist()):
        classes = (-1, -1) if labels is None else (int(min(labels[one], labels[other])), int(max(labels[one], labels[other])))
        if one in seen or other in seen or (labels is not None and times[classes] == MAX_OF_CLASSES):
            continue
        chosen.append(position)
        seen |= {one, other}
        times[classes] += 1
        if len(chosen) == most:
            break
    return chosen


def _add_pairs(page: Page, view: _View, found: tuple[IntArray, FloatArray], labels: IntArray | None = None) -> None:
    pairs, similarity = found
    shown = []
    for position in varied(pairs, labels, NUM_PAIRS):
        one, other = (view.picture(int(view.searched[row]), f"{similarity[position]:.3f}") for row in pairs[position])
        shown.append((one, other))
    if shown:
        page.picture_pairs(shown)
    else:
        page.text("None.")


def _add_method(page: Page, view: _View, command: str) -> None:
    page.section("Method", "How it was looked at.")
    page.text(
        f"Spectrum, alignment and mean similarity are exact over all {len(view.vectors):,} descriptors. Similarities of pairs and "
        f"uniformity are exact up to {embedding.NUM_PAIRS:,} pairs, a seeded sample of that many beyond. Neighbours are exact among "
        f"{len(view.searched):,} images. Of pairs, no image is shown twice and no two classes together more than {MAX_OF_CLASSES} times."
    )
    if command:
        page.text("Made by:").code(command)
