"""A faster cold start: torch's compiler and its meta kernels load later, and no garbage is collected meanwhile."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER, META_KERNELS = "torch._dynamo", "torch._meta_registrations"


@contextmanager
def without_collecting() -> Iterator[None]:
    """Load modules within without looking for garbage: torch's and timm's make a million lasting objects, a third of their time went to it."""
    if not gc.isenabled() or "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what has been loaded stays: later collections need not walk through it
        # But for the last: of what it leaves alone nanobind says, on a dozen lines, that it leaked; triton's bindings are made with it.
        atexit.register(gc.unfreeze)
        gc.enable()


@contextmanager
def compiler_later() -> Iterator[None]:
    """Let torchvision and timm be imported within without torch's compiler, which comes with sympy and takes as long as torch itself.

    The two use it in two places while they load: torchvision takes ``is_compile_supported`` from it (for ``roi_align``), and timm marks
    three functions of NaFlexViT as not to be compiled. Both find a stand-in here that turns to the compiler when it is first called.
    Behind the block the stand-in is gone, so that whoever imports the compiler gets the compiler.
    """
    if COMPILER in sys.modules:
        yield
        return
    compiler = _stand_in(COMPILER, disable=_disable_later)
    utils = _stand_in(f"{COMPILER}.utils", is_compile_supported=_is_compile_supported)
    sys.modules |= {module.__name__: module for module in (compiler, utils)}
    try:
        yield
    finally:
        _withdraw()


@contextmanager
def meta_kernels_later() -> Iterator[None]:
    """Import torch inside the block without its kernels for the meta device, which compute shapes without values.

    Call ``load_meta_kernels`` before the meta device, torch's compiler or a plug-in is used.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules[META_KERNELS] = ModuleType(META_KERNELS)
    try:
        yield
    finally:
        del sys.modules[META_KERNELS]


def load_meta_kernels() -> None:
    """Load torch's kernels for the meta device if ``meta_kernels_later`` left them out. Torch's compiler needs them too."""
    if "torch" in sys.modules:
        importlib.import_module(META_KERNELS)


def _stand_in(name: str, **known: Callable[..., Any]) -> ModuleType:
    """Return a module of what is known; asked for anything else it makes room for the real one."""
    module = ModuleType(name)

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):  # the import itself asks for __path__
            raise AttributeError(attribute)
        _withdraw()
        load_meta_kernels()
        return getattr(importlib.import_module(name), attribute)

    module.__dict__.update(known, __getattr__=real, stands_in=True)
    return module


def _withdraw() -> None:
    for name in (COMPILER, f"{COMPILER}.utils"):
        if "stands_in" in vars(sys.modules.get(name, sys)):
            del sys.modules[name]


def _is_compile_supported(device_type: Any) -> Any:
    load_meta_kernels()
    return importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device_type)


def _disable_later(function: Callable[..., Any], recursive: bool = True, *, reason: str | None = None) -> Callable[..., Any]:
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not made:
            load_meta_kernels()
            made.append(importlib.import_module(COMPILER).disable(function, recursive, reason=reason))
        return made[0](*arguments, **named)

    return call
