"""Loads a checkpoint into an agent: whether it fits, which settings would make it fit, and the conversion to two levels."""

import collections
import copy
import re
import shlex
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from torch import nn

import models
import settings
from checkpoints import dreamerv3_torch, jax_original, sizes
from checkpoints.sizes import Levels, Shapes
from console import first, warn
from envs.spaces import OneHot, space_of
from settings.combinations import GENERATION, SIZE, size_preset
from settings.files import flatten, sections, show


class DoesNotFit(ValueError):
    """A checkpoint that does not fit an agent.

    Args:
        message: as for any error.
        flags: the flags with which it fits, as on a command line; empty if there are none.
        way_out: whether the message ends with what to do.
    """

    def __init__(self, message: str, flags: str = "", way_out: bool = False):
        super().__init__(message)
        self.flags, self.way_out = flags, way_out or bool(flags)


def load_into(agent: nn.Module, checkpoint: dict) -> dict[str, str]:
    """Loads weights, and optimizer states if there are any. Those of a flat agent are converted for an agent with two levels.

    The agent changes only after everything has been checked and converted.

    Args:
        agent: a `Dreamer`.
        checkpoint: of any program, or its entry "agent_state_dict" alone. With the entry "optims_state_dict", settings that decide what
            the weights mean are checked too.
    Returns:
        what the checkpoint holds and how it was loaded, texts by topic.
    Raises:
        DoesNotFit: if names or shapes differ; the message names every setting that differs.
        ValueError: if something else is wrong.
    """
    whole = "optims_state_dict" in checkpoint
    stored = sizes.read_checkpoint(checkpoint) if whole else dreamerv3_torch.read(checkpoint["agent_state_dict"])
    stored = _with_own_key(agent, stored)
    levels = _levels(stored, agent)
    sources = fitting_sources(agent, stored, levels)
    weights, ignored = _used_weights(agent, stored)
    check_finite(weights)
    published = checkpoint.get("weights_only") is True  # see checkpoints/publish.py
    moments = _moments(agent, stored, sources) if whole and not published else {}
    if sizes.latent_sizes(stored, agent._config) != levels:
        warn(
            f"the weights do not say how the entries of their latent are grouped, and dyn_stoch, dyn_discrete have another product; "
            f"they are taken for {_describe(levels)}"
        )

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
        else "new, since a published agent has weights alone" * published,
        "ignored": "; ".join(ignored),
        "notes": checkpoint.get("notes", ""),
    }
    return {topic: text for topic, text in report.items() if text}


def updates_of(agent: nn.Module) -> int:
    """Returns the number of updates that an agent has seen, from its optimizers' step counts."""
    states = [slots for optimizer in agent.optimizers().values() for slots in optimizer.state_dict()["state"].values()]
    return max((int(slots["step"]) for slots in states), default=0)


def _with_own_key(agent: nn.Module, stored: dreamerv3_torch.Stored) -> dreamerv3_torch.Stored:
    """Renames the only vector if it has no name in the agent's environment, see `sizes.is_nameless`."""
    keys = (sizes.vector_keys(tensors) for tensors in (agent.state_dict(), stored.weights))
    return sizes.rename_vector(stored, sizes.NAMELESS) if sizes.is_nameless(*keys) else stored


