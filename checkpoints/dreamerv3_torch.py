"""Checkpoints of dreamerv3-torch: read into this program's names, and written so that it can read them.

It stores the same tensors under the same names, but modules that several attributes share are stored once for each of them,
modules that were compiled have `_orig_mod` in their names, and optimizers go by the path on which they were found.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from console import first

# The parameters that an optimizer trains, by the last attributes of its name; they lie below the module that owns it.
TRAINS = {"_model_opt._opt": "", "_actor_opt._opt": "actor.", "_value_opt._opt": "value.", "_expl_opt._opt": "_networks."}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of every parameter
# What an Adam optimizer there stores beside learning rate, epsilon and parameters.
ADAM = {
    "betas": (0.9, 0.999),
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
}

Moments = dict[str, dict[str, Tensor]]  # parameter name -> step, exp_avg, exp_avg_sq


class Stored(NamedTuple):
    """What a checkpoint of either program holds, in this program's names.

    Attributes:
        origin: the program that wrote it.
        weights: tensors by name, each once.
        optimizers: the state of every optimizer by its name; None if they were not given.
        levels: (latents, classes) of each level, where the file says so.
        ignored: what was left out, and why.
    """

    origin: str
    weights: dict[str, Tensor]
    optimizers: dict[str, dict] | None
    levels: list[tuple[int, int]] | None
    ignored: list[str]


def read(state_dict: dict, optimizers: dict | None = None) -> Stored:
    """Brings `agent_state_dict` and `optims_state_dict` of a checkpoint into this program's names.

    What is float32 on the CPU already is not copied.

    Raises:
        ValueError: if they do not hold what an agent's checkpoint holds.
    """
    _check_is_state_dict(state_dict)
    weights = {name.replace("_orig_mod.", ""): _plain(tensor) for name, tensor in state_dict.items()}
    aliases = _aliases(weights)
    origin, ignored = "hDreamer", []
    if aliases:
        origin = "dreamerv3-torch" + (", saved from compiled modules" if set(state_dict) - set(weights) else "")
        other = sum(not torch.equal(weights[name], weights[original]) for name, original in aliases.items())
        ignored.append(
            f"{len(aliases)} tensors that are stored again under another name"
            + (f", of which {other} differ from the first" if other else "")
        )
    weights = {name: tensor for name, tensor in weights.items() if name not in aliases}
    if optimizers is not None:
        optimizers = _current_names(optimizers)
        ignored.append("learning rates and other settings of the optimizers: those of this run hold")
    return Stored(origin, weights, optimizers, _noted_levels(state_dict), ignored)


def _noted_levels(state_dict: dict) -> list[tuple[int, int]] | None:
    """The sizes of the latents that this program leaves in a state dict's metadata."""
    try:
        levels = [(int(stoch), int(discrete)) for stoch, discrete in state_dict._metadata["_wm.dynamics"]["levels"]]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return None  # from another program, or copied into a plain dict
    return levels if levels and all(stoch > 0 and discrete >= 0 for stoch, discrete in levels) else None


def _check_is_state_dict(state_dict: dict) -> None:
    if not isinstance(state_dict, dict):
        raise ValueError(f"an agent's weights are a dict of tensors by name; this is of type {type(state_dict).__name__}")
    if "agent_state_dict" in state_dict:
        raise ValueError("this is a whole checkpoint; its weights are the entry 'agent_state_dict'")
    others = [str(name) for name, tensor in state_dict.items() if not isinstance(name, str) or not _is_plain(tensor)]
    if others:
        raise ValueError(f"an agent's weights are a dict of tensors of floats by name; this one has other entries: {first(others)}")


