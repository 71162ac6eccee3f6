"""Sample4Geo (ICCV 2023): one encoder for both views and a symmetric InfoNCE; its strength lies in what shares a batch.

Differences from the published code: the logit scale is bounded and not decayed, and semi-positives may be left out of
the loss.
"""

from __future__ import annotations

from torch import Tensor

from cvgl_models.embedding import DualEncoder
from cvgl_models.losses import SymmetricInfoNCE
from cvgl_models.recipe import ModelRecipe
from cvgl_models.semi_positives import info_nce
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule
from cvgl_models.transforms import Batch


class Sample4Geo(RetrievalModule):
    """The system as a module.

    Args:
        recipe: ``encoder``, ``views`` and ``optim.label_smoothing`` are read.
    """

    unread = (*RetrievalModule.unread, "views.bev_px")
    has_options = False

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.encoder = DualEncoder(recipe.encoder, recipe.views)
        self.loss = SymmetricInfoNCE(recipe.optim.label_smoothing)

    def loss_terms(self, embedded: Embedded, batch: Batch) -> LossTerms:
        """Return the one term ``info_nce``."""
        return {"info_nce": info_nce(self.loss, embedded["query"], embedded["reference"], batch.ignore)}

    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""
        embedded: Tensor = self.encoder.query(batch.query)
        return embedded

    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""
        embedded: Tensor = self.encoder.reference(batch.reference)
        return embedded
