"""Takes up weights and optimizer states from a checkpoint: what it holds, whether it fits, and what is done with it."""

import collections
import re

import torch
from torch import nn

import models
import settings
from checkpoints import dreamerv3_torch
from console import first, warn


def load_into(agent: nn.Module, state_dict: dict, optimizers: dict | None = None) -> dict[str, str]:
    """Takes up weights, and optimizer states if they are given; those of a flat agent are converted for one with two levels.

    Everything is checked and converted before anything changes.

    Args:
        agent: a `Dreamer`.
        state_dict, optimizers: the entries "agent_state_dict" and "optims_state_dict" of a checkpoint of either program.
    Returns:
        what was found and what was done with it, texts by topic.
    Raises:
        ValueError: if something does not fit.
    """
    stored = dreamerv3_torch.read(state_dict, optimizers)
    levels = latent_sizes(stored, agent._config)
    sources = find_sources(agent, levels)
    weights, ignored = _without_explorer(agent, stored)
    own = agent.state_dict()
    for name in set(own) - set(weights):
        if name.endswith(".ema_vals"):  # only stored where returns are normalised
            weights[name] = torch.zeros(2)
    check_fits({source.name: source.stored_shape(own[name].shape) for name, source in sources.items() if source}, weights)
    check_finite(weights)
    moments = _moments(agent, stored, sources) if optimizers is not None else {}

    is_copy = all(source is not None and source.index is None for source in sources.values())
    new = {} if is_copy else models.quiet_latents(agent, levels[0][0] * levels[0][1])
    nn.Module.load_state_dict(agent, models.convert_weights(sources, weights, new))
    for name, optimizer in agent.optimizers().items():
        if name in moments:
            optimizer.load_moments(moments[name])

    kinds = collections.Counter(source.kind if source else "new" for source in sources.values())
    report = {
        "format": f"{stored.origin}; latent of {_describe(levels)}",
        "weights": "tensors " + ", ".join(f"{kinds[kind]} {kind}" for kind in ("copied", "split", "widened", "new")),
        "optimizers": f"moments of {sum(slots is not None for state in moments.values() for slots in state)} tensors, after "
        f"{updates_of(agent):,} updates"
        if moments
        else "",
        "ignored": "; ".join(ignored),
    }
    return {topic: text for topic, text in report.items() if text}


def updates_of(agent: nn.Module) -> int:
    """How many updates an agent has seen, from the step counts that Adam keeps."""
    states = [slots for optimizer in agent.optimizers().values() for slots in optimizer.state_dict()["state"].values()]
    return max((int(slots["step"]) for slots in states), default=0)


def _without_explorer(agent: nn.Module, stored: dreamerv3_torch.Stored) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights without those of an explorer that the agent does not have, and what was ignored."""
    weights, ignored = stored.weights, list(stored.ignored)
    if agent._config.expl_behavior != "plan2explore":
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("_expl_behavior.")}
        if len(kept) < len(weights):
            ignored.append(
                f"{len(weights) - len(kept)} tensors of Plan2Explore, since this agent has expl_behavior {agent._config.expl_behavior}"
            )
        weights = kept
    return dict(weights), ignored


def _moments(agent: nn.Module, stored: dreamerv3_torch.Stored, sources: dict[str, models.Source | None]) -> dict[str, list]:
    """Adam's moments for the parameters of every optimizer of the agent, in its order."""
    parameters = [name for name, _ in agent.named_parameters()]
    moments = {}
    for optimizer in agent.optimizers():
        flat = dreamerv3_torch.moments(optimizer, stored)
        check_finite({f"{key} of {name}": tensor for name, slots in flat.items() for key, tensor in slots.items()})
        names = dreamerv3_torch.trained(optimizer, parameters)
        converted = models.convert_moments({name: sources[name] for name in names}, flat)
        moments[optimizer] = [converted.get(name) for name in names]
    return moments


