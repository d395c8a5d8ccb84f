"""The demo: real photographs that installed packages carry, cut into many views; then everything a person would do with their own.

It starts from pretrained weights where some are at hand (``SIGHTLINE_WEIGHTS``, the hub), else from random ones. Its page shows both ends
of the training beside each other, and a search over photographs that are all different, as a friend would be shown.
An identity is one place in one photograph; its views differ in position, scale, rotation, light and colour. The photographs of the
test are not those of the training, so every identity that is measured is new to the model.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from sightline import runtime
from sightline.contracts import Hits
from sightline.errors import ModelError, UsageError, explain_os_error
from sightline.evaluation.evaluation import Evaluation
from sightline.html import Number, Page, Picture
from sightline.nn import model_folder
from sightline.nn.backbone import hub_is_reachable
from sightline.nn.encoder import Encoder
from sightline.nn.which_backbone import local_weights
from sightline.recipe import ImageSpec, Recipe
from sightline.search.engine import Searcher
from sightline.search.page import write_page
from sightline.workflows import evaluating, indexing, training

TRAIN_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "clock_motion.png", "coffee.png", "coins.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "page.png",
)  # fmt: skip
TEST_PHOTOS = ("china.jpg", "flower.jpg", "chelsea.png", "grass.png", "moon.png", "retina.jpg", "rocket.jpg")

SPLITS = {"train": TRAIN_PHOTOS, "test": TEST_PHOTOS}

PLACE_PX = 96  # side of a place in a photograph
VIEW_PX = 72  # side of the views that are written
NUM_VIEWS = 8
MAX_PLACES = 12  # a photograph
LEAST_CONTRAST = 12.0  # standard deviation of grey levels: a patch of empty sky has no identity
NUM_COMPARED = 5  # queries whose answers before and after are shown
MARK = ".sightline-demo"
RECIPE = "irt/small"
SETTINGS = ("image_px=48", "rotate_deg=25", "validate_every=50", "koleo_weight=0.3")  # many alike identities of few views gain by KoLeo

STOCK = ("tf_efficientnet_lite0", "mobilenetv2_100")
"""Pretrained networks of 19 and 9 MB that train on two cores in minutes; the first that is at hand."""
STOCK_RECIPE = "irt/folder"
STOCK_SETTINGS = (
    "weights=hub", "pooling=gem", "image_px=64", "memory=0", "augment=random_resized", "min_area=0.4", "jitter=0.3", "rotate_deg=25",
    "classes_per_batch=16", "images_per_class=4", "lr=1e-4", "warmup_steps=20", "validate_every=50",
)  # fmt: skip

COLLECTION = (*TRAIN_PHOTOS, *TEST_PHOTOS, "motorcycle_right.png", "microaneurysms.png", "text.png", "chessboard_RGB.png", "horse.png")
FRIENDLY = ("motorcycle_right.png", "microaneurysms.png", "text.png", "china.jpg", "gravel.png")
"""Photographs to ask with: the other eye's view, another retina, another page, a landscape, a texture."""

MEASURES = ("recall@1", "map@r")

Say = Callable[[str], None]


def run(out: Path, *, steps: int = 200, say: Say = print) -> dict[str, Any]:
    """Cut the photographs, train, measure before and after, index and search; returns what was measured and where everything lies.

    Raises:
        UsageError: the demo's extra is not installed, or ``out`` holds something else.
    """
    _clear(out)
    photos = out / "photos"
    num_train, num_test, query = _cut_all(photos, out)
    say(
        f"cut {num_train} training and {num_test} test identities, {NUM_VIEWS} views each, from {len(TRAIN_PHOTOS)} and {len(TEST_PHOTOS)} photographs: {photos}"
    )
    recipe, command = _recipe(steps)
    stock = recipe.model.weights != "random"
    start = "stock" if stock else "untrained"
    say(
        f"starting from {recipe.model.backbone}'s pretrained weights"
        if stock
        else "starting from random weights: no pretrained ones are at hand (SIGHTLINE_WEIGHTS=FOLDER names some; on your own photographs they do far better)"
    )
    runtime.seed_everything(recipe.train.seed)  # the very weights that training starts from
    model_folder.save(Encoder(recipe.model, recipe.image), out / start)
    before = evaluating.evaluate(str(out / start), photos)
    training.train(recipe, photos, out / "run", command=f"{command} --data {photos} --out {out / 'run'}")
    command = f"sightline evaluate {out / 'run'} --data {photos} --report {out / 'report'}"
    after = evaluating.evaluate(str(out / "run"), photos, report=out / "report", command=command)
    say("\nidentities from photographs that training never saw, leave-one-out:")
    for name in MEASURES:
        say(f"  {name:9} {_line(before, name)} {start}  ->  {_line(after, name)} trained")

    _, text = indexing.index(out / "photos.index", model=str(out / "run"), images=photos / "test")
    say(f"\n{text}")
    with Searcher.open(out / "photos.index") as searcher:
        answers = [searcher.search(query, 5).hits]
    write_page(out / "search.html", [query], answers, command=f"sightline search {out / 'photos.index'} {query} -k 5")
    say(f"the closest to {query} (a view that is not in the index):")
    for hit in answers[0]:
        say(f"  {hit.similarity:.3f}  {hit.path}")

    shown = _Shown(out, {start: before, "trained": after}, tuple(_compared(out / start, out / "run", photos / "test")))
    if stock:  # whole photographs at the size that the weights were made for
        model_folder.save(Encoder(recipe.model, ImageSpec.of_backbone()), out / "stock-at-its-own-size")
    friendly = _search_photographs(out, out / ("stock-at-its-own-size" if stock else "run"), say)
    _write_page(shown, friendly, steps, recipe.model.backbone)
    say(
        f"\nthe page to show: {out / 'index.html'}\nreport:           {out / 'report' / 'index.html'}\nsearch page:      {out / 'search.html'}"
        f"\nmodel card:       {out / 'run' / 'model' / 'README.md'}"
    )
    return {
        "start": start, "before": before.to_json(), "after": after.to_json(),
        "page": str(out / "index.html"), "report": str(out / "report" / "index.html"),
        "search": [{"path": hit.path, "similarity": hit.similarity} for hit in answers[0]],
        "photographs": {query.name: [Path(hit.path).name for hit in hits] for query, hits in friendly.items()},
    }  # fmt: skip


