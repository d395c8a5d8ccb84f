"""Loading: the same batches whatever the processes, bad files replaced or left out, order kept, memory bounded."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.contracts import Batch
from sightline.data.images import BadFiles, BadImage
from sightline.data.loading import BATCHES_AHEAD, decode_stream, open_image, sample_seed, train_batches
from sightline.data.multicrop import MultiCropTransform
from sightline.data.records import Records, read_records
from sightline.data.samplers import PKSampler, ShuffleSampler
from sightline.data.transforms import EvalTransform, TrainTransform, eval_transform, train_transform
from sightline.errors import DataError
from sightline.recipe import AugmentSpec, CropSpec, ImageSpec

SPEC = ImageSpec(image_px=8, resize_px=10)
NUM_CLASSES, NUM_EACH = 4, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class c, image i is grey 10 * row: what a pixel says is which row it is."""
    root = tmp_path_factory.mktemp("set")
    for row in range(NUM_CLASSES * NUM_EACH):
        (root / f"class{row // NUM_EACH}").mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), (10 * row,) * 3).save(root / f"class{row // NUM_EACH}" / f"{row:02}.png")
    return root


@pytest.fixture
def records(folder: Path) -> Records:
    return read_records(folder)


def damaged(records: Records, tmp_path: Path, *rows: int) -> Records:
    """The same records with some files empty."""
    (tmp_path / "empty.png").touch()
    paths = tuple(str(tmp_path / "empty.png") if row in rows else str(records.file(row)) for row in range(len(records)))
    return Records(tmp_path, paths, records.labels, records.class_names)


def transform() -> TrainTransform:
    return train_transform(AugmentSpec(), SPEC)


def greys(images: torch.Tensor) -> list[int]:
    std, mean = torch.tensor(SPEC.std).view(3, 1, 1), torch.tensor(SPEC.mean).view(3, 1, 1)
    return ((images * std + mean) * 255)[:, :, 4, 4].mean(1).round().int().tolist()


