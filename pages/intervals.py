"""Confidence intervals."""

import numpy as np

LEAST = 5  # values: of fewer the interval would be little else than their least and greatest


def bootstrap_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95% interval of the mean of values (n,): the middle of the means of 10,000 resamples; None if there are fewer than `LEAST`."""
    if len(values) < LEAST:
        return None
    means = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))
