"""Settings of the JAX original, by its names, and ours."""

import copy
import itertools
import shlex
from collections.abc import Mapping

import settings
from settings.combinations import GENERATION, size_preset
from settings.files import show

# The original's name for each of our settings that has the same values there.
SAME = {
    "dyn_deter": "agent.dyn.rssm.deter",
    "dyn_hidden": "agent.dyn.rssm.hidden",
    "dyn_stoch": "agent.dyn.rssm.stoch",
    "dyn_discrete": "agent.dyn.rssm.classes",
    "dyn_blocks": "agent.dyn.rssm.blocks",
    "dyn_img_layers": "agent.dyn.rssm.imglayers",
    "dyn_obs_layers": "agent.dyn.rssm.obslayers",
    "unimix_ratio": "agent.dyn.rssm.unimix",
    "kl_free": "agent.dyn.rssm.free_nats",
    "dyn_scale": "agent.loss_scales.dyn",
    "rep_scale": "agent.loss_scales.rep",
    "units": "agent.value.units",
    "encoder.cnn_depth": "agent.enc.simple.depth",
    "encoder.kernel_size": "agent.enc.simple.kernel",
    "encoder.mlp_layers": "agent.enc.simple.layers",
    "encoder.mlp_units": "agent.enc.simple.units",
    "decoder.blocks": "agent.dec.simple.bspace",
    "decoder.cnn_depth": "agent.dec.simple.depth",
    "decoder.kernel_size": "agent.dec.simple.kernel",
    "decoder.mlp_layers": "agent.dec.simple.layers",
    "decoder.mlp_units": "agent.dec.simple.units",
    "decoder.loss_scale": "agent.loss_scales.rec",
    "reward_head.layers": "agent.rewhead.layers",
    "reward_head.loss_scale": "agent.loss_scales.rew",
    "cont_head.layers": "agent.conhead.layers",
    "cont_head.loss_scale": "agent.loss_scales.con",
    "cont_head.discounted": "agent.contdisc",
    "discount_lambda": "agent.imag_loss.lam",
    "actor.layers": "agent.policy.layers",
    "actor.min_std": "agent.policy.minstd",
    "actor.max_std": "agent.policy.maxstd",
    "actor.entropy": "agent.imag_loss.actent",
    "critic.layers": "agent.value.layers",
    "critic.replay_scale": "agent.loss_scales.repval",
    "critic.slow_target_update": "agent.slowvalue.every",
    "critic.slow_target_fraction": "agent.slowvalue.rate",
    "model_lr": "agent.opt.lr",
    "opt_eps": "agent.opt.eps",
    "agc": "agent.opt.agc",
    "warmup": "agent.opt.warmup",
    "weight_decay": "agent.opt.wd",
    "batch_size": "batch_size",
    "batch_length": "batch_length",
    "train_ratio": "run.train_ratio",
    "replay_online": "replay.online",
}
# The original's name for each setting of our suite atari.
ATARI = {"sticky": "sticky", "actions": "actions", "lives": "lives", "noops": "noops", "size": "size", "grayscale": "gray"}
HEADS = ("rewhead", "conhead", "policy", "value")
NETS = {"act": "silu", "norm": "rms", "mults": [2, 3, 4, 4], "outer": False, "strided": False}
# Settings that have one value here. With another one the networks compute something else, or they learn in another way. The original
# does not use `policy.unimix`.
NETWORKS = {
    **{f"agent.{net}.typ": "simple" for net in ("enc", "dec")},
    **{f"agent.{net}.simple.{name}": value for net in ("enc", "dec") for name, value in NETS.items()},
    "agent.dyn.typ": "rssm",
    "agent.dyn.rssm.act": "silu",
    "agent.dyn.rssm.norm": "rms",
    "agent.dyn.rssm.absolute": False,
    "agent.dyn.rssm.dynlayers": 1,
    **{f"agent.{head}.act": "silu" for head in HEADS},
    **{f"agent.{head}.norm": "rms" for head in HEADS},
    "agent.rewhead.bins": 255,
    "agent.value.bins": 255,
    "agent.rewhead.output": "symexp_twohot",
    "agent.conhead.output": "binary",
    "agent.value.output": "symexp_twohot",
    "agent.policy_dist_disc": "categorical",
    "agent.policy_dist_cont": "bounded_normal",
}
LEARNING = {
    "agent.ac_grads": False,
    "agent.reward_grad": True,
    "agent.repval_loss": True,
    "agent.repval_grad": True,
    "agent.imag_last": 0,
    "agent.imag_loss.slowtar": False,
    "agent.imag_loss.slowreg": 1.0,
    "agent.repl_loss.slowtar": False,
    "agent.repl_loss.slowreg": 1.0,
    "agent.loss_scales.policy": 1.0,
    "agent.loss_scales.value": 1.0,
    "agent.retnorm.impl": "perc",
    "agent.retnorm.debias": False,
    "agent.retnorm.rate": 0.01,
    "agent.retnorm.limit": 1.0,
    "agent.retnorm.perclo": 5.0,
    "agent.retnorm.perchi": 95.0,
    "agent.valnorm.impl": "none",
    "agent.advnorm.impl": "none",
    "agent.opt.beta1": 0.9,
    "agent.opt.beta2": 0.999,
    "agent.opt.momentum": True,
    "agent.opt.anneal": 0,
    "agent.opt.schedule": "const",
    "replay.fracs.uniform": 1.0,
}
# Settings of ours that say how an agent learns and that a run takes from presets, not from a checkpoint.
TRAINING = (
    *("model_lr", "warmup", "agc", "weight_decay", "batch_size", "batch_length", "train_ratio", "imag_horizon", "discount"),
    *("discount_lambda", "actor.entropy", "kl_free", "dyn_scale", "rep_scale", "critic.replay_scale", "critic.slow_target_fraction"),
)


