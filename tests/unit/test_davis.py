"""DAVIS: reading its layouts, and the protocol on a tiny video whose object can be told by colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.contracts import Tokens
from sightline.data.images import BadFiles, BadImage
from sightline.data.sets import davis
from sightline.errors import DataError, UsageError
from sightline.evaluation.dense.davis import frame_size, overlay, stretch
from sightline.evaluation.protocol import parse
from sightline.nn.encoder import Encoder
from sightline.recipe import ImageSpec, ModelSpec

SIZE = (64, 128)
COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 30, 230]], np.uint8)


def truth(step: int) -> np.ndarray:
    """Two objects of 16 x 32 px; the first goes 16 px to the right with every step."""
    mask = np.zeros(SIZE, np.uint8)
    mask[16:32, 16 * step : 16 * step + 32] = 1
    mask[48:64, 0:32] = 2
    return mask


def write(root: Path, name: str = "cup", num: int = 4, *, year: str = "2017", resolution: str = "480p") -> Path:
    for step in range(num):
        frame = root / "JPEGImages" / resolution / name / f"{step:05d}.jpg"
        frame.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[truth(step)]).save(frame, quality=95, subsampling=0)
        davis.write_mask(root / "Annotations" / resolution / name / f"{step:05d}.png", truth(step))
    lists = root / "ImageSets" / year / "val.txt"
    lists.parent.mkdir(parents=True, exist_ok=True)
    with lists.open("a") as file:
        file.write(f"{name}\n")
    return root


class Colours(Encoder):
    """An encoder whose patch features are the patch's mean colour: it knows the objects exactly."""

    def __init__(self) -> None:
        args = (("embed_dim", 8), ("depth", 1), ("num_heads", 1))
        super().__init__(ModelSpec(backbone="vit_tiny_patch16_224", backbone_args=args, weights="random"), ImageSpec(image_px=32))

    def tokens(self, images: torch.Tensor) -> Tokens:
        means = torch.nn.functional.avg_pool2d(images, 16)
        return Tokens(images.new_zeros(len(images), 0, 3), means.flatten(2).transpose(1, 2), (means.shape[2], means.shape[3]))


@pytest.fixture(scope="module")
def colours() -> Encoder:
    return Colours().eval()


# --- reading ------------------------------------------------------------------------------------------------------------------------


def test_2017_is_found_with_its_objects_and_below_a_folder_called_davis(tmp_path: Path) -> None:
    home = write(write(tmp_path / "DAVIS"), "jar", 3)
    found = davis.read(tmp_path)
    assert (found.name, found.root) == ("davis 2017 val 480p (2 sequences, not 30)", home)
    assert [(video.name, len(video.frames), video.unmasked) for video in found.sequences] == [("cup", 4, ()), ("jar", 3, ())]
    assert found.mask(found.sequences[0].first_mask).tolist() == truth(0).tolist()


def test_2016_has_one_object_whatever_its_masks_are_written_in(tmp_path: Path) -> None:
    write(tmp_path, year="2016", resolution="240p")
    found = davis.read(tmp_path)
    assert found.name == "davis 2016 val 240p (1 sequence, not 20)"
    path = found.sequences[0].first_mask
    one = (truth(0) > 0).astype(np.uint8)
    assert found.mask(path).tolist() == one.tolist()
    for image in (Image.fromarray(one * 255), Image.fromarray(one > 0), Image.fromarray(one[..., None] * np.uint8([0, 0, 1]))):
        image.save(path)
        assert found.mask(path).tolist() == one.tolist()


def test_void_stays_void_in_2017(tmp_path: Path) -> None:
    mask = truth(0)
    mask[0, 0] = davis.VOID
    davis.write_mask(tmp_path / "0.png", mask)
    assert davis.read_mask(tmp_path / "0.png")[0, 0] == davis.VOID


def test_a_mask_of_colours_or_a_damaged_one_is_told(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[truth(0)]).save(tmp_path / "rgb.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no")
    for name, reason in (("rgb", "holds colours"), ("cut", "damaged"), ("text", "damaged"), ("none", "missing")):
        with pytest.raises(BadImage, match=reason):
            davis.read_mask(tmp_path / f"{name}.png")


