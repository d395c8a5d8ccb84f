"""Two processes train exactly as one does, whatever the objective, mined tuples too: same global batch, same memory, same weights; and a taken port is one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.training import checkpoint

SETTINGS = [
    "backbone_args=patch_size=4,depth=2,embed_dim=16,num_heads=2", "image_px=16", "steps=6", "log_every=1", "workers=0", "clip_norm=1",
    "warmup_steps=0", "weights=random", "precision=fp32", "validation=0.25",
]  # fmt: skip

# KoLeo, for without it the gradient of a key's bias is nothing but rounding, which Adam makes a step of.
IRT_ALONE = "irt/small memory_start=2 momentum=0.9 lr=0.01 koleo_weight=0.3"
IRT = f"{IRT_ALONE} classes_per_batch=2 images_per_class=2"
OBJECTIVES = {name: f"{IRT} objective={name}" for name in ("contrastive", "normalised_softmax", "snca")}
OBJECTIVES["tuples"] = f"{IRT_ALONE} sampling=tuples tuples_per_batch=2 negatives=2 query_size=6 pool_size=99"  # two epochs of three steps
# Mixed and cut, but what a layer drops is each process's own. SGD, for a bias's gradient is exactly zero where a batch has every class once, and
# Adam makes a step of what rounding leaves of it.
OBJECTIVES["classify"] = "classify/small images_per_batch=4 drop_path=0 optimizer=sgd lr=0.5"
CROPS = "crop_px=16,8 num_crops=2,2 num_prototypes=8 num_patch_prototypes=8 head_hidden=16 head_bottleneck=8 freeze_last_steps=2"
OBJECTIVES["selfpatch"] = f"selfpatch/small images_per_batch=4 drop_path=0 optimizer=sgd lr=0.02 head_batch_norm=true {CROPS}"
# Queries and keys of every patch, batch norms over both processes, queues that go round. SGD, for the biases before a batch norm have no gradient.
OBJECTIVES["moby"] = (
    "moby/selfpatch-small images_per_batch=8 drop_path=0 optimizer=sgd lr=0.005 crop_px=16 projector_hidden=32 projector_out=16 queue_length=10 "
    "patch_negatives=true patch_queue_length=20 patch_keys=8"
)
# Norms of the head and the side head over both processes' crops.
OBJECTIVES["segment"] = (
    "segment/small images_per_batch=4 image_px=32 resize_px=32 optimizer=sgd lr=0.05 head=upernet head_norm=batch aux_weight=0.4 dropout=0 "
    "pyramid_channels=8 head_channels=8 --data {masks}"
)
# One interpreter trains with each objective in turn: starting it costs more than the training.
TRAIN_EACH = """
import json, os, sys
from sightline.cli.main import main
out, ports, objectives, *arguments = sys.argv[1:]
for port, (name, settings) in zip(ports.split(), json.loads(objectives).items(), strict=True):
    os.environ["MASTER_PORT"] = port
    recipe, *own = settings.split()
    code = main(["train", recipe, *arguments, "--out", f"{out}/{name}", *own])
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label in range(5):
        (root / f"class{label}").mkdir()
        for number in range(4):
            Image.fromarray(random.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(root / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for number in range(6):
        mask = random.integers(0, 2, (4, 5)).repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)
        Image.fromarray((100 * mask[..., None] + random.integers(0, 99, (40, 50, 3))).astype(np.uint8)).save(
            root / "images" / "train" / f"{number}.png"
        )
        Image.fromarray(mask).save(root / "masks" / "train" / f"{number}.png")
    (root / "classes.txt").write_text("dark\nlight\n")
    return root


def free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def start(photos: Path, out: Path, rank: int, world: int, ports: list[int], objectives: dict[str, str]) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
    }
    told = [str(out), " ".join(map(str, ports)), json.dumps(objectives)]
    command = [sys.executable, "-c", TRAIN_EACH, *told, *SETTINGS, "--data", str(photos), "--device", "cpu"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "Warning" not in errors


@pytest.fixture(scope="module")
def runs(photos: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    ports, objectives = free_ports(len(OBJECTIVES)), {name: settings.format(masks=masks) for name, settings in OBJECTIVES.items()}
    finish([start(photos, out / "one", 0, 1, ports, objectives)])
    finish([start(photos, out / "two", rank, 2, ports, objectives) for rank in range(2)])
    return out


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_equal_one(objective: str, runs: Path) -> None:
    def losses(run: Path) -> list[float]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    assert len(losses(runs / "one" / objective)) == 6
    np.testing.assert_allclose(losses(runs / "two" / objective), losses(runs / "one" / objective), rtol=1e-5)
    one, two = checkpoint.load(runs / "one" / objective), checkpoint.load(runs / "two" / objective)
    assert one is not None
    assert two is not None
    if "memory_labels" in one["method"]:
        assert torch.equal(one["method"]["memory_labels"], two["method"]["memory_labels"])
    for name, value in one["epochs"].items():
        assert torch.equal(value, two["epochs"][name]), name
    for name, value in one["method"].items():
        torch.testing.assert_close(two["method"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_port_in_use_is_one_line(photos: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(photos, tmp_path, 0, 2, [taken.getsockname()[1]], {"contrastive": OBJECTIVES["contrastive"]})
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert [line for line in errors.splitlines() if line.startswith("error:")] == [
        "error: the port for the run's processes is in use: choose another with torchrun --master-port=29501"
    ]