def _used_weights(agent: nn.Module, stored: dreamerv3_torch.Stored) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the weights without those of an explorer that the agent lacks, and what was ignored."""
    weights, ignored = dict(stored.weights), list(stored.ignored)
    if agent._config.expl_behavior != "plan2explore":
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("_expl_behavior.")}
        if len(kept) < len(weights):
            ignored.append(
                f"{len(weights) - len(kept)} tensors of Plan2Explore, since this agent has expl_behavior {agent._config.expl_behavior}"
            )
        weights = kept
    for name in agent.state_dict():
        if name.endswith(".ema_vals") and name not in weights:  # only stored where returns are normalised
            weights[name] = torch.zeros(2)
    return weights, ignored


def _moments(agent: nn.Module, stored: dreamerv3_torch.Stored, sources: dict[str, models.Source | None]) -> dict[str, list]:
    """Returns the moments for the parameters of every optimizer of the agent, in its order."""
    parameters = [name for name, _ in agent.named_parameters()]
    moments = {}
    for optimizer in agent.optimizers():
        flat = dreamerv3_torch.moments(optimizer, stored)
        check_finite({f"{key} of {name}": tensor for name, slots in flat.items() for key, tensor in slots.items()})
        names = dreamerv3_torch.trained(optimizer, parameters)
        converted = models.convert_moments({name: sources[name] for name in names}, flat)
        moments[optimizer] = [converted.get(name) for name in names]
    return moments


def check_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Checks tensors for NaN and infinity.

    Raises:
        ValueError: if there is one; names the first few tensors.
    """
    not_finite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise ValueError(
            f"the checkpoint holds numbers that are not finite, in {first(not_finite)}; its training had failed, so use an earlier one"
        )


# Settings of a run that begins with a checkpoint


def take_sizes(config: settings.Config, checkpoint: dict, build: Callable[[settings.Config], nn.Module]) -> str | None:
    """Sets the sizes in `config` to those of a checkpoint, except where they were given one by one (`config.given`).

    A preset that stands for sizes, such as `size12m`, must name those of the checkpoint.

    If the checkpoint's optimizer is another one, so are all settings that `dreamerv3_2025` sets, since their values go together.
    For two levels, `dyn_stoch` and `dyn_discrete` become those of the flat latent; the levels follow where they are shares of them.

    Args:
        config: settings, changed in place.
        checkpoint: of any program.
        build: makes a `Dreamer` from settings.
    Returns:
        a line that names the changes; None if nothing changed.
    Raises:
        DoesNotFit: if a preset names other sizes.
        ValueError: if the checkpoint holds no agent, or impossible sizes.
    """
    stored = sizes.read_checkpoint(checkpoint)
    there = sizes.read(sizes.shapes_of(stored.weights)) | sizes.not_in_tensors(stored)
    levels = sizes.latent_sizes(stored, stored.settings, config)
    latent = sizes.latent_settings(levels)
    _check_size_preset(config, there | latent)
    if config.hierarchical_mode and levels[0][1] == 0:
        latent = {}  # two levels cannot be Gaussian
    elif len(levels) == 2 and (not config.hierarchical_mode or levels == list(settings.level_sizes(config).values())):
        latent = {}  # they cannot fit, or the settings mean them already, perhaps as shares
    latent.pop("hierarchical_mode", None)
    values, changes = {**_of_generation(stored, config), **sizes.not_in_tensors(stored), **latent}, []
    while True:  # a setting may add parts whose sizes then matter: hidden layers bring units
        here = sizes.read(sizes.shapes_of(outline(build, config).state_dict()))
        wanted = {name: value for name, value in _differing(here, there, config).items() if name not in ("size", "grayscale")}
        taken = settings.take(config, values | wanted)  # size and grayscale cannot change, since environments are open
        if not taken:
            break
        values, changes = {}, changes + taken
    told = ", ".join(f"{name} {before} -> {after}" for name, before, after in changes)
    return f"Taken from the checkpoint: {told}" if told else None


def _check_size_preset(config: settings.Config, there: dict) -> None:
    """Raises DoesNotFit if a preset that stands for sizes names others than those of a checkpoint."""
    here, known = flatten(config), sections()
    for preset in filter(SIZE.fullmatch, config.presets):
        named = {name: value for name, value in flatten(known[preset]).items() if here[name] == value and not config.was_given(name)}
        other = [f"{name} {show(there[name])}, not {show(value)}" for name, value in named.items() if there.get(name, value) != value]
        if other:
            fitting_preset = size_preset(there)
            way_out = f"give {fitting_preset} in place of {preset}" if fitting_preset else f"leave {preset} out to take its sizes"
            raise DoesNotFit(
                f"the checkpoint does not have the sizes of the preset {preset}: it has {'; '.join(other)}; {way_out}", way_out=True
            )


