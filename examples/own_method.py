"""A method of your own: a loss, a recipe and one line in the catalog; training, validation, resume and reports come with it.

python examples/own_method.py photos/ runs/triplet
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import sightline
from sightline import catalog
from sightline.contracts import Batch, LossTerms
from sightline.data.records import Records
from sightline.methods.base import Method, encoder_groups
from sightline.methods.irt import IRTRecipe, small
from sightline.nn.encoder import Encoder
from sightline.recipe import TrainSpec


class Triplet(Method):
    """Batch-hard triplets with a soft margin (Hermans et al. 2017, arXiv 1703.07737)."""

    def __init__(self, recipe: IRTRecipe, encoder: Encoder, records: Records) -> None:
        super().__init__()
        self.learner = encoder

    def loss(self, batch: Batch, step: int) -> LossTerms:
        """Return the loss of a batch of P classes of K images."""
        z = self.learner(batch.images).float()  # [B, D], unit length
        distance = torch.cdist(z, z)  # [B, B]
        same = batch.labels[:, None] == batch.labels[None, :]
        farthest = distance.masked_fill(~same, -1).amax(dim=1)
        closest = distance.masked_fill(same, 9).amin(dim=1)
        total = torch.nn.functional.softplus(farthest - closest).mean()
        return LossTerms(total, {"triplet": total.detach()})

    def parameter_groups(self, spec: TrainSpec) -> list[dict[str, Any]]:
        """Return the encoder's groups."""
        return encoder_groups(self.learner, spec)

    def encoder(self) -> Encoder:
        """Return the encoder that is evaluated and saved."""
        return self.learner


catalog.METHODS["triplet"] = f"{__name__}:Triplet"  # a package names it by the entry point sightline.methods


def main(photos: str, run: str, *settings: str) -> None:
    trained = sightline.train(small(), photos, run, settings=["name=triplet/small", *settings])
    print(f"{trained.progress.step} steps")
    print(sightline.evaluate(run, photos).to_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
