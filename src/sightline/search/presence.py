"""Whether a file that is not to be seen is gone, or lies behind a link, mount or share that is away."""

from __future__ import annotations

import os

from sightline.index.items import Brought


def is_away(root: str, path: str, how: Brought) -> bool:
    """Return True where a missing file may come back: its way from ``root`` ends at a link to nowhere, a closed folder or an empty mount.

    ``path`` is where the file was, ``how`` names it from ``root``. A name that leads out of the root (an absolute one in a manifest) is
    away where its folder is missing too: that folder may be a share.
    """
    inside = path.startswith(root.rstrip("/") + "/")
    name = os.path.relpath(path, root) if os.path.isabs(how.name) and inside else how.name
    here = "/" if os.path.isabs(name) else root
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for place, part in enumerate(parts):
        there = os.path.join(here, part)
        if os.path.exists(there):
            here = there
            continue
        if os.path.islink(there) or not os.access(here, os.R_OK | os.X_OK):
            return True
        if os.path.isabs(name) and place < len(parts) - 1:
            return True
        # It lay on another device than the root does, and the folder where its way ends now is on the root's: nothing is mounted there.
        return not how.own_device and _device(here) == _device(root)
    return False


def missing_paths(paths: list[str]) -> list[str]:
    """Return those paths of files (absolute ones: another text may name something else) at which nothing is."""
    return [path for path in paths if os.path.isabs(path) and not os.path.lexists(path)]


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None
