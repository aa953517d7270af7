"""The blocks that all networks are made of: initialisation, normalisation, hidden layers, the GRU.

Parameter names and shapes are those of dreamerv3-torch, so that checkpoints carry over.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-3


def init_hidden(module: nn.Module) -> None:
    """Truncated normal with variance 1 / mean(fan in, fan out), for layers inside a network."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        fan_in, fan_out = _fans(module)
        std = math.sqrt(2.0 / (fan_in + fan_out)) / 0.87962566103423978  # a normal cut at two deviations has this deviation
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_output(module: nn.Module, scale: float) -> None:
    """Uniform with variance `scale` / mean(fan in, fan out), for layers that end a network; 0 makes the output zero."""
    if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
        fan_in, fan_out = _fans(module)
        limit = math.sqrt(3.0 * scale * 2.0 / (fan_in + fan_out))
        nn.init.uniform_(module.weight, -limit, limit)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fans(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    area = math.prod(module.kernel_size)
    return area * module.in_channels, area * module.out_channels


def activation(name: str) -> nn.Module:
    """An activation module of `torch.nn` by its name, for example SiLU."""
    choice = getattr(nn, name, None)
    if not (isinstance(choice, type) and choice.__module__ == nn.SiLU.__module__):
        raise ValueError(f"unknown activation {name!r}; give the name of one in torch.nn, for example SiLU, ELU or ReLU")
    try:
        return choice()
    except TypeError:
        raise ValueError(f"the activation {name!r} needs arguments; give one without, for example SiLU, ELU or ReLU") from None


def full_precision(x: Tensor) -> Tensor:
    """The same numbers as float32 if they are bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 else x


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which products with x are formed: x's own, unless autocast says otherwise."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class LayerNorm(nn.LayerNorm):
    """Layer norm whose statistics and parameter gradients are float32 whatever the input's precision.

    PyTorch's own gives wrong parameter gradients for bfloat16 on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(full_precision(x)).to(x.dtype)


def after_first(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What the layers behind the first one make of its output x; a slice of them would be a new module at every call."""
    for layer in itertools.islice(layers, 1, None):
        x = layer(x)
    return x


class HiddenBlock(nn.Sequential):
    """Linear without bias, layer norm, activation, on two inputs side by side: (..., a + b) -> (..., out).

    In a recurrence the second input is often known beforehand for all steps. So its share of the linear product can be formed
    once, and then each step only adds the first input's.
    """

    def __init__(self, a_size: int, b_size: int, out_size: int, act: str, norm: bool):
        layers = [nn.Linear(a_size + b_size, out_size, bias=False)]
        if norm:
            layers.append(LayerNorm(out_size, eps=NORM_EPS))
        super().__init__(*layers, activation(act))
        self._a_size = a_size
        self.apply(init_hidden)

    @property
    def step_weight(self) -> Tensor:
        """The first input's part of the weight, (out, a)."""
        return self[0].weight[:, : self._a_size]

    def share(self, b: Tensor) -> Tensor:
        """The second input's share of the product, (..., b) -> (..., out)."""
        return F.linear(b, self[0].weight[:, self._a_size :])

    def finish(self, x: Tensor) -> Tensor:
        """The block's output from the whole product, (..., out) -> (..., out)."""
        return after_first(self, x)


class GRUCell(nn.Module):
    """GRU with layer norm on the stacked gates and an update gate that starts nearly closed, as in DreamerV2 and V3."""

    UPDATE_BIAS = -1.0

    def __init__(self, inp_size: int, size: int, norm: bool = True):
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("GRU_linear", nn.Linear(inp_size + size, 3 * size, bias=False))
        if norm:
            self.layers.add_module("GRU_norm", LayerNorm(3 * size, eps=NORM_EPS))
        self.layers.apply(init_hidden)

    @property
    def weight(self) -> Tensor:
        """(3 D, hidden + D)."""
        return self.layers[0].weight

    def finish(self, gates: Tensor, deter: Tensor) -> Tensor:
        """The new state (B, D) from the product of weight and [x, deter], (B, 3 D); gates and state are float32."""
        gates = after_first(self.layers, full_precision(gates))
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.UPDATE_BIAS))
