"""Paths as the disk spells them: a disk that takes a name in other capitals, or in the other Unicode form, holds it in one spelling alone."""

from __future__ import annotations

import os
import unicodedata


def alike(name: str) -> str:
    """Return what all spellings of a name have in common that some disk (of macOS, of Windows, a share of theirs) takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Spelling:
    """Real paths in the disk's own spelling; each folder is listed once, so one of these serves one look at a collection.

    Two files whose names differ in capitals or Unicode form alone are two where the disk holds two: only a name that no folder lists,
    and by which the disk still finds the very file that is listed under another spelling, becomes that one.
    """

    def __init__(self) -> None:
        self._names: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str] = {}

    def folder(self, path: str) -> str:
        """Return the real path of a folder, in the disk's spelling."""
        if path not in self._folders:
            self._folders[path] = self._real(os.path.realpath(path))
        return self._folders[path]

    def file(self, path: str) -> str:
        """Return the real path of a file, in the disk's spelling; where nothing is there, the path that it would have."""
        if os.path.islink(path):
            return self._real(os.path.realpath(path))
        folder, name = os.path.split(path)
        return self._listed(self.folder(folder), name)

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        return self._listed(self._real(folder), name) if name else path

    def _listed(self, folder: str, name: str) -> str:
        spelled = os.path.join(folder, name)
        among = self._among(folder).get(alike(name), [])
        if name in among:
            return spelled
        same = [one for one in among if _is_same(os.path.join(folder, one), spelled)]
        return os.path.join(folder, same[0]) if same else spelled

    def _among(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            for name in _list(folder):
                names.setdefault(alike(name), []).append(name)
            self._names[folder] = names
        return self._names[folder]


def other_form(path: str) -> str | None:
    """Return the name that a missing file has in its folder in another Unicode form, None where there is none or several."""
    folder, name = os.path.split(path)
    if name.isascii():
        return None
    form = unicodedata.normalize("NFC", name)
    found = [one for one in _list(folder or ".") if unicodedata.normalize("NFC", one) == form and one != name]
    return found[0] if len(found) == 1 else None


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []  # what cannot be listed is spelled as it was written


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
