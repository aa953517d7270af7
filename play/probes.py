"""Linear probes: how well variables can be read off features by a linear map.

Shapes: N steps, F features, V variables, P penalties.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pages.intervals import LEAST

PENALTIES = 10.0 ** np.arange(-4, 5)  # of squared weights, a step, for features with a variance of 1 on average; to choose from
RESAMPLES = 10_000


class Shares(NamedTuple):
    """Shares of the variables' variance that were predicted (R²), (V,), with 95% intervals over groups.

    NaN are those of constant variables, and the intervals over fewer than `intervals.LEAST` groups.
    """

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def cross_validated(blocks: Sequence[np.ndarray], targets: np.ndarray, groups: np.ndarray, folds: int = 4) -> Shares:
    """Predicts every step by ridge regression that has not seen its group, and compares the errors with those of the mean.

    Of the other groups some choose the penalty of each variable; then all of them are fitted. The share is 1 - (sum of squared
    errors) / (sum of squared differences from the fitted steps' mean) over all steps: 1 is perfect, 0 as good as a constant, and
    less is worse than that. The interval is that of resampled groups.

    Args:
        blocks: features, each (N, F); a block is scaled as a whole, so that the scale of none decides how much it is shrunk.
        targets: variables to be predicted, (N, V).
        groups: of which group each step is, (N,), integers from 0; at least as many as folds.
    """
    targets = targets.astype(np.float64)
    spread = targets.std(0)
    varies = spread > 1e-6 * np.abs(targets).max(0)
    targets = (targets - targets.mean(0)) / np.where(varies, spread, 1.0)
    fold_of = groups % folds
    errors, totals = np.empty_like(targets), np.empty_like(targets)
    for fold in range(folds):
        judge, choose = fold_of == fold, fold_of == (fold + 1) % folds
        penalties = best_penalties(blocks, targets, ~judge & ~choose, choose)
        errors[judge] = (predict(blocks, targets, ~judge, judge, penalties) - targets[judge]) ** 2
        totals[judge] = (targets[~judge].mean(0) - targets[judge]) ** 2
    errors, totals = (np.stack([values[groups == group].sum(0) for group in range(groups.max() + 1)]) for values in (errors, totals))
    drawn = np.random.default_rng(0).multinomial(len(errors), np.full(len(errors), 1 / len(errors)), RESAMPLES)  # how often each group
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = 1.0 - (drawn @ errors) / (drawn @ totals)
        share = 1.0 - errors.sum(0) / totals.sum(0)
    interval = np.nanquantile(np.where(varies, resampled, 0.0), (0.025, 0.975), axis=0)
    found = np.stack([share, *(interval if len(errors) >= LEAST else np.full_like(interval, np.nan))])
    return Shares(*np.where(varies, found, np.nan))


def best_penalties(blocks: Sequence[np.ndarray], targets: np.ndarray, fit: np.ndarray, choose: np.ndarray) -> np.ndarray:
    """The penalty of each variable, (V,), with which weights of some steps, a mask (N,), predict others best."""
    x, ahead = scaled(blocks, fit, choose)
    mean = targets[fit].mean(0)
    weights = ridge(x, targets[fit] - mean, np.repeat(PENALTIES[:, None], targets.shape[1], 1))
    errors = ((ahead @ weights + mean - targets[choose]) ** 2).mean(1)  # (P, V)
    return PENALTIES[errors.argmin(0)]


def predict(blocks: Sequence[np.ndarray], targets: np.ndarray, fit: np.ndarray, judge: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """What weights of some steps predict for others."""
    x, ahead = scaled(blocks, fit, judge)
    mean = targets[fit].mean(0)
    return ahead @ ridge(x, targets[fit] - mean, penalties[None])[0] + mean


def scaled(blocks: Sequence[np.ndarray], fit: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of some steps and of others, with zero mean and, on average over a block, a variance of 1 in the first."""
    parts = []
    for block in blocks:
        first, second = block[fit].astype(np.float64), block[other].astype(np.float64)
        centre, scale = first.mean(0), np.sqrt(first.var(0).mean())
        parts.append([(part - centre) / (scale if scale > 0.0 else 1.0) for part in (first, second)])
    return tuple(np.concatenate(part, 1) for part in zip(*parts))


def ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Weights (P, F, V) that minimise the mean squared error of y (N, V) from x (N, F), and penalties (P, V) times squared weights."""
    penalties = penalties[:, None] * len(x)
    if x.shape[1] <= len(x):
        values, basis = np.linalg.eigh(x.T @ x)
        return basis @ (basis.T @ (x.T @ y) / (values.clip(0.0)[:, None] + penalties))
    values, basis = np.linalg.eigh(x @ x.T)  # the same weights from the smaller matrix
    return x.T @ (basis @ (basis.T @ y / (values.clip(0.0)[:, None] + penalties)))