def ours(options: Mapping, sizes: Mapping) -> tuple[dict, list[str]]:
    """Our settings of an agent that the original has trained.

    Args:
        options: the settings that the original stores, nested; empty if there is no such file.
        sizes: our settings that its tensors tell, by name with dots.
    Returns:
        nested settings, with the defaults of `dreamerv3_2025` for settings that nothing tells; and training settings that hDreamer does
        not have, as texts. Without `options` there are no `task` and no `action_repeat`.
    Raises:
        ValueError: if its networks compute something that ours do not.
    """
    flat = settings.flatten(options)
    expected = {**NETWORKS, **LEARNING, "agent.repl_loss.lam": flat.get("agent.imag_loss.lam")}
    other = {name: value for name, value in expected.items() if flat.get(name, value) != value}
    for name in other.keys() & NETWORKS.keys():
        raise ValueError(f"its networks have {name} {show(flat[name])}; hDreamer has {show(other[name])} alone")
    values = {name: flat[stored] for name, stored in SAME.items() if stored in flat}
    try:
        if "agent.horizon" in flat:
            values["discount"] = 1.0 - 1.0 / flat["agent.horizon"]
        if "agent.imag_length" in flat:
            values["imag_horizon"] = flat["agent.imag_length"] + 1  # ours counts the replayed state too
        if "replay_context" in flat:
            values["replay_context"] = min(1, flat["replay_context"])
    except (TypeError, ArithmeticError) as error:
        raise ValueError("its config.yaml has an agent.horizon, agent.imag_length or replay_context that is no such number") from error
    if "agent.enc.simple.symlog" in flat:
        values["encoder.symlog_inputs"] = "numbers" if flat["agent.enc.simple.symlog"] is True else "none"
    # Its task may be of a suite that hDreamer does not have, so it is added afterwards.
    config = settings.plain(settings.load_config(["defaults", GENERATION], {"task": "gym_X-v0", **values, **sizes}))
    config |= _environment(flat)
    if not options:
        del config["task"], config["action_repeat"]
    return config, [f"{name} {show(flat[name])} ({show(value)} here)" for name, value in other.items()]


def normalisers(options: Mapping) -> list[str]:
    """The normalisers that have another kind of state than those of hDreamer."""
    flat = settings.flatten(options)
    names = {name: f"agent.{name}.impl" for name in ("retnorm", "valnorm", "advnorm")}
    return [name for name, option in names.items() if flat.get(option, LEARNING[option]) != LEARNING[option]]


def _environment(flat: Mapping) -> dict:
    """Task and settings of its environment."""
    suite, _, name = str(flat.get("task")).partition("_")
    found = {"task": flat.get("task"), "action_repeat": flat.get(f"env.{suite}.repeat", 1)}
    if type(found["action_repeat"]) is not int or found["action_repeat"] < 1:
        raise ValueError(f"its config.yaml has env.{suite}.repeat {show(found['action_repeat'])}, which is no number of frames")
    if suite in ("atari", "atari100k"):
        found |= {ours: flat.get(f"env.{suite}.{stored}") for ours, stored in ATARI.items() if ours not in ("size", "grayscale")}
        found["task"] = f"atari_{name}"
    return {name: value for name, value in found.items() if value is not None}


def theirs(config: Mapping) -> dict:
    """The original's settings of an agent of ours, nested.

    Args:
        config: our settings, by name with dots.
    Raises:
        ValueError: for a discount of 1.
    """
    if config["discount"] >= 1.0:
        raise ValueError(f"the original has no discount of {config['discount']}, since its horizon is 1 / (1 - discount)")
    flat = {theirs: config[name] for name, theirs in SAME.items()} | NETWORKS | LEARNING
    flat |= {f"agent.{head}.units": config["units"] for head in HEADS} | {"replay_context": config["replay_context"]}
    flat["agent.repl_loss.lam"] = config["discount_lambda"]
    flat["agent.imag_length"] = config["imag_horizon"] - 1
    flat["agent.enc.simple.symlog"] = config["encoder.symlog_inputs"] == "numbers"
    flat["agent.horizon"] = _whole(1.0 / (1.0 - config["discount"]))
    suite = str(config["task"]).partition("_")[0]
    if suite == "atari":
        flat |= {f"env.atari.{stored}": config[ours] for ours, stored in ATARI.items()}
    if suite in ("atari", "dmc"):
        flat[f"env.{suite}.repeat"] = config["action_repeat"]
    return {"task": config["task"], **_nested(flat)}


def flags(config: Mapping) -> str:
    """The flags with which the original builds such an agent and its environment.

    Args:
        config: our settings, by name with dots.
    """
    preset = size_preset(config) or "size1m"
    # The original's own values are those of this preset, but for the environment and the ratio of training.
    base = settings.load_config(["defaults", GENERATION, preset], {"task": "gym_X-v0"})
    before, flat = (settings.flatten(theirs(settings.flatten(tree))) for tree in (base, config))
    differing = [name for name, value in flat.items() if before.get(name) != value or name in ("task", "run.train_ratio")]
    words = [[f"--{name}", *map(str, flat[name] if isinstance(flat[name], list) else [flat[name]])] for name in differing]
    return shlex.join(["--configs", preset, *itertools.chain(*words)])


def _whole(value: float) -> float | int:
    """A number as an integer, if it is one but for rounding."""
    return round(value) if abs(value - round(value)) < 1e-6 else value


def _nested(flat: Mapping) -> dict:
    """A dict by names with dots as nested ones."""
    nested = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = copy.copy(value)  # YAML would write a list that stands twice as an alias
    return nested
