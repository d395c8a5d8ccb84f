"""Decoding that survives the world: any file becomes an upright 8-bit RGB image, or one line that says why not; and the list of those."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import (
    AvifImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)
from PIL.BmpImagePlugin import BmpImageFile

from sightline.data.deep import LOOKED_AT, SAMPLED, DeepRange, ends, is_deep, joined, sampled, to_grey
from sightline.data.listing import drawn_by_us
from sightline.data.spelling import other_form
from sightline.errors import DataError

MAX_PIXELS = 89_478_485
"""Most pixels held in memory for one image: a quarter GiB in RGB, the level at which Pillow itself suspects a decompression bomb."""

MAX_BYTES = 512 * 1024**2
"""Largest file that is read."""

DRAFT_MARGIN = 2
"""A JPEG is decoded at a reduced scale only while its short side keeps at least this many times the pixels asked for.

Measured on four photographs: with 2 the model's input lies 51 dB or more from that of full decoding (under one level of 255), with 1.5
45 dB, with 1 42 dB. Decoding and resizing then cost a fifth for 4000 x 3000 pixels and a half for 1600 x 1200.
"""

_DEEP_SUFFIXES = (".png", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf")

BAD_FILES_NAME = "bad_files.jsonl"

# Pillow warns of odd metadata that does not concern the pixels. catch_warnings is not safe among threads, hence once and for all.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIGNS_OF_A_CUT = ("truncated", "not enough", "unexpected end", "requires a buffer", "no more images")

_OPENERS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    # What may be decoded, told by the file's first bytes and never by its name. Pillow's own dispatch is not used: it would try
    # every plug-in, and it warns (or raises) of bombs by its own limit before we have seen the size.
    (b"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00+", TiffImagePlugin.TiffImageFile),
    *((b"P%d" % digit, PpmImagePlugin.PpmImageFile) for digit in range(1, 7)),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", Jpeg2KImagePlugin.Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImagePlugin.Jpeg2KImageFile),
)

_FOREIGN = (
    # (where, bytes, what it is): kinds that people do have among their images, so that the reason helps.
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypcrx ", "a camera's raw file (CR3)"),
    (4, b"ftyp", "a video"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
)


class BadImage(DataError):  # noqa: N818 (what it is, not that it is an error: every caller goes on)
    """A file that gives no image. ``kind`` groups reasons in a summary; the message is ``kind`` or ``kind: detail``."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def decode(
    source: Path | bytes, *, short_px: int | None = None, max_pixels: int = MAX_PIXELS, deep: DeepRange | None = None
) -> Image.Image:
    """Return the image in a file (or in the bytes of one): upright, RGB, 8 bits, transparency laid on white, the first of many frames.

    Args:
        source: the file, or its content.
        short_px: the short side in pixels that the caller will resize to. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where
            its short side stays at least ``DRAFT_MARGIN`` times that. None decodes at full size.
        max_pixels: most pixels to hold.
        deep: what of a deep grey becomes black and white, see ``measured_range``; None goes by the picture alone.

    Raises:
        BadImage: for every trouble, with a reason a person can act on.
    """
    content = read_bytes(source) if isinstance(source, Path) else source
    if not content:
        raise BadImage("zero bytes")
    if drawn_by_us(content):
        raise BadImage("a drawing of Sightline's own", "it is no photograph: move it out of the collection")
    try:
        return _decode(content, short_px, max_pixels, deep)
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("too large", "not enough memory to decode it") from error
    except Exception as error:  # Pillow's plug-ins raise nearly every class there is on hostile bytes; each becomes a named reason
        raise _explain(error) from error


def own_size(content: bytes, decoded: Image.Image) -> tuple[int, int]:
    """Return the (width, height), upright, that the file of ``content`` has, of which ``decoded`` may be a JPEG at a reduced scale."""
    if not content.startswith(_OPENERS[0][0]):
        return decoded.size
    image = _open(content)
    return (image.height, image.width) if _orientation(image) >= 5 else image.size


