"""Linear probes: how well variables can be read off features by a linear map."""

import numpy as np

PENALTIES = 10.0 ** np.arange(-2, 7)  # of the squared weights, to choose from


def r_squared(features: np.ndarray, targets: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share of each variable's variance that ridge regression predicts on steps that it has not seen.

    The penalty is chosen for each variable by the steps of part 1, with weights from those of part 0.

    Args:
        features: (N, F).
        targets: variables to be predicted, (N, V).
        parts: what each step is for, (N,): 0 to fit, 1 to choose the penalty, 2 to measure.
    Returns:
        (V,): 1 is perfect, 0 as good as the mean, and less is worse than it; NaN for a variable that is constant in a part.
    """
    fit, choose, judge = ((features[parts == part].astype(np.float64), targets[parts == part].astype(np.float64)) for part in range(3))
    centre, means = fit[0].mean(0), fit[1].mean(0)
    values, basis = np.linalg.eigh((fit[0] - centre).T @ (fit[0] - centre))
    products = basis.T @ ((fit[0] - centre).T @ (fit[1] - means))  # (F, V)
    weights = np.stack([basis @ (products / (values.clip(0.0)[:, None] + penalty)) for penalty in PENALTIES])  # (P, F, V)

    def score(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        error = ((x - centre) @ weights + means - y) ** 2
        variance = y.var(0)
        return np.where(variance > 1e-8, 1.0 - error.mean(-2) / variance.clip(1e-8), np.nan)

    best = np.nan_to_num(score(weights, *choose)).argmax(0)  # (V,)
    return score(weights[best, :, np.arange(len(best))].T, *judge)
