"""Which files below a folder are its pictures, and what was left out on the way: each in a line, nothing in silence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, PngImagePlugin

from sightline.errors import DataError

DECODABLE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".jpe",
    ".jfif",
    ".mpo",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".avif",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpx",
    ".jpf",
)
IMAGE_SUFFIXES = frozenset((*DECODABLE_SUFFIXES, ".heic", ".heif", ".jxl"))
"""What is listed as an image. The last three cannot be decoded here: so each is counted and named, not passed over in silence."""

SYSTEM_FOLDERS = frozenset(
    (
        "@eadir",  # thumbnails of a Synology, beside every photograph
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "@snapshots",
        "~snapshot",
        "_gsdata_",
        "ipod photo cache",
        "synophoto_thumb",
        "system volume information",
        "found.000",
        "found.001",
        "lost+found",
        "__macosx",
        "network trash folder",
        "temporary items",
        "thumbs",
        "thumbnails",
        "__pycache__",
    )
)
"""Folders that storage, systems and photo programs make beside people's pictures, in lower case; hidden ones are left out anyway."""

DRAWINGS_TAG = ".sightline-drawings"
"""A folder with this file holds pictures that Sightline drew: see ``save_drawing``."""

DRAWN_BY = "Sightline"
"""What a drawing of ours has as its ``Software``, in a PNG's text or a JPEG's EXIF: see ``save_drawing``."""

_TAG_TEXT = "Some pictures in this folder were drawn by Sightline. They are left out when a collection of photographs is read.\n"
_HEAD_BYTES = 4096
_SOFTWARE_TAG = 0x0131

OnBad = Callable[[Path, str], None]


@dataclass(frozen=True)
class Listing:
    """The pictures below a folder, relative to it, POSIX, sorted; and a line on each kind of thing that was left out or is odd."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_images(folder: Path, *, on_bad: OnBad | None = None) -> tuple[str, ...]:
    """Return the paths that ``list_images`` does."""
    return list_images(folder, on_bad=on_bad).paths


def list_images(folder: Path, *, on_bad: OnBad | None = None) -> Listing:
    """Return the image files below a folder; hidden files and folders are left out, and so are what a system or Sightline itself put there.

    Links are followed, each folder at most once: by its own name where that is below ``folder`` too. Files are told by their suffix alone:
    what is in them is found out when they are decoded.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give a folder of images")
    walk = _Walk(folder, on_bad)
    while walk.waiting or walk.links:
        # What is there in its own right comes first: a link to it, whatever its name, is then the second.
        walk.visit(walk.waiting.pop() if walk.waiting else walk.links.pop())
    return Listing(tuple(sorted(walk.found)), tuple(walk.notes(folder)))


@dataclass
class _Walk:
    folder: Path
    on_bad: OnBad | None
    found: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=lambda: [""])
    links: list[str] = field(default_factory=list)
    seen: dict[tuple[int, int], str] = field(default_factory=dict)
    file_links: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    def visit(self, relative: str) -> None:
        here = self.folder / relative
        try:
            status = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if self.on_bad is None or not relative:
                raise DataError(f"the folder {here} cannot be listed ({error.strerror}): change its permissions or leave it out") from error
            self.on_bad(here, f"folder not listed: {error.strerror}")
            return
        first = self.seen.setdefault((status.st_dev, status.st_ino), relative)
        if first is not relative:
            self.again.append(f"{relative.rstrip('/')}, which is {first.rstrip('/') or 'the whole folder'}")
            return
        is_marked = any(entry.name == DRAWINGS_TAG for entry in entries)
        for entry in entries:
            path = relative + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                kept = self.links if entry.is_symlink() else self.waiting
                (self.system if entry.name.lower() in SYSTEM_FOLDERS else kept).append(f"{path}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                if is_marked and is_drawing(here / entry.name):
                    self.drawn.append(path)
                    continue
                self.found.append(path)
                if entry.is_symlink():
                    self.file_links.append(path)

    def notes(self, folder: Path) -> list[str]:
        kinds = [
            (self.system, "folder of the system was left out", "folders of the system were left out"),
            (self.drawn, "picture that Sightline drew was left out", "pictures that Sightline drew were left out"),
            (self.again, "link to a folder that is listed already was left out", "links to folders that are listed already were left out"),
            (self._doubled(), "picture is listed twice, by a link", "pictures are listed twice, by a link"),
        ]
        return [
            f"{folder}: {len(which):,} {one if len(which) == 1 else more} ({'' if len(which) == 1 else 'such as '}{min(which)})"
            for which, one, more in kinds
            if which
        ]

    def _doubled(self) -> list[str]:
        if not self.file_links:
            return []
        links = set(self.file_links)
        own = {os.path.realpath(self.folder / path): path for path in self.found if path not in links}
        doubled = []
        for path in self.file_links:
            first = own.setdefault(os.path.realpath(self.folder / path), path)
            if first != path:
                doubled.append(f"{path}, which is {first}")
        return doubled


def save_drawing(picture: Image.Image, file: Path, *, tagged: bool = True) -> None:
    """Write a picture that Sightline drew, so that ``images.decode`` and, where it is ``tagged``, ``list_images`` take it for no photograph.

    The picture's own metadata says so, and the tag, a small file beside it, lets a listing know that there is something to look for.

    Raises:
        OSError: nothing can be written there.
    """
    if file.suffix.lower() == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", DRAWN_BY)
        picture.save(file, "PNG", pnginfo=text)
    else:
        exif = Image.Exif()
        exif[_SOFTWARE_TAG] = DRAWN_BY
        picture.save(file, exif=exif)
    if tagged:
        mark_drawing(file)


def mark_drawing(file: Path) -> None:
    """Note beside a picture that Sightline drew it, where its ``Software`` says so already.

    Raises:
        OSError: nothing can be written there.
    """
    tag = file.with_name(DRAWINGS_TAG)
    if not tag.exists():
        tag.write_text(_TAG_TEXT, encoding="utf-8")


def is_drawing(file: Path) -> bool:
    """Return whether the head of a picture says that Sightline drew it."""
    if not file.is_file():  # a named pipe would wait for ever
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return False  # it is told as a bad file when it is decoded
    return drawn_by_us(head)


def drawn_by_us(content: bytes) -> bool:
    """Return whether the first bytes of a PNG or JPEG name Sightline as the software that drew it."""
    head = content[:_HEAD_BYTES]
    if head.startswith(b"\x89PNG"):
        return b"tEXtSoftware\0Sightline" in head
    return head.startswith(b"\xff\xd8\xff") and b"Exif\0\0" in head and b"Sightline\0" in head
