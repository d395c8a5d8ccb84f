"""Decoding hostile and odd files: each becomes the right pixels, or one reason."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.data import images
from sightline.data.images import BadFiles, BadImage, decode, own_size
from sightline.errors import UsageError

WIDTH, HEIGHT = 48, 32


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture whose four quarters differ, so that a turned one is told from an upright one."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([across, down, 1 - across * down], axis=-1) * 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def difference(first: Image.Image, second: Image.Image) -> float:
    assert first.size == second.size
    return float(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).mean())


def reason(content: bytes | Path, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ALL_FORMATS = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "png": encoded(picture(), "PNG"),
    "gif": encoded(picture(), "GIF"),
    "animated": encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(180)]),
    "bmp": encoded(picture(), "BMP"),
    "webp": encoded(picture(), "WEBP", quality=95),
    "lossless": encoded(picture(), "WEBP", lossless=True),
    "tiff": encoded(picture(), "TIFF"),
    "avif": encoded(picture(), "AVIF", quality=95),
    "jp2": encoded(picture(), "JPEG2000"),
    "ppm": encoded(picture(), "PPM"),
    "mpo": encoded(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)]),
}


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_every_format_gives_the_picture_whatever_its_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong-extension.txt"
    file.write_bytes(ALL_FORMATS[name])
    image = decode(file)
    assert image.mode == "RGB"
    assert difference(image, picture()) < 6


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(ALL_FORMATS)), share=st.floats(0, 0.999))
def test_a_cut_file_is_refused_or_whole_and_never_half_grey(name: str, share: float) -> None:
    content = ALL_FORMATS[name]
    whole = np.asarray(decode(content))
    try:
        image = decode(content[: int(share * len(content))])
    except BadImage:
        return
    np.testing.assert_array_equal(np.asarray(image), whole)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(ALL_FORMATS)), places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_damaged_bytes_give_an_image_or_a_reason_and_no_other_exception(name: str, places: list[tuple[float, int]]) -> None:
    content = bytearray(ALL_FORMATS[name])
    for place, value in places:
        content[int(place * len(content))] = value
    with contextlib.suppress(BadImage):
        assert decode(bytes(content), max_pixels=1_000_000).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that turns an upright picture into the stored one
    stored = picture() if orientation == 1 else picture().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(stored, format, exif=exif))
    assert difference(image, picture()) < 6
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # the filter that images sets is replaced by pytest's own
def test_damaged_exif_does_not_cost_the_pixels() -> None:
    content = encoded(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert difference(decode(content), picture()) < 6


def test_cmyk_is_not_inverted() -> None:
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))  # no cyan, full magenta and yellow: red
    red, green, blue = np.asarray(image)[4, 4]
    assert red > 240
    assert green < 20
    assert blue < 20


def test_sixteen_bits_keep_their_greys() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(ramp), format)))[0, :, 0], np.arange(256))


def test_wide_and_float_greys_are_stretched_and_unit_floats_are_not() -> None:
    wide = np.array([[100_000, 200_000, 300_000]], dtype=np.int32)
    assert np.asarray(decode(encoded(Image.fromarray(wide), "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    unit = np.array([[0.2, 0.4]], dtype=np.float32)
    assert np.asarray(decode(encoded(Image.fromarray(unit), "TIFF")))[0, :, 0].tolist() == [51, 102]
    assert "finite" in reason(encoded(Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    pixels = np.asarray(decode(encoded(clear.convert(mode) if mode != "P" else clear.quantize(), "PNG")))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 7].tolist() == [255, 255, 255]


def test_a_colour_key_and_a_palette_with_transparent_bytes_are_laid_on_white() -> None:
    black = Image.new("RGB", (4, 4), 0)
    assert np.asarray(decode(encoded(black, "PNG", transparency=(0, 0, 0)))).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert np.asarray(decode(encoded(palette, "PNG", transparency=b"\x00"))).min() == 255


def test_one_bit_and_grey_images_become_rgb() -> None:
    for mode in ("1", "L"):
        assert (
            difference(decode(encoded(Image.new(mode, (4, 4), 255 if mode == "L" else 1), "PNG")), Image.new("RGB", (4, 4), "white")) == 0
        )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "zero bytes"),
        (b"\x00" * 4096, "damaged: every byte is zero"),
        (b"<!DOCTYPE html><html></html>", "not an image: it is text (a saved web page, SVG or JSON)"),
        (b"hello", "not an image: its first bytes are those of no known format"),
        (b"\x00\x00\x00\x20ftypheic" + b"\x00" * 64, "unsupported format: it is HEIC; convert it to JPEG or PNG"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic" + b"\x00" * 64, "unsupported format: it is HEIC; convert it to JPEG or PNG"),
        (b"\x00\x00\x00\x20ftypmsf1" + b"\x00" * 64, "unsupported format: it is HEIC; convert it to JPEG or PNG"),
        (b"\x00\x00\x00\x20ftypcrx " + b"\x00" * 64, "unsupported format: it is a camera's raw file (CR3); convert it to JPEG or PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "unsupported format: it is a Git LFS pointer: run git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image: its first bytes are those of no known format"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, expected: str) -> None:
    assert reason(content) == expected


@pytest.mark.parametrize(("kind", "options"), [("AVIF", {"quality": 95}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True})])
def test_avif_and_jpeg_2000_are_read_as_the_installed_pillow_reads_them(
    kind: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(picture(), kind, **options)
    assert difference(decode(content), Image.open(io.BytesIO(content)).convert("RGB")) == 0
    assert decode(content).size == picture().size
    assert reason(content[: len(content) // 2]).split(":")[0] in ("truncated", "damaged")
    assert reason(content, max_pixels=WIDTH * HEIGHT - 1).startswith("too many pixels")
    monkeypatch.setattr(images.features, "check", lambda feature: False)  # a Pillow built without
    assert "which the Pillow installed here cannot read; convert it to JPEG or PNG" in reason(content)


def test_an_avif_is_upright_and_told_by_its_brands() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(), "AVIF", exif=exif)
    assert decode(content).size == (HEIGHT, WIDTH)
    assert own_size(content, decode(content)) == (HEIGHT, WIDTH)
    general = content[:8] + b"mif1" + content[12:]  # what some writers call it, avif among what it is compatible with
    assert difference(decode(general), decode(content)) == 0
    transparent = picture().convert("RGBA")
    transparent.putalpha(0)
    assert np.asarray(decode(encoded(transparent, "AVIF"))).min() > 250


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x10\x00IDAT"


@pytest.mark.parametrize("size", [(10_000, 9_000), (100_000, 100_000)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    assert reason(png_header(*size)).startswith(f"too many pixels: {size[0]:,} x {size[1]:,}")


def test_a_webp_bomb_is_refused_by_its_header() -> None:
    for content in (
        encoded(picture(), "WEBP"),
        encoded(picture(), "WEBP", lossless=True),
        encoded(picture().convert("RGBA"), "WEBP", exif=b"Exif\x00\x00"),
    ):
        assert reason(content, max_pixels=WIDTH * HEIGHT - 1).startswith(f"too many pixels: {WIDTH} x {HEIGHT}")
        assert decode(content, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)


def test_the_pixel_limit_counts_what_is_held() -> None:
    large = picture(800, 800)
    baseline, progressive = encoded(large, "JPEG"), encoded(large, "JPEG", progressive=True)
    assert decode(baseline, short_px=100, max_pixels=200_000).size == (200, 200)
    assert "too many pixels" in reason(progressive, short_px=100, max_pixels=200_000)
    assert "too many pixels" in reason(baseline, max_pixels=200_000)


def test_reduced_decoding_keeps_the_margin_and_the_picture() -> None:
    content = encoded(picture(1200, 900), "JPEG", quality=95)
    assert decode(content).size == (1200, 900)
    assert decode(content, short_px=226).size == (1200, 900)  # half would be under twice 226
    reduced = decode(content, short_px=224)
    assert reduced.size == (600, 450)
    assert difference(reduced.resize((96, 72)), decode(content).resize((96, 72))) < 0.7


def test_reduced_decoding_turns_and_converts_all_the_same() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(picture(800, 400).rotate(90, expand=True).convert("L"), "JPEG", exif=exif)
    image = decode(content, short_px=100)
    assert image.size == (400, 200)
    assert image.mode == "RGB"


def test_paths_that_are_no_readable_file_are_named(tmp_path: Path) -> None:
    assert reason(tmp_path / "nowhere.jpg") == "missing: no such file"
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    assert reason(tmp_path / "link.jpg") == "missing: a link to nowhere"
    assert reason(tmp_path) == "not a file: a folder, pipe or device"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason(tmp_path / "loop.jpg").startswith("not readable: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "not a file: a folder, pipe or device"


def test_a_forbidden_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "secret.jpg"
    file.write_bytes(ALL_FORMATS["jpeg"])
    monkeypatch.setattr(images.os, "open", refuse)  # by hand: the superuser may read everything
    assert reason(file) == "not readable: Permission denied"


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.jpg"
    with file.open("wb") as opened:
        opened.truncate(images.MAX_BYTES + 1)
    assert reason(file).startswith("too large: ")


@pytest.mark.parametrize("name", ["café.png", "写真.png", "a b'\"\n.png", os.fsdecode(b"latin-\xe9.png")])
def test_names_of_any_kind_are_read_and_noted(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(ALL_FORMATS["png"])
    assert decode(file).size == (WIDTH, HEIGHT)
    bad = BadFiles()
    bad.add(file, "zero bytes")
    bad.write(tmp_path / "bad_files.jsonl")
    assert json.loads((tmp_path / "bad_files.jsonl").read_text(encoding="utf-8"))["path"] == str(file)


def test_a_bad_image_is_the_persons_to_repair() -> None:
    assert issubclass(BadImage, UsageError)


def test_bad_files_count_each_file_once_from_many_threads(tmp_path: Path) -> None:
    bad = BadFiles()
    threads = [
        threading.Thread(target=lambda: [bad.add(f"{row}.jpg", "truncated: the file ends too early") for row in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad.add("z.jpg", "zero bytes")
    assert len(bad) == 201
    assert bad.summary(1204, "bad.jsonl") == "201 of 1,204 files could not be read (200 truncated, 1 zero bytes): see bad.jsonl"
    assert bad.summary(1204).endswith(f"(200 truncated, 1 zero bytes), such as {bad.items()[0][0]}"), (
        "no file is named that was not written"
    )
    bad.write(tmp_path / "bad_files.jsonl")
    lines = (tmp_path / "bad_files.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1]) == {"path": "z.jpg", "reason": "zero bytes"}
    assert os.listdir(tmp_path) == ["bad_files.jsonl"]


def test_no_bad_files_say_nothing() -> None:
    assert BadFiles().summary(10) == ""
