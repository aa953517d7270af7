"""The optimizers: Adam for world model, actor and critic each (2023), or LaProp for all of them (2025)."""

import abc
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from scale import ranks

Metrics = dict[str, Tensor]  # scalars by name


class Optimizer(abc.ABC):
    """Takes steps on losses. A step with a non-finite loss or gradient norm is skipped and counted.

    A skipped step leaves parameters and moments unchanged. Subclasses clip the gradients.

    Args:
        name: prefix of the metrics.
        params: the parameters to train.
        opt: the optimizer of these parameters.
    Attributes:
        skipped_in_a_row: consecutive skipped steps up to now, a scalar tensor.
    """

    def __init__(self, name: str, params: list[Tensor], opt: torch.optim.Optimizer):
        self._name, self._params, self._opt = name, params, opt
        self.skipped_in_a_row = torch.zeros((), device=params[0].device)

    def step(self, loss: Tensor, retain_graph: bool = False) -> Metrics:
        """Takes one step on a scalar loss. Only this optimizer's parameters receive gradients, which ranks average.

        Args:
            loss: scalar.
            retain_graph: whether a later backward pass needs the graph again.
        Returns:
            scalar metrics: loss, gradient norm before clipping, and 1 if the step was skipped, else 0.
        """
        self._opt.zero_grad(set_to_none=True)
        loss.backward(inputs=self._params, retain_graph=retain_graph)
        loss = loss.detach().clone()
        ranks.average_([loss, *(parameter.grad for parameter in self._params if parameter.grad is not None)])
        norm = self._clipped_norm()
        skip = (~(loss.isfinite() & norm.isfinite())).float()
        self.skipped_in_a_row.add_(1.0).mul_(skip)  # in place, since a CUDA graph counts on
        self._step_unless(skip)
        self._opt.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
        return {f"{self._name}_loss": loss, f"{self._name}_grad_norm": norm.detach(), f"{self._name}_skipped": skip}

    @abc.abstractmethod
    def _clipped_norm(self) -> Tensor:
        """Clips the gradients; returns their norm before."""

    @abc.abstractmethod
    def _step_unless(self, skip: Tensor) -> None:
        """Takes the step, unless the scalar `skip` is 1."""

    @property
    def state(self) -> dict:
        """Step counts and moments by parameter; another object once some were loaded."""
        return self._opt.state

    def state_dict(self) -> dict:
        """State of the wrapped `torch.optim` optimizer."""
        return self._opt.state_dict()

    def load_moments(self, moments: list[dict[str, Tensor] | None]) -> None:
        """Loads copies of step counts and moments. Learning rate, epsilon and weight decay keep their present values.

        Args:
            moments: for each parameter, in order, its entry of the optimizer's state (`step`, `exp_avg`, `exp_avg_sq`);
                None starts from zero.
        """
        state = {}
        for number, (parameter, slots) in enumerate(zip(self._params, moments, strict=True)):
            if slots is not None:
                # The fused step needs moments with the same memory layout as the parameter.
                state[number] = {
                    key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value) for key, value in slots.items()
                }
        self._opt.load_state_dict({"state": state, "param_groups": self._opt.state_dict()["param_groups"]})


class AdamOptimizer(Optimizer):
    """Adam with gradient norm clipping.

    Args:
        name, params: as in `Optimizer`.
        lr: learning rate.
        eps: Adam's epsilon.
        clip: largest global gradient norm.
        weight_decay: decoupled weight decay, scaled by the learning rate as in AdamW.
    """

    def __init__(self, name: str, params: Iterable[Tensor], *, lr: float, eps: float, clip: float, weight_decay: float = 0.0):
        params = list(params)
        device = params[0].device.type
        self._clip, self._fused = clip, device in ("cpu", "cuda", "meta")  # where PyTorch has a kernel that can skip a step
        # In a CUDA graph the step counts must be on the GPU, where the fused kernel has them anyway; `capturable` says so.
        options = dict(lr=lr, eps=eps, weight_decay=weight_decay, fused=self._fused, capturable=device == "cuda")
        super().__init__(name, params, torch.optim.AdamW(params, **options))

    def _clipped_norm(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self._params, self._clip)

    def _step_unless(self, skip: Tensor) -> None:
        if self._fused:  # the kernel reads `found_inf` itself, as with `torch.amp.GradScaler`: no GPU sync
            self._opt.found_inf = skip
            self._opt.step()
        elif not skip:
            self._opt.step()


