"""Semi-positives: references that cover a query without being its positive, and what becomes of them in the loss.

Shapes: P pairs of a dataset, B pairs of a batch, D embedding.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.losses import MAX_LOGIT_SCALE, SymmetricInfoNCE
from cvgl_models.recipe import SamplerRecipe


class SemiPositives:
    """The semi-positives of a dataset.

    Args:
        dataset: Tables only.
        device: Where batches will be.
    """

    def __init__(self, dataset: CrossViewDataset, device: torch.device | None = None) -> None:
        pairs = dataset.pairs.filter(
            pc.and_(dataset.pairs["covers"], pc.not_equal(dataset.pairs["relation"], "positive"))
        )
        self._num_references = max(1, dataset.references.num_rows)
        query_row = pairs["query_row"].to_numpy().astype(np.int64)
        keys = query_row * self._num_references + pairs["reference_row"].to_numpy()
        order = np.argsort(keys, kind="stable")
        iou = np.nan_to_num(pairs["iou"].to_numpy()[order].astype(np.float32))  # unknown: no share
        indptr = np.searchsorted(keys[order], np.arange(dataset.queries.num_rows + 1) * self._num_references)
        self._indptr: list[int] = indptr.tolist()
        self._rows: list[int] = (keys[order] % self._num_references).tolist()
        self._keys, self._iou = torch.from_numpy(keys[order]).to(device), torch.from_numpy(iou).to(device)

    def __len__(self) -> int:
        return len(self._rows)

    def of_query(self, query_row: int) -> list[int]:
        """Return the references that are semi-positives of a query, in row order."""
        return self._rows[self._indptr[query_row] : self._indptr[query_row + 1]]

    def weights(self, query_row_B: Tensor, reference_row_B: Tensor, weight: float = 0.0) -> Tensor:
        """Return (B, B) float32: how much of a positive reference j is for query i, 0 unless it is a semi-positive.

        Args:
            query_row_B: Rows of the queries, on the device of this table.
            reference_row_B: Rows of the references.
            weight: In [0, 1], for all of them; 0 takes the ``iou`` of each.
        """
        keys_BB = query_row_B[:, None] * self._num_references + reference_row_B[None]
        if not len(self):
            return torch.zeros(keys_BB.shape, device=keys_BB.device)
        at_BB = torch.searchsorted(self._keys, keys_BB).clamp_(max=len(self) - 1)
        value_BB = torch.full_like(keys_BB, weight, dtype=torch.float32) if weight else self._iou[at_BB]
        return torch.where(self._keys[at_BB] == keys_BB, value_BB, 0.0)

    def for_loss(self, query_row_B: Tensor, reference_row_B: Tensor, recipe: SamplerRecipe) -> Tensor | None:
        """Return ``Batch.ignore`` as the recipe's policy has it: None, bool (B, B), or float (B, B) for ``soft``."""
        if recipe.semi_positive_policy == "negative":
            return None
        if recipe.semi_positive_policy == "soft":
            return self.weights(query_row_B, reference_row_B, recipe.semi_positive_weight)
        return self.weights(query_row_B, reference_row_B, 1.0) > 0


def info_nce(loss: SymmetricInfoNCE, query_BD: Tensor, reference_BD: Tensor, semi_positive_BB: Tensor | None) -> Tensor:
    """Return a symmetric InfoNCE under any policy for semi-positives.

    Args:
        loss: Its temperature and label smoothing are used.
        query_BD: Embeddings of any length; they are normalized here.
        reference_BD: Embeddings.
        semi_positive_BB: What `SemiPositives.for_loss` returned. A float matrix makes the target of query i share its
            mass among the positive (1) and its semi-positives (their weights), and likewise that of a reference.
    """
    with torch.autocast(query_BD.device.type, enabled=False):  # similarities of half precision are too coarse
        if semi_positive_BB is None or semi_positive_BB.dtype == torch.bool:
            value: Tensor = loss(query_BD.float(), reference_BD.float(), semi_positive_BB)
            return value
        with torch.no_grad():  # as in the loss itself
            loss.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        query_BD = nn.functional.normalize(query_BD.float(), dim=1)
        reference_BD = nn.functional.normalize(reference_BD.float(), dim=1)
        logits_BB = loss.logit_scale.exp() * query_BD @ reference_BD.T
        mass_BB = semi_positive_BB.float() + torch.eye(len(logits_BB), device=logits_BB.device)  # its diagonal is 0
        one_way = _cross_entropy(logits_BB, mass_BB, loss.label_smoothing)
        return (one_way + _cross_entropy(logits_BB.T, mass_BB.T, loss.label_smoothing)) / 2


def _cross_entropy(logits_BB: Tensor, mass_BB: Tensor, label_smoothing: float) -> Tensor:
    target_BB = mass_BB / mass_BB.sum(1, keepdim=True)
    target_BB = (1 - label_smoothing) * target_BB + label_smoothing / len(logits_BB)
    return -(target_BB * logits_BB.log_softmax(1)).sum(1).mean()
