"""Multi-layer perceptrons that return distributions, and the policy.

Shapes: F feature, A action; "..." stands for batch and time.
Names and shapes of the 2023 parameters are those of dreamerv3-torch, so that its checkpoints load.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import distributions as dists
from envs.names import check_key
from envs.spaces import ActionPart
from layers import Linear, Style


class MLP(nn.Module):
    """Hidden blocks and an output distribution.

    Args:
        inp_dim: size of the input.
        shape: shape of the output; () or (1,) for scalars, which are returned as (..., 1). A dict of shapes for several
            outputs. None for no output: the hidden features are returned.
        layers: number of hidden blocks.
        units: size of each block.
        name: prefix of the layers' names.
        style: how layers are built.
        dist: distribution of the output, one of `DISTS`.
        outscale: scale of the output layer's initial weights, see `Style.init_output`.
    Raises:
        ValueError: for an unknown `dist`, or a `shape` that it does not support.
    """

    DISTS = (*dists.TwoHot.KINDS, "symlog_mse", "mse", "binary", "normal")

    def __init__(
        self, inp_dim: int, shape, layers: int, units: int, *, name: str, style: Style = Style(), dist: str = "mse", outscale: float = 1.0
    ):
        super().__init__()
        if dist not in self.DISTS:
            raise ValueError(f"dist is {dist!r} in a head named {name}; allowed are {', '.join(self.DISTS)}")
        self._dist = dist
        self._shape = shape
        self._style = style
        self.layers = nn.Sequential()
        for index in range(layers):
            self.layers.add_module(f"{name}_linear{index}", Linear(inp_dim, units, bias=style.bias))
            for norm in style.norms(units):
                self.layers.add_module(f"{name}_norm{index}", norm)
            self.layers.add_module(f"{name}_act{index}", style.activation())
            inp_dim = units
        self.layers.apply(style.init_hidden)
        if shape is not None:
            self.mean_layer = self._output_layer(inp_dim, shape, outscale)

    def _output_layer(self, inp_dim: int, shape, outscale: float) -> nn.Module:
        """A linear layer for a shape, or one by key for a dict of shapes."""
        if isinstance(shape, dict):
            for key in shape:
                check_key(key)
            layer = nn.ModuleDict({key: Linear(inp_dim, self._out_size(part)) for key, part in shape.items()})
        else:
            layer = Linear(inp_dim, self._out_size(shape))
        return layer.apply(lambda module: self._style.init_output(module, outscale))

    def _out_size(self, shape: tuple[int, ...]) -> int:
        if self._dist in dists.TwoHot.KINDS:
            if math.prod(shape) != 1:
                raise ValueError(f"{self._dist} predicts one number, not the shape {shape}; use symlog_mse")
            return dists.TwoHot.BINS
        return math.prod(shape)

    def input_layers(self) -> list[nn.Linear]:
        """The layers that read the input: the first hidden layer, or the output layers if there are no hidden ones."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return linear[:1] if len(self.layers) else linear

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden features, (..., inp_dim) -> (..., units)."""
        return self.layers(x)

    def stats(self, x: Tensor) -> Tensor:
        """The parameters of a single output's distribution, (..., inp_dim) -> (..., n)."""
        return self.mean_layer(self.hidden(x))

    def forward(self, x: Tensor):
        """(..., inp_dim) -> a distribution, a dict of distributions, or hidden features, as `shape` says."""
        if self._shape is None:
            return self.hidden(x)
        elif isinstance(self._shape, dict):
            x = self.hidden(x)
            return {key: self.dist(layer(x)) for key, layer in self.mean_layer.items()}
        return self.dist(self.stats(x))

    def dist(self, out: Tensor):
        """The distribution with the parameters `out` (..., n), as from `stats`."""
        if self._dist in dists.TwoHot.KINDS:
            return dists.TwoHot(out, self._dist)
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
        if 0.0 < float(value) < math.inf:
            return float(value)
    except ValueError:
        pass
    raise ValueError(f"{name} is {value!r}; it must be {allowed}")