def test_the_palette_is_pascals() -> None:
    colours = [tuple(davis.palette()[3 * number : 3 * number + 3]) for number in range(256)]
    assert colours[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert (colours[8], colours[255]) == ((64, 0, 0), (224, 224, 192))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Annotations.*480p/SEQUENCE/00000\.png.*nothing is downloaded"):
        davis.read(tmp_path)
    write(tmp_path)
    for changes, message in (
        ({"split": "trian"}, "has no ImageSets/2017 or 2016/trian.txt"),
        ({"year": "2016"}, "has no ImageSets/2016/val.txt; did you mean '2017/val'"),
        ({"resolution": "1080p"}, "no resolution '1080p'; did you mean '480p'"),
    ):
        with pytest.raises(DataError, match=message.replace("?", r"\?")):
            davis.read(tmp_path, **changes)
    (tmp_path / "ImageSets/2017/test.txt").write_text("saucer\n")
    with pytest.raises(DataError, match=r"saucer has no \.jpg frames"):
        davis.read(tmp_path, split="test")
    for frame in ("00002", "00003"):
        (tmp_path / f"JPEGImages/480p/cup/{frame}.jpg").unlink()
    with pytest.raises(DataError, match="has 2 frames: three are needed"):
        davis.read(tmp_path)


def test_a_missing_first_mask_and_two_resolutions_are_told(tmp_path: Path) -> None:
    write(write(tmp_path, resolution="240p"), resolution="Full-Resolution", year="2016")
    with pytest.raises(DataError, match="no 480p but 240p, Full-Resolution: choose one"):
        davis.read(tmp_path)
    (tmp_path / "Annotations/240p/cup/00000.png").unlink()
    with pytest.raises(DataError, match=r"00000\.png is missing: the first frame's mask"):
        davis.read(tmp_path, resolution="240p")


def test_only_the_whole_list_has_the_data_sets_own_name(tmp_path: Path) -> None:
    write(tmp_path, year="2016")
    found = davis.read(tmp_path)
    assert replace(found, sequences=found.sequences * 20).name == "davis 2016 val 480p"
    assert replace(found, sequences=found.sequences * 21).name == "davis 2016 val 480p (21 sequences, not 20)"
    assert replace(found, split="mine").name == "davis 2016 mine 480p"  # a list of one's own has no other length


@pytest.mark.parametrize("frame", ["00000", "00002", "00004"])
def test_a_frame_that_is_missing_beside_its_mask_is_told(tmp_path: Path, frame: str) -> None:
    write(tmp_path, num=5)
    (tmp_path / f"JPEGImages/480p/cup/{frame}.jpg").unlink()
    with pytest.raises(DataError, match=rf"cup.* lacks 1 of the frames that have a mask \(first: {frame}\.jpg\): unpack cup again"):
        davis.read(tmp_path)


# --- the protocol -------------------------------------------------------------------------------------------------------------------


def test_features_that_know_the_objects_follow_them(tmp_path: Path, colours: Encoder) -> None:
    result = parse("davis,short_px=64").run(colours, write(tmp_path), BadFiles(), num_shown=3)
    assert result.protocol == "davis 2017 val 480p (1 sequence, not 30)"
    assert result.counts == {"sequences": 1, "objects": 2, "frames": 4}
    assert list(result.groups) == ["cup_1", "cup_2"]
    assert result.metrics["j"] > 0.85  # all but the corners, which the way through patches of 16 px rounds
    assert result.metrics["j&f"] == pytest.approx((result.metrics["j"] + result.metrics["f"]) / 2)
    assert (result.metrics["j_recall"], result.settings["year"], result.settings["context"]) == (1.0, "2017", 7)
    found, truth = result.shown
    assert [picture.caption for picture in found] == [f"cup, frame {number} of 4" for number in (1, 3, 4)]
    assert [picture.note[:10] for picture in found] == ["given", "found; J&F", "found; J&F"]
    assert [picture.note for picture in truth] == ["truth"] * 3
    assert all(picture.image is not None and picture.image.width == 640 for picture in (*found, *truth))


def test_masks_are_written_as_they_are_submitted(tmp_path: Path, colours: Encoder) -> None:
    parse(f"davis,short_px=64,masks={tmp_path / 'out'}").run(colours, write(tmp_path / "DAVIS"), BadFiles())
    files = sorted((tmp_path / "out" / "cup").iterdir())
    assert [file.name for file in files] == [f"{step:05d}.png" for step in range(4)]
    assert davis.read_mask(files[0]).tolist() == truth(0).tolist()
    with Image.open(files[3]) as last:
        assert (last.mode, last.size, bytes(last.getpalette())) == ("P", SIZE[::-1], davis.palette())
        assert set(np.unique(np.asarray(last))) == {0, 1, 2}


def test_a_set_that_only_a_server_can_judge_gives_masks_alone(tmp_path: Path, colours: Encoder) -> None:
    write(tmp_path)
    (tmp_path / "Annotations/480p/cup/00002.png").unlink()
    with pytest.raises(DataError, match=r"cup has no mask of frame 00002.*masks=FOLDER"):
        parse("davis").run(colours, tmp_path, BadFiles())
    result = parse(f"davis,short_px=64,masks={tmp_path / 'out'}").run(colours, tmp_path, BadFiles(), num_shown=1)
    assert (result.metrics, result.groups, len(list((tmp_path / "out/cup").iterdir()))) == ({}, {}, 4)


def test_damaged_files_do_not_stop_it(tmp_path: Path, colours: Encoder) -> None:
    write(write(tmp_path), "jar")
    damaged = ["JPEGImages/480p/cup/00001.jpg", "JPEGImages/480p/cup/00003.jpg", "Annotations/480p/cup/00002.png"]
    for name in [*damaged, "JPEGImages/480p/jar/00000.jpg"]:
        (tmp_path / name).write_bytes(b"\xff\xd8\xff nothing" if name.endswith("jpg") else b"nothing")
    bad_files = BadFiles()
    result = parse(f"davis,short_px=64,masks={tmp_path / 'out'}").run(colours, tmp_path, bad_files, num_shown=4)
    assert {str(Path(path).relative_to(tmp_path)) for path, _ in bad_files.items()} == {*damaged, "JPEGImages/480p/jar/00000.jpg"}
    assert result.counts == {"sequences": 1, "objects": 2, "frames": 4}  # jar could not begin
    masks = [davis.read_mask(tmp_path / f"out/cup/0000{step}.png") for step in range(4)]
    assert np.array_equal(masks[1], masks[0])  # a frame that cannot be read keeps the mask before it
    assert np.array_equal(masks[3], masks[2])
    assert result.groups["cup_2"]["j"] == 1.0  # of frame 1 alone, which object 2 does not move in
    assert [[picture.image is None for picture in row] for row in result.shown] == [[False, False, True]] * 2


def test_masks_without_an_object_and_settings_that_cannot_be(tmp_path: Path, colours: Encoder) -> None:
    write(tmp_path)
    davis.write_mask(tmp_path / "Annotations/480p/cup/00000.png", np.full(SIZE, davis.VOID, np.uint8))
    with pytest.raises(DataError, match="shows no object: year=2016"):
        parse("davis,short_px=64").run(colours, tmp_path, BadFiles())
    for setting in ("context=-1", "topk=0", "radius=-1", "temperature=0", "short_px=63"):
        with pytest.raises(UsageError, match="davis: context and radius are at least 0"):
            parse(f"davis,{setting}")
    with pytest.raises(UsageError, match="no setting 'raduis'; did you mean 'radius'"):
        parse("davis,raduis=3")


def test_the_std_of_the_dino_code_is_an_option(colours: Encoder) -> None:
    assert parse("davis").image_spec(colours) is colours.image
    assert parse("davis,std=dino").image_spec(colours).std == (0.228, 0.224, 0.225)


@pytest.mark.parametrize(
    ("height", "width", "multiple", "expected"),
    [
        (480, 854, 16, (480, 832)),
        (480, 854, 8, (480, 832)),
        (480, 854, 14, (476, 826)),
        (854, 480, 16, (832, 480)),
        (240, 428, 32, (480, 832)),
    ],
)
def test_a_frame_takes_a_size_that_the_patch_divides(height: int, width: int, multiple: int, expected: tuple[int, int]) -> None:
    assert frame_size(height, width, 480, multiple) == expected


def test_stretched_channels_keep_small_objects() -> None:
    labels = torch.tensor([[[0.9, 0.7, 0.8]], [[0.1, 0.3, 0.2]], [[0.0, 0.0, 0.0]]])
    found = stretch(labels)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.0, 0.5]], [[0.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]]))
    assert found.argmax(dim=0)[0, :2].tolist() == [0, 1]
    assert stretch(torch.ones(1, 2, 2)).isinf().all()


def test_an_overlay_tints_what_was_found_and_outlines_what_is_true() -> None:
    frame = Image.fromarray(np.full((*SIZE, 3), 100, np.uint8))
    drawn = np.asarray(overlay(frame, truth(0), truth(0), width_px=128))
    assert drawn[24, 8].tolist() == [round(0.45 * 100 + 0.55 * 128), 45, 45]  # object 1 is Pascal's dark red
    assert drawn[15, 8].tolist() == [255, 255, 255]
    assert drawn[40, 80].tolist() == [100, 100, 100]
