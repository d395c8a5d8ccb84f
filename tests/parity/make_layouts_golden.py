"""Make golden/layouts.json with Hugging Face transformers' own ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP; not run in CI.

    python tests/parity/make_layouts_golden.py

Needs transformers beside torch. Tiny networks are saved as transformers saves them, filled by the names in the file (filling.py), read
back by transformers, and asked for the tokens of two images after their last norm, and of SigLIP for its pooled vector too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filling import fill, fingerprint
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "layouts.json"
PX, WIDTH = 32, 32
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": PX, "patch_size": 8}
WIDE = SIZES | {"intermediate_size": 4 * WIDTH}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "projection_dim": 16,
}
TEXT |= {"max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1}

t = transformers
CASES: dict[str, tuple[Any, Any]] = {
    "vit": (t.ViTModel, t.ViTConfig(**WIDE)),
    "vit_classifier": (t.ViTForImageClassification, t.ViTConfig(**WIDE)),
    "deit": (t.DeiTForImageClassificationWithTeacher, t.DeiTConfig(**WIDE)),
    "dinov2": (t.Dinov2Model, t.Dinov2Config(**SIZES)),
    "dinov2_classifier": (t.Dinov2ForImageClassification, t.Dinov2Config(**SIZES)),
    "dinov2_gated": (t.Dinov2Model, t.Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "dinov2_registers": (t.Dinov2WithRegistersModel, t.Dinov2WithRegistersConfig(**SIZES)),
    "dinov3": (t.DINOv3ViTModel, t.DINOv3ViTConfig(**WIDE, num_register_tokens=4, query_bias=False, value_bias=False)),
    "dinov3_qkvb": (t.DINOv3ViTModel, t.DINOv3ViTConfig(**WIDE, num_register_tokens=4)),
    "dinov3_gated": (t.DINOv3ViTModel, t.DINOv3ViTConfig(**WIDE, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu")),
    "clip_vision": (t.CLIPVisionModel, t.CLIPVisionConfig(**WIDE)),
    "clip": (t.CLIPModel, t.CLIPConfig(vision_config=WIDE, text_config=TEXT, projection_dim=16)),
    "clip_gelu": (t.CLIPVisionModel, t.CLIPVisionConfig(**WIDE, hidden_act="gelu")),
    "siglip_vision": (t.SiglipVisionModel, t.SiglipVisionConfig(**WIDE)),
    "siglip": (t.SiglipModel, t.SiglipConfig(vision_config=WIDE, text_config=TEXT)),
}


def answer(name: str, kind: Any, config: Any, folder: Path) -> dict[str, Any]:
    kind(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    shapes = {key: list(value.shape) for key, value in load_file(file).items()}
    save_file({key: torch.from_numpy(np.asarray(fill(key, shape))) for key, shape in shapes.items()}, file, metadata={"format": "pt"})
    filled = kind.from_pretrained(folder).eval()
    images = torch.from_numpy(fill("images", (2, 3, PX, PX)))
    tower = getattr(filled, "vision_model", filled)
    tower = next((getattr(tower, part) for part in ("vit", "deit", "dinov2") if hasattr(tower, part)), tower)
    with torch.inference_mode():
        said = tower(pixel_values=images)
        tokens = said.last_hidden_state
        if name.startswith("clip"):
            tokens = tower.post_layernorm(tokens)
    named = tuple((key, str(value)) for key, value in json.loads((folder / "config.json").read_text()).items() if key == "model_type")
    pooled = {"pooled": fingerprint(said.pooler_output)} if name.startswith("siglip") else {}
    return {"shapes": shapes, "tokens": fingerprint(tokens), **pooled, **dict(named)}


def main() -> None:
    torch.manual_seed(0)
    cases = {}
    for name, (kind, config) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = answer(name, kind, config, Path(folder))
    origin = f"github.com/huggingface/transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}"
    GOLDEN.write_text(json.dumps({"origin": origin, "image_px": PX, "cases": cases}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
