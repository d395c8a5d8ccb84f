"""Make golden/rerank.json: what other people's code answers when it re-ranks. Not part of the test run.

    python tests/parity/make_rerank_golden.py --zhong CHECKOUT --fast-reid CHECKOUT --torchreid CHECKOUT --transreid CHECKOUT \
        --superglobal CHECKOUT --diffusion CHECKOUT

Checkouts of zhunzhong07/person-re-ranking, JDAI-CV/fast-reid, KaiyangZhou/deep-person-reid, damo-cv/TransReID, ShihaoShao-GH/SuperGlobal
and fyang93/diffusion: run here, copied nowhere. scipy, joblib and tqdm are needed for the last.

What is recorded: k-reciprocal's final distances [Q, G], TransReID's with numpy.float16 standing for float32, because its own rounding
is 5e-3 and would hide a mistake; the vectors that fast-reid's `aqe` makes of all rows together; the order in which
SuperGlobal leaves the first M; and f of diffusion over the whole gallery, from the reference's Laplacian, solved by scipy to 1e-12
(the reference stops after 20 iterations, which would test the solver and not the graph).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "rerank.json"
SEED = 20170129
NUM_QUERIES, NUM_GALLERY, DIM, NUM_CLASSES = 8, 120, 12, 10
TOP, EXPANDED, GRAPH_K, GRAPH_KQ = 60, 6, 15, 5


def inputs(seed: int = SEED) -> tuple[Any, Any]:
    """Return unit vectors in ten loose classes: queries float32 [8, 12] and a gallery float32 [120, 12]."""
    generator = np.random.RandomState(seed)  # its stream is frozen for good, unlike default_rng's
    num = NUM_QUERIES + NUM_GALLERY
    vectors = generator.randn(NUM_CLASSES, DIM)[generator.randint(0, NUM_CLASSES, num)] + 0.8 * generator.randn(num, DIM)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:NUM_QUERIES], vectors[NUM_QUERIES:]


def squared(left: Any, right: Any) -> Any:
    """Return squared Euclidean distances in float64, exactly 0 between a vector and itself."""
    return ((left[:, None].astype(np.float64) - right[None]) ** 2).sum(axis=2)


def load(folder: Path, file: str) -> ModuleType:
    sys.path.insert(0, str((folder / file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, folder / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dense(module: ModuleType, power: int) -> Any:
    """Return the final distances of a ``re_ranking`` that takes distance matrices: un-squared (1) or, by torchreid's mistake, squared (2)."""
    queries, gallery = inputs()
    matrices = [squared(*pair) ** (power / 2) for pair in ((queries, gallery), (queries, queries), (gallery, gallery))]
    return module.re_ranking(*matrices)


def in_float32(module: ModuleType, queries: Any, gallery: Any) -> Any:
    """Return TransReID's distances as its evaluation asks for them, but with an encoding in float32."""
    half, np.float16 = np.float16, np.float32  # type: ignore[misc,assignment]
    try:
        return module.re_ranking(queries, gallery, k1=50, k2=15, lambda_value=0.3)
    finally:
        np.float16 = half  # type: ignore[misc]


def superglobal(folder: Path) -> Any:
    import torch

    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign,assignment]
    queries, gallery = (torch.from_numpy(vectors) for vectors in inputs())
    ranks = torch.argsort(-(gallery @ queries.T), dim=0)
    augmented = load(folder, "modules/reranking/MDescAug.py").MDescAug(M=TOP)(gallery, queries, ranks)
    final = load(folder, "modules/reranking/RerankwMDA.py").RerankwMDA(M=TOP)(ranks, *augmented)
    return final.T[:, :TOP].numpy()


def diffusion(folder: Path) -> Any:
    from scipy.sparse.linalg import cg

    queries, gallery = inputs()
    reference = load(folder, "diffusion.py").Diffusion(gallery, None)
    laplacian = reference.get_laplacian(*reference.knn.search(gallery, GRAPH_K))
    tied, rows = reference.knn.search(queries, GRAPH_KQ)
    y = np.zeros((len(queries), len(gallery)))
    np.put_along_axis(y, rows, np.maximum(tied, 0) ** 3, axis=1)
    return np.stack([cg(laplacian.astype(np.float64), given, rtol=1e-12, maxiter=10_000)[0] for given in y])


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = {
        "zhong": "zhunzhong07/person-re-ranking",
        "fast-reid": "JDAI-CV/fast-reid",
        "torchreid": "KaiyangZhou/deep-person-reid",
        "transreid": "damo-cv/TransReID",
        "superglobal": "ShihaoShao-GH/SuperGlobal",
        "diffusion": "fyang93/diffusion",
    }
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"a checkout of {names[name]}")
    folders = {name.replace("_", "-"): folder for name, folder in vars(parser.parse_args()).items()}
    queries, gallery = (torch.from_numpy(vectors) for vectors in inputs())
    with contextlib.redirect_stdout(io.StringIO()):
        transreid = load(folders["transreid"], "utils/reranking.py")
        aqe = load(folders["fast-reid"], "fastreid/evaluation/query_expansion.py").aqe
        answers = {
            "zhong": dense(load(folders["zhong"], "python-version/re_ranking_ranklist.py"), 1),
            "fast-reid": dense(load(folders["fast-reid"], "fastreid/evaluation/rerank.py"), 1),
            "torchreid": dense(load(folders["torchreid"], "torchreid/utils/rerank.py"), 2),
            "transreid": in_float32(transreid, queries, gallery),
            "aqe": np.concatenate([part.numpy() for part in aqe(queries, gallery, qe_k=EXPANDED)]),
            "superglobal": superglobal(folders["superglobal"]),
            "diffusion": diffusion(folders["diffusion"]),
        }
    commit = {
        names[name]: subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        for name, folder in folders.items()
    }
    origin = {
        "made_by": "tests/parity/make_rerank_golden.py",
        "commits": commit,
        "inputs": f"make_rerank_golden.inputs({SEED}), numpy.random.RandomState",
        "settings": {"superglobal": {"top": TOP}, "aqe": {"qe_k": EXPANDED}, "diffusion": {"k": GRAPH_K, "kq": GRAPH_KQ}},
    }
    plain = {
        name: np.round(found.astype(np.float64), 8).tolist() if found.dtype.kind == "f" else found.tolist()
        for name, found in answers.items()
    }
    GOLDEN.write_text(json.dumps({"origin": origin, "answers": plain}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