def _is_plain(value) -> bool:
    """Whether this is an ordinary tensor of floats."""
    return (
        torch.is_tensor(value)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and not value.is_meta
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _aliases(names) -> dict[str, str]:
    """The names under which a module's tensors are stored once more, each with the first name."""
    explores = any(name.startswith("_expl_behavior._networks.") for name in names)
    modules = {
        "_task_behavior._world_model.": "_wm.",
        "_expl_behavior._world_model.": "_wm.",
        "_expl_behavior._behavior._world_model.": "_wm.",
    }
    modules |= {"_expl_behavior.actor.": "_expl_behavior._behavior.actor."} if explores else {"_expl_behavior.": "_task_behavior."}
    aliases = {}
    for name in names:
        for alias, original in modules.items():
            if name.startswith(alias) and original + name[len(alias) :] in names:
                aliases[name] = original + name[len(alias) :]
                break
    return aliases


def trained(optimizer: str, names) -> list[str]:
    """Those of the names that an optimizer trains, in its order; empty if the optimizer is unknown."""
    for attributes, module in TRAINS.items():
        if optimizer.endswith(f".{attributes}"):
            return [name for name in names if name.startswith(optimizer.removesuffix(attributes) + module)]
    return []


def _current_names(stored: dict) -> dict[str, dict]:
    """Optimizers without what compilation adds to the path on which they were found."""
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise ValueError("the checkpoint's optimizers are no dict of states by name")
    return {".".join(part for part in name.split(".") if part not in ("forward", "_orig_mod")): state for name, state in stored.items()}


def moments(optimizer: str, stored: Stored) -> Moments:
    """Adam's moments by parameter name; the file numbers them in the order of the weights.

    Raises:
        ValueError: if they are missing or do not fit the weights.
    """
    if optimizer not in stored.optimizers:
        raise ValueError(f"the checkpoint lacks the state of the optimizer {optimizer}; it has {first(list(stored.optimizers)) or 'none'}")
    weights, names = stored.weights, trained(optimizer, stored.weights)
    try:
        groups, state = stored.optimizers[optimizer]["param_groups"], stored.optimizers[optimizer]["state"]
        order = [number for group in groups for number in group["params"]]
        if len(set(order)) != len(names) or not state.keys() <= set(order):
            raise ValueError(
                f"the optimizer {optimizer} numbers {len(set(order))} parameters and keeps moments of {len(state)}, "
                f"the weights have {len(names)}"
            )
        by_name = {name: state[number] for name, number in zip(names, order) if number in state}
        for name, slots in by_name.items():
            kept = list(map(str, slots)) if isinstance(slots, dict) else [type(slots).__name__]
            if set(kept) != set(MOMENTS):
                raise ValueError(
                    f"the optimizer {optimizer} is not Adam: of {name} it keeps {first(kept)}, not {', '.join(MOMENTS)}; "
                    "load the weights alone"
                )
            for key in MOMENTS:
                shape = () if key == "step" else weights[name].shape
                if not _is_plain(slots[key]) or slots[key].shape != shape:
                    raise ValueError(f"the optimizer {optimizer} has a {key} of {name} that does not fit its shape")
                if key != "exp_avg" and (slots[key] < 0).any():
                    raise ValueError(f"the optimizer {optimizer} has a negative {key} of {name}, which cannot be")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the state of the optimizer {optimizer} is incomplete ({type(error).__name__}: {error})") from error
    return {name: {key: _plain(slots[key]) for key in MOMENTS} for name, slots in by_name.items()}


def export(checkpoint: dict, compiled: bool = False) -> dict:
    """A flat agent's checkpoint as dreamerv3-torch writes it.

    Args:
        checkpoint: as in latest.pt or from `Dreamer.checkpoint`; or one of dreamerv3-torch, to change `compiled`.
        compiled: as saved by a run with its setting `compile: True`, which is its default; it reads a file only if this agrees.
    Returns:
        "agent_state_dict" and "optims_state_dict"; tensors on the CPU, shared where the same one has several names.
    Raises:
        ValueError: if the agent has two latent levels, or something is missing.
    """
    stored, config = read(checkpoint["agent_state_dict"], checkpoint["optims_state_dict"]), checkpoint.get("config") or {}
    for optimizer in stored.optimizers:
        moments(optimizer, stored)  # refuses what is incomplete
    weights = {
        name: tensor.contiguous()
        for name, tensor in stored.weights.items()
        if config.get("reward_EMA", True) or not name.endswith(".ema_vals")
    }  # registered there only if it is used
    if any("._top_summary." in name for name in weights):
        raise ValueError("the agent has two latent levels, which dreamerv3-torch does not know; only flat agents can be exported")
    wrapped = "_orig_mod." if compiled else ""

    def module(name: str, prefix: str) -> dict[str, Tensor]:
        """A module's tensors under another name."""
        return {prefix + key[len(name) :]: tensor for key, tensor in weights.items() if key.startswith(name)}

    def behavior(name: str, prefix: str, world_model: str) -> dict[str, Tensor]:
        """A behavior as it lies there: the range of returns, the world model again, actor, critic, slow critic."""
        own = module(name, prefix)
        range_of_returns = {key: tensor for key, tensor in own.items() if key == f"{prefix}ema_vals"}
        return range_of_returns | module("_wm.", prefix + world_model) | own

    state = module("_wm.", f"_wm.{wrapped}")
    state |= behavior("_task_behavior.", f"_task_behavior.{wrapped}", "_world_model.")
    if any(name.startswith("_expl_behavior.") for name in weights):
        explorer = "_expl_behavior._behavior."
        state |= behavior(explorer, explorer, f"_world_model.{wrapped}")
        state |= module(f"{explorer}actor.", "_expl_behavior.actor.")
        state |= module("_expl_behavior._networks.", "_expl_behavior._networks.")
    elif config.get("expl_behavior") != "random":
        state |= behavior("_task_behavior.", f"_expl_behavior.{wrapped}", "_world_model.")
    optimizers = {}
    for name, optimizer in stored.optimizers.items():
        wraps = compiled and name.startswith(("_wm.", "_task_behavior."))
        optimizers[name.replace(".", ".forward.", 1) if wraps else name] = _adam(optimizer)
    return {"agent_state_dict": state, "optims_state_dict": optimizers}


def _adam(optimizer: dict) -> dict:
    (group,) = optimizer["param_groups"]
    own = {"lr": group["lr"], **ADAM, "eps": group["eps"], "params": list(group["params"])}
    state = {number: {key: slots[key].detach().cpu().contiguous() for key in MOMENTS} for number, slots in optimizer["state"].items()}
    return {"state": state, "param_groups": [own]}
