"""The optimizer."""

import torch
from torch import Tensor, nn

Metrics = dict[str, Tensor]  # scalars by name


class Optimizer:
    """Adam with clipping of the global gradient norm, on the parameters that it is given and on no others.

    A step whose loss or gradient is not finite changes nothing but is counted.

    Args:
        name: prefix of the metrics.
        params: the parameters to train.
        lr, eps, clip, weight_decay: learning rate, Adam's epsilon, largest gradient norm, decoupled decay per unit of learning rate.
    Attributes:
        skipped_in_a_row: how many steps have been skipped since the last one that was not; a scalar tensor.
    """

    def __init__(self, name: str, params, *, lr: float, eps: float, clip: float, weight_decay: float = 0.0):
        self._name = name
        self._params = list(params)
        self._clip = clip
        device = self._params[0].device.type
        self._fused = device in ("cpu", "cuda")
        self._opt = torch.optim.AdamW(self._params, lr=lr, eps=eps, weight_decay=weight_decay, fused=self._fused)
        self.skipped_in_a_row = torch.zeros((), device=self._params[0].device)

    def step(self, loss: Tensor, retain_graph: bool = False) -> Metrics:
        """Descends a scalar loss; gradients are formed for this optimizer's parameters alone."""
        self._opt.zero_grad(set_to_none=True)
        loss.backward(inputs=self._params, retain_graph=retain_graph)
        norm = nn.utils.clip_grad_norm_(self._params, self._clip)
        skip = (~(loss.detach().isfinite() & norm.isfinite())).float()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1.0) * skip
        self._step_unless(skip)
        self._opt.zero_grad(set_to_none=True)  # nothing reads gradients until the next step, and they are as large as the weights
        return {f"{self._name}_loss": loss.detach(), f"{self._name}_grad_norm": norm.detach(), f"{self._name}_skipped": skip}

    def _step_unless(self, skip: Tensor) -> None:
        if self._fused:  # the kernel itself looks, as for `torch.amp.GradScaler`, so that nothing waits for a GPU
            self._opt.found_inf = skip
            self._opt.step()
        elif not skip:
            self._opt.step()

    def state_dict(self) -> dict:
        return self._opt.state_dict()

    def load_moments(self, moments: list[dict[str, Tensor] | None]) -> None:
        """Takes up copies of step count and moments of every parameter, None for those that have none yet.

        Learning rate, epsilon and decay stay as they were given to this optimizer.
        """
        state = {}
        for number, (parameter, slots) in enumerate(zip(self._params, moments, strict=True)):
            if slots is not None:
                # The fused step walks through parameter and moments in the order of memory, which must be the same.
                state[number] = {
                    key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value) for key, value in slots.items()
                }
        self._opt.load_state_dict({"state": state, "param_groups": self._opt.state_dict()["param_groups"]})
