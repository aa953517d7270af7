"""Building blocks of the networks: style of hidden layers, matrix products, normalisation, hidden blocks, GRU cells.

Names and shapes of the 2023 parameters are those of dreamerv3-torch, so that its checkpoints load.
"""

import contextlib
import functools
import itertools
import math
import threading
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal truncated at -2 and 2
NORMS = ("layer", "rms", "none")


class Style(NamedTuple):
    """How hidden layers are built. Norm, bias, epsilon and initialisation belong together.

    | `norm` | bias before the norm | epsilon | kernels are scaled by |
    |---|---|---|---|
    | "layer" (2023), "none" | no | 1e-3 | mean of fan in and fan out |
    | "rms" (2025) | yes | 1e-4 | fan in |

    Args:
        act: name of the activation in `torch.nn`, for example "SiLU".
        norm: one of `NORMS`.
    """

    act: str = "SiLU"
    norm: str = "layer"

    @property
    def bias(self) -> bool:
        """Whether layers before a norm have a bias."""
        return self.norm == "rms"

    def norms(self, size: int) -> list[nn.Module]:
        """The norm over a last dimension of `size` as a list, which is empty without one.

        Raises:
            ValueError: for an unknown norm.
        """
        if self.norm == "layer":
            return [LayerNorm(size, eps=1e-3)]
        elif self.norm == "rms":
            return [RMSNorm(size, eps=1e-4)]
        elif self.norm == "none":
            return []
        raise ValueError(f"unknown norm {self.norm!r}; allowed are {', '.join(NORMS)}")

    def norm_or_identity(self, size: int) -> nn.Module:
        """The norm, or the identity without one."""
        return (self.norms(size) or [nn.Identity()])[0]

    def activation(self) -> nn.Module:
        """Builds the activation module."""
        return activation(self.act)

    def init_hidden(self, module: nn.Module) -> None:
        """Initialises a hidden layer: truncated normal, biases zero.

        The variance is 1 / fan in with RMS norm, else 1 / mean(fan in, fan out). Other modules stay unchanged, so that
        `module.apply(style.init_hidden)` works on whole networks.
        """
        if isinstance(module, (nn.Linear, BlockLinear, nn.Conv2d, nn.ConvTranspose2d)):
            fan_in, fan_out = _fans(module)
            std = math.sqrt(1.0 / fan_in if self.norm == "rms" else 2.0 / (fan_in + fan_out)) / TRUNCATED_STD
            nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_output(self, module: nn.Module, scale: float) -> None:
        """Initialises an output layer, biases zero. With `scale=0` the initial output is zero.

        With RMS norm `scale` multiplies the weights of a hidden layer. Otherwise weights are uniform with variance
        `scale` / mean(fan in, fan out). Other modules stay unchanged.
        """
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            return
        if self.norm == "rms":
            self.init_hidden(module)
            module.weight.data.mul_(scale)
            return
        limit = math.sqrt(3.0 * scale * 2.0 / sum(_fans(module)))
        nn.init.uniform_(module.weight, -limit, limit)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fans(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, (nn.Linear, BlockLinear)):
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

    Inside `weight_gradients_once` the gradients of `weight` and `bias` are computed once for all calls.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
    Returns:
        (..., out).
    """
    if _active.weights is not None and torch.is_grad_enabled():
        return _active.weights.product(x, weight, bias)
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


def block_product(x: Tensor, shared: Tensor | None, weight: Tensor, bias: Tensor, blocks: int) -> Tensor:
    """Product with a matrix that is block-diagonal in `x` and dense in `shared`.

    Output and `x` are split into `blocks` parts. A part of the output depends on its part of `x` and on all of `shared`.

    Args:
        x: (B, in).
        shared: (B, n); None for n = 0.
        weight: (out, in / blocks + n).
        bias: (out,).
        blocks: number of parts.
    Returns:
        (blocks, B, out / blocks).
    """
    own = x.shape[-1] // blocks
    parts = _parts(x, blocks)  # (blocks, B, in / blocks)
    kernel = weight[:, :own].unflatten(0, (blocks, -1)).transpose(1, 2)  # (blocks, in / blocks, out / blocks)
    if shared is None:
        return torch.bmm(parts, kernel).add_(bias.view(blocks, 1, -1))
    return torch.baddbmm(_parts(F.linear(shared, weight[:, own:], bias), blocks), parts, kernel)


def _parts(x: Tensor, blocks: int) -> Tensor:
    """(B, size) -> (blocks, B, size / blocks), a view."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


