"""The optimizer of world model, actor, critic and ensemble."""

import torch
from torch import Tensor, nn

Metrics = dict[str, Tensor]  # scalars by name


class Optimizer:
    """Adam with gradient norm clipping, for a given set of parameters.

    A step with a non-finite loss or gradient norm is skipped and counted: parameters and moments stay unchanged.

    Args:
        name: prefix of the metrics.
        params: the parameters to train.
        lr: learning rate.
        eps: Adam's epsilon.
        clip: largest global gradient norm.
        weight_decay: decoupled weight decay, scaled by the learning rate as in AdamW.
    Attributes:
        skipped_in_a_row: consecutive skipped steps up to now, a scalar tensor.
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
        """Takes one step on a scalar loss. Only this optimizer's parameters receive gradients.

        Args:
            loss: scalar.
            retain_graph: whether a later backward pass needs the graph again.
        Returns:
            scalar metrics: loss, gradient norm before clipping, and 1 if the step was skipped, else 0.
        """
        self._opt.zero_grad(set_to_none=True)
        loss.backward(inputs=self._params, retain_graph=retain_graph)
        norm = nn.utils.clip_grad_norm_(self._params, self._clip)
        skip = (~(loss.detach().isfinite() & norm.isfinite())).float()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1.0) * skip
        self._step_unless(skip)
        self._opt.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
        return {f"{self._name}_loss": loss.detach(), f"{self._name}_grad_norm": norm.detach(), f"{self._name}_skipped": skip}

    def _step_unless(self, skip: Tensor) -> None:
        if self._fused:  # the kernel reads `found_inf` itself, as with `torch.amp.GradScaler`: no GPU sync
            self._opt.found_inf = skip
            self._opt.step()
        elif not skip:
            self._opt.step()

    def state_dict(self) -> dict:
        """State of the wrapped `torch.optim.AdamW`."""
        return self._opt.state_dict()

    def load_moments(self, moments: list[dict[str, Tensor] | None]) -> None:
        """Loads copies of step counts and moments. Learning rate, epsilon and weight decay keep their present values.

        Args:
            moments: for each parameter, in order, its entry of AdamW's state (`step`, `exp_avg`, `exp_avg_sq`); None
                starts from zero.
        """
        state = {}
        for number, (parameter, slots) in enumerate(zip(self._params, moments, strict=True)):
            if slots is not None:
                # The fused step needs moments with the same memory layout as the parameter.
                state[number] = {
                    key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value) for key, value in slots.items()
                }
        self._opt.load_state_dict({"state": state, "param_groups": self._opt.state_dict()["param_groups"]})
