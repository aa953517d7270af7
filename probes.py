"""Linear probes: how well variables can be read off features by a linear map."""

import numpy as np

PENALTIES = 10.0 ** np.arange(-2, 7)  # of the squared weights, to choose from
FIT, CHOOSE, JUDGE = range(3)  # what a step is for


def r_squared(features: np.ndarray, targets: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share of each variable's variance that ridge regression predicts on steps that it has not seen.

    Args:
        features: (N, F).
        targets: variables to be predicted, (N, V).
        parts: what each step is for, (N,): FIT for the weights, CHOOSE for the penalty of each variable, JUDGE for the result.
    Returns:
        (V,): 1 is perfect, 0 as good as the mean, and less is worse than it; NaN for a variable that is constant in a part.
    """
    scale = targets.std(0).astype(np.float64)
    targets = (targets - targets.mean(0)) / np.where(scale > 0.0, scale, 1.0)
    fit, choose, judge = ((features[parts == part].astype(np.float64), targets[parts == part]) for part in (FIT, CHOOSE, JUDGE))
    variances = np.stack([y.var(0) for _, y in (fit, choose, judge)])  # (3, V)
    centre, means = fit[0].mean(0), fit[1].mean(0)
    values, basis = np.linalg.eigh((fit[0] - centre).T @ (fit[0] - centre))
    products = basis.T @ ((fit[0] - centre).T @ (fit[1] - means))  # (F, V)
    weights = np.stack([basis @ (products / (values.clip(0.0)[:, None] + penalty)) for penalty in PENALTIES])  # (P, F, V)

    def errors(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (((x - centre) @ weights + means - y) ** 2).mean(-2)

    best = errors(weights, *choose).argmin(0)  # (V,)
    error = errors(weights[best, :, np.arange(len(best))].T, *judge)
    varies = (variances > 1e-6).all(0)
    return np.where(varies, 1.0 - error / np.where(varies, variances[JUDGE], 1.0), np.nan)


def cross_validated(features: np.ndarray, targets: np.ndarray, folds: int = 4) -> np.ndarray:
    """`r_squared` on every environment's steps once, with weights and penalty from the other environments; the mean over folds.

    Args:
        features, targets: (environments, T, F) and (environments, T, V).
    Returns:
        (V,); NaN for a variable that is constant in a part of every fold.
    """
    count, steps = targets.shape[:2]
    scores = []
    for fold in range(folds):
        group = (np.arange(count) - fold) % folds
        parts = np.where(group == 0, JUDGE, np.where(group == 1, CHOOSE, FIT)).repeat(steps)
        scores.append(r_squared(features.reshape(count * steps, -1), targets.reshape(count * steps, -1), parts))
    scores = np.stack(scores)  # (folds, V)
    found = np.isfinite(scores)
    return np.where(found.any(0), np.where(found, scores, 0.0).sum(0) / found.sum(0).clip(1), np.nan)
