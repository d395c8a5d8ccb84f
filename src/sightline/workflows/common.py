"""What the workflows share: reading data by name, and telling of files that could not be read."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from sightline import runtime
from sightline.data.images import BAD_FILES_NAME, BadFiles
from sightline.errors import explain_os_error


def write_bad_files(bad_files: BadFiles, folder: Path, *, goes_on: bool = False) -> None:
    """Write ``bad_files.jsonl`` into ``folder`` if there is anything to tell, else take away the one of before: it is not true any more.

    What ``goes_on`` where it was may meet none of the files that it met before, so that list stays.
    """
    try:
        if len(bad_files):
            folder.mkdir(parents=True, exist_ok=True)
            bad_files.write(folder / BAD_FILES_NAME)
        elif not goes_on:
            (folder / BAD_FILES_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"writing '{folder / BAD_FILES_NAME}'") from error


def doctor() -> dict[str, str]:
    """Return what this machine offers to a run, by name."""
    import torch

    where = runtime.device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    dtype = runtime.autocast_dtype("auto", where)
    packages = ("sightline", "torch", "torchvision", "timm", "numpy", "pillow", "faiss-cpu", "onnxruntime", "scikit-image")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{where} ({name})",
        "precision auto": str(dtype or torch.float32).removeprefix("torch."),
        "cores": str(runtime.num_cpus()),
        "cache": str(runtime.cache_folder()),
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
