"""The checkpoint format of dreamerv3-torch: reading and writing.

Tensors have the same names there, with three differences. A module that several attributes share is stored once per attribute.
Names of compiled modules contain `_orig_mod`. Optimizers are named after the attribute path on which they were found.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from console import first
from settings.files import flatten

# Which parameters an Adam trains, by the last attributes of its name: those below this child of the module that owns it.
TRAINS = {"_model_opt._opt": "", "_actor_opt._opt": "actor.", "_value_opt._opt": "value.", "_expl_opt._opt": "_networks."}
# Which parameters a LaProp trains, by its name: those whose names begin so, in this order.
LAPROP = {
    "_opt": ("_wm.", "_task_behavior.actor.", "_task_behavior.value."),
    "_expl_behavior._opt": ("_expl_behavior._networks.", "_expl_behavior._behavior.actor.", "_expl_behavior._behavior.value."),
}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # state of a parameter, in Adam and in LaProp
# The entries of an Adam parameter group besides learning rate, epsilon and parameters, as dreamerv3-torch stores them.
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
# Settings of this program of which dreamerv3-torch knows only some values.
NORMS, DISTS = ("layer", "none", True, False), ("symlog_disc", "symlog_mse", "mse", "normal")
KNOWN = {
    "optimizer": ("adam",),
    "dyn_core": ("gru",),
    "dyn_img_layers": (1,),
    "dyn_obs_layers": (1,),
    "norm": NORMS,
    "encoder.norm": NORMS,
    "encoder.cnn": ("strided",),
    "encoder.symlog_inputs": ("all", "none", True, False),
    "decoder.norm": NORMS,
    "decoder.cnn": ("strided",),
    "decoder.vector_dist": ("symlog_mse", "mse", "normal", "binary"),
    "reward_head.dist": DISTS,
    "critic.dist": DISTS,
    "cont_head.discounted": (False,),
}

Moments = dict[str, dict[str, Tensor]]  # parameter name -> step, exp_avg, exp_avg_sq


class Stored(NamedTuple):
    """The content of a checkpoint of either program, under this program's names.

    Attributes:
        origin: the program that wrote it.
        weights: tensors by name, each once.
        optimizers: the state of every optimizer by its name; None if none were given.
        levels: (latents, classes) of each level, if the file stores them.
        ignored: what was left out, and why.
        settings: the settings that the file stores, nested, none in a file of dreamerv3-torch; None if only weights were given.
    """

    origin: str
    weights: dict[str, Tensor]
    optimizers: dict[str, dict] | None
    levels: list[tuple[int, int]] | None
    ignored: list[str]
    settings: dict | None


def read(state_dict: dict, optimizers: dict | None = None, settings: dict | None = None) -> Stored:
    """Renames the entries of `agent_state_dict` and `optims_state_dict` to this program's names.

    Tensors that are float32 on the CPU are not copied.

    Args:
        settings: as in `Stored`.
    Raises:
        ValueError: if they are not the weights and optimizers of an agent.
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
    return Stored(origin, weights, optimizers, _noted_levels(state_dict), ignored, settings)


def _noted_levels(state_dict: dict) -> list[tuple[int, int]] | None:
    """Sizes of the latents from a state dict's metadata, where this program stores them."""
    try:
        levels = [(int(stoch), int(discrete)) for stoch, discrete in state_dict._metadata["_wm.dynamics"]["levels"]]
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return None  # written by another program, or copied into a plain dict
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
    """Whether this is a dense tensor of floats with data."""
    return (
        torch.is_tensor(value)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout == torch.strided
        and not value.is_meta
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def _aliases(names) -> dict[str, str]:
    """Maps the names of tensors that are stored again under another attribute to their first names."""
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
    """Returns the parameters among `names` that an optimizer trains, in its order; an empty list for an unknown optimizer."""
    of_adam = [(optimizer.removesuffix(end) + module,) for end, module in TRAINS.items() if optimizer.endswith(f".{end}")]
    prefixes = LAPROP.get(optimizer) or next(iter(of_adam), ())
    return [name for prefix in prefixes for name in names if name.startswith(prefix)]


def _current_names(stored: dict) -> dict[str, dict]:
    """Renames optimizers: drops what compilation adds to their attribute paths."""
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise ValueError("the checkpoint's optimizers are not a dict of states by name")
    return {".".join(part for part in name.split(".") if part not in ("forward", "_orig_mod")): state for name, state in stored.items()}


def moments(optimizer: str, stored: Stored) -> Moments:
    """Returns an optimizer's moments by parameter name. The file numbers parameters in the order of `trained`.

    Raises:
        ValueError: if moments are missing or do not fit the weights.
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
                    f"the optimizer {optimizer} is not {'LaProp' if optimizer in LAPROP else 'Adam'}: of {name} it keeps {first(kept)}, "
                    f"not {', '.join(MOMENTS)}; load the weights alone"
                )
            for key in MOMENTS:
                shape = () if key == "step" else weights[name].shape
                if not _is_plain(slots[key]) or slots[key].shape != shape:
                    raise ValueError(f"the optimizer {optimizer} has a {key} of {name} that does not fit its shape")
                if key != "exp_avg" and (slots[key] < 0).any():
                    raise ValueError(f"the optimizer {optimizer} has a negative {key} of {name}, which is impossible")
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the state of the optimizer {optimizer} is incomplete ({type(error).__name__}: {error})") from error
    return {name: {key: _plain(slots[key]) for key in MOMENTS} for name, slots in by_name.items()}


def export(checkpoint: dict, compiled: bool = False) -> dict:
    """Converts a flat agent's checkpoint to the format of dreamerv3-torch.

    Args:
        checkpoint: from latest.pt or `Dreamer.checkpoint`; or one of dreamerv3-torch, to change `compiled`.
        compiled: use the names of a run of dreamerv3-torch with `compile: True`, its default. A run reads only a file whose names match.
    Returns:
        "agent_state_dict" and "optims_state_dict"; tensors are on the CPU, and the same object under all names of a shared module.
    Raises:
        ValueError: if dreamerv3-torch does not know such an agent (two latent levels, or settings of 2025), or entries are missing.
    """
    stored, config = read(checkpoint["agent_state_dict"], checkpoint["optims_state_dict"]), checkpoint.get("config") or {}
    unknown = [f"{name} {value}" for name, value in flatten(config).items() if value not in KNOWN.get(name, [value])]
    if unknown:
        raise ValueError(f"dreamerv3-torch does not know {first(unknown)}; only agents with the settings of 2023 can be exported")
    for optimizer in stored.optimizers:
        moments(optimizer, stored)  # raises if something is missing
    weights = {
        name: tensor.contiguous()
        for name, tensor in stored.weights.items()
        if config.get("reward_EMA", True) or not name.endswith(".ema_vals")
    }  # dreamerv3-torch has this buffer only if it normalises returns
    if any("._top_summary." in name for name in weights):
        raise ValueError("the agent has two latent levels, which dreamerv3-torch does not know; only flat agents can be exported")
    wrapped = "_orig_mod." if compiled else ""

    def module(name: str, prefix: str) -> dict[str, Tensor]:
        """The tensors of a module under another prefix."""
        return {prefix + key[len(name) :]: tensor for key, tensor in weights.items() if key.startswith(name)}

    def behavior(name: str, prefix: str, world_model: str) -> dict[str, Tensor]:
        """A behavior in the order of dreamerv3-torch: range of returns, the world model again, actor, critic, slow critic."""
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
