"""Distributions that the heads return, and the categorical sampler.

Every distribution has properties `mode` and `mean`, and methods `sample()`, `log_prob(x)` and `entropy()`. The last
two return one number per event, in nats. All arithmetic is float32, whatever the dtype of the inputs.
"""

import copy
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|), which compresses large magnitudes (Hafner et al. 2023, "Symlog Predictions")."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def sample_onehot(probs: Tensor, uniform: Tensor) -> Tensor:
    """Draws one-hot vectors by inverting the cumulative distribution.

    Args:
        probs: (..., K) probabilities.
        uniform: (...) random numbers in [0, 1), one per categorical.
    Returns:
        (..., K) one-hot, without gradient.
    """
    cdf = probs.detach().cumsum(-1)
    index = torch.searchsorted(cdf, uniform.unsqueeze(-1).contiguous(), right=True)  # (..., 1)
    # The last entry of the CDF can round to less than `uniform`.
    return _one_hot(index.clamp_(max=probs.shape[-1] - 1), probs)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Class indices (..., 1) -> one-hot (..., K) with shape and dtype of `like`. Unlike `F.one_hot` it skips int64."""
    return torch.zeros_like(like, requires_grad=False).scatter_(-1, index, 1.0)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension. With few classes and many rows it avoids PyTorch's, which is slow there on a CPU."""
    if logits.device.type != "cpu" or logits.shape[-1] > 8 or logits.numel() < 2**14:
        return torch.softmax(logits, -1)
    exp = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return exp / exp.sum(-1, keepdim=True)


def _sum_events(x: Tensor, dims: int) -> Tensor:
    """Sums over the last `dims` dimensions."""
    return x.sum(tuple(range(-dims, 0)))


class OneHot:
    """One-hot categoricals with straight-through gradients.

    Args:
        logits: (..., K), or (..., S, K) with `event_dims=2`, where S independent categoricals form one event.
        unimix_ratio: weight of the uniform distribution that is mixed into the probabilities.
        event_dims: number of trailing dimensions that form one event.
    """

    def __init__(self, logits: Tensor, unimix_ratio: float = 0.0, event_dims: int = 1):
        self._logits = logits.float()
        self._unimix_ratio = unimix_ratio
        self.probs = _softmax(self._logits)
        if unimix_ratio > 0.0:
            self.probs = self.probs.lerp(self.probs.new_full((), 1.0 / logits.shape[-1]), unimix_ratio)
        self.event_dims = event_dims

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """(..., K), computed on first use: sampling does not need them.

        They have a graph if the probabilities have one, even if first used under `torch.no_grad`.
        """
        with torch.set_grad_enabled(self.probs.requires_grad):
            return torch.log(self.probs) if self._unimix_ratio > 0.0 else torch.log_softmax(self._logits, -1)

    def detach(self) -> "OneHot":
        """The same distribution without gradient."""
        constant = copy.copy(self)
        constant.probs, constant.log_probs = self.probs.detach(), self.log_probs.detach()
        return constant

    def _straight_through(self, onehot: Tensor, source: Tensor) -> Tensor:
        """The value of `onehot` with the gradient of `source`."""
        return onehot + (source - source.detach()) if source.requires_grad and torch.is_grad_enabled() else onehot

    def _most_likely(self) -> Tensor:
        return _one_hot(self.probs.argmax(-1, keepdim=True), self.probs)

    @property
    def mean(self) -> Tensor:
        """The probabilities, (..., K)."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """One-hot of the most likely class, (..., K).

        Its gradient is that of the log-probabilities, as in dreamerv3-torch.
        """
        return self._straight_through(self._most_likely(), self.log_probs)

    def sample(self, uniform: Tensor | None = None) -> Tensor:
        """Draws one-hot samples with straight-through gradients to the probabilities.

        Args:
            uniform: (...) random numbers in [0, 1); None draws new ones.
        Returns:
            (..., K).
        """
        if uniform is None:
            uniform = torch.rand(self.probs.shape[:-1], device=self.probs.device)
        return self._straight_through(sample_onehot(self.probs, uniform), self.probs)

    def greedy_sample(self) -> Tensor:
        """`sample` without randomness: one-hot of the most likely class, with the gradient of a sample."""
        return self._straight_through(self._most_likely(), self.probs)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of one-hot vectors, summed over the event: (..., K) -> (...)."""
        assert x.shape == self.log_probs.shape, (x.shape, self.log_probs.shape)
        return _sum_events(x * self.log_probs, self.event_dims)

    def entropy(self) -> Tensor:
        """Entropy, summed over the event, (...)."""
        return -_sum_events(self.probs * self.log_probs, self.event_dims)

    def kl(self, other: "OneHot") -> Tensor:
        """KL(self || other), summed over the event, (...)."""
        return _sum_events(self.probs * (self.log_probs - other.log_probs), self.event_dims)


def bounded(action: Tensor) -> Tensor:
    """Divides each number of an action by max(1, |number|), which bounds it to [-1, 1].

    The divisor is a constant for the gradient, so gradients do not vanish beyond the bounds.

    Args:
        action: (..., A).
    """
    return action / action.detach().abs().clamp(min=1.0)