def test_a_batch_holds_the_samplers_rows_with_their_labels(records: Records) -> None:
    sampler = PKSampler(records.labels, 2, 3, seed=1)  # type: ignore[arg-type]
    batches = list(train_batches(records, sampler, transform(), num_steps=3))
    for step, batch in enumerate(batches):
        rows = sampler.batch(step)
        assert batch.rows.tolist() == rows.tolist()
        assert batch.labels.tolist() == (rows // NUM_EACH).tolist()
        assert greys(batch.images) == (10 * rows).tolist()
        assert batch.images.dtype == torch.float32


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_gives_what_the_whole_run_gave(records: Records, num_workers: int) -> None:
    sampler = PKSampler(records.labels, 2, 2)  # type: ignore[arg-type]
    whole = list(train_batches(records, sampler, transform(), num_steps=5, seed=4))
    resumed = list(train_batches(records, sampler, transform(), start_step=3, num_steps=2, seed=4, num_workers=num_workers))
    for one, other in zip(whole[3:], resumed, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.rows, other.rows)


def test_two_processes_equal_one_even_with_bad_files(records: Records, tmp_path: Path) -> None:
    records = damaged(records, tmp_path, 0, 6, 7)
    sampler = PKSampler(records.labels, 4, 3)  # type: ignore[arg-type]
    whole = list(train_batches(records, sampler, transform(), num_steps=3))
    parts = [list(train_batches(records, sampler, transform(), num_steps=3, rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([part[step].images for part in parts]))
        assert torch.equal(batch.rows, torch.cat([part[step].rows for part in parts]))


def test_a_batch_that_does_not_divide_is_told(records: Records) -> None:
    with pytest.raises(DataError, match="a batch of 6 does not divide among 4 processes"):
        next(train_batches(records, PKSampler(records.labels, 2, 3), transform(), num_steps=1, world_size=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_file_gives_way_to_its_class_and_is_noted(records: Records, tmp_path: Path, num_workers: int) -> None:
    records = damaged(records, tmp_path, 1)
    sampler = PKSampler(records.labels, 4, 4)  # type: ignore[arg-type]
    bad = BadFiles()
    for batch in train_batches(records, sampler, transform(), num_steps=4, num_workers=num_workers, bad_files=bad):
        assert 1 not in batch.rows
        assert batch.labels.reshape(4, 4).eq(batch.labels.reshape(4, 4)[:, :1]).all()
        assert len(set(batch.rows.tolist())) == 16  # five images a class, four taken: the stand-in is the one left over
    assert bad.items() == [(str(tmp_path / "empty.png"), "zero bytes")]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_class_without_a_readable_image_stops_the_run_in_one_line(records: Records, tmp_path: Path, num_workers: int) -> None:
    records = damaged(records, tmp_path, *range(5))
    sampler = PKSampler(records.labels, 4, 2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^no image of class 'class0' can be read \(last: .*empty.png: zero bytes\)") as caught:
        list(train_batches(records, sampler, transform(), num_steps=1, num_workers=num_workers))
    assert "\n" not in str(caught.value)


def test_leaving_early_ends_the_workers(records: Records) -> None:
    import multiprocessing

    batches = train_batches(records, PKSampler(records.labels, 2, 2), transform(), num_steps=50, num_workers=2)  # type: ignore[arg-type]
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_sample_seeds_differ() -> None:
    assert len({sample_seed(seed, step, position) for seed in range(3) for step in range(20) for position in range(20)}) == 1200


# --- embedding


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_a_stream_keeps_the_order_and_fills_its_batches(records: Records, num_threads: int, batch_size: int) -> None:
    parts = list(decode_stream(records, eval_transform(SPEC), batch_size=batch_size, num_threads=num_threads))
    assert [len(rows) for rows, _ in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert np.concatenate([rows for rows, _ in parts]).tolist() == list(range(20))
    assert greys(torch.cat([images for _, images in parts])) == [10 * row for row in range(20)]


def test_a_stream_leaves_bad_files_out_and_notes_them(records: Records, tmp_path: Path) -> None:
    bad = BadFiles()
    broken = damaged(records, tmp_path, 0, 5, 19)
    rows = np.concatenate([rows for rows, _ in decode_stream(broken, eval_transform(SPEC), batch_size=6, num_threads=2, bad_files=bad)])
    assert rows.tolist() == [row for row in range(20) if row not in (0, 5, 19)]
    assert len(bad) == 1


def test_a_stream_takes_files_and_contents(records: Records, tmp_path: Path) -> None:
    bad = BadFiles()
    source = [records.file(3), records.file(4).read_bytes(), b"nothing"]
    ((rows, images),) = decode_stream(source, eval_transform(SPEC), batch_size=8, num_threads=2, bad_files=bad)
    assert rows.tolist() == [0, 1]
    assert greys(images) == [30, 40]
    assert bad.items()[0][0] == "image 2"


def test_a_stream_without_one_readable_image_is_an_error(records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 20 images can be read \(first: .*empty.png: zero bytes\)"):
        list(decode_stream(damaged(records, tmp_path, *range(20)), eval_transform(SPEC), batch_size=8, num_threads=2))
    assert list(decode_stream([], eval_transform(SPEC), batch_size=8, num_threads=2)) == []


class Counting(EvalTransform):
    """Counts the images it has made."""

    made: list[int] = []  # noqa: RUF012 (one list for the whole test is the point)

    def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        self.made.append(1)
        return super().pixels(image)


def test_a_stream_runs_ahead_no_further_than_its_bound_and_ends_its_threads(records: Records) -> None:
    files = [records.file(row % 20) for row in range(200)]
    before = threading.active_count()
    stream = decode_stream(files, Counting(SPEC), batch_size=4, num_threads=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert 4 <= len(Counting.made) <= 4 + BATCHES_AHEAD * 4
    assert threading.active_count() == before


def test_a_failure_of_ours_in_a_thread_reaches_the_caller(records: Records) -> None:
    class Broken(EvalTransform):
        def pixels(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        list(decode_stream(records, Broken(SPEC), batch_size=4, num_threads=2))


def test_a_box_is_cut_out_before_anything_else(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), "white")
    image.paste((0, 0, 0), (10, 20, 30, 40))
    image.save(tmp_path / "a.png")
    boxes = np.array([[10, 20, 30, 40], [np.nan] * 4, [35, 35, 90, 90], [50, 50, 60, 60]], dtype=np.float32)
    records = Records(tmp_path, ("a.png",) * 4, boxes=boxes)
    assert np.asarray(open_image(records, 0)).max() == 0
    assert open_image(records, 1).size == (40, 40)
    assert open_image(records, 2).size == (5, 5)
    with pytest.raises(BadImage, match="box outside: the image is 40 x 40 pixels"):
        open_image(records, 3)


# --- several crops


def several(spec: CropSpec | None = None) -> MultiCropTransform:
    return MultiCropTransform(SPEC, spec or CropSpec(crop_px=(8, 4), num_crops=(2, 3)))


def test_a_batch_of_crops_is_crop_major_and_its_images_are_the_first_global_crop(records: Records) -> None:
    sampler = PKSampler(records.labels, 2, 3, seed=1)  # type: ignore[arg-type]
    plain = CropSpec(crop_px=(8, 4), num_crops=(2, 3), crop_jitter_p=0, crop_gray=0, crop_solarize=(0, 0, 0))
    (batch,) = train_batches(records, sampler, several(plain), num_steps=1)
    rows = sampler.batch(0)
    assert [tuple(crops.shape) for crops in batch.crops] == [(2, 6, 3, 8, 8), (3, 6, 3, 4, 4)]
    assert all(crops.dtype == torch.float32 for crops in batch.crops)
    assert greys(batch.crops[0].flatten(0, 1)) == (10 * rows).tolist() * 2  # DINO's order: first crops of all images, then second ones
    for one in (batch, batch.to(torch.device("cpu"))):
        assert one.images.data_ptr() == one.crops[0].data_ptr()
        assert torch.equal(one.images, batch.crops[0][0])
        assert one.labels.tolist() == (rows // NUM_EACH).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_crops_are_the_same_whatever_the_processes_even_with_bad_files(records: Records, tmp_path: Path, num_workers: int) -> None:
    records = damaged(records, tmp_path, 0, 6, 7)
    sampler = PKSampler(records.labels, 4, 3)  # type: ignore[arg-type]
    whole = list(train_batches(records, sampler, several(), num_steps=2))
    parts = [
        list(train_batches(records, sampler, several(), num_steps=2, rank=rank, world_size=2, num_workers=num_workers)) for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        for group, crops in enumerate(batch.crops):
            assert torch.equal(crops, torch.cat([part[step].crops[group] for part in parts], dim=1))
        assert torch.equal(batch.rows, torch.cat([part[step].rows for part in parts]))
        assert len(batch) == 12


def test_a_batch_refuses_crops_that_are_not_of_its_images() -> None:
    crops, labels = torch.zeros(2, 3, 3, 8, 8), torch.arange(3)
    assert len(Batch.of_crops((crops, torch.zeros(4, 3, 3, 4, 4)), labels, labels)) == 3
    for wrong in ((crops, torch.zeros(4, 2, 3, 4, 4)), (crops[0],), (torch.zeros(2, 3, 3, 4, 4),)):
        with pytest.raises(ValueError, match=r"a Batch needs crops \[V, B, 3, h, w\]"):
            Batch(crops[0], labels, labels, wrong)


def test_a_folder_of_any_layout_gives_crops_and_a_bad_file_gives_way_to_any_other(folder: Path, tmp_path: Path) -> None:
    for row, place in enumerate(["1.png", "2019/2.png", "2020/x/y/3.png", "2020/z/4.png"]):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"" if place == "2019/2.png" else (folder / "class0" / f"{row:02}.png").read_bytes())
    records, bad = read_records(tmp_path), BadFiles()
    assert records.labels is None
    batches = list(train_batches(records, ShuffleSampler(4, 2), several(), num_steps=4, bad_files=bad))
    assert len(batches) == 4
    assert {row for batch in batches for row in batch.rows.tolist()} == {0, 2, 3}
    assert [reason for _, reason in bad.items()] == ["zero bytes"]
    (tmp_path / "1.png").unlink()  # now the first folders look like classes, of which 2019 has no readable image
    yearly = read_records(tmp_path)
    assert yearly.class_names == ("2019", "2020")
    with pytest.raises(DataError, match="no image of class '2019' can be read"):
        list(train_batches(yearly, ShuffleSampler(3, 3), several(), num_steps=1))
    (batch,) = train_batches(yearly.without_labels(), ShuffleSampler(3, 3), several(), num_steps=1)
    assert set(batch.rows.tolist()) == {1, 2}