class LaPropOptimizer(Optimizer):
    """LaProp with adaptive gradient clipping, see `LaProp`.

    Args:
        name, params: as in `Optimizer`.
        config: the settings; `model_lr`, `opt_eps`, `agc`, `warmup` and `weight_decay` are read.
        shared: lists of parameters that are clipped as if each list were one tensor.
    """

    def __init__(self, name: str, params: Iterable[Tensor], config, shared: Iterable[list[Tensor]] = ()):
        params = list(params)
        options = dict(lr=config.model_lr, eps=config.opt_eps, agc=config.agc, warmup=config.warmup, weight_decay=config.weight_decay)
        super().__init__(name, params, LaProp(params, **options))
        self._groups = clipping_groups(params, shared)

    def _clipped_norm(self) -> Tensor:
        for parameter in self._params:
            if parameter.grad is None:  # the loss does not depend on it
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self._params])
        self._opt.clip(self._groups)
        return norm

    def _step_unless(self, skip: Tensor) -> None:
        self._opt.step(skip)


def clipping_groups(params: list[Tensor], shared: Iterable[list[Tensor]]) -> Tensor:
    """The group of each parameter: its own number, or that of the first parameter in its list of `shared`."""
    numbers = {id(parameter): number for number, parameter in enumerate(params)}
    groups = list(range(len(params)))
    for first, *others in shared:
        for other in others:
            groups[numbers[id(other)]] = numbers[id(first)]
    return torch.tensor(groups, device=params[0].device)


class LaProp(torch.optim.Optimizer):
    """RMSProp whose momentum averages the scaled gradients (Ziyin et al. 2020), after adaptive gradient clipping.

    With g the clipped gradient and t the number of steps, this one included:

        nu = 0.999 nu + 0.001 g^2
        mu = 0.9 mu + 0.1 g / (sqrt(nu / (1 - 0.999^t)) + eps)
        parameter -= lr min(1, (t - 1) / warmup) mu / (1 - 0.9^t)

    Moments have Adam's names: mu is `exp_avg`, nu `exp_avg_sq`. All arithmetic stays on the parameters' device.

    Args:
        params: the parameters to train.
        lr: learning rate.
        eps: added to the root mean square.
        agc: largest ratio of gradient norm to parameter norm (at least 1e-3) of a tensor; 0 clips nothing.
        warmup: steps over which the learning rate grows from 0.
        weight_decay: decoupled weight decay, scaled by the learning rate.
    """

    BETAS = (0.9, 0.999)
    SMALLEST_NORM = 1e-3

    def __init__(self, params, lr: float, eps: float, agc: float = 0.0, warmup: int = 0, weight_decay: float = 0.0):
        # With `capturable`, PyTorch loads step counts onto the parameters' device.
        super().__init__(params, dict(lr=lr, eps=eps, agc=agc, warmup=warmup, weight_decay=weight_decay, capturable=True))

    @torch.no_grad()
    def clip(self, groups: Tensor) -> None:
        """Adaptive gradient clipping (Brock et al. 2021), per group of tensors instead of per unit.

        Args:
            groups: group of each parameter, (number of parameters,).
        """
        (options,) = self.param_groups
        if not options["agc"]:
            return

        def norms(tensors: list[Tensor]) -> Tensor:
            squares = torch.stack(torch._foreach_norm(tensors)).square()
            return torch.zeros_like(squares).index_add(0, groups, squares)[groups].sqrt()

        grads = [p.grad for p in options["params"]]
        limit = options["agc"] * norms(options["params"]).clamp(min=self.SMALLEST_NORM)
        torch._foreach_mul_(grads, (1.0 / (norms(grads) / limit).clamp(min=1.0)).unbind())

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """Takes a step; changes nothing if the scalar `skip` is 1."""
        (options,) = self.param_groups
        params = options["params"]
        keep = torch.ones((), device=params[0].device) if skip is None else 1.0 - skip
        grads = [torch.where(keep > 0.0, p.grad, 0.0) for p in params]
        states = [self._state_of(p) for p in params]
        steps, mu, nu = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, keep, alpha=1.0)  # without alpha PyTorch reads the number, a GPU sync
        counts = torch.stack(steps)
        decay1, decay2 = (1.0 - keep * (1.0 - beta) for beta in self.BETAS)
        correction1, correction2 = ((1.0 - beta**counts).clamp(min=1.0 - beta) for beta in self.BETAS)

        torch._foreach_mul_(nu, decay2)
        torch._foreach_addcmul_(nu, grads, grads, value=1.0 - self.BETAS[1])
        scale = torch._foreach_div(nu, correction2.unbind())
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, options["eps"])
        torch._foreach_mul_(mu, decay1)
        torch._foreach_addcdiv_(mu, grads, scale, value=1.0 - self.BETAS[0])
        warmth = ((counts - 1.0) / options["warmup"]).clamp(max=1.0) if options["warmup"] else torch.ones_like(counts)
        rate = keep * options["lr"] * warmth  # (number of parameters,)
        if options["weight_decay"]:
            torch._foreach_mul_(params, (1.0 - options["weight_decay"] * rate).unbind())
        torch._foreach_sub_(params, torch._foreach_mul(mu, (rate / correction1).unbind()))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, which begins with zeros."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state
