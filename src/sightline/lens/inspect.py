"""The inspection of a model: what it is, the health of its descriptors, where it looks, what it finds and what it takes for the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from sightline.contracts import FloatArray, IntArray, Ranking
from sightline.data.listing import DRAWN_BY, mark_drawing, save_drawing
from sightline.data.records import Records
from sightline.data.thumbnails import readable_thumbnail
from sightline.errors import counted, explain_os_error
from sightline.html import Number, Page, Picture, Plot
from sightline.lens import draw, embedding
from sightline.lens.network import FILES, Sheets, add_network
from sightline.lens.sheet import contact_sheet
from sightline.lens.view import MAX_OF_CLASSES, Inspected, Thumbnail, View, pairs_of, rounded, short_names, varied
from sightline.nn.model_folder import write_json
from sightline.search.neighbours import nearest_of_other_class

MAX_DOTS = 10_000
NUM_PAIRS, NUM_NAMED = 24, 500
DUPLICATE_SIMILARITY = 0.95
CARDS = ("effective_rank", "mean_similarity", "uniformity", "alignment", "pair_auc", "hubness")


def inspect(
    models: Sequence[Inspected],
    records: Records,
    out: Path,
    *,
    command: str = "",
    bad_files: Sequence[str] = (),
    thumbnail: Thumbnail = readable_thumbnail,
) -> dict[str, Any]:
    """Write ``index.html`` and ``numbers.json`` about a model into the folder ``out`` and return the numbers.

    What the page shows of layers and of pairs is in PNG files beside it too (``FILES`` of ``lens.network``, ``hard_negatives.png``,
    ``duplicates.png``), where there is any.

    Args:
        models: the model, and after it those whose curves and numbers stand beside its own; all of the same images.
        records: the images they are looked at with; without labels, what concerns classes is left out.
        out: the folder to write.
        command: how this came about.
        bad_files: "name: reason" of files that could not be read.
        thumbnail: gives the picture of a row of the records, or None.

    Raises:
        SightlineError: the folder cannot be written.
        ValueError: the models were not given the same images.
    """
    if any(not np.array_equal(one.descriptors.rows, models[0].descriptors.rows) for one in models):
        raise ValueError("models can be compared on the same images only: give descriptors of the same rows")
    names = short_names([one.name for one in models])
    views = [View(one, name, records, thumbnail) for one, name in zip(models, names, strict=True)]
    view = views[0]
    page = Page(f"Inside {models[0].name}", "What the model is, how its descriptors lie, where it looks and what it finds", _header(views))
    _add_health(page, views)
    histograms = _add_shape(page, views)
    _add_gradients(page, views)
    of_layers, sheets = add_network(page, views)
    _add_neighbours(page, views)
    num_mistakable, hard_negatives = _add_hard_negatives(page, view)
    num_duplicates, duplicates = _add_duplicates(page, view)
    if bad_files:
        page.section("Unreadable files", f"{counted(len(bad_files), 'file')} took no part.")
        page.details(f"Show {min(len(bad_files), NUM_NAMED):,} of {len(bad_files):,}", bad_files[:NUM_NAMED])
    _add_method(page, view, command)
    numbers = {
        **view.numbers(),
        **of_layers[0],
        "beside": [other.numbers() | others for other, others in zip(views[1:], of_layers[1:], strict=True)],
        "images": len(view.vectors),
        "classes": records.num_classes or None,
        "bad_files": len(bad_files),
        "histograms": histograms,
        "closest_is_of_another_class": num_mistakable,
        "hard_negatives": _listed(view, hard_negatives),
        "near_duplicates": num_duplicates,
        "duplicates": _listed(view, duplicates),
        "searched": len(view.searched),
        "command": command,
    }
    page.write(out / "index.html")
    if hard_negatives:
        title = f"Closest pairs of different classes, as {models[0].name} sees them"
        sheets["hard_negatives.png"] = contact_sheet(title, [pair.pictures for pair in hard_negatives])
    if duplicates:
        sheets["duplicates.png"] = contact_sheet(f"Near-duplicates, as {models[0].name} sees them", [pair.pictures for pair in duplicates])
    _write_sheets(out, sheets)
    try:
        write_json(out / "numbers.json", numbers)
    except OSError as error:
        raise explain_os_error(error, f"writing '{out / 'numbers.json'}'") from error
    return numbers


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two places of a view, how similar they are, and their pictures."""

    places: tuple[int, int]
    similarity: float
    pictures: tuple[Picture, Picture]


