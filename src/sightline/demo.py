"""The demo: real photographs that installed packages carry, cut into many views; then everything a person would do with their own.

An identity is one place in one photograph; its views differ in position, scale, rotation, light and colour. The photographs of the
test are not those of the training, so every identity that is measured is new to the model.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from sightline import runtime
from sightline.errors import UsageError, explain_os_error
from sightline.evaluate.measured import Measured
from sightline.nn import model_folder
from sightline.nn.encoder import Encoder
from sightline.search.page import write_page
from sightline.workflows import indexing, measuring, searching, training

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
MARK = ".sightline-demo"
RECIPE = "irt/small"
SETTINGS = ("image_px=48", "rotate_deg=25", "validate_every=50")

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
    say("starting from random weights: nothing is downloaded (on your own photographs a pretrained start does far better)")

    recipe = training.named_recipe(RECIPE, [*SETTINGS, f"steps={steps}"])
    runtime.seed_everything(recipe.train.seed)  # the very weights that training starts from
    model_folder.save(Encoder(recipe.model, recipe.image), out / "untrained")
    before = measuring.evaluate(str(out / "untrained"), photos)
    training.train(
        recipe,
        photos,
        out / "run",
        command=f"sightline train {RECIPE} --data {photos} --out {out / 'run'} {' '.join(SETTINGS)} steps={steps}",
    )
    command = f"sightline evaluate {out / 'run'} --data {photos} --report {out / 'report'}"
    after = measuring.evaluate(str(out / "run"), photos, report=out / "report", command=command)
    say("\nidentities from photographs that training never saw, leave-one-out:")
    for name in ("recall@1", "map@r"):
        say(f"  {name:9} {_line(before.measured, name)} untrained  ->  {_line(after.measured, name)} trained")

    _, text = indexing.index(out / "photos.index", model=str(out / "run"), images=photos / "test")
    say(f"\n{text}")
    answers = searching.search(out / "photos.index", [query], 5)
    write_page(out / "search.html", [query], answers, command=f"sightline search {out / 'photos.index'} --image {query} -k 5")
    say(f"the closest to {query} (a view that is not in the index):")
    for hit in answers[0]:
        say(f"  {hit.similarity:.3f}  {hit.path}")
    say(
        f"\nreport:        {out / 'report' / 'index.html'}\nsearch page:   {out / 'search.html'}\nmodel card:    {out / 'run' / 'model' / 'README.md'}"
    )
    return {
        "before": before.to_json(), "after": after.to_json(), "report": str(out / "report" / "index.html"),
        "search": [{"path": hit.path, "similarity": hit.similarity} for hit in answers[0]],
    }  # fmt: skip


def _line(measured: Measured, name: str) -> str:
    low, high = measured.intervals[name]
    return f"{100 * measured.metrics[name]:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _clear(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
            raise UsageError(f"'{out}' holds something that is not the demo's: choose another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
        for name in ("photos", "untrained", "run", "report", "photos.index"):
            shutil.rmtree(out / name, ignore_errors=True)
        for query in out.glob("query-*.jpg"):
            query.unlink()
    except OSError as error:
        raise explain_os_error(error, f"preparing '{out}'") from error


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
