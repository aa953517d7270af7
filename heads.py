"""Heads: multi-layer perceptrons that end in a distribution, and the policy.

Shapes: F feature, A action. Parameter names and shapes are those of dreamerv3-torch, so that checkpoints carry over.
"""

import math

import torch
from torch import Tensor, nn

import distributions as dists
import lookup
from layers import NORM_EPS, LayerNorm, activation, after_first, init_hidden, init_output


class MLP(nn.Module):
    """Hidden blocks followed by an output distribution.

    Args:
        inp_dim: size of the input.
        shape: shape of the event, () for scalars (which come as (..., 1)); a dict of shapes for several outputs; None for none:
            the hidden features themselves are returned.
        name: prefix of the layers' names.
        dist: symlog_disc, symlog_mse, mse, binary or normal.
        outscale: scale of the output layer's initial weights.
        symlog_inputs: squash inputs with symlog.
    """

    DISTS = ("symlog_disc", "symlog_mse", "mse", "binary", "normal")

    def __init__(
        self,
        inp_dim: int,
        shape,
        layers: int,
        units: int,
        *,
        name: str,
        act: str = "SiLU",
        norm: bool = True,
        dist: str = "mse",
        outscale: float = 1.0,
        symlog_inputs: bool = False,
    ):
        super().__init__()
        if dist not in self.DISTS:
            raise ValueError(f"a {name.lower()} head cannot use dist {dist!r}; allowed are {', '.join(self.DISTS)}")
        self._dist = dist
        self._shape = shape
        self._symlog_inputs = symlog_inputs
        self.layers = nn.Sequential()
        for index in range(layers):
            self.layers.add_module(f"{name}_linear{index}", nn.Linear(inp_dim, units, bias=False))
            if norm:
                self.layers.add_module(f"{name}_norm{index}", LayerNorm(units, eps=NORM_EPS))
            self.layers.add_module(f"{name}_act{index}", activation(act))
            inp_dim = units
        self.layers.apply(init_hidden)
        if shape is not None:
            self.mean_layer = self._output_layer(inp_dim, outscale)

    def _output_layer(self, inp_dim: int, outscale: float) -> nn.Module:
        if isinstance(self._shape, dict):
            taken = [key for key in self._shape if hasattr(nn.ModuleDict, key)]
            if taken:
                raise ValueError(f"the observation keys {', '.join(taken)} cannot name a layer; rename them in a wrapper")
            layer = nn.ModuleDict({key: nn.Linear(inp_dim, self._out_size(shape)) for key, shape in self._shape.items()})
        else:
            layer = nn.Linear(inp_dim, self._out_size(self._shape))
        return layer.apply(lambda module: init_output(module, outscale))

    def _out_size(self, shape: tuple[int, ...]) -> int:
        if self._dist == "symlog_disc":
            if math.prod(shape) != 1:
                raise ValueError(f"symlog_disc predicts one number, not the shape {shape}; use symlog_mse")
            return dists.SymlogDisc.BINS
        return math.prod(shape)

    def input_layers(self) -> list[nn.Linear]:
        """The layers that read the input: the first hidden one, or the outputs where nothing is hidden."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return linear[:1] if len(self.layers) else linear

    def hidden(self, x: Tensor, ones: lookup.Ones | None = None) -> Tensor:
        """Output of the hidden blocks, (..., units); `ones` says where x has its ones, if it begins with one-hot vectors."""
        if ones is None or self._symlog_inputs or not len(self.layers):
            return self.layers(dists.symlog(x) if self._symlog_inputs else x)
        return after_first(self.layers, lookup.linear(x, self.layers[0].weight, ones))

    def stats(self, x: Tensor, ones: lookup.Ones | None = None) -> Tensor:
        """The parameters of a single output's distribution, (..., inp_dim) -> (..., n); `ones` as in `hidden`."""
        return self.mean_layer(self.hidden(x, ones))

    def forward(self, x: Tensor, ones: lookup.Ones | None = None):
        """(..., inp_dim) -> a distribution, a dict of them, or hidden features; `ones` as in `hidden`."""
        if self._shape is None:
            return self.hidden(x, ones)
        elif isinstance(self._shape, dict):
            x = self.hidden(x, ones)
            return {key: self.dist(layer(x)) for key, layer in self.mean_layer.items()}
        return self.dist(self.stats(x, ones))

    def dist(self, out: Tensor):
        """The distribution with parameters from `stats`."""
        if self._dist == "symlog_disc":
            return dists.SymlogDisc(out)
        elif self._dist == "symlog_mse":
            return dists.MSE(out, squash=True)
        elif self._dist == "mse":
            return dists.MSE(out)
        elif self._dist == "binary":
            return dists.Bernoulli(out)
        elif self._dist == "normal":
            return dists.Normal(out, 1.0)
        raise ValueError(f"unknown dist {self._dist!r}; allowed are {', '.join(self.DISTS)}")


