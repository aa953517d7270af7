"""Linear products with one-hot vectors as look-ups in the weight: S additions per output instead of S * K multiplications."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Ones(NamedTuple):
    """Where the ones are in vectors that begin with one-hot vectors.

    Attributes:
        index: positions in the vector, (..., S).
        size: length of that beginning, the classes of all S one-hot vectors together.
    """

    index: Tensor
    size: int


def linear(x: Tensor, weight: Tensor, ones: Ones | None = None) -> Tensor:
    """x W^T, (..., in), (out, in) -> (..., out); `ones` says where x has its ones, and spares a part of the product."""
    if ones is None:
        return F.linear(x, weight)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return _LookUp.apply(x.flatten(0, -2), weight, ones.index.flatten(0, -2), ones.size).unflatten(0, x.shape[:-1])


class _LookUp(torch.autograd.Function):
    """y = x W^T with its usual gradients, dx = dy W and dW = dy^T x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = F.embedding_bag(index, weight[:, :size].t().contiguous(), mode="sum")
        return y if size == x.shape[-1] else torch.addmm(y, x[:, size:], weight[:, size:].t())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad[:2]
        return grad @ weight if for_x else None, grad.t() @ x if for_weight else None, None, None