def read_bytes(file: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        BadImage: it is missing, not a regular file, not readable, or larger than ``MAX_BYTES``.
    """
    try:
        # O_NONBLOCK, and only then a look at its kind: opening a named pipe would wait for a writer for ever.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        if file.parts[:1] in (("http:",), ("https:",)):
            raise BadImage("missing", "an address, not a file: download the picture first") from error
        meant = other_form(str(file))
        why = (
            "no such file"
            if meant is None
            else "no such file; its folder holds that name in another Unicode form: write it as the disk has it"
        )
        raise BadImage("missing", "a link to nowhere" if file.is_symlink() else why) from error
    except (OSError, ValueError) as error:
        raise BadImage("not readable", getattr(error, "strerror", None) or str(error)) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise BadImage("not a file", "a folder, pipe or device")
    with open(handle, "rb") as opened:
        if status.st_size > MAX_BYTES:
            raise BadImage("too large", f"{status.st_size / 1024**2:,.0f} MiB, more than {MAX_BYTES // 1024**2}")
        try:
            return opened.read()
        except OSError as error:
            raise BadImage("not readable", error.strerror or str(error)) from error


def _decode(content: bytes, short_px: int | None, max_pixels: int, deep: DeepRange | None) -> Image.Image:
    _check_webp(content, max_pixels)
    image = _open(content)
    whole = image.size
    if isinstance(image, JpegImagePlugin.JpegImageFile) and short_px is not None:
        image.draft(image.mode, (short_px * DRAFT_MARGIN, short_px * DRAFT_MARGIN))
    # A progressive JPEG is held whole, as coefficients, whatever the scale it is decoded at.
    _check_size(whole if "progressive" in image.info else image.size, max_pixels)
    image.load()
    return upright_rgb(image, deep)


def measured_range(files: Sequence[Path]) -> DeepRange | None:
    """Return the range of a collection's deep greys, from a sample of them; None where the sample holds none.

    Of all pictures of a collection the same value becomes the same grey, and a narrow range (12 bits, the temperatures of a thermal
    camera) keeps what 8 bits can hold of it.
    """
    found = []
    candidates = [file for file in files if file.suffix.lower() in _DEEP_SUFFIXES]
    chosen = [file for file in sampled(candidates) if _may_be_deep(file)]
    if len(chosen) < SAMPLED // 4:  # a few thermal pictures among many photographs
        chosen = sampled([file for file in sampled(candidates, LOOKED_AT) if _may_be_deep(file)])
    for file in chosen:
        try:
            image = _open(read_bytes(file))
            if is_deep(image):
                _check_size(image.size, MAX_PIXELS)
                image.load()
                found.append(ends(image))
        except (OSError, BadImage):
            continue
        except Exception as error:  # hostile bytes raise anything: a file that cannot be read is told where it is decoded
            _explain(error)
    return joined(found)


def _may_be_deep(file: Path) -> bool:
    """Return False where the head of a PNG tells that it is no grey of 16 bits, which saves opening it."""
    if not file.is_file():  # a named pipe would wait for ever
        return False
    try:
        with file.open("rb") as stream:
            start = stream.read(32)
    except OSError:
        return False
    return not start.startswith(b"\x89PNG") or (len(start) > 25 and start[24] == 16 and start[25] in (0, 4))


def upright_rgb(image: Image.Image, deep: DeepRange | None = None) -> Image.Image:
    """Return an opened image as ``decode`` does: upright by its own orientation tag, RGB, transparency laid on white."""
    upright = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, deep)
    rgb = rgb if upright is None else rgb.transpose(upright)
    if rgb.info:
        rgb = rgb.copy() if rgb is image else rgb
        rgb.info = {}  # the orientation tag among it would turn the image once more in other hands
    return rgb


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise BadImage("too many pixels", f"{size[0]:,} x {size[1]:,}, more than {max_pixels / 1e6:,.0f} million")


def _check_webp(content: bytes, max_pixels: int) -> None:
    """Refuse a WebP that is cut short or too large by its header: Pillow's reader reserves the whole canvas on opening it."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return
    if len(content) < 30 or int.from_bytes(content[4:8], "little") + 8 > len(content) + 1:  # some writers count a last byte of padding
        raise BadImage("truncated", "shorter than its header says")
    kind = content[12:16]
    if kind == b"VP8X":
        _check_size((int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1), max_pixels)
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        _check_size(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), max_pixels)
    else:
        _check_size((int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF), max_pixels)