def _positive(name: str, value, allowed: str) -> float:
    try:
        if float(value) > 0.0:
            return float(value)
    except ValueError:
        pass
    raise ValueError(f"{name} is {value!r}; it must be {allowed}")


class ActionHead(MLP):
    """The policy: features (..., F) -> a distribution over action vectors (..., A).

    Args:
        size: length A of an action vector.
        classes: class counts of the discrete parts of an action (concatenated one-hots), or None for continuous actions.
        dist: onehot (discrete) or normal (continuous, samples bounded to [-1, 1]).
        std: "learned", or a fixed standard deviation; learned ones lie between `min_std` and `max_std`.
        unimix_ratio: uniform share in discrete policies.
    """

    DISTS = ("onehot", "normal")

    def __init__(
        self,
        inp_dim: int,
        size: int,
        layers: int,
        units: int,
        *,
        classes: tuple[int, ...] | None,
        dist: str,
        std,
        min_std: float,
        max_std: float,
        unimix_ratio: float,
        act: str,
        norm: bool,
        outscale: float,
    ):
        super().__init__(inp_dim, (size,), layers, units, name="Actor", act=act, norm=norm, dist=dist, outscale=outscale)
        if (dist == "onehot") != (classes is not None):
            kind = "continuous" if classes is None else "discrete"
            raise ValueError(
                f"actor.dist is {dist!r}, but actions are {kind}; use 'auto', '{'normal' if classes is None else 'onehot'}' or another task"
            )
        self._classes = classes
        if dist == "normal":
            self._std = std if std == "learned" else _positive("actor.std", std, "'learned' or a positive number")
        self._min_std, self._max_std = min_std, max_std
        self._unimix_ratio = unimix_ratio
        if dist == "normal" and std == "learned":
            self.std_layer = self._output_layer(units if layers else inp_dim, outscale)

    def stats(self, feat: Tensor, ones: lookup.Ones | None = None) -> dict[str, Tensor]:
        """The distribution's parameters by name, which can be stacked over time: `logit`, or `mean` and `std`, each (..., A)."""
        x = self.hidden(feat, ones)
        mean = self.mean_layer(x)
        if self._dist == "onehot":
            return {"logit": mean}
        if self._std == "learned":
            share = torch.sigmoid(self.std_layer(x).float() + 2.0)
            std = self._min_std + (self._max_std - self._min_std) * share
        else:
            std = torch.full_like(mean, self._std)
        return {"mean": torch.tanh(mean.float()), "std": std}

    def dist(self, stats: dict[str, Tensor]):
        """The distribution with parameters from `stats`."""
        if self._dist == "normal":
            return dists.Normal(stats["mean"], stats["std"], bound=1.0)
        parts = [dists.OneHot(logit, self._unimix_ratio) for logit in stats["logit"].split(self._classes, -1)]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)
