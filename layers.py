"""The blocks that all networks are made of: initialisation, products, normalisation, hidden layers, the GRU.

Parameter names and shapes are those of dreamerv3-torch, so that checkpoints carry over.
"""

import contextlib
import functools
import itertools
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


# Products


_onednn = False  # whether oneDNN forms large float32 products on this processor


def choose_library() -> None:
    """Chooses the faster library for `linear`. The two round differently, so in deterministic mode it is PyTorch's own."""
    global _onednn
    _onednn = not torch.are_deterministic_algorithms_enabled() and _onednn_is_faster()


@functools.cache
def _onednn_is_faster() -> bool:
    """Times PyTorch's own product (MKL on most computers) and oneDNN's on the CPU, which takes some 20 ms."""
    x, weight, seconds = torch.ones(1024, 512, device="cpu"), torch.ones(512, 512, device="cpu"), {}
    for product in 5 * (F.linear, _onednn_linear):
        start = time.perf_counter()
        product(x, weight, None)
        seconds[product] = min(time.perf_counter() - start, seconds.get(product, math.inf))
    return 1.2 * seconds[_onednn_linear] < seconds[F.linear]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., in), (out, in) -> (..., out): every product of the networks."""
    if _weights is not None and torch.is_grad_enabled():
        y = _weights.product(x, weight)
        return y if bias is None else y + bias.to(y.dtype)
    rows = x.shape[:-1].numel()
    large = rows >= 256 and rows % 16 == 0 and x.device.type == "cpu" and product_dtype(x) == torch.float32
    return (_onednn_linear if _onednn and large else F.linear)(x, weight, bias)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` as a 1x1 convolution. PyTorch gives convolutions of several images to oneDNN; 16 are fast on one thread and on many."""
    images = x.reshape(16, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (16, in, 1, rows / 16), channels last
    y = F.conv2d(images, weight[..., None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` whose product is `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


_weights = None  # the `_StepWeights` of the recurrence that is running


@contextlib.contextmanager
def weight_gradients_once():
    """Within this, every weight of `linear` gets its gradient once for all steps of a recurrence, as a single product.

    Left to autograd, every step forms a gradient from a handful of rows and adds it to the sum, which reads and writes the whole
    weight T times; and with autocast every step keeps its own bfloat16 copy of the weight until then.
    """
    global _weights
    before, _weights = _weights, _StepWeights()
    try:
        yield
    finally:
        _weights = before


class _StepWeights:
    """For each weight of a recurrence a copy in the products' precision, and pairs of output gradient and input, one of each product."""

    def __init__(self):
        self._constants = {}

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if id(weight) not in self._constants:
            steps = []
            self._constants[id(weight)] = weight, _Constant.apply(weight, product_dtype(weight), steps), steps
        _, constant, steps = self._constants[id(weight)]
        return _StepProduct.apply(x.to(constant.dtype), constant, steps)


class _Constant(torch.autograd.Function):
    """A weight (out, in) in the products' precision. Its backward runs after those of all products and forms its gradient at once."""

    @staticmethod
    def forward(ctx, weight: Tensor, dtype: torch.dtype, steps: list) -> Tensor:
        ctx.steps, ctx.dtype = steps, weight.dtype
        ctx.set_materialize_grads(False)
        return weight.to(dtype) if weight.dtype != dtype else weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, _) -> tuple[Tensor, None, None]:
        grads, inputs = (torch.cat(rows) for rows in zip(*ctx.steps))  # (T B, out), (T B, in)
        ctx.steps.clear()
        return (grads.t() @ inputs).to(ctx.dtype), None, None


class _StepProduct(torch.autograd.Function):
    """y = x W^T with the gradient dx = dy W; what the weight's gradient needs is left to `_Constant`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, steps: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1] and torch._C._will_engine_execute_node(weight.grad_fn):  # not in a pass for other tensors alone
            ctx.steps.append((grad.flatten(0, -2), x.flatten(0, -2)))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None


# Blocks


class LayerNorm(nn.LayerNorm):
    """Layer norm whose statistics and parameter gradients are float32 whatever the input's precision.

    PyTorch's own gives wrong parameter gradients for bfloat16 on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(full_precision(x)).to(x.dtype)


class HiddenBlock(nn.Sequential):
    """Linear without bias, layer norm, activation: (..., in) -> (..., out)."""

    def __init__(self, inp_size: int, out_size: int, act: str, norm: bool):
        norms = [LayerNorm(out_size, eps=NORM_EPS)] if norm else []
        super().__init__(Linear(inp_size, out_size, bias=False), *norms, activation(act))
        self.apply(init_hidden)

    def after_product(self, x: Tensor) -> Tensor:
        """The block's output from its linear product, (..., out) -> (..., out)."""
        for layer in itertools.islice(self, 1, None):  # a slice of a Sequential would be a new module at every call
            x = layer(x)
        return x


class GRUCell(nn.Module):
    """GRU with layer norm on the stacked gates and an update gate that starts nearly closed, as in DreamerV2 and V3."""

    UPDATE_BIAS = -1.0

    def __init__(self, inp_size: int, size: int, norm: bool = True):
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("GRU_linear", Linear(inp_size + size, 3 * size, bias=False))
        if norm:
            self.layers.add_module("GRU_norm", LayerNorm(3 * size, eps=NORM_EPS))
        self.layers.apply(init_hidden)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """(B, hidden), (B, D) -> (B, D); the gates and the new state are float32."""
        gates = full_precision(self.layers[0](torch.cat([x, deter], -1)))
        gates = self.layers[1](gates) if len(self.layers) > 1 else gates
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.UPDATE_BIAS))
