"""Linear products at the steps of a recurrence, whose weights get their gradients once for all steps."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layers import product_dtype


class StepProducts:
    """The products x_t W^T + s_t of a recurrence with steps t = 0 ... T - 1, where the shares s_t are known beforehand.

    A step computes with constant weights. What it adds, s_t, has the product's gradient g_t, so that after the last step has been
    differentiated the weight's gradient is a single product: dW = sum_t g_t^T x_t (once: it cannot be differentiated again). Left
    to autograd, every step would form a gradient of its own from a handful of rows and add it to the sum, which reads and writes
    the whole weight T times; and with autocast every step would keep its own cast copy of the weight until then.

    Args:
        weights: (out, in) by name.
        shares: (T, B, out) by name, or (out,) where all steps have the same.
        steps, batch: T and B.
    """

    def __init__(self, weights: dict[str, Tensor], shares: dict[str, Tensor], steps: int, batch: int):
        self._inputs = {name: [] for name in weights}
        self._constants = {name: weight.detach().to(product_dtype(weight)).t() for name, weight in weights.items()}
        self._shares = {}
        for name, weight in weights.items():
            share = shares[name].to(product_dtype(weight)).expand(steps, batch, len(weight))
            self._shares[name] = _Deferred.apply(share, weight, self._inputs[name]).unbind(0)

    def at(self, t: int) -> dict[str, tuple[Tensor, Tensor]]:
        """What the products of step t need by name: the share (B, out) and the constant weight (in, out)."""
        return {name: (shares[t], self._constants[name]) for name, shares in self._shares.items()}

    def record(self, inputs: dict[str, Tensor]) -> None:
        """Takes the inputs (B, in) that a step's products had; every step must be recorded, in order."""
        if torch.is_grad_enabled():
            for name, x in inputs.items():
                self._inputs[name].append(x.detach())


class _Deferred(torch.autograd.Function):
    """The shares of all steps, (T, B, out); in backward also the weight's gradient, from the inputs recorded by then."""

    @staticmethod
    def forward(ctx, share: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return share.view_as(share)

    @staticmethod
    @once_differentiable  # the recorded inputs are constants
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight_grad = None
        if ctx.needs_input_grad[1]:
            inputs = torch.cat(ctx.inputs).to(grad.dtype)  # (T B, in)
            weight_grad = (grad.flatten(0, 1).t() @ inputs).to(ctx.dtype)
        return grad, weight_grad, None
