"""Confidence intervals."""

import numpy as np


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of values (n,): the middle of the means of 10,000 resamples."""
    means = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))