def _recipe(steps: int) -> tuple[Recipe, str]:
    """Return the recipe, from the first pretrained network that is at hand, else from scratch; and the command that trains it."""
    reachable = None
    for name in STOCK:
        if local_weights(name) is None:
            reachable = hub_is_reachable() if reachable is None else reachable
            if not reachable:
                continue
        settings = [f"backbone={name}", *STOCK_SETTINGS, f"steps={steps}"]
        recipe = training.named_recipe(STOCK_RECIPE, settings)
        try:
            Encoder(recipe.model, recipe.image)
        except ModelError:  # the hub does not have it, or gives nothing: there is still a start without
            continue
        return recipe, f"sightline train {STOCK_RECIPE} --set {' '.join(settings)}"
    settings = [*SETTINGS, f"steps={steps}"]
    return training.named_recipe(RECIPE, settings), f"sightline train {RECIPE} --set {' '.join(settings)}"


def _line(measured: Evaluation, name: str) -> str:
    low, high = measured.intervals[name]
    return f"{100 * measured.metrics[name]:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _clear(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
            raise UsageError(f"'{out}' holds something that is not the demo's: choose another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
        for name in (
            "photos",
            "untrained",
            "stock",
            "stock-at-its-own-size",
            "run",
            "report",
            "photos.index",
            "collection",
            "collection.index",
        ):
            shutil.rmtree(out / name, ignore_errors=True)
        for query in out.glob("query-*.jpg"):
            query.unlink()
    except OSError as error:
        raise explain_os_error(error, f"preparing '{out}'") from error


# --- the page -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    out: Path
    evaluations: dict[str, Evaluation]
    compared: tuple[tuple[Path, list[Path], list[Path]], ...]


def _compared(start: Path, trained: Path, views: Path) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield a query of each of some photographs with its closest views before and after: those where training gained the most."""
    files = sorted(views.glob("*/*.jpg"))
    names = np.array([file.parent.name for file in files])
    orders = []
    for model in (start, trained):
        vectors = model_folder.load(model).embed(files)
        alike = vectors @ vectors.T
        np.fill_diagonal(alike, -np.inf)
        orders.append(np.argsort(-alike, axis=1, kind="stable")[:, : NUM_VIEWS - 1])
    right = [(names[order] == names[:, None]).sum(axis=1) for order in orders]
    seen: set[str] = set()
    for row in np.argsort(right[0] - right[1], kind="stable"):
        photograph = names[row].partition("-")[0]
        if photograph not in seen:
            seen.add(photograph)
            yield (files[row], *([files[place] for place in order[row]] for order in orders))
        if len(seen) == NUM_COMPARED:
            return


def _search_photographs(out: Path, model: Path, say: Say) -> dict[Path, Hits]:
    """Index the photographs whole, all different, and return what is closest to some of them, themselves left out."""
    folder = out / "collection"
    try:
        folder.mkdir()
        for name in COLLECTION:
            _photograph(name).save((folder / name).with_suffix(".jpg"), quality=92)
    except OSError as error:
        raise explain_os_error(error, f"writing the photographs into '{folder}'") from error
    indexing.index(out / "collection.index", model=str(model), images=folder)
    queries = [(folder / name).with_suffix(".jpg") for name in FRIENDLY]
    with Searcher.open(out / "collection.index") as searcher:
        found = searcher.search_many(queries, 6)
    answers = {
        query: Hits(tuple(hit for hit in answer.hits if Path(hit.path).name != query.name)[:5])
        for query, answer in zip(queries, found, strict=True)
    }
    say(f"\n{len(COLLECTION)} photographs that are all different: {folder}")
    for query, hits in answers.items():
        say(f"  {query.stem:18} {', '.join(Path(hit.path).stem for hit in hits[:3])}")
    return answers


def _write_page(shown: _Shown, friendly: dict[Path, Hits], steps: int, backbone: str) -> None:
    start, trained = shown.evaluations
    page = Page("The Sightline demo", f"{backbone}, {start} and after {steps:,} steps, on views that training never saw")
    page.section("What training gained", "Of each query, the other views of its place are to be found. In brackets: 95 % intervals.")
    page.numbers(
        [
            Number(
                f"{name}, {model}",
                f"{100 * found.metrics[name]:.1f} %",
                "[{:.1f}, {:.1f}]".format(*(100 * end for end in found.intervals[name])),
            )
            for name in MEASURES
            for model, found in shown.evaluations.items()
        ]
    )
    page.section("The same query before and after", "Where training gained the most, a query of each photograph.")
    for query, before, after in shown.compared:
        page.subsection(query.parent.name)
        for model, files in ((start, before), (trained, after)):
            lead = Picture(_opened(query), model, state="query")
            page.picture_strip([_judged(file, query) for file in files], lead=lead)
    page.section(
        "Photographs that are all different", f"{len(COLLECTION)} of them, whole: what looks like this one? A click enlarges a picture."
    )
    for query, hits in friendly.items():
        answers = [
            Picture(_opened(Path(hit.path)), Path(hit.path).stem, f"{hit.similarity:.3f}", link=Path(hit.path).absolute().as_uri())
            for hit in hits
        ]
        page.gallery(answers, lead=Picture(_opened(query), query.stem, state="query"))
    page.section("More").text(
        f"The report on the trained model: {shown.out / 'report' / 'index.html'}. A search among the views: {shown.out / 'search.html'}."
    )
    page.code(f"sightline demo --out {shown.out} --steps {steps}")
    page.write(shown.out / "index.html")


def _judged(file: Path, query: Path) -> Picture:
    right = file.parent.name == query.parent.name
    return Picture(_opened(file), file.parent.name, state="right" if right else "wrong")


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


# --- cutting --------------------------------------------------------------------------------------------------------------------


def _cut_all(folder: Path, out: Path) -> tuple[int, int, Path]:
    random = np.random.default_rng(0)
    found = {split: [(name, place) for name in names for place in _places(_photograph(name))] for split, names in SPLITS.items()}
    try:
        for split, places in found.items():
            for name, place in places:
                identity = folder / split / _identity(name, place)
                identity.mkdir(parents=True)
                for view in range(NUM_VIEWS):
                    _view(place, random).save(identity / f"{view}.jpg", quality=90)
        name, place = max(found["test"], key=lambda item: item[1].contrast)  # something to see: not a patch of sky
        query = out / f"query-{_identity(name, place)}.jpg"
        _view(place, random).save(query, quality=90)
    except OSError as error:
        raise explain_os_error(error, f"writing the views into '{folder}'") from error
    return len(found["train"]), len(found["test"]), query


def _identity(name: str, place: _Place) -> str:
    return f"{Path(name).stem}-{place.column}-{place.row}"


def _photograph(name: str) -> Image.Image:
    try:
        import skimage
        import sklearn
    except ImportError as error:
        raise UsageError("the demo's photographs come with two packages that are not installed: pip install 'sightline[demo]'") from error
    for folder in (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"):
        if (folder / name).is_file():
            with Image.open(folder / name) as image:
                return image.convert("RGB")
    raise UsageError(f"the photograph {name} is in neither scikit-image nor scikit-learn as installed: pip install 'sightline[demo]'")


@dataclass(frozen=True)
class _Place:
    photograph: Image.Image
    column: int
    row: int

    @property
    def contrast(self) -> float:
        """Standard deviation of the grey levels of the place."""
        left, top = self.column * PLACE_PX, self.row * PLACE_PX
        return float(np.asarray(self.photograph.crop((left, top, left + PLACE_PX, top + PLACE_PX)).convert("L")).std())

    @property
    def centre(self) -> tuple[float, float]:
        return (self.column + 0.5) * PLACE_PX, (self.row + 0.5) * PLACE_PX


def _places(photograph: Image.Image) -> list[_Place]:
    width, height = photograph.size
    grid = (_Place(photograph, column, row) for row in range(height // PLACE_PX) for column in range(width // PLACE_PX))
    return list(itertools.islice((place for place in grid if place.contrast >= LEAST_CONTRAST), MAX_PLACES))


def _view(place: _Place, random: np.random.Generator) -> Image.Image:
    side = PLACE_PX * random.uniform(0.6, 0.95)
    x, y = (centre + random.uniform(-0.12, 0.12) * PLACE_PX for centre in place.centre)
    angle, scale = np.deg2rad(random.uniform(-25, 25)), side / VIEW_PX
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    half = VIEW_PX / 2
    # The inverse map of PIL: output pixel -> place in the photograph, turned and scaled about the view's centre.
    matrix = (cosine, sine, x - half * (cosine + sine), -sine, cosine, y - half * (cosine - sine))
    view = place.photograph.transform((VIEW_PX, VIEW_PX), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    for enhance, spread in ((ImageEnhance.Brightness, 0.35), (ImageEnhance.Contrast, 0.35), (ImageEnhance.Color, 0.5)):
        view = enhance(view).enhance(random.uniform(1 - spread, 1 + spread))
    return view
