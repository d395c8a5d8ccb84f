from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import SightlineError, UsageError
from sightline.nn import export
from sightline.nn.encoder import Encoder
from sightline.nn.export import export_onnx
from sightline.nn.reduction import Reduction
from sightline.recipe import ImageSpec, ModelSpec

TINY = ModelSpec(
    backbone="vit_tiny_patch16_224", weights="random", backbone_args=(("depth", 2), ("embed_dim", 32), ("num_heads", 2), ("patch_size", 8))
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(replace(TINY, scales=(1.0, 0.5), whiten="pca"), ImageSpec(image_px=32, mean=(0.4, 0.5, 0.6)))
    made.reduction = Reduction(32, 8, "pca")
    made.reduction.components.copy_(torch.linalg.qr(torch.randn(32, 8))[0].T)
    return made.eval()


def test_export_agrees_with_the_original_at_any_batch_size(encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "new" / "model.onnx"
    encoder.train()
    done = export_onnx(encoder, path, images=torch.randn(9, 3, 32, 32))
    assert encoder.training, "the encoder is left as it was"
    encoder.eval()

    assert capsys.readouterr().out == "", "standard output belongs to --json"
    assert json.loads(json.dumps(done)) == done
    assert done["min_cosine"] > 1 - 1e-6
    assert done["images"] == 9
    assert done["bytes"] == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"], "one file, nothing left beside it"

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num in (1, 5):
        images = torch.randn(num, 3, 32, 32)
        (found,) = session.run(["descriptors"], {"images": images.numpy()})
        np.testing.assert_allclose(found, encoder.embed_batch(images, precision="fp32"), atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["image_px"] == "32"
    assert json.loads(facts["mean"]) == [0.4, 0.5, 0.6]
    assert len(facts["fingerprint"]) == 16


@pytest.mark.parametrize("resize", ["short", "square"])
def test_the_lines_of_the_documentation_feed_the_file_rightly(resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    encoder = Encoder(TINY, ImageSpec(image_px=64, resize=resize, mean=(0.4, 0.5, 0.6))).eval()  # type: ignore[arg-type]
    export_onnx(encoder, tmp_path / "mine.onnx", images=torch.randn(2, 3, 64, 64))
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```py\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate(((211, 140), (97, 260), (90, 90))):
        small = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save("a.jpg", quality=95, exif=exif)
        names: dict[str, Any] = {}
        exec(compile(lines, "docs/training.md", "exec"), names)
        assert float(names["vector"] @ encoder.embed("a.jpg", precision="fp32")[0]) > 0.999


def test_a_missing_extra_is_one_line_that_says_what_to_install(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'sightline\[onnx\]'"):
        export_onnx(encoder, tmp_path / "model.onnx", images=torch.randn(1, 3, 32, 32))


def test_a_place_that_cannot_be_written_is_one_line(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "file").touch()
    with pytest.raises(SightlineError, match=r"writing '.*model\.onnx'") as caught:
        export_onnx(encoder, tmp_path / "file" / "model.onnx", images=torch.randn(1, 3, 32, 32))
    assert "\n" not in str(caught.value)


def test_an_export_that_disagrees_is_not_kept(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    path.write_text("older")
    monkeypatch.setattr(export, "_traced", lambda encoder: first_pixels())
    with pytest.raises(SightlineError, match="other descriptors"):
        export_onnx(encoder, path, images=torch.randn(4, 3, 32, 32))
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_convolutional_backbone_takes_any_batch() -> None:
    encoder = Encoder(ModelSpec(backbone="resnet10t", weights="random", pooling="mean"), ImageSpec(image_px=32)).eval()
    traced = torch.export.export(encoder, (torch.zeros(2, 3, 32, 32),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    assert traced.module()(torch.randn(5, 3, 32, 32)).shape == (5, 512)


def test_a_fixed_batch_is_refused(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "_traced", lambda encoder: first_pixels(4))
    with pytest.raises(SightlineError, match="any size"):
        export_onnx(encoder, tmp_path / "model.onnx", images=torch.randn(4, 3, 32, 32))
    assert not list(tmp_path.iterdir())


def first_pixels(batch: int | str = "batch") -> object:
    """Return a model that answers every image with its first row of pixels."""
    from onnx import TensorProto, helper

    values = {"s": [0, 0, 0], "e": [1, 1, 8], "a": [1, 2, 3], "n": [0, 8]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(value)], value) for name, value in values.items()]
    nodes = [helper.make_node("Slice", ["images", "s", "e", "a"], ["row"]), helper.make_node("Reshape", ["row", "n"], ["descriptors"])]
    taken = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 32, 32])
    given = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, [batch, 8])
    graph = helper.make_graph(nodes, "row", [taken], [given], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
