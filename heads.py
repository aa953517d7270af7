"""Multi-layer perceptrons that return distributions, and the policy.

Shapes: F feature, A action; "..." stands for batch and time.
Parameter names and shapes are those of dreamerv3-torch, so that its checkpoints load.
"""

import math

import torch
from torch import Tensor, nn

import distributions as dists
from layers import NORM_EPS, LayerNorm, Linear, activation, init_hidden, init_output


class MLP(nn.Module):
    """Hidden blocks and an output distribution.

    Args:
        inp_dim: size of the input.
        shape: shape of the output; () or (1,) for scalars, which are returned as (..., 1). A dict of shapes for several
            outputs. None for no output: the hidden features are returned.
        layers: number of hidden blocks.
        units: size of each block.
        name: prefix of the layers' names.
        act: name of the activation in `torch.nn`.
        norm: whether blocks have layer norm.
        dist: distribution of the output, one of `DISTS`.
        outscale: scale of the output layer's initial weights, see `init_output`.
        symlog_inputs: whether symlog is applied to the input.
    Raises:
        ValueError: for an unknown `dist`, or a `shape` that it does not support.
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
            self.layers.add_module(f"{name}_linear{index}", Linear(inp_dim, units, bias=False))
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
            layer = nn.ModuleDict({key: Linear(inp_dim, self._out_size(shape)) for key, shape in self._shape.items()})
        else:
            layer = Linear(inp_dim, self._out_size(self._shape))
        return layer.apply(lambda module: init_output(module, outscale))

    def _out_size(self, shape: tuple[int, ...]) -> int:
        if self._dist == "symlog_disc":
            if math.prod(shape) != 1:
                raise ValueError(f"symlog_disc predicts one number, not the shape {shape}; use symlog_mse")
            return dists.SymlogDisc.BINS
        return math.prod(shape)

    def input_layers(self) -> list[nn.Linear]:
        """The layers that read the input: the first hidden layer, or the output layers if there are no hidden ones."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return linear[:1] if len(self.layers) else linear

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden features, (..., inp_dim) -> (..., units)."""
        return self.layers(dists.symlog(x) if self._symlog_inputs else x)

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

    Continuous actions are not bounded, and `log_prob` scores the unbounded sample. Actions pass through
    `distributions.bounded` where they enter world model and environment.

    Args:
        inp_dim: size F of a feature.
        size: length A of an action vector.
        classes: class counts of the discrete parts of an action, which is their concatenated one-hots; None for
            continuous actions.
        config: the settings' section `actor`.
        units, act, norm: as in `MLP`.
    Raises:
        ValueError: if `config.dist` does not fit the actions, or `config.std` is neither "learned" nor positive.
    """

    DISTS = ("onehot", "normal")

    def __init__(self, inp_dim: int, size: int, classes: tuple[int, ...] | None, config, *, units: int, act: str, norm: bool):
        kind, fitting = ("continuous", "normal") if classes is None else ("discrete", "onehot")
        dist = fitting if config.dist == "auto" else config.dist
        super().__init__(inp_dim, (size,), config.layers, units, name="Actor", act=act, norm=norm, dist=dist, outscale=config.outscale)
        if dist != fitting:
            raise ValueError(f"actor.dist is {dist!r}, but actions are {kind}; use 'auto', {fitting!r} or another task")
        self._classes, self._config = classes, config
        if dist == "normal" and config.std == "learned":
            self.std_layer = self._output_layer(units if config.layers else inp_dim, config.outscale)
        elif dist == "normal":
            self._std = _positive("actor.std", config.std, "'learned' or a positive number")

    def stats(self, feat: Tensor) -> dict[str, Tensor]:
        """The parameters of the policy, as tensors that can be stacked over time.

        Args:
            feat: (..., F).
        Returns:
            `logit`, or `mean` and `std`, each (..., A).
        """
        x, config = self.hidden(feat), self._config
        mean = self.mean_layer(x)
        if self._dist == "onehot":
            return {"logit": mean}
        if config.std == "learned":
            share = torch.sigmoid(self.std_layer(x).float() + 2.0)
            std = config.min_std + (config.max_std - config.min_std) * share
        else:
            std = torch.full_like(mean, self._std)
        return {"mean": torch.tanh(mean.float()), "std": std}

    def dist(self, stats: dict[str, Tensor]):
        """The distribution with the parameters from `stats`."""
        if self._dist == "normal":
            return dists.Normal(stats["mean"], stats["std"])
        parts = [dists.OneHot(logit, self._config.unimix_ratio) for logit in stats["logit"].split(self._classes, -1)]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)
