"""Building blocks of the networks: initialisation, matrix products, normalisation, hidden blocks and the GRU cell.

Parameter names and shapes are those of dreamerv3-torch, so that its checkpoints load.
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
    """Initialises a hidden layer: truncated normal with variance 1 / mean(fan in, fan out), biases zero.

    Other modules stay unchanged, so that `module.apply(init_hidden)` works on whole networks.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        fan_in, fan_out = _fans(module)
        # 0.8796 is the standard deviation of a unit normal truncated at -2 and 2.
        std = math.sqrt(2.0 / (fan_in + fan_out)) / 0.87962566103423978
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_output(module: nn.Module, scale: float) -> None:
    """Initialises an output layer: uniform with variance `scale` / mean(fan in, fan out), biases zero.

    With `scale=0` the initial output is zero. Other modules stay unchanged.
    """
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
    """Builds an activation module.

    Args:
        name: its class in `torch.nn`, for example "SiLU".
    Raises:
        ValueError: if `torch.nn` has no such activation, or its constructor requires arguments.
    """
    choice = getattr(nn, name, None)
    if not (isinstance(choice, type) and choice.__module__ == nn.SiLU.__module__):
        raise ValueError(f"unknown activation {name!r}; give the name of one in torch.nn, for example SiLU, ELU or ReLU")
    try:
        return choice()
    except TypeError:
        raise ValueError(f"the activation {name!r} needs arguments; give one without, for example SiLU, ELU or ReLU") from None


def full_precision(x: Tensor) -> Tensor:
    """Converts bfloat16 to float32; other dtypes pass unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with `x`: autocast's if autocast is enabled, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# Products


_onednn = False  # whether `linear` uses oneDNN for large float32 products on the CPU


def choose_library() -> None:
    """Lets `linear` use the faster of PyTorch's default library and oneDNN for large float32 products on the CPU.

    The two round differently. Deterministic mode therefore always uses PyTorch's default.
    """
    global _onednn
    _onednn = not torch.are_deterministic_algorithms_enabled() and _onednn_is_faster()


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN beats PyTorch's default product (MKL on most computers) by more than a factor of 1.2.

    Timing both takes about 20 ms.
    """
    x, weight, seconds = torch.ones(1024, 512, device="cpu"), torch.ones(512, 512, device="cpu"), {}
    for product in 5 * (F.linear, _onednn_linear):
        start = time.perf_counter()
        product(x, weight, None)
        seconds[product] = min(time.perf_counter() - start, seconds.get(product, math.inf))
    return 1.2 * seconds[_onednn_linear] < seconds[F.linear]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x W^T + b. All linear layers use this function.

    Inside `weight_gradients_once` the gradient of `weight` is computed once for all calls.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
    Returns:
        (..., out).
    """
    if _weights is not None and torch.is_grad_enabled():
        y = _weights.product(x, weight)
        return y if bias is None else y + bias.to(y.dtype)
    rows = x.shape[:-1].numel()
    large = rows >= 256 and rows % 16 == 0 and x.device.type == "cpu" and product_dtype(x) == torch.float32
    return (_onednn_linear if _onednn and large else F.linear)(x, weight, bias)


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` as a 1x1 convolution over 16 images: PyTorch gives convolutions of several images to oneDNN.

    With 16 images it is fast on one thread and on many.
    """
    images = x.reshape(16, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (16, in, 1, rows / 16), channels last
    y = F.conv2d(images, weight[..., None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` that computes its product with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


_weights = None  # state of the active `weight_gradients_once`, None outside


@contextlib.contextmanager
def weight_gradients_once():
    """Inside this context, the gradient of each weight of `linear` is a single product over all steps of a recurrence.

    Without it, autograd computes a small gradient per step and adds it to the sum. That reads and writes memory of the
    weight's size T times. With autocast, each step also keeps its own bfloat16 copy of the weight until the backward
    pass.
    """
    global _weights
    before, _weights = _weights, _StepWeights()
    try:
        yield
    finally:
        _weights = before


class _StepWeights:
    """The state of one `weight_gradients_once` context, by weight.

    For each weight: a copy in the dtype of the products, and a list of (output gradient, input) pairs that the backward
    pass fills, one pair per product.
    """

    def __init__(self):
        self._constants = {}

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if id(weight) not in self._constants:
            steps = []
            self._constants[id(weight)] = weight, _Constant.apply(weight, product_dtype(weight), steps), steps
        _, constant, steps = self._constants[id(weight)]
        return _StepProduct.apply(x.to(constant.dtype), constant, steps)


class _Constant(torch.autograd.Function):
    """A weight (out, in) in the dtype of the products.

    Its backward runs after the backwards of all products. It computes the weight's gradient from the collected pairs.
    """

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
    """y = x W^T with the input gradient dx = dy W.

    Its backward leaves the pair (dy, x) for `_Constant`, which computes the weight's gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, steps: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        # A backward pass restricted to other tensors does not reach `_Constant`, and would leave the pairs behind.
        if ctx.needs_input_grad[1] and torch._C._will_engine_execute_node(weight.grad_fn):
            ctx.steps.append((grad.flatten(0, -2), x.flatten(0, -2)))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None


# Blocks


class LayerNorm(nn.LayerNorm):
    """Layer norm with statistics and parameter gradients in float32, whatever the dtype of the input.

    PyTorch's own gives wrong parameter gradients for bfloat16 on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same shape and dtype."""
        return super().forward(full_precision(x)).to(x.dtype)


class HiddenBlock(nn.Sequential):
    """Linear layer without bias, layer norm, activation: (..., in) -> (..., out).

    Args:
        inp_size, out_size: sizes in and out.
        act: name of the activation in `torch.nn`.
        norm: whether there is a layer norm.
    """

    def __init__(self, inp_size: int, out_size: int, act: str, norm: bool):
        norms = [LayerNorm(out_size, eps=NORM_EPS)] if norm else []
        super().__init__(Linear(inp_size, out_size, bias=False), *norms, activation(act))
        self.apply(init_hidden)

    def after_product(self, x: Tensor) -> Tensor:
        """Layer norm and activation alone, for a linear product computed elsewhere: (..., out) -> (..., out)."""
        for layer in itertools.islice(self, 1, None):  # slicing a Sequential would build a new module
            x = layer(x)
        return x


class GRUCell(nn.Module):
    """GRU cell with layer norm over the three stacked gates, as in DreamerV2 and DreamerV3.

    Args:
        inp_size: size of the input.
        size: size D of the recurrent state.
        norm: whether there is a layer norm.
    """

    UPDATE_BIAS = -1.0  # the update gate starts nearly closed, so the state changes slowly

    def __init__(self, inp_size: int, size: int, norm: bool = True):
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("GRU_linear", Linear(inp_size + size, 3 * size, bias=False))
        if norm:
            self.layers.add_module("GRU_norm", LayerNorm(3 * size, eps=NORM_EPS))
        self.layers.apply(init_hidden)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """One step, (B, inp_size) and (B, D) -> (B, D). Gates and new state are float32."""
        gates = full_precision(self.layers[0](torch.cat([x, deter], -1)))
        gates = self.layers[1](gates) if len(self.layers) > 1 else gates
        reset, candidate, update = gates.chunk(3, -1)  # (B, D) each
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.UPDATE_BIAS))