class BlockLinear(nn.Module):
    """A linear layer that is block-diagonal in its first input, and dense in an optional second one.

    Args:
        size: size of the first input, and of the part of each block `size` / `blocks`.
        out_features: size of the output.
        blocks: number of blocks; divides `size` and `out_features`.
        shared: size of the second input.
    Raises:
        ValueError: if `blocks` does not divide the sizes.
    """

    def __init__(self, size: int, out_features: int, blocks: int, shared: int = 0):
        super().__init__()
        if size % blocks or out_features % blocks:
            raise ValueError(f"{blocks} blocks do not divide a layer of {size} inputs and {out_features} outputs")
        self.in_features, self.out_features, self.blocks = size + shared, out_features, blocks
        self.weight = nn.Parameter(torch.empty(out_features, size // blocks + shared))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def parts(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """The output by block: (B, size) and (B, shared) -> (blocks, B, out_features / blocks)."""
        if _active.weights is not None and torch.is_grad_enabled():
            return _active.weights.block_product(x, shared, self.weight, self.bias, self.blocks)
        return block_product(x, shared, self.weight, self.bias, self.blocks)

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """(B, size) and (B, shared) -> (B, out_features)."""
        return self.parts(x, shared).transpose(0, 1).flatten(1)


class _Active(threading.local):
    """What is active in a thread, since agents may learn in several threads of a program.

    Attributes:
        weights: state of the innermost `weight_gradients_once`, None outside.
    """

    weights = None


_active = _Active()


@contextlib.contextmanager
def weight_gradients_once():
    """Inside this context, the gradient of each weight is a single product over all steps of a recurrence.

    Without it, autograd computes a small gradient per step and adds it to the sum. That reads and writes memory of the
    weight's size T times. With autocast, each step also keeps its own bfloat16 copy of the weight until the backward
    pass.
    """
    before, _active.weights = _active.weights, _StepWeights()
    try:
        yield
    finally:
        _active.weights = before


class _StepWeights:
    """The state of one `weight_gradients_once` context, by weight.

    For each weight: copies of weight and bias in the dtype of the products, and a list of (output gradient, inputs)
    that the backward pass fills, one entry per product.
    """

    def __init__(self):
        self._constants = {}

    def _constant(self, weight: Tensor, bias: Tensor | None, x: Tensor, blocks: int) -> tuple[Tensor, Tensor | None, list]:
        key = id(weight), id(bias)  # a weight may be used with a bias and without
        if key not in self._constants:
            steps = []
            copies = _Constant.apply(weight, bias, product_dtype(x), steps, blocks)
            self._constants[key] = weight, bias, *copies, steps
        return self._constants[key][2:]

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight, bias, steps = self._constant(weight, bias, x, 0)
        return _StepProduct.apply(x.to(weight.dtype), weight, bias, steps)

    def block_product(self, x: Tensor, shared: Tensor | None, weight: Tensor, bias: Tensor, blocks: int) -> Tensor:
        weight, bias, steps = self._constant(weight, bias, x, blocks)
        shared = None if shared is None else shared.to(weight.dtype)
        return _StepBlockProduct.apply(x.to(weight.dtype), shared, weight, bias, blocks, steps)


class _Constant(torch.autograd.Function):
    """A weight (out, in) and a bias (out,) in the dtype of the products; with `blocks` those of `block_product`.

    Its backward runs after the backwards of all products. It computes both gradients from the collected entries.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, steps: list, blocks: int) -> tuple[Tensor, Tensor | None]:
        ctx.steps, ctx.dtype, ctx.blocks, ctx.has_bias = steps, weight.dtype, blocks, bias is not None
        ctx.set_materialize_grads(False)
        return tuple(None if x is None else x.to(dtype) if x.dtype != dtype else x.view_as(x) for x in (weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, *_) -> tuple[Tensor | None, ...]:
        grads, x, shared = (None if rows[0] is None else torch.cat(rows) for rows in zip(*ctx.steps))  # (T B, ...)
        ctx.steps.clear()
        bias = grads.sum(0, dtype=ctx.dtype) if ctx.has_bias else None
        if not ctx.blocks:
            return (grads.t() @ x).to(ctx.dtype), bias, None, None, None
        columns = [torch.bmm(_parts(grads, ctx.blocks).transpose(1, 2), _parts(x, ctx.blocks)).flatten(0, 1)]  # (out, in / blocks)
        columns += [] if shared is None else [grads.t() @ shared]
        return torch.cat(columns, 1).to(ctx.dtype), bias, None, None, None


def _is_executed(weight: Tensor) -> bool:
    """Whether the present backward pass reaches the weight's `_Constant`. If not, entries would be left behind."""
    return torch._C._will_engine_execute_node(weight.grad_fn)


class _StepProduct(torch.autograd.Function):
    """y = x W^T + b with the input gradient dx = dy W.

    Its backward leaves (dy, x) for `_Constant`, which computes the gradients of weight and bias.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, steps: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1] and _is_executed(weight):
            ctx.steps.append((grad.flatten(0, -2), x.flatten(0, -2), None))
        return grad @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _StepBlockProduct(torch.autograd.Function):
    """`block_product`, which leaves the gradients of weight and bias to `_Constant` as `_StepProduct` does."""

    @staticmethod
    def forward(ctx, x: Tensor, shared: Tensor | None, weight: Tensor, bias: Tensor, blocks: int, steps: list) -> Tensor:
        ctx.save_for_backward(x, shared, weight)
        ctx.blocks, ctx.steps = blocks, steps
        return block_product(x, shared, weight, bias, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shared, weight = ctx.saved_tensors
        rows, own = grad.transpose(0, 1).flatten(1), x.shape[-1] // ctx.blocks  # (B, out)
        if ctx.needs_input_grad[2] and _is_executed(weight):
            ctx.steps.append((rows, x, shared))
        grad_x = torch.bmm(grad, weight[:, :own].unflatten(0, (ctx.blocks, -1))).transpose(0, 1).flatten(1)
        return grad_x, None if shared is None else rows @ weight[:, own:], None, None, None, None


# Blocks


class LayerNorm(nn.LayerNorm):
    """Layer norm with statistics and parameter gradients in float32, whatever the dtype of the input.

    PyTorch's own gives wrong parameter gradients for bfloat16 on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same shape and dtype."""
        return super().forward(full_precision(x)).to(x.dtype)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension: x / sqrt(mean(x^2) + eps) * weight, in float32.

    Args:
        size: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same shape and dtype."""
        y = full_precision(x)
        if y.device.type == "cpu" and not torch.compiler.is_compiling():  # the compiler fuses the formula
            y = _CpuRMSNorm.apply(y, self.weight, self.eps)
        else:
            y = F.rms_norm(y, self.weight.shape, self.weight, self.eps)
        return y.to(x.dtype)


class _CpuRMSNorm(torch.autograd.Function):
    """RMS norm, up to three times as fast on a CPU as PyTorch's, which has no kernel for it there.

    The backward pass uses the kernel of layer norm with mean 0. That kernel subtracts the mean of the input gradient,
    which is added again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        size, grad = x.shape[-1], grad.contiguous()
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [size], torch.zeros_like(rstd), rstd, weight, weight, [True, True, False]
        )
        mean = torch.mv(grad.view(-1, size), weight).view(rstd.shape)
        return grad_x.addcmul_(rstd, mean, value=1.0 / size), grad_weight, None


class HiddenBlock(nn.Sequential):
    """One or more linear layers, each with norm and activation: (..., in) -> (..., out).

    Args:
        inp_size, out_size: sizes in and out.
        style: how layers are built.
        layers: number of linear layers.
    """

    def __init__(self, inp_size: int, out_size: int, style: Style, layers: int = 1):
        modules = []
        for _ in range(layers):
            modules += [Linear(inp_size, out_size, bias=style.bias), *style.norms(out_size), style.activation()]
            inp_size = out_size
        super().__init__(*modules)
        self.apply(style.init_hidden)

    def after_product(self, x: Tensor) -> Tensor:
        """All but the first linear product, which is computed elsewhere: (..., out) -> (..., out)."""
        for layer in itertools.islice(self, 1, None):  # slicing a Sequential would build a new module
            x = layer(x)
        return x


class GRUInput(HiddenBlock):
    """What a `GRUCell` reads: one hidden layer on latents and action.

    Args:
        stoch_size: length of the latents as one vector.
        num_actions: length of an action vector.
        hidden: units.
        style: how layers are built.
    Attributes:
        out_size: size of the output.
    """

    def __init__(self, stoch_size: int, num_actions: int, hidden: int, style: Style):
        super().__init__(stoch_size + num_actions, hidden, style)
        self.out_size = hidden

    @property
    def latent_reader(self) -> Linear:
        """The layer whose inputs begin with the latents."""
        return self[0]

    def prepare(self, action: Tensor) -> Tensor:
        """The part that depends on actions alone, computed for all steps at once: (..., A) -> (..., n)."""
        return action

    def forward(self, stoch: Tensor, prepared: Tensor) -> Tensor:
        """Latents (B, stoch_size) and prepared actions (B, n) -> (B, out_size)."""
        return super().forward(torch.cat([stoch, prepared], -1))


class BlockGRUInput(nn.ModuleDict):
    """What a `BlockGRUCell` reads: a hidden layer on the latents, and one on the action.

    Arguments, attributes and methods as in `GRUInput`.
    """

    def __init__(self, stoch_size: int, num_actions: int, hidden: int, style: Style):
        super().__init__({"stoch": HiddenBlock(stoch_size, hidden, style), "action": HiddenBlock(num_actions, hidden, style)})
        self.out_size = 2 * hidden

    @property
    def latent_reader(self) -> Linear:
        """The layer whose inputs are the latents."""
        return self["stoch"][0]

    def prepare(self, action: Tensor) -> Tensor:
        """As in `GRUInput`."""
        return self["action"](action)

    def forward(self, stoch: Tensor, prepared: Tensor) -> Tensor:
        """As in `GRUInput`."""
        return torch.cat([self["stoch"](stoch), prepared], -1)


UPDATE_BIAS = -1.0  # the update gate starts nearly closed, so the state changes slowly


class GRUCell(nn.Module):
    """GRU cell with a norm over the three stacked gates, as in DreamerV2 and DreamerV3 (2023).

    Args:
        inp_size: size of the input.
        size: size D of the recurrent state.
        style: how layers are built.
    """

    def __init__(self, inp_size: int, size: int, style: Style = Style()):
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("GRU_linear", Linear(inp_size + size, 3 * size, bias=style.bias))
        for norm in style.norms(3 * size):
            self.layers.add_module("GRU_norm", norm)
        self.layers.apply(style.init_hidden)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """One step, (B, inp_size) and (B, D) -> (B, D). Gates and new state are float32."""
        gates = full_precision(self.layers[0](torch.cat([x, deter], -1)))
        gates = self.layers[1](gates) if len(self.layers) > 1 else gates
        reset, candidate, update = gates.chunk(3, -1)  # (B, D) each
        return _gated(deter, reset, candidate, update)


class BlockGRUCell(nn.Module):
    """GRU cell whose large layers are block-diagonal in the recurrent state, as in DreamerV3 (2025).

    Every block sees its part of the state, a hidden layer on the whole state, and the input.

    Args:
        inp_size: size of the input.
        size: size D of the recurrent state.
        hidden: units of the hidden layer on the whole state.
        blocks: number of blocks; divides D.
        style: how layers are built.
    """

    def __init__(self, inp_size: int, size: int, hidden: int, blocks: int, style: Style):
        super().__init__()
        self.blocks = blocks
        self.deter_layer = HiddenBlock(size, hidden, style)
        self.hidden = BlockLinear(size, size, blocks, hidden + inp_size)
        self.hidden_norm, self.act = style.norm_or_identity(size), style.activation()
        self.gates = BlockLinear(size, 3 * size, blocks)
        self.apply(style.init_hidden)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """One step, (B, inp_size) and (B, D) -> (B, D). Gates and new state are float32."""
        shared = torch.cat([self.deter_layer(deter), x], -1)
        hidden = self.act(self.hidden_norm(self.hidden(deter, shared)))
        gates = full_precision(self.gates.parts(hidden))  # (blocks, B, 3 D / blocks)
        return _gated(_parts(deter, self.blocks), *gates.chunk(3, -1)).transpose(0, 1).flatten(1)


def _gated(deter: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """The new state of a GRU from the old one and the outputs of its gate layer, all of one shape."""
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(deter, candidate, torch.sigmoid(update + UPDATE_BIAS))
