"""Creating an index of a folder or manifest, bringing it up to date, and looking after it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sightline import runtime
from sightline.data.deep import DeepRange
from sightline.data.images import BAD_FILES_NAME, BadFiles, still_bad
from sightline.data.reading import read_data
from sightline.data.records import Records
from sightline.errors import DataError, UsageError
from sightline.index import filters
from sightline.index.base import Index, IndexInfo
from sightline.index.header import HEADER, read_header, write_header
from sightline.nn import model_folder, sources
from sightline.nn.encoder import Encoder
from sightline.runtime import Precision
from sightline.search.engine import encoder_of
from sightline.search.listing import place_of
from sightline.search.presence import missing_paths
from sightline.search.update import Update, update_index
from sightline.workflows.common import write_bad_files


def index(
    path: Path,
    *,
    model: str = "",
    images: Path | None = None,
    patches: bool = False,
    short_px: int = 0,
    remove: str = "",
    yes: bool = False,
    ask: Callable[[str], bool] | None = None,
    info: bool = False,
    verify: bool = False,
    compact: bool = False,
    repair: bool = False,
    keep: bool = False,
    prune: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
) -> tuple[dict[str, Any], str]:
    """Create or bring up to date, change, check or describe an index; returns the answer as plain data and as text.

    ``patches`` makes a new index one of patches, of pictures whose short side is brought to ``short_px`` (0: the model's own size).
    ``remove`` takes out what matches it, ``prune`` what is no longer to be seen where it came from; either takes more than half of the
    items only with ``yes``, or where ``ask`` puts the question to a person who agrees. ``keep`` takes nothing out of what is gone.

    Raises:
        UsageError: nothing was asked for, or the index, model and images do not go together.
    """
    if keep and prune:
        raise UsageError("--keep and --prune are opposites: leave one out")
    if images is None and not (remove or prune or info or verify or compact or repair):
        raise UsageError(
            "nothing to do: --images FOLDER brings the index up to date; --info, --verify, --compact, --repair, --prune or --remove look after it"
        )
    if remove:
        filters.parse(remove)  # before anything is done
    answer: dict[str, Any] = {"index": str(path)}
    lines: list[str] = []
    if repair:  # first, so that --images in the same call embeds again what was forgotten
        with Index.open(path) as opened:
            answer["forgotten"] = opened.repair()
        lines.append(f"repaired: {answer['forgotten']:,} images with damaged vectors forgotten")
    kept: tuple[int, ...] = ()
    if images is not None:
        update, answer["update"], text = _update(path, model, images, keep, device, precision, short_px if patches or short_px else None)
        kept = update.kept
        lines.append(text)
    with Index.open(path, read_only=not (remove or compact or prune)) as opened:
        if prune:
            answer["pruned"] = _prune(opened, kept, yes, ask)
            lines.append(f"pruned {answer['pruned']:,} items that are no longer where they came from")
        if remove:
            answer["removed"], text = _remove(opened, remove, yes, ask)
            lines.append(text)
        if compact:
            opened.compact()
            lines.append("compacted")
        if verify:
            answer["problems"] = list(opened.verify())
            lines += [f"problem: {problem}" for problem in answer["problems"]] or ["verified: no problems"]
        if info:
            about = opened.info()
            answer["info"] = asdict(about)
            lines.append(_describe(about))
        if verify or info:
            answer["missing"] = len(_missing(opened))
            if answer["missing"]:
                lines.append(f"note      {answer['missing']:,} items have files that are not there now: --prune takes them out")
    return answer, "\n".join(lines)


def _remove(opened: Index, where: str, yes: bool, ask: Callable[[str], bool] | None) -> tuple[int, str]:
    num, total = opened.count(where), opened.count()
    if not num:
        return 0, f"removed 0 of {total:,} items: {opened.why_none(where)}"
    slips = [one.told for one in opened.absent(where) if one.spares]
    if slips:
        raise UsageError(f"{slips[0]}: nothing was removed; write what is to be kept as the index has it")
    _agreed("--remove", num, total, yes, ask)
    return opened.remove(where=where), f"removed {num:,} of {total:,} items"


def _prune(opened: Index, kept: Sequence[int], yes: bool, ask: Callable[[str], bool] | None) -> int:
    gone = {*kept, *_missing(opened)}
    _agreed("--prune", len(gone), opened.count(), yes, ask)
    return opened.remove(ids=sorted(gone))


def _missing(opened: Index) -> list[int]:
    ids_of: dict[str, list[int]] = {}
    for (path, _), have in opened.known().items():
        ids_of.setdefault(path, []).append(have.id)
    return [id for path in missing_paths(list(ids_of)) for id in ids_of[path]]


def _agreed(option: str, num: int, total: int, yes: bool, ask: Callable[[str], bool] | None) -> None:
    share = f"{num:,} of {total:,} items"
    if 2 * num > total and not yes and not (ask is not None and ask(f"{option} takes out {share}, more than half: shall it?")):
        raise UsageError(f"{option} would take out {share}, more than half, so nothing was removed: add --yes if that is meant")


def _describe(about: IndexInfo) -> str:
    lines = [
        f"{about.path}: {_counted(about)} ({about.log_rows:,} not sealed yet, {about.dead_rows:,} dead rows), {about.bytes_on_disk / 2**20:.1f} MiB",
        f"model     {about.model or 'unknown'} ({about.fingerprint}), {about.dim}-d",
        f"recall@10 {about.recall_at_10:.4f} without a filter, measured against exact search{_filtered(about.recall_filtered)}",
        f"engine    {about.engine}, created {about.created}",
    ]
    for segment in about.segments:
        how = (
            "searched exactly"
            if segment.parameter is None
            else f"searched exactly, since {segment.kind} does not reach a recall of 0.99 here ({segment.calibrated})"
            if segment.depth == 0
            else f"{segment.kind} at {segment.parameter}, recall@10 {segment.recall_at_10:.4f} without a filter"
            f"{_filtered(segment.recall_filtered)} ({segment.calibrated})"
        )
        lines.append(f"segment   {segment.rows:,} rows, {segment.dead:,} dead: {how}")
    return "\n".join([*lines, *(f"note      {note}" for note in about.notes)])


def _filtered(recall: float | None) -> str:
    return "" if recall is None else ", the same with one" if recall == 1 else f", {recall:.4f} or more with one"


def _counted(about: IndexInfo) -> str:
    return f"{about.items:,} images" + (f", {about.rows:,} patches" if about.rows != about.items else "")


def _update(
    path: Path, model: str, images: Path, keep: bool, device: str, precision: Precision, short_px: int | None
) -> tuple[Update, dict[str, Any], str]:
    """Bring an index up to date; ``short_px`` is None where whole pictures were asked for, or nothing was said."""
    bad_files = BadFiles()
    exists = (path / HEADER).exists()
    if not exists:
        _require_free(path, images)
        if not model:
            raise UsageError(f"'{path}' is a new index: say which model embeds with --model runs/mine (or timm:NAME)")
    elif short_px is not None:
        _require_patches(path, short_px)
    if exists and not images.exists():
        _tell_of_lost_source(path, images)
    records = read_data(images, bad_files)
    encoder = encoder_of(path, model, device) if exists else model_folder.load(model, device=runtime.device(device))
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        with _opened(path, encoder, model, exists, short_px, records.deep) as opened:
            cut = _beyond_range(records.deep, opened.header.deep)
            records = replace(records, deep=opened.header.deep)  # as what is in it already, and as what is asked is read
            update = update_index(opened, encoder, records, bad_files, source=images, precision=precision, prune=not keep)
            count = opened.count()
    except BaseException:
        if not exists:
            _discard_empty(path, made)
        raise
    _write_bad(path, bad_files, records, images)
    told = [f"{count:,} {'images' if records.boxes is None else 'items'} in {path}: {_counts(update)}", *update.notes, *cut]
    if len(bad_files):
        told.append(bad_files.summary(len(records), path / BAD_FILES_NAME))
    plain = {name: value for name, value in asdict(update).items() if name != "kept"}
    return update, {**plain, "notes": [*update.notes, *cut], "images": count}, "\n".join(told)


LOST_SHARE = 0.1
"""Of a range of greys, what may be cut without a word: a sample of other pictures never gives quite the same."""


def _beyond_range(asked: DeepRange | None, kept: DeepRange | None) -> list[str]:
    """Return what there is to say of deep greys that the range of an index cuts off, or of which it keeps few levels."""
    if asked is None or asked == kept:
        return []
    if kept is None:
        return [
            "the index was made without greys of more than 8 bits: each is read by the bits that it uses; index all of them anew for a range of their own"
        ]
    lost = max(kept[0] - asked[0], 0) + max(asked[1] - kept[1], 0)
    if lost <= LOST_SHARE * (asked[1] - asked[0]):
        return []
    return [
        f"greys of these pictures go from {asked[0]:g} to {asked[1]:g}, those that the index was made with from {kept[0]:g} to {kept[1]:g}: "
        "what lies beyond is black or white; index all of them anew for a range that holds both"
    ]


def _counts(update: Update) -> str:
    parts = [f"{update.added:,} added", f"{update.changed:,} changed", f"{update.unchanged:,} unchanged", f"{update.removed:,} removed"]
    parts += [f"{update.moved:,} moved"] if update.moved else []
    return ", ".join([*parts, *([f"{update.unreadable:,} unreadable now and kept as they were"] if update.unreadable else [])])


def _opened(path: Path, encoder: Encoder, model: str, exists: bool, short_px: int | None, deep: DeepRange | None) -> Index:
    if exists:
        opened = Index.open(path, fingerprint=encoder.fingerprint)
        if model and not opened.header.model:  # made in Python
            opened.header = replace(opened.header, model=sources.lasting(model))
            write_header(path, opened.header)
        return opened
    if short_px is None:
        return Index.create(path, dim=encoder.dim, fingerprint=encoder.fingerprint, model=sources.lasting(model), deep=deep)
    return Index.create(
        path,
        dim=encoder.backbone.width,
        fingerprint=encoder.fingerprint,
        model=sources.lasting(model),
        engine="patches",
        short_px=encoder.whole(short_px).short_px,
        deep=deep,
    )


def _require_free(path: Path, images: Path | None) -> None:
    """Pass a path at which an index can be made."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "a folder of other files" if path.is_dir() else "a file"
        raise UsageError(
            f"'{path}' is {what}, not an index: an index is a folder of its own, as in "
            f"sightline index {path.name.split('.')[0]}.index --model MODEL --images {images or path}"
        )


def _discard_empty(path: Path, made: Sequence[Path]) -> None:
    """Take away a new index into which nothing came, and the folders ``made`` for it, the innermost first."""
    if (path / HEADER).exists():
        with Index.open(path, read_only=True) as new:
            empty = new.count() == 0
        if empty:
            shutil.rmtree(path)
            for folder in made:
                folder.rmdir()


def _tell_of_lost_source(path: Path, images: Path) -> None:
    with Index.open(path, read_only=True) as opened:
        place = place_of(images)
        num = next((len(source.brought) for source in opened.sources() if source.place == place), 0)
    if num:
        raise DataError(
            f"'{images}' is not there now, and {num:,} items came from it: nothing was changed; give its new place if it was moved, "
            "or take out what is gone with --prune instead of --images"
        )


def _write_bad(path: Path, bad_files: BadFiles, records: Records, images: Path) -> None:
    """Write which files are bad now, all by absolute path: those met just now, and those of other sources that still are."""
    now, file = BadFiles(), path / BAD_FILES_NAME
    for name, reason in bad_files.items():
        now.add(os.path.abspath(name), reason)
    root = os.path.join(os.path.abspath(records.root), "")
    looked_at = {os.path.normpath(root + name) for name in records.paths}
    for line in file.read_bytes().splitlines() if file.exists() else []:  # as text it would part at what a name may hold (U+2028)
        entry = json.loads(line)
        name = str(entry["path"])
        if os.path.isabs(name) and name not in looked_at and not (images.is_dir() and name.startswith(root)):
            reason = still_bad(Path(name), entry["reason"])
            if reason:
                now.add(name, reason)
    write_bad_files(now, path)


def _require_patches(path: Path, short_px: int) -> None:
    header = read_header(path)
    if header.engine != "patches":
        raise UsageError(f"'{path}' is an index of whole images: choose a new folder for one of patches")
    if short_px not in (0, header.short_px):
        raise UsageError(
            f"'{path}' holds the patches of images at {header.short_px} px, not {short_px}: choose a new folder for another size"
        )