def _listed(view: View, pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    return [{"paths": [view.path(place) for place in pair.places], "similarity": round(pair.similarity, 6)} for pair in pairs]


def _write_sheets(out: Path, sheets: Sheets) -> None:
    """Write the pictures into the folder, and take away those of an earlier inspection that this one does not have."""
    for name in (*FILES, "hard_negatives.png", "duplicates.png"):
        file, sheet = out / name, sheets.get(name)
        try:
            if sheet is None:
                file.unlink(missing_ok=True)
            elif isinstance(sheet, Image.Image):
                save_drawing(sheet, file)
            else:
                sheet.savefig(file, dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": DRAWN_BY})
                mark_drawing(file)
        except OSError as error:
            raise explain_os_error(error, f"writing '{file}'") from error


def _header(views: Sequence[View]) -> list[tuple[str, str]]:
    view, facts = views[0], views[0].facts
    classes = f" of {counted(view.records.num_classes, 'class', 'classes')}" if view.labels is not None else ""
    beside = [("Beside it", ", ".join(other.facts["name"] for other in views[1:]))] if len(views) > 1 else []
    return [
        ("Backbone", f"{facts['backbone']}, {facts['pooling']} pooling"),
        ("Parameters", f"{facts['parameters'] / 1e6:.1f} million"),
        ("Descriptor", f"{facts['width']} numbers"),
        ("Image", f"{facts['image_px']} x {facts['image_px']} px"),
        ("Fingerprint", facts["fingerprint"] or "not saved yet"),
        ("Looked at", f"{counted(len(view.vectors), 'image')}{classes}"),
        *beside,
    ]


# --- sections ---------------------------------------------------------------------------------------------------------------------


def _add_health(page: Page, views: Sequence[View]) -> None:
    page.section("Descriptor health", "What the numbers say before any picture does.")
    page.numbers([Number(_spoken(one), _shown(one)) for one in views[0].measures if one.name in CARDS])
    first = views[0].measures
    if len(views) == 1:
        page.table(["measure", "value", "what good looks like"], [[_spoken(one), _shown(one), one.good] for one in first])
        return
    width = ["width", *(str(view.facts["width"]) for view in views)]
    rows = zip(*(view.measures for view in views), strict=True)
    page.table(["measure", *(view.label for view in views)], [width, *([_spoken(row[0]), *map(_shown, row)] for row in rows)])
    page.details("What good looks like", [f"{_spoken(one)}: {one.good}" for one in first])


def _spoken(measure: embedding.Measure) -> str:
    return measure.name.replace("_", " ").replace("auc", "AUC").replace("percent", "%")


def _shown(measure: embedding.Measure) -> str:
    return "-" if math.isnan(measure.value) else f"{measure.value:.3g}" if abs(measure.value) < 100 else f"{measure.value:.0f}"


def _add_shape(page: Page, views: Sequence[View]) -> dict[str, Any]:
    """Add how the descriptors lie; return the histograms that were drawn."""
    view, several = views[0], len(views) > 1
    edges, shares = embedding.histogram([one.pairs for one in views])
    plots = [
        Plot(
            draw.energy_curves({one.label: one.energy for one in views}),
            "Energy",
            "Cumulative share of variance over principal directions",
            "A steep start means that few directions are in use. The dotted line is at 90 %.",
        )
    ]
    for one, (positive, negative) in zip(views, shares, strict=True):
        kinds = {"pairs": positive} if one.labels is None else {"pairs of one class": positive, "pairs of two": negative}
        plots.append(
            Plot(
                draw.similarity_histogram(edges, kinds),
                f"Similarities: {one.label}" if several else "Similarities",
                "Histogram of the similarities of pairs",
                "" if one.labels is None else "The less the two overlap, the better one threshold can say that nothing matches.",
            )
        )
    if several and view.labels is not None:
        plots.append(
            Plot(
                draw.alignment_plane({one.label: (one.value("uniformity"), one.value("alignment")) for one in views}),
                "Alignment and uniformity",
                "Alignment over uniformity, a dot for each model",
                "Both are better lower: towards the lower left, classes are tight and yet spread over the sphere.",
            )
        )
    legend: list[Picture] = []
    if len(view.vectors) > 2 and len(view.energy) > 1:
        plot, legend = _map(view, f"Map: {view.label}" if several else "Map")
        plots.append(plot)
    page.section("Shape", "How the descriptors lie in their space.").plots(plots)
    if legend:
        page.picture_strip(legend)
    drawn = [
        {"name": one.facts["name"], "positive": rounded(positive), "negative": rounded(negative)}
        for one, (positive, negative) in zip(views, shares, strict=True)
    ]
    return {"edges": rounded(edges), "shares": drawn}


def _map(view: View, title: str) -> tuple[Plot, list[Picture]]:
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
    figure = draw.principal_plot(places, colour_of, colours, (float(view.energy[0]), float(view.energy[1] - view.energy[0])))
    which = f" The {len(largest)} largest classes are in colour." if legend else ""
    return Plot(figure, title, "The descriptors along their first two principal directions", f"Each dot is an image.{which}"), legend


def _add_gradients(page: Page, views: Sequence[View]) -> None:
    """Add how far the contrastive loss's gradients disagree over its margin, where there are classes to draw batches of."""
    curves = {view.label: view.gradients for view in views if view.gradients is not None}
    if not curves:
        return
    one = next(iter(curves.values()))
    page.section(
        "Gradients",
        "How far the gradients of the contrastive loss (eq. 1 of IRT) disagree within a batch, at each margin that it could go on with: "
        f"the nuclear norm of their covariance, over batches of {one.num_classes} classes with {one.num_per_class} images each.",
    )
    page.plots(
        [
            Plot(
                draw.gradient_curves(one.margins, {name: curve.of_gradients for name, curve in curves.items()}),
                "Of the gradients",
                "Nuclear norm of the covariance of the gradients over the margin",
                "High: the loss pulls hard and in many directions at once. Flat to the right: no negative is that similar any more, "
                "and only the pull of each class to itself is left.",
            ),
            Plot(
                draw.gradient_curves(one.margins, {name: curve.of_directions for name, curve in curves.items()}),
                "Of their directions",
                "Nuclear norm of the covariance of the gradients at unit length over the margin",
                "The same with every gradient at length 1. 0: all point the same way, as where easy negatives push everything off one "
                "centre; 1: they cancel.",
            ),
        ]
    )


def _add_neighbours(page: Page, views: Sequence[View]) -> None:
    view = views[0]
    whose = f"This and all that follows is {view.label}'s alone. " if len(views) > 1 else ""
    page.section("Nearest neighbours", f"{whose}What the model finds most like an image, closest first, with their similarity.")
    for example in view.examples():
        query = int(view.searched[example])
        answers = [
            view.picture(int(view.searched[row]), f"{similarity:.3f}", beside=query)
            for row, similarity in zip(view.ranking.rows[example], view.ranking.similarity[example], strict=True)
        ]
        row = int(view.rows[query])
        page.picture_strip(answers, lead=Picture(view.thumbnail(view.records, row), view.name(query), view.records.paths[row], "query"))


def _add_hard_negatives(page: Page, view: View) -> tuple[int | None, list[_Pair]]:
    """Add the closest pairs of different classes; return how many images have such a one closer than any of their own class, and the pairs."""
    if view.labels is None:
        return None, []
    among = view.labels[view.searched]
    found = nearest_of_other_class(view.vectors[view.searched], among)
    first = view.ranking.rows[:, :1]
    num_mistakable = int((among[first[:, 0]] != among).sum()) if first.size else 0
    page.section(
        "Hard negatives",
        "The closest pairs of different classes: what training has to pull apart, or a wrong label. "
        f"For {num_mistakable:,} of {len(among):,} images the closest one is of another class.",
    )
    return num_mistakable, _add_pairs(page, view, pairs_of(found, -np.inf), among)


def _add_duplicates(page: Page, view: View) -> tuple[int, list[_Pair]]:
    """Add the closest pairs of all; return how many pairs are as similar as near-duplicates, and those shown."""
    found = pairs_of(Ranking(view.ranking.rows[:, :1], view.ranking.similarity[:, :1]), DUPLICATE_SIMILARITY)
    page.section(
        "Near-duplicates",
        f"{len(found[0]):,} pairs of an image and its closest one have a similarity of {DUPLICATE_SIMILARITY:g} or more. "
        "Copies on both sides of a split flatter every number.",
    )
    return len(found[0]), _add_pairs(page, view, found)


def _add_pairs(page: Page, view: View, found: tuple[IntArray, FloatArray], labels: IntArray | None = None) -> list[_Pair]:
    shown = []
    for position in varied(found[0], labels, NUM_PAIRS):
        similarity = float(found[1][position])
        one, other = (int(view.searched[row]) for row in found[0][position])
        pictures = (view.picture(one, _pair_note(view, one, similarity)), view.picture(other, _pair_note(view, other, similarity)))
        shown.append(_Pair((one, other), similarity, pictures))
    if shown:
        page.picture_pairs([pair.pictures for pair in shown])
    else:
        page.text("None.")
    return shown


def _pair_note(view: View, place: int, similarity: float) -> str:
    return f"{similarity:.3f}" if view.labels is None else f"{similarity:.3f} {PurePath(view.path(place)).name}"


def _add_method(page: Page, view: View, command: str) -> None:
    page.section("Method", "How it was looked at.")
    page.text(
        f"Spectrum, alignment and mean similarity are exact over all {len(view.vectors):,} descriptors. Similarities of pairs and "
        f"uniformity are exact up to {embedding.NUM_PAIRS:,} pairs, a seeded sample of that many beyond. Neighbours are exact among "
        f"{len(view.searched):,} images. Of pairs, no image is shown twice and no two classes together more than {MAX_OF_CLASSES} times."
    )
    if command:
        page.text("Made by:").code(command)
