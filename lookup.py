"""Linear products with one-hot vectors as look-ups in the weight: S additions per output instead of S * K multiplications."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from layers import product_dtype


class Ones(NamedTuple):
    """Where the ones are in vectors that begin with one-hot vectors.

    Attributes:
        index: positions in the vector, (..., S).
        size: length of that beginning, the classes of all S one-hot vectors together.
    """

    index: Tensor
    size: int

    def at(self, rows) -> "Ones":
        """The ones of some rows, which an index of the leading dimensions chooses."""
        return Ones(self.index[rows], self.size)


def linear(x: Tensor, weight: Tensor, ones: Ones | None = None) -> Tensor:
    """x W^T, (..., in), (out, in) -> (..., out); `ones` says where x has its ones, and spares a part of the product."""
    if ones is None:
        return F.linear(x, weight)
    rows, weight = x.flatten(0, -2).to(product_dtype(x)), weight.to(product_dtype(weight))
    y = _LookUp.apply(rows, weight.detach(), ones.index.flatten(0, -2), ones.size)
    if weight.requires_grad and torch.is_grad_enabled():
        # A node of its own for each gradient: a backward pass for inputs alone, or for weights alone, forms no other.
        y = y + _WeightGradient.apply(weight, rows.detach())
    return y.unflatten(0, x.shape[:-1])


class _LookUp(torch.autograd.Function):
    """y = x W^T with the gradient dx = dy W."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(weight)
        y = F.embedding_bag(index, weight[:, :size].t().contiguous(), mode="sum")
        return y if size == x.shape[-1] else torch.addmm(y, x[:, size:], weight[:, size:].t())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight, None, None, None


class _WeightGradient(torch.autograd.Function):
    """Zero, (rows, out), with the gradient of x W^T for the weight, dW = dy^T x."""

    @staticmethod
    def forward(ctx, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_zeros(()).expand(len(x), len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad.t() @ x, None
