"""What a cold start loads, and that what is put off still comes."""

from __future__ import annotations

import gc
import subprocess
import sys

from sightline.imports import _disable_later, _is_compile_supported, without_collecting

COLD = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count(), "kept from the last collection"))  # of bindings left alone there nanobind says they leaked
from sightline.imports import load_meta_kernels, meta_kernels_later, without_collecting
with without_collecting(), meta_kernels_later():
    assert not gc.isenabled()
    import sightline.search.page
    import sightline.search.engine
    import sightline.nn.model_folder
    import sightline.workflows.embedding
assert gc.isenabled() and gc.get_freeze_count() > 100_000
late = {"torch._dynamo", "torch._inductor", "torch._refs", "torch._meta_registrations"}
print(*sorted((late | {"sympy", "matplotlib", "torch.utils.tensorboard", "onnxruntime"}) & set(sys.modules)))
load_meta_kernels()
import torch, torch._dynamo.utils, timm.layers.typing, torchvision.ops
assert "stands_in" not in vars(torch._dynamo) and "stands_in" not in vars(torch._dynamo.utils)
assert torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)) == 1
boxes = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)
print(boxes.shape, float(boxes.mean()))
token = torch.ones(1, 2, 3, 4, device="meta")
print(torch.nn.functional.scaled_dot_product_attention(token, token, token).shape)
"""


def test_a_search_loads_no_compiler_and_the_compiler_is_there_afterwards() -> None:
    """The compiler and sympy take as long to load as torch itself, and no search uses them."""
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "",
        "torch.Size([1, 1, 2, 2]) 1.0",
        "torch.Size([1, 2, 3, 4])",
        "0 kept from the last collection",
    ], done.stdout + done.stderr


def test_what_stands_in_for_the_compiler_answers_as_it_does() -> None:
    import torch._dynamo.utils

    assert _is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
    called: list[int] = []

    def double(x: int) -> int:
        """Twice."""
        called.append(int(torch.compiler.is_compiling()))
        return 2 * x

    later = _disable_later(double)
    assert (later(3), later(4), later.__doc__, called) == (6, 8, "Twice.", [0, 0])
    assert torch.compile(lambda x: x + later(3), backend="eager")(torch.zeros(1)) == 6
    assert called == [0, 0, 0]


def test_garbage_is_collected_once_torch_is_loaded() -> None:
    with without_collecting():
        assert gc.isenabled()


def test_meta_kernels_load_no_torch_where_there_is_none() -> None:
    code = "import sys; from sightline.imports import load_meta_kernels; load_meta_kernels(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