def _of_generation(stored: dreamerv3_torch.Stored, config: settings.Config) -> dict:
    """What a checkpoint of another optimizer was trained with: all that `dreamerv3_2025` sets, but for sizes of latent and memory."""
    trained_with = settings.completed(stored.settings)
    if trained_with["optimizer"] == config.optimizer:
        return {}
    others = (*settings.SIZES, "dataset_size", "prefill", "pretrain")
    names = [name for name in flatten(sections()[GENERATION]) if name not in others]
    return {name: trained_with[name] for name in names}


def check(agent: nn.Module, checkpoint: dict) -> None:
    """Checks that a checkpoint fits an agent, which may be an `outline`.

    Raises:
        ValueError: as `load_into`, which also checks values.
    """
    stored = _with_own_key(agent, sizes.read_checkpoint(checkpoint))
    fitting_sources(agent, stored, _levels(stored, agent))
    check_observations(agent, checkpoint)


def check_observations(agent: nn.Module, checkpoint: dict) -> None:
    """Checks that observations are one-hots to the agent if and only if they were when the checkpoint was trained.

    Recorded episodes alone do not tell that numbers are one-hots; an environment does.

    Raises:
        DoesNotFit: if an observation differs and the agent treats one-hots in a special way.
    """
    config = agent._config
    if config.encoder.symlog_inputs != "numbers" and config.decoder.vector_dist != "auto":
        return
    before = _were_one_hots(checkpoint)
    if sizes.is_nameless(sizes.vector_keys(agent.state_dict()), before):
        before = dict.fromkeys([sizes.NAMELESS], *before.values())
    for key, space in agent.obs_space.spaces.items():
        if key in before and before[key] != isinstance(space, OneHot):
            kinds = ("one-hots", "numbers") if isinstance(space, OneHot) else ("numbers", "one-hots")
            flags = "--encoder.symlog_inputs all --decoder.vector_dist symlog_mse"
            way_out = f"use {flags}" if isinstance(space, OneHot) else "give the environment that it was trained in"
            raise DoesNotFit(
                f"the observation {key!r} is {kinds[0]} here and was {kinds[1]} in the checkpoint, which the networks treat in another "
                f"way (encoder.symlog_inputs, decoder.vector_dist); {way_out}",
                flags if isinstance(space, OneHot) else "",
            )


def _were_one_hots(checkpoint: dict) -> dict[str, bool]:
    """Whether each observed vector was one-hots when a checkpoint was trained, by key; empty if it does not tell."""
    if jax_original.is_converted(checkpoint):
        return {key: kind == "logits" for key, kind in checkpoint["conventions"].vectors.items()}
    spaces = checkpoint.get("spaces")
    observed = space_of(spaces.get("observation")).spaces if isinstance(spaces, dict) else {}
    return {key: isinstance(space, OneHot) for key, space in observed.items() if len(space.shape) == 1}


def changes_of_model(agent: nn.Module, checkpoint: dict) -> list[tuple[str, str, str]]:
    """Settings of an agent that say what its weights mean and differ from those of a checkpoint, see `settings.changes_of_model`.

    Settings of parts that the agent lacks, such as those of images, are left out.
    """
    here = sizes.read(sizes.shapes_of(agent.state_dict()))
    changes = settings.changes_of_model(checkpoint.get("config"), agent._config)
    return [change for change in changes if change[0] in here or change[0] not in sizes.RULES]


def outline(build: Callable[[settings.Config], nn.Module], config: settings.Config) -> nn.Module:
    """Builds an agent on PyTorch's meta device: its tensors have names and shapes and take no memory.

    Raises:
        ValueError: if no agent has these settings.
    """
    config = copy.deepcopy(config)
    dict.update(config, device="meta", compile=False)
    try:
        with torch.device("meta"):
            return build(config)
    except (TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"no agent has the sizes in the checkpoint ({str(error).splitlines()[0]})") from error