def latent_sizes(stored: dreamerv3_torch.Stored, config) -> list[tuple[int, int]]:
    """(latents, classes) of every level that a checkpoint has; 0 classes for Gaussian latents, 1 where nothing tells.

    The tensors tell only the product of the two. So the classes come, in this order, from what the file says, from Adam's moments,
    or from the settings dyn_stoch and dyn_discrete if they have this product; if none of these tells, a flat checkpoint is taken
    to have the classes of the agent's top level.

    Raises:
        ValueError: if the tensors are none of an agent.
    """
    weights, prefix = stored.weights, "_wm.dynamics."
    needed = [f"{prefix}_img_in_layers.0.weight", f"{prefix}_obs_stat_layer.weight", "_task_behavior.actor.mean_layer.weight"]
    two_levels = f"{prefix}_top_summary.0.weight" in weights
    if two_levels:
        needed = [f"{prefix}_top_summary.0.weight", f"{prefix}_top_to_prior.weight"]
    missing = [name for name in needed if name not in weights or weights[name].ndim != 2 or not weights[name].numel()]
    if missing:
        raise ValueError(
            f"this holds no agent of hDreamer or dreamerv3-torch: {first(missing)} is missing. It has "
            f"{first(list(weights)) or 'no tensors'}"
        )
    if stored.levels:
        return stored.levels
    if two_levels:
        (top, top_entries), (bottom_entries, _) = weights[needed[0]].shape, weights[needed[1]].shape
        *_, (_, own) = settings.level_sizes(config).values()
        classes = _classes_from_moments(stored, f"{prefix}_obs_stat_layer.bottom.weight") or own or 1
        return [(top, top_entries // top), (bottom_entries // classes, classes)]
    inputs, statistics, actions = (weights[needed[0]].shape[1], weights[needed[1]].shape[0], weights[needed[2]].shape[0])
    entries = inputs - actions
    if statistics == 2 * entries:
        return [(entries, 0)]
    if statistics != entries or entries < 1:
        raise ValueError(
            f"this is damaged: its recurrence reads {inputs} numbers, which are not {statistics} latent entries and {actions} of an action"
        )
    classes = _classes_from_moments(stored, f"{prefix}_obs_stat_layer.weight")
    if classes is None:
        classes = _classes_from_settings(config, entries)
    return [(entries // classes, classes) if entries % classes == 0 else (entries, 1)]


def _classes_from_settings(config, entries: int) -> int:
    if config.dyn_stoch * config.dyn_discrete == entries:
        return config.dyn_discrete
    if not config.hierarchical_mode:
        return 1
    _, classes = settings.level_sizes(config)["top"]
    if entries % classes == 0:
        warn(
            f"the weights do not say how the {entries} entries of their latent are grouped, and dyn_stoch, dyn_discrete have another "
            f"product; they are taken for {entries // classes} categoricals of {classes} classes"
        )
    return classes


def _classes_from_moments(stored: dreamerv3_torch.Stored, name: str) -> int | None:
    """The class count K of a latent, from the first moment of its posterior's weights; None if that does not tell.

    A softmax does not change if all its logits grow alike, so the gradients of the K logits of a latent add up to zero, and so do
    their running means.
    """
    try:
        moments = dreamerv3_torch.moments("_wm._model_opt._opt", stored) if stored.optimizers else {}
    except ValueError:  # refused later
        return None
    if name not in moments:
        return None
    moment = moments[name]["exp_avg"].double()
    entries = len(moment)
    for classes in range(2, entries + 1):
        if entries % classes == 0:
            rest = moment.unflatten(0, (-1, classes)).sum(1).abs().sum()
            if rest < 0.01 * moment.abs().sum():  # rounding; other groupings leave a tenth and more
                return classes
    return None


def find_sources(agent: nn.Module, stored: list[tuple[int, int]]) -> dict[str, models.Source | None]:
    """The source of every tensor of an agent in a checkpoint, None for those that are new.

    Args:
        stored: (latents, classes) of the checkpoint's levels.
    Raises:
        ValueError: if its latents do not fit, with settings that would.
    """
    own = [(level.stoch, level.discrete) for level in agent._wm.dynamics.levels.values()]
    if own == stored:
        return {name: models.Source(name) for name in agent.state_dict()}
    told = f"the checkpoint's latent is {_describe(stored)}, this agent's {_describe(own)}"
    (slots, classes), *others = stored
    if others:
        raise ValueError(
            f"{told}; two levels load into the same two alone: hierarchical_mode true, dyn_stoch_top {slots}, "
            f"dyn_discrete_top {classes}, dyn_stoch_bottom {others[0][0]}, dyn_discrete_bottom {others[0][1]}"
        )
    if classes == 1:
        raise ValueError(f"{told}; set dyn_stoch and dyn_discrete to what it was trained with")
    if classes == 0 or len(own) == 1:
        raise ValueError(
            f"{told}; set hierarchical_mode false, dyn_stoch {slots}, dyn_discrete {classes}"
            + (", since two levels need categoricals" if classes == 0 and len(own) == 2 else "")
        )
    (top, top_classes), (bottom, bottom_classes) = own
    filled = [top_classes] + ([bottom_classes] if slots > top else [])
    if top + bottom < slots or set(filled) != {classes}:
        half = max(1, slots // 2)
        raise ValueError(
            f"{told}. A flat latent fills the slots [top, bottom] in order, so there must be at least {slots} of them, and "
            f"a level that it fills must have {classes} classes. It fits into dyn_stoch_top {half}, dyn_discrete_top "
            f"{classes}, dyn_stoch_bottom {max(1, slots - half)}, dyn_discrete_bottom {classes}, or into dyn_stoch_top "
            f"{slots}, dyn_discrete_top {classes} and a bottom of any size"
        )
    return models.flat_sources(agent, slots * classes)


def _describe(levels: list[tuple[int, int]]) -> str:
    names = {0: "{} Gaussians", 1: "{} entries (categoricals times classes)"}
    return " + ".join(names.get(classes, "{} categoricals of {} classes").format(slots, classes) for slots, classes in levels)


def check_fits(needed: dict[str, tuple[int, ...]], loaded: dict[str, torch.Tensor]) -> None:
    """Compares the tensors that an agent needs, shapes by name, with those of a checkpoint.

    Raises:
        ValueError: if names or shapes differ, with the first few that do.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    wrong = {name: f"{name} is missing" for name in needed if name not in loaded}
    wrong |= {name: f"{name} is unknown" for name in loaded if name not in needed}
    wrong |= {
        name: f"{name} has shape {shapes[name]}, not {shape}" for name, shape in needed.items() if name in loaded and shapes[name] != shape
    }
    if wrong:
        raise ValueError(
            f"the checkpoint does not fit this agent: {_why(wrong, needed, shapes)}{first(list(wrong.values()), '; ')}. "
            "Use the settings that it was trained with"
        )


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Looks for NaN and infinity.

    Raises:
        ValueError: with the names of the first few tensors that hold one.
    """
    not_finite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise ValueError(
            f"the checkpoint holds numbers that are not finite, in {first(not_finite)}; its training had failed, so use an earlier one"
        )


def _why(wrong, needed: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> str:
    """What the tensors that differ have in common, if it is one of the common reasons."""
    head = "_task_behavior.actor.mean_layer.weight"
    if head in wrong and head in needed and head in stored and needed[head][1:] == stored[head][1:]:
        return f"its actions have {stored[head][0]} entries, this task's {needed[head][0]}; "
    if ("_task_behavior.actor.std_layer.weight" in wrong) or (head in wrong and not (head in needed and head in stored)):
        return "its actions are of another kind than this task's; "
    if all(re.search(r"\.encoder\.|\.decoder\.|_obs_out_layers", name) for name in wrong):
        return "its observations are not this task's, or encoder and decoder have other sizes; "
    return ""