class Normal:
    """Independent Gaussians.

    Args:
        mean: (...).
        std: standard deviation, like `mean` or a number.
        event_dims: number of trailing dimensions that form one event.
    """

    def __init__(self, mean: Tensor, std: Tensor | float, event_dims: int = 1):
        self.loc = mean.float()
        self.std = std.float() if torch.is_tensor(std) else torch.full_like(self.loc, std)
        self.event_dims = event_dims

    def detach(self) -> "Normal":
        """The same distribution without gradient."""
        return Normal(self.loc.detach(), self.std.detach(), self.event_dims)

    @property
    def mean(self) -> Tensor:
        """The mean, shaped like a sample."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The same as `mean`."""
        return self.loc

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Draws a reparametrised sample; `noise` replaces the standard normal numbers."""
        noise = torch.randn_like(self.loc) if noise is None else noise
        return self.loc + self.std * noise

    def greedy_sample(self) -> Tensor:
        """`sample` without randomness: the mode."""
        return self.loc

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of `x`, summed over the event."""
        assert x.shape == self.loc.shape, (x.shape, self.loc.shape)
        error = (x - self.loc) / self.std
        return _sum_events(-0.5 * error.square() - self.std.log() - 0.5 * math.log(2 * math.pi), self.event_dims)

    def entropy(self) -> Tensor:
        """Differential entropy, summed over the event."""
        return _sum_events(self.std.log() + 0.5 * math.log(2 * math.pi * math.e), self.event_dims)

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other), summed over the event."""
        ratio = (self.std / other.std).square()
        distance = ((self.loc - other.loc) / other.std).square()
        return _sum_events(0.5 * (ratio + distance - 1.0 - ratio.log()), self.event_dims)


class Joint:
    """Independent distributions as one. Its event is their flattened events, concatenated along the last dimension.

    Args:
        dists: the distributions; the event of each lies in its last `event_dims` dimensions.
    """

    event_dims = 1

    def __init__(self, dists: list):
        self.dists = dists
        self.shapes = [dist.mean.shape[-dist.event_dims :] for dist in dists]

    def _concat(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part.flatten(-len(shape)) for part, shape in zip(parts, self.shapes)], -1)

    @property
    def mean(self) -> Tensor:
        """The parts' means, concatenated."""
        return self._concat([dist.mean for dist in self.dists])

    @property
    def mode(self) -> Tensor:
        """The parts' modes, concatenated."""
        return self._concat([dist.mode for dist in self.dists])

    def sample(self) -> Tensor:
        """Samples of the parts, concatenated."""
        return self._concat([dist.sample() for dist in self.dists])

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of the parts' log-probabilities."""
        parts = x.split([shape.numel() for shape in self.shapes], -1)
        return sum(dist.log_prob(part.unflatten(-1, shape)) for dist, part, shape in zip(self.dists, parts, self.shapes))

    def entropy(self) -> Tensor:
        """Sum of the parts' entropies."""
        return sum(dist.entropy() for dist in self.dists)