def _differing(here: dict, there: dict, config: settings.Config) -> dict:
    """The settings that differ between an agent and a checkpoint, with the checkpoint's values.

    Args:
        here, there: settings read from the tensors of agent and checkpoint, see `sizes.read`.
        config: settings of the agent.
    """
    flat = settings.flatten(config)

    def matters(name: str, value) -> bool:
        if name.endswith("_keys"):  # vectors or images are left out only if the others remain
            other = name.replace("mlp", "cnn") if "mlp" in name else name.replace("cnn", "mlp")
            others = here.get(other) != sizes.NOTHING or flat[other] != sizes.EVERYTHING == there.get(other)
            return value != sizes.NOTHING or others
        # Only settings of parts that the agent has, and settings that add a part or change its kind.
        part = {"dyn_blocks": "dyn_core", "decoder.blocks": "decoder.cnn"}.get(name, name)
        return part in here or name in ("actor.std", "reward_head.dist", "critic.dist")

    differing = {name: value for name, value in there.items() if here.get(name) != value and flat[name] != value}
    return {name: value for name, value in differing.items() if matters(name, value)}


# Whether it fits


def _levels(stored: dreamerv3_torch.Stored, agent: nn.Module) -> Levels:
    """Returns the sizes of a checkpoint's latent. If nothing tells its classes, those of the agent's top level are assumed."""
    levels = sizes.latent_sizes(stored, agent._config)
    (entries, classes), *_ = levels
    if len(levels) == 1 and classes == 1 and "top" in agent._wm.dynamics.levels:
        top = agent._wm.dynamics.levels["top"].discrete
        return [(entries // top, top)] if entries % top == 0 else levels
    return levels


def fitting_sources(agent: nn.Module, stored: dreamerv3_torch.Stored, levels: Levels) -> dict[str, models.Source | None]:
    """The source of every tensor of an agent in a checkpoint that fits, None for those that are new.

    Raises:
        DoesNotFit: if names or shapes differ.
    """
    sources, meaning = find_sources(agent, levels), _other_meaning(agent, stored)
    if "optimizer" in meaning:
        raise _other_optimizer(agent, meaning["optimizer"])
    if sources is None or meaning or _wrong(agent, stored, sources):
        raise _refusal(agent, stored, levels)
    return sources


def _other_meaning(agent: nn.Module, stored: dreamerv3_torch.Stored) -> dict:
    """The settings of a checkpoint that decide what its tensors mean, whatever their shapes, and that differ from the agent's."""
    here = settings.flatten(agent._config)
    return {name: value for name, value in sizes.not_in_tensors(stored, sizes.MEANING).items() if here[name] != value}


def _other_optimizer(agent: nn.Module, optimizer: str) -> DoesNotFit:
    """The error for a checkpoint of another optimizer, with which most other settings go."""
    preset = "the preset dreamerv3_2025" if optimizer == "laprop" else "the settings of 2023, without the preset dreamerv3_2025"
    return DoesNotFit(
        f"the checkpoint does not fit this agent: it was trained with optimizer {optimizer}, and this agent has {agent._config.optimizer}; "
        f"use {preset}, and leave --optimizer out",
        "",
    )


def find_sources(agent: nn.Module, levels: Levels) -> dict[str, models.Source | None] | None:
    """The source of every tensor in a checkpoint whose latent has these levels; None if the latent does not fit the agent's."""
    own = [(level.stoch, level.discrete) for level in agent._wm.dynamics.levels.values()]
    if own == levels:
        return {name: models.Source(name) for name in agent.state_dict()}
    (slots, classes), *others = levels
    if others or classes < 2 or len(own) == 1:
        return None
    (top, top_classes), (bottom, bottom_classes) = own
    filled = [top_classes] + ([bottom_classes] if slots > top else [])
    return models.flat_sources(agent, slots * classes) if top + bottom >= slots and set(filled) == {classes} else None


def _wrong(agent: nn.Module, stored: dreamerv3_torch.Stored, sources: dict[str, models.Source | None]) -> dict[str, str]:
    """The tensors that differ in name or shape from those that the agent needs, and how."""
    own = agent.state_dict()
    needed = {source.name: source.stored_shape(own[name].shape) for name, source in sources.items() if source}
    loaded = {name: tuple(tensor.shape) for name, tensor in _used_weights(agent, stored)[0].items()}
    wrong = {name: f"{name} is missing" for name in needed if name not in loaded}
    wrong |= {name: f"{name} is unknown" for name in loaded if name not in needed}
    shared = needed.keys() & loaded.keys()
    return wrong | {
        name: f"{name} has shape {loaded[name]}, not {needed[name]}" for name in needed if name in shared and loaded[name] != needed[name]
    }


# Why it does not fit, and what would


def _refusal(agent: nn.Module, stored: dreamerv3_torch.Stored, levels: Levels) -> DoesNotFit:
    """The error for a checkpoint that does not fit: every setting that differs, what no setting changes, and the flags that fit."""
    config, there = agent._config, sizes.shapes_of(stored.weights)
    values = _differing(sizes.read(sizes.shapes_of(agent.state_dict())), sizes.read(there), config) | _other_meaning(agent, stored)
    flat = settings.flatten(config)
    told = [f"{name} {show(flat[name])} here, {show(value)} in the checkpoint" for name, value in values.items()]
    latent, remaining = {}, []
    if find_sources(agent, levels) is None:
        latent, why = _fitting_latent(agent, levels)
        told.insert(0, why)
        remaining = [] if latent else [f"set dyn_stoch and dyn_discrete, whose product is {levels[0][0]}, to what it was trained with"]
    chosen = {**{name: value for name, value in latent.items() if name != "hierarchical_mode" or value != flat[name]}, **values}
    try:
        remaining = remaining or _not_settings(agent, stored, levels, chosen)
    except ValueError as error:  # no agent has these sizes and this agent's observations
        seen = [_describe_observations(shapes) for shapes in (there, sizes.shapes_of(agent.state_dict()))]
        chosen, remaining = {}, [OTHER_OBSERVATIONS.format(*seen) if seen[0] != seen[1] else str(error)]
    text = f"the checkpoint does not fit this agent: {'; '.join(told + remaining)}"
    words = [shlex.join([f"--{name}", *map(show, value if type(value) is list else [value])]) for name, value in chosen.items()]
    flags = " ".join(words)
    if flags:
        text += f". Flags that {'change the other differences' if remaining else 'fit'}: {flags}"
        preset = size_preset(sizes.read(there) | sizes.latent_settings(levels))
        text += f" (the preset {preset} has these sizes)" if preset else ""
    return DoesNotFit(text, "" if remaining else flags)


def _fitting_latent(agent: nn.Module, levels: Levels) -> tuple[dict, str]:
    """The settings of the latent with which a checkpoint fits, none if that is not known; and how the agent's latent differs."""
    own = [(level.stoch, level.discrete) for level in agent._wm.dynamics.levels.values()]
    told = f"the checkpoint's latent is {_describe(levels)}, this agent's {_describe(own)}"
    (slots, classes), *others = levels
    if others:
        return sizes.latent_settings(levels), f"{told} (two levels load into the same two alone)"
    if classes == 1:
        return {}, f"{told}, and the file does not tell its classes"
    if classes == 0 or len(own) == 1:
        why = " (two levels need categoricals)" if classes == 0 and len(own) == 2 else ""
        return {"hierarchical_mode": False, **sizes.latent_settings(levels)}, told + why
    half = max(1, slots // 2)
    why = (
        f" (a flat latent fills the slots [top, bottom] in order: they must be at least {slots}, and a level that it fills must have "
        f"{classes} classes)"
    )
    return sizes.latent_settings([(half, classes), (max(1, slots - half), classes)]), told + why


def _describe(levels: Levels) -> str:
    names = {0: "{} Gaussians", 1: "{} entries (categoricals times classes)"}
    return " + ".join(names.get(classes, "{} categoricals of {} classes").format(slots, classes) for slots, classes in levels)


# Tensors whose shapes follow from actions and observations.
OF_ACTIONS = re.compile(r".*(\._img_in_layers\.(action\.)?0|\.actor\.(mean|std)_layer|\._networks\.\d+\.layers\.NoName_linear0)\..*")
OTHER_OBSERVATIONS = "its observations are not this task's: {}, here {}, which no size changes"
OF_OBSERVATIONS = re.compile(r".*(\.encoder|\.decoder|\._obs_out_layers\.0)\..*")


def _not_settings(agent: nn.Module, stored: dreamerv3_torch.Stored, levels: Levels, chosen: dict) -> list[str]:
    """What still differs when an agent is built with the settings in `chosen`, in words.

    Raises:
        ValueError: if they make no agent.
    """
    config = copy.deepcopy(agent._config)
    object.__setattr__(config, "given", frozenset())
    settings.take(config, chosen)
    other = outline(lambda config: type(agent)(_observed(agent.obs_space, config, chosen), agent.act_space, config), config)
    wrong = _wrong(other, stored, find_sources(other, levels) or {})
    here, there, reasons = sizes.shapes_of(other.state_dict()), sizes.shapes_of(stored.weights), []
    head, deviation = sizes.ACTIONS, sizes.ACTIONS.replace("mean", "std")
    if head in wrong and head in here and head in there and here[head][1:] == there[head][1:]:
        reasons.append((OF_ACTIONS, f"its actions have {there[head][0]} entries, this task's {here[head][0]}, which no setting changes"))
    elif deviation in wrong:
        text = "its actions are of another kind than this task's, or their deviation is a number (actor.std)"
        reasons.append((OF_ACTIONS, text))
    if any(OF_OBSERVATIONS.fullmatch(name) for name in wrong):
        seen = [_describe_observations(shapes) for shapes in (there, here)]
        text = OTHER_OBSERVATIONS.format(*seen) if seen[0] != seen[1] else "it decodes other observations, which no size changes"
        reasons.append((OF_OBSERVATIONS, text))
    for setting, layer in (("reward_head.dist", r"_wm\.heads\.reward"), ("critic.dist", r".*\.(_slow_)?value")):
        names = [name for name in wrong if re.fullmatch(rf"{layer}\.mean_layer\.\w+", name)]
        if names and all(name in here and there.get(name, (0,))[0] == 1 for name in names):
            text = f"{setting} is {config[setting.split('.')[0]]['dist']} here, one of symlog_mse, mse and normal in the checkpoint"
            reasons.append((re.compile(rf"{layer}\.mean_layer\..*"), text))
    if any(name.startswith("_expl_behavior.") for name in wrong) and not any(name.startswith("_expl_behavior.") for name in there):
        reasons.append((re.compile(r"_expl_behavior\..*"), "it has no explorer, and expl_behavior is plan2explore here"))
    unexplained = [text for name, text in wrong.items() if not any(pattern.fullmatch(name) for pattern, _ in reasons)]
    return [text for _, text in reasons] + ([first(unexplained, "; ")] if unexplained else [])


def _observed(obs_space: gymnasium.spaces.Dict, config: settings.Config, chosen: dict) -> gymnasium.spaces.Dict:
    """The observations of an agent with its images as `size` and `grayscale` in `chosen` make them."""

    def resized(space: gymnasium.Space) -> gymnasium.Space:
        if len(space.shape or ()) != 3:
            return space
        size = config.size if "size" in chosen else space.shape[:2]
        channels = (1 if config.grayscale else 3) if "grayscale" in chosen else space.shape[2]
        return gymnasium.spaces.Box(0, 255, (*size, channels), np.uint8)

    return gymnasium.spaces.Dict({key: resized(space) for key, space in obs_space.spaces.items()})


def _describe_observations(shapes: Shapes) -> str:
    """What an encoder reads, as far as its tensors tell."""
    images = [
        f"images with {stack[0][0]} channels that are halved {len(stack)} times" for stack in sizes.conv_stacks(shapes, sizes.ENCODER)
    ]
    numbers = shapes.get("_wm.encoder._mlp.layers.Encoder_linear0.weight", (0, 0))[-1]
    return " and ".join([*images, *([f"vectors of {numbers} numbers"] if numbers else [])]) or "nothing"
