"""How sure to be of a top-1: the probability that it covers the query, fitted on queries whose place is known.

Shapes: Q queries, R references, D embedding, K candidates.

Two numbers say how clear a result is: the score of the best reference, and its lead over the best one that shows
another place. A logistic function of both is fitted on the validation split (Platt's method, with his targets, which
keep it from ever being certain). It holds for galleries and pictures like those it was fitted on.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import CheckpointError
from cvgl_data.types import Progress
from cvgl_models.evaluation.embeddings import EXPORTED, Embeddings, embed
from cvgl_models.evaluation.truth import truth
from cvgl_models.metrics import Truth, outcomes
from cvgl_models.retrieval import Array, search
from cvgl_models.run_folder import EVAL, write_text
from cvgl_models.training import fingerprint

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

CALIBRATION = "calibration.json"
QUERIES_AT_LEAST = 20
"""With fewer, nothing is fitted."""
CANDIDATES = 20
"""How many of the best references are looked at to find another place."""
BINS = 10
_FOLDS = 5
_RARE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted confidence."""

    mean: tuple[float, float]
    """Of score and lead, before they are weighted."""
    std: tuple[float, float]
    coefficients: tuple[float, float]
    intercept: float
    num_queries: int
    num_references: int
    share_covered: float
    """Of the queries it was fitted on, those whose top-1 covered them."""
    expected_calibration_error: float
    """Cross-validated in five blocks of queries."""
    weights: str = ""
    """Fingerprint of the network's weights."""
    data: str = ""
    """Fingerprint of the validation split."""

    def confidence(self, score_Q: Floats, lead_Q: Floats) -> Floats:
        """Return the probability in (0, 1) that each top-1 covers its query; 0 where there is no score."""
        value_Q2 = (np.stack([score_Q, lead_Q], 1) - self.mean) / self.std
        is_known = np.isfinite(value_Q2[:, 0]) & np.isfinite(value_Q2[:, 1])
        logit_Q = np.where(is_known[:, None], value_Q2, 0.0) @ np.array(self.coefficients) + self.intercept
        return np.where(is_known, _sigmoid(logit_Q), 0.0)

    def save(self, folder: Path) -> None:
        """Write ``calibration.json``."""
        write_text(folder / CALIBRATION, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            pairs = {name: (float(values[name][0]), float(values[name][1])) for name in ("mean", "std", "coefficients")}
            return Calibration(**{**values, **pairs})
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise CheckpointError(f"'{path}' is damaged: {error}; delete it and evaluate again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How confidences compare with the truth, in bins of equally many queries."""

    expected_calibration_error: float
    """Mean distance of confidence and share of hits over the bins, weighted by queries; NaN without queries."""
    confidence: tuple[float, ...]
    """Mean of each bin, rising."""
    share: tuple[float, ...]
    """Of each bin's queries, those whose top-1 covers them."""
    num: tuple[int, ...]


def reliability(confidence_Q: Floats, is_hit_Q: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Compare confidences with what came true.

    Source:
        Expected calibration error of Naeini et al. (AAAI 2015), with bins of equal numbers.
    """
    order = np.argsort(confidence_Q, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    mean = [float(confidence_Q[part].mean()) for part in parts]
    share = [float(is_hit_Q[part].mean()) for part in parts]
    error = sum(len(part) * abs(a - b) for part, a, b in zip(parts, mean, share, strict=True))
    return Reliability(
        expected_calibration_error=error / len(order) if len(order) else math.nan,
        confidence=tuple(mean),
        share=tuple(share),
        num=tuple(len(part) for part in parts),
    )


def fit(score_Q: Floats, lead_Q: Floats, is_hit_Q: NDArray[np.bool_], num_references: int = 0) -> Calibration:
    """Fit the confidence and measure, cross-validated, how far it is off.

    Args:
        score_Q: Best scores; what is not finite is left out.
        lead_Q: Their lead over the best reference of another place.
        is_hit_Q: Whether the top-1 covers the query.
        num_references: Size of the gallery, for the record.

    Raises:
        ValueError: If fewer than `QUERIES_AT_LEAST` queries are usable.
    """
    is_known = np.isfinite(score_Q) & np.isfinite(lead_Q)
    value_Q2, is_hit_Q = np.stack([score_Q, lead_Q], 1)[is_known], np.asarray(is_hit_Q)[is_known]
    if len(value_Q2) < QUERIES_AT_LEAST:
        raise ValueError(f"{len(value_Q2)} queries are too few to calibrate with, at least {QUERIES_AT_LEAST}")
    held_out = np.empty(len(value_Q2))
    for fold in np.array_split(np.arange(len(value_Q2)), _FOLDS):  # blocks: neighbors are alike
        rest = np.setdiff1d(np.arange(len(value_Q2)), fold)
        held_out[fold] = _fitted(value_Q2[rest], is_hit_Q[rest]).confidence(*value_Q2[fold].T)
    error = reliability(held_out, is_hit_Q).expected_calibration_error
    return _fitted(value_Q2, is_hit_Q, num_references, error)


def clearness(query_QD: Array, reference_RD: Array, references: pa.Table) -> tuple[Floats, Floats]:
    """Return the best score of every query, and its lead over the best reference of another place.

    Another place is a window that does not overlap the best one; where all candidates do, the last of them counts.

    Args:
        query_QD: Embeddings.
        reference_RD: Embeddings of the gallery, on the same device.
        references: Its rows: ``x``, ``y``, ``size``, ``zoom``.

    Returns:
        Score and lead, (Q,); both -inf where no score is a number.
    """
    indices_QK, scores_QK = search(query_QD, reference_RD, CANDIDATES)
    return lead(indices_QK.cpu().numpy(), scores_QK.double().cpu().numpy(), references)


def lead(indices_QK: NDArray[np.int64], scores_QK: Floats, references: pa.Table) -> tuple[Floats, Floats]:
    """Return the same from the candidates of a search, best first."""
    if not indices_QK.size:
        return np.empty(0), np.empty(0)
    scale = 2.0 ** -references["zoom"].to_numpy().astype(np.float64)
    half = references["size"].to_numpy() * scale / 2
    center_R2 = np.stack([references[axis].to_numpy() * scale + half for axis in "xy"], 1)
    rows_QK = np.maximum(indices_QK, 0)
    apart_QK = np.abs(center_R2[rows_QK] - center_R2[rows_QK[:, :1]]).max(-1)
    is_other_QK = (apart_QK >= (half[rows_QK] + half[rows_QK[:, :1]]) * (1 - 1e-9)) & (indices_QK >= 0)
    last_Q = np.maximum((indices_QK >= 0).sum(1) - 1, 0)
    other_Q = np.where(is_other_QK.any(1), is_other_QK.argmax(1), last_Q)
    score_Q = np.where(indices_QK[:, 0] >= 0, scores_QK[:, 0], -np.inf)
    with np.errstate(invalid="ignore"):
        lead_Q = score_Q - scores_QK[np.arange(len(scores_QK)), other_Q]
    return score_Q, np.where(indices_QK[:, 0] >= 0, lead_Q, -np.inf)


def hits(found_rows: NDArray[np.int64], is_cover_hit: NDArray[np.bool_], num_queries: int) -> NDArray[np.bool_]:
    """Return for all queries whether the top-1 covers them; those that nothing covers are misses."""
    is_hit_Q = np.zeros(num_queries, bool)
    is_hit_Q[found_rows] = is_cover_hit
    return is_hit_Q


def calibrate(
    run: Path, data: CrossViewDataset, *, split: str = "validation", progress: Progress | None = None
) -> Calibration | None:
    """Return the confidence of a run, fitted on a split and kept in ``eval/calibration.json``.

    Args:
        run: Run folder; of an exported model the one that came with it is returned.
        data: An opened dataset.
        split: Split to fit on.
        progress: Told what is going on.

    Returns:
        None if the split has fewer than `QUERIES_AT_LEAST` queries.

    Raises:
        CheckpointError: If the run has no trained weights.
    """
    if (run / EXPORTED).is_file() and (run / CALIBRATION).is_file():
        return Calibration.load(run / CALIBRATION)
    part = data.select(split)
    if part.queries.num_rows < QUERIES_AT_LEAST or not part.references.num_rows:
        logger.warning("split '%s' has %d queries, too few to say how sure an answer is", split, part.queries.num_rows)
        return None
    embedded = embed(run, data, split, progress=progress)
    data_hash = str(fingerprint(embedded.dataset)["sha256"])
    kept = kept_calibration(run, embedded.weights)
    if kept is not None and kept.data == data_hash:
        return kept
    try:
        fitted = _of(embedded, truth(embedded.dataset), data_hash)
    except ValueError as error:
        logger.warning("split '%s': %s", split, error)
        return None
    num_rare = round(min(fitted.share_covered, 1 - fitted.share_covered) * fitted.num_queries)
    if num_rare < _RARE:
        found = round(fitted.share_covered * fitted.num_queries)
        logger.warning(
            "split '%s': %d of %d queries were found; confidences are little more than that share",
            split,
            found,
            fitted.num_queries,
        )
    fitted.save(run / EVAL)
    return fitted


def kept_calibration(run: Path, weights: str) -> Calibration | None:
    """Return the confidence that is kept with a run or an exported model, None if there is none of these weights."""
    for path in (run / CALIBRATION, run / EVAL / CALIBRATION):
        if path.is_file():
            try:
                kept = Calibration.load(path)
            except CheckpointError as error:
                logger.warning("%s", error)
                continue
            if kept.weights == weights:
                return kept
    return None


def _of(embedded: Embeddings, facts: Truth, data_hash: str) -> Calibration:
    query_QD, reference_RD = embedded.on_device()
    found = outcomes(query_QD, reference_RD, facts)
    is_hit_Q = hits(found.query_row, found.is_cover_hit, len(query_QD))
    fitted = fit(*clearness(query_QD, reference_RD, embedded.dataset.references), is_hit_Q, len(reference_RD))
    return Calibration(**{**asdict(fitted), "weights": embedded.weights, "data": data_hash})


def _fitted(
    value_Q2: Floats, is_hit_Q: NDArray[np.bool_], num_references: int = 0, error: float = math.nan
) -> Calibration:
    mean, std = value_Q2.mean(0), np.maximum(value_Q2.std(0), 1e-9)
    design_Q3 = np.concatenate([(value_Q2 - mean) / std, np.ones((len(value_Q2), 1))], 1)
    num_hits = int(is_hit_Q.sum())
    target_Q = np.where(is_hit_Q, (num_hits + 1) / (num_hits + 2), 1 / (len(is_hit_Q) - num_hits + 2))
    prior = np.array([1.0, 1.0, 1e-6])  # unit Gaussian on both coefficients: a separable split gives finite ones
    solution = np.zeros(3)
    for _ in range(100):
        guess_Q = _sigmoid(design_Q3 @ solution)
        gradient = design_Q3.T @ (guess_Q - target_Q) + prior * solution
        curvature = (design_Q3 * (guess_Q * (1 - guess_Q))[:, None]).T @ design_Q3 + np.diag(prior)
        step = np.linalg.solve(curvature, gradient)
        solution -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-10:
            break
    return Calibration(
        mean=(float(mean[0]), float(mean[1])),
        std=(float(std[0]), float(std[1])),
        coefficients=(float(solution[0]), float(solution[1])),
        intercept=float(solution[2]),
        num_queries=len(value_Q2),
        num_references=num_references,
        share_covered=num_hits / len(value_Q2),
        expected_calibration_error=error,
    )


def _sigmoid(logit: Floats) -> Floats:
    positive = np.exp(-np.abs(logit))
    result: Floats = np.where(logit >= 0, 1.0, positive) / (1.0 + positive)
    return result