class Bernoulli:
    """Independent binary values, 0 or 1.

    Args:
        logits: (..., n); the last dimension forms one event.
    """

    event_dims = 1

    def __init__(self, logits: Tensor):
        self.logits = logits.float()

    @property
    def mean(self) -> Tensor:
        """Probability of 1, (..., n)."""
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        """The more likely value, (..., n)."""
        return (self.logits > 0).float()

    def sample(self) -> Tensor:
        """Draws values, (..., n), without gradient."""
        return torch.bernoulli(self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of values in [0, 1], a cross entropy for targets in between: (..., n) -> (...)."""
        assert x.shape == self.logits.shape, (x.shape, self.logits.shape)
        return (x * F.logsigmoid(self.logits) + (1.0 - x) * F.logsigmoid(-self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy, summed over the event, (...)."""
        return -self.log_prob(self.mean)


def onehots(logits: Tensor, classes: tuple[int, ...], unimix_ratio: float = 0.0):
    """The distribution of concatenated one-hots.

    Args:
        logits: (..., sum of `classes`).
        classes: class count of each categorical.
        unimix_ratio: as in `OneHot`.
    """
    parts = [OneHot(part, unimix_ratio) for part in logits.split(classes, -1)]
    return parts[0] if len(parts) == 1 else Joint(parts)


class TwoHot:
    """A scalar as a categorical over 255 bins (Hafner et al. 2023, "Critic Learning").

    | `kind` | bins are evenly spaced in | targets are interpolated, predictions averaged in |
    |---|---|---|
    | "symlog_disc" (2023) | symlog space | symlog space |
    | "symexp_twohot" (2025) | symlog space | raw space |

    The average in symlog space is not the expectation of the scalar: it shrinks uncertain values. A scalar that is 2
    with probability 0.1 and otherwise 0 gets the mean 0.12 instead of 0.2.

    Args:
        logits: (..., 255). Events have shape (1,), so `mode` and `mean` are (..., 1).
        kind: see the table.
    Raises:
        ValueError: for an unknown `kind`.
    """

    event_dims = 1
    LIMIT = 20.0
    BINS = 255
    KINDS = ("symlog_disc", "symexp_twohot")

    def __init__(self, logits: Tensor, kind: str):
        assert logits.shape[-1] == self.BINS, logits.shape
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind {kind!r}; allowed are {', '.join(self.KINDS)}")
        self._logits = logits.float()
        self._squash = kind == "symlog_disc"

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """(..., 255), computed on first use: predictions do not need them.

        They have a graph if the logits have one, even if first used under `torch.no_grad`.
        """
        with torch.set_grad_enabled(self._logits.requires_grad):
            return torch.log_softmax(self._logits, -1)

    def _bins(self) -> Tensor:
        """Bin positions, (255,), exactly symmetric: in symlog space with "symlog_disc", else in raw space."""
        bins = torch.linspace(-self.LIMIT, self.LIMIT, self.BINS, device=self._logits.device)
        if self._squash:
            return bins
        positive = symexp(bins[self.BINS // 2 + 1 :])
        return torch.cat([-positive.flip(0), torch.zeros_like(positive[:1]), positive])

    @property
    def mean(self) -> Tensor:
        """The average over bins, (..., 1), see the table."""
        # Pairing opposite bins reduces rounding, and gives exactly 0 for symmetric probabilities.
        probs, half = torch.softmax(self._logits, -1), self.BINS // 2
        difference = probs[..., half + 1 :] - probs[..., :half].flip(-1)
        mean = (difference * self._bins()[half + 1 :]).sum(-1, keepdim=True)
        return symexp(mean) if self._squash else mean

    @property
    def mode(self) -> Tensor:
        """The same as `mean`."""
        return self.mean

    def sample(self) -> Tensor:
        """Draws the value of a bin, (..., 1), without gradient."""
        onehot = sample_onehot(self.log_probs.exp(), torch.rand(self.log_probs.shape[:-1], device=self.log_probs.device))
        value = (onehot * self._bins()).sum(-1, keepdim=True)
        return symexp(value) if self._squash else value

    def log_prob(self, x: Tensor) -> Tensor:
        """Negative cross entropy against the two-hot encoding of `x`: (..., 1) -> (...).

        Two-hot: linear weights on the two bins around `x`, larger for the closer one.
        """
        assert x.shape == (*self.log_probs.shape[:-1], 1), (x.shape, self.log_probs.shape)
        below, weight = self._position(x.float())
        above = (below + 1).clamp(max=self.BINS - 1)
        pair = self.log_probs.gather(-1, torch.cat([below, above], -1))  # (..., 2)
        return (pair * torch.cat([1.0 - weight, weight], -1)).sum(-1)

    def _position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the bin below `x` and weight of the bin above, each (..., 1)."""
        # The integer of NaN is undefined, hence the clamps; the NaN still shows in the weight.
        if self._squash:
            position = (symlog(x) + self.LIMIT) * ((self.BINS - 1) / (2 * self.LIMIT))
            position = position.clamp(0, self.BINS - 1)
            below = position.floor().long().clamp_(0, self.BINS - 1)
            return below, position - below
        bins = self._bins()
        below = (torch.searchsorted(bins, x.contiguous(), right=True) - 1).clamp_(0, self.BINS - 2)
        low, high = bins[below], bins[below + 1]
        return below, ((x - low) / (high - low)).clamp(0.0, 1.0)

    def entropy(self) -> Tensor:
        """Entropy of the categorical, (...)."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class MSE:
    """A point prediction with squared error: a Gaussian with variance 1/2, without its normaliser.

    Args:
        mode: predicted values, in symlog space if `squash`.
        event_dims: number of trailing dimensions that form one event.
        squash: whether errors are computed in symlog space.
    """

    def __init__(self, mode: Tensor, event_dims: int = 1, squash: bool = False):
        self.loc = mode.float()
        self.event_dims = event_dims
        self.squash = squash

    @property
    def mode(self) -> Tensor:
        """The predicted values."""
        return symexp(self.loc) if self.squash else self.loc

    @property
    def mean(self) -> Tensor:
        """The same as `mode`."""
        return self.mode

    def sample(self) -> Tensor:
        """Draws values from the Gaussian."""
        x = self.loc + math.sqrt(0.5) * torch.randn_like(self.loc)
        return symexp(x) if self.squash else x

    def log_prob(self, x: Tensor) -> Tensor:
        """Negative squared error, summed over the event."""
        assert x.shape == self.loc.shape, (x.shape, self.loc.shape)
        x = symlog(x.float()) if self.squash else x
        return -_sum_events((self.loc - x).square(), self.event_dims)

    def entropy(self) -> Tensor:
        """Entropy of the Gaussian in the space of the error, summed over the event; the same for every prediction."""
        size = self.loc.shape[-self.event_dims :].numel()
        return torch.full(self.loc.shape[: -self.event_dims], 0.5 * size * math.log(math.pi * math.e), device=self.loc.device)
