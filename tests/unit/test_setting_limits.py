"""The limits of the methods' and the re-rankers' own settings: the last value that is taken, and the first beyond it, each by itself."""

from __future__ import annotations

import pytest

from sightline import catalog
from sightline.errors import RecipeError, UsageError
from sightline.search.rerank import parse
from sightline.settings import override

TAKEN = {
    "irt/sop": [
        "margin=-1", "margin=1", "koleo_weight=0", "memory=0", "memory_start=0", "momentum=0", "memory_momentum=0", "temperature=1e-9",
        "proxy_lr=1e-9",
    ],
    "irt/sfm120k-224": ["margin=0", "margin=2"],
    "selfpatch/small": [
        "student_temp=1e-9", "teacher_temp=1e-9", "teacher_temp_start=1e-9", "center_momentum=0", "center_momentum=1", "teacher_momentum=0",
        "teacher_momentum=1", "patch_weight=0", "num_neighbours=1", "num_prototypes=1", "num_patch_prototypes=1", "head_hidden=1",
        "head_bottleneck=1", "freeze_last_steps=0", "teacher_temp_steps=0", "watch_from=0", "window=3", "images_per_batch=2", "num_crops=1,1",
    ],
    "moby/selfpatch-small": [
        "temperature=1e-9", "patch_temperature=1e-9", "key_momentum=0", "key_momentum=1", "patch_weight=0", "projector_hidden=1",
        "projector_out=1", "queue_length=1", "patch_queue_length=1", "patch_keys=1", "num_neighbours=1", "watch_from=0", "window=3",
        "images_per_batch=2",
    ],
}  # fmt: skip
REFUSED = {
    "irt/sop": [
        "margin=-1.01", "margin=1.01", "koleo_weight=-0.01", "memory=-0.01", "memory_start=-1", "momentum=-0.01", "momentum=1",
        "memory_momentum=-0.01", "memory_momentum=1", "temperature=0", "proxy_lr=0",
    ],
    "irt/sfm120k-224": ["margin=-0.01", "margin=2.01", "memory=1"],
    "selfpatch/small": [
        "student_temp=0", "teacher_temp=0", "teacher_temp_start=0", "center_momentum=-0.01", "center_momentum=1.01",
        "teacher_momentum=-0.01", "teacher_momentum=1.01", "patch_weight=-0.01", "num_neighbours=0", "num_prototypes=0",
        "num_patch_prototypes=0", "head_hidden=0", "head_bottleneck=0", "freeze_last_steps=-1", "teacher_temp_steps=-1", "watch_from=-1",
        "window=1", "window=4", "images_per_batch=1", "flip=0.1", "layer_decay=0.9",
    ],
    "moby/selfpatch-small": [
        "temperature=0", "patch_temperature=0", "key_momentum=-0.01", "key_momentum=1.01", "patch_weight=-0.01", "projector_hidden=0",
        "projector_out=0", "queue_length=0", "patch_queue_length=0", "patch_keys=0", "num_neighbours=0", "watch_from=-1", "window=1",
        "window=4", "images_per_batch=1", "num_crops=3", "pooling=mean", "flip=0.1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_the_last_value_is_taken_and_the_first_beyond_it_refused(name: str) -> None:
    recipe = catalog.find("recipes", name)()
    for setting in TAKEN[name]:
        assert override(recipe, [setting]) is not None, setting
    for setting in REFUSED[name]:
        with pytest.raises(RecipeError):
            raise AssertionError(f"{setting} was taken: {override(recipe, [setting]).name}")


RERANKERS_TAKE = {
    "query-expansion": ["num=0", "alpha=0"],
    "database-augmentation": ["num=0", "alpha=0"],
    "diffusion": ["k=1", "kq=1", "alpha=0", "gamma=0", "truncate=0", "iterations=1", "tolerance=1e-9"],
    "superglobal": ["top=0", "num=0", "beta=0"],
}
RERANKERS_REFUSE = {
    "query-expansion": ["num=-1", "alpha=-0.01"],
    "database-augmentation": ["num=-1", "alpha=-0.01"],
    "diffusion": ["k=0", "kq=0", "alpha=-0.01", "alpha=1", "gamma=-0.01", "truncate=-1", "iterations=0", "tolerance=0"],
    "superglobal": ["top=-1", "num=-1", "beta=-0.01"],
}


@pytest.mark.parametrize("name", RERANKERS_TAKE)
def test_the_limits_of_a_reranker(name: str) -> None:
    for setting in RERANKERS_TAKE[name]:
        assert parse(f"{name},{setting}") is not None, setting
    for setting in RERANKERS_REFUSE[name]:
        with pytest.raises(UsageError):
            raise AssertionError(f"{setting} was taken: {parse(f'{name},{setting}')}")