class ActionHead(MLP):
    """The policy: features (..., F) -> a distribution over action vectors (..., A).

    Continuous actions are not bounded, and `log_prob` scores the unbounded sample. Actions pass through
    `distributions.bounded` where they enter world model and environment.

    Args:
        inp_dim: size F of a feature.
        parts: the parts of an action vector by key, in order, see `ActionCodec.parts`.
        config: the settings' section `actor`.
        units, style: as in `MLP`.
    Raises:
        ValueError: if `config.dist` does not fit the actions, or `config.std` is neither "learned" nor positive.
    """

    DISTS = ("auto", "onehot", "normal")

    def __init__(self, inp_dim: int, parts: Mapping[str, ActionPart], config, *, units: int, style: Style):
        self._parts, self._config = dict(parts), config
        shapes = {key: (part.size,) for key, part in parts.items()}
        single = len(shapes) == 1  # then layers have the names of dreamerv3-torch, without a key
        shape = next(iter(shapes.values())) if single else shapes
        super().__init__(inp_dim, shape, config.layers, units, name="Actor", style=style, dist=config.dist, outscale=config.outscale)
        self._check_dist(config.dist)
        continuous = {key: (part.size,) for key, part in parts.items() if part.classes is None}
        if continuous and config.std == "learned":
            shape = shape if single else continuous
            self.std_layer = self._output_layer(units if config.layers else inp_dim, shape, config.outscale)
        elif continuous:
            self._std = _positive("actor.std", config.std, "'learned' or a positive number")

    def _check_dist(self, dist: str) -> None:
        fitting = {"normal" if part.classes is None else "onehot" for part in self._parts.values()}
        if dist == "auto" or {dist} == fitting:
            return
        kinds = {"normal": "continuous", "onehot": "discrete"}
        told = " and ".join(kinds[name] for name in sorted(fitting, reverse=True))
        choice = "'auto'" if len(fitting) > 1 else f"'auto', {next(iter(fitting))!r}"
        raise ValueError(f"actor.dist is {dist!r}, but actions are {told}; use {choice} or another task")

    def stats(self, feat: Tensor) -> dict[str, Tensor]:
        """The parameters of the policy, as tensors that can be stacked over time.

        Args:
            feat: (..., F).
        Returns:
            for each discrete part `logit`, for each continuous part `mean` and `std`, each (..., size of the part). Of
            several parts the names begin with the part's key.
        """
        x, config, stats = self.hidden(feat), self._config, {}
        for key, part in self._parts.items():
            mean, name = self._layer("mean_layer", key)(x), self._prefix(key)
            if part.classes is not None:
                stats[f"{name}logit"] = mean
                continue
            if config.std == "learned":
                share = torch.sigmoid(self._layer("std_layer", key)(x).float() + 2.0)
                std = config.min_std + (config.max_std - config.min_std) * share
            else:
                std = torch.full_like(mean, self._std)
            stats |= {f"{name}mean": torch.tanh(mean.float()), f"{name}std": std}
        return stats

    def forward(self, feat: Tensor):
        """(..., F) -> the distribution over action vectors (..., A)."""
        return self.dist(self.stats(feat))

    def _layer(self, name: str, key: str) -> nn.Module:
        layer = getattr(self, name)
        return layer[key] if isinstance(layer, nn.ModuleDict) else layer

    def _prefix(self, key: str) -> str:
        return f"{key}/" if len(self._parts) > 1 else ""

    def dist(self, stats: dict[str, Tensor]):
        """The distribution with the parameters from `stats`."""
        found = []
        for key, part in self._parts.items():
            name = self._prefix(key)
            if part.classes is None:
                found.append(dists.Normal(stats[f"{name}mean"], stats[f"{name}std"]))
            else:
                found.append(dists.onehots(stats[f"{name}logit"], part.classes, self._config.unimix_ratio))
        return found[0] if len(found) == 1 else dists.Joint(found)