def _open(content: bytes) -> ImageFile.ImageFile:
    for magic, opener in _OPENERS:
        if content.startswith(magic):
            if opener is Jpeg2KImagePlugin.Jpeg2KImageFile and not features.check("jpg_2000"):
                raise BadImage(
                    "unsupported format", "it is JPEG 2000, which the Pillow installed here cannot read; convert it to JPEG or PNG"
                )
            return opener(io.BytesIO(content))
    if _is_avif(content):
        if not features.check("avif"):
            raise BadImage("unsupported format", "it is AVIF, which the Pillow installed here cannot read; convert it to JPEG or PNG")
        return AvifImagePlugin.AvifImageFile(io.BytesIO(content))
    for start, magic, what in _FOREIGN:
        if content.startswith(magic, start):
            raise BadImage("unsupported format", f"it is {what}; convert it to JPEG or PNG" if ":" not in what else f"it is {what}")
    if not content.strip(b"\x00"):
        raise BadImage("damaged", "every byte is zero")
    if content.lstrip()[:1] in (b"<", b"{"):
        raise BadImage("not an image", "it is text (a saved web page, SVG or JSON)")
    raise BadImage("not an image", "its first bytes are those of no known format")


def _is_avif(content: bytes) -> bool:
    """Return whether the brands of an ISO file name AVIF: the major one or, of a general one (mif1), those that it is compatible with."""
    if content[4:8] != b"ftyp":
        return False
    brands = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
    return any(brands[start : start + 4] in (b"avif", b"avis") for start in (0, *range(8, len(brands), 4)))


def _orientation(image: Image.Image) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow's TIFF reader turns the pixels itself
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata must not cost the pixels: the image is taken as it lies
        return 1


def _to_rgb(image: Image.Image, deep: DeepRange | None) -> Image.Image:
    if is_deep(image):
        try:
            return to_grey(image, deep).convert("RGB")
        except ValueError as error:
            raise BadImage("damaged", str(error)) from error
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _explain(error: Exception) -> BadImage:
    text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    lowered = text.lower()
    if isinstance(error, EOFError | struct.error) or any(sign in lowered for sign in _SIGNS_OF_A_CUT):
        return BadImage("truncated", "the file ends too early")
    if "decompression bomb" in lowered:
        return BadImage("too many pixels", text)
    if "not supported" in lowered or "unsupported" in lowered:
        return BadImage("unsupported format", text)
    return BadImage("damaged", text)


# --- bad files --------------------------------------------------------------------------------------------------------------------


def still_bad(path: Path, reason: str) -> str:
    """Return why a file (or a folder that could not be listed) is bad now; empty where it is not any more.

    A box outside its image is a fault of the manifest, which is not at hand: that ``reason`` stays while the file is there.
    """
    if path.is_dir():
        return "" if os.access(path, os.R_OK | os.X_OK) else reason
    try:
        decode(path)
    except BadImage as error:
        return "" if error.kind == "missing" and not path.is_symlink() else str(error)
    return reason if reason.startswith("box outside") else ""


class BadFiles:
    """The files that could not be read, each once, with the reason. Safe to share among threads."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, path: Path | str, reason: object) -> None:
        """Note a file and why it could not be read (``kind`` or ``kind: detail``); the first reason stays."""
        with self._lock:
            self._reasons.setdefault(os.fspath(path), str(reason))

    def items(self) -> list[tuple[str, str]]:
        """Return (path, reason) of every file, sorted by path."""
        with self._lock:
            return sorted(self._reasons.items())

    def write(self, file: Path) -> None:
        """Write one JSON object a line, ``{"path": ..., "reason": ...}``, in one move: the file is whole at any moment."""
        text = "".join(json.dumps({"path": path, "reason": reason}, ensure_ascii=False) + "\n" for path, reason in self.items())
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        # A name that is not UTF-8 holds lone surrogates; written as \udcXX they are valid JSON and come back as the same name.
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        os.replace(partial, file)

    def summary(self, num_files: int | None = None, where: Path | str | None = None) -> str:
        """Return one line: the number of files that could not be read, of ``num_files``, and the reasons; empty when all were read.

        It ends with ``where``, the file that names each, or where none was written with the first of them.
        """
        items = self.items()
        if not items:
            return ""
        kinds = Counter(reason.partition(":")[0] for _, reason in items)
        shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        of = "" if num_files is None else f" of {num_files:,}"
        named = f", such as {items[0][0]}" if where is None else f": see {where}"
        return f"{len(items):,}{of} file{'' if len(items) == 1 and num_files is None else 's'} could not be read ({shown}){named}"
