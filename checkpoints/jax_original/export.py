"""Writes a flat agent of 2025 as the JAX original stores it."""

import datetime
import pathlib
import pickle
import shutil

import numpy as np
from torch import Tensor

import settings
from checkpoints import fitting, sizes
from checkpoints.dreamerv3_torch import Stored, moments
from checkpoints.jax_original import FILE, MOMENTS, PERCENTILES, in_optimizer, is_converted, options
from checkpoints.jax_original.names import BEHAVIOR, KINDS, TRAINED, Conventions, Translation
from console import first
from envs.spaces import ActionCodec, OneHot, space_of
from settings.files import show

# Counters of updates.
COUNTERS = ("opt/step/value", "opt/state/1/0", "opt/state/2/0", "opt/state/3/count", "slowval_count/value")
# What an agent of the original has, and what only matters for images.
NEEDED = {
    "optimizer": ("laprop",),
    "hierarchical_mode": (False,),
    "dyn_core": ("block_gru",),
    "dyn_rec_depth": (1,),
    "initial": ("zeros",),
    **dict.fromkeys(["act", "encoder.act", "decoder.act"], ("SiLU",)),
    **dict.fromkeys(["norm", "encoder.norm", "decoder.norm"], ("rms",)),
    "encoder.symlog_inputs": ("numbers", "none"),
    "decoder.vector_dist": ("auto",),
    **dict.fromkeys(["reward_head.dist", "critic.dist"], ("symexp_twohot",)),
    "critic.slow_target": (True,),
    "actor.std": ("learned",),
    "actor.unimix_ratio": (0.0,),
}
NEEDED_FOR_IMAGES = {
    **dict.fromkeys(["encoder.cnn", "decoder.cnn"], ("pooled",)),
    "decoder.cnn_sigmoid": (True,),
    "decoder.image_dist": ("mse",),
}


def export(checkpoint: dict) -> dict:
    """Converts the checkpoint of a flat agent to what the original stores; the inverse of `jax_original.convert`.

    Args:
        checkpoint: from latest.pt, or from `jax_original.convert`.
    Returns:
        `params`, `counters`, `steps` and `options`, see `jax_original.read_files`.
    Raises:
        ValueError: if the original has no such agent, or if something is missing.
    """
    stored = sizes.read_checkpoint(checkpoint)
    if not stored.settings or "task" not in stored.settings:
        raise ValueError("it stores no settings; give a run folder of hDreamer or of the JAX original")
    config = settings.completed(stored.settings)
    _check_exportable(config, stored)
    if is_converted(checkpoint):
        conventions = checkpoint["conventions"]
    else:
        conventions = _conventions(checkpoint.get("spaces"), config, stored.weights)
        stored, conventions = _named_as_there(stored, conventions, config["task"])
    translation, weights = Translation(conventions), dict(stored.weights)
    percentiles = weights.pop(f"{BEHAVIOR}ema_vals", np.zeros(0))
    names = {name: translation.their_name(name) for name in weights if not name.startswith("_expl_behavior.")}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown:
        raise ValueError(f"the original has no counterpart of {first(unknown)}")
    updates, averages = _optimizer(stored, names, int(checkpoint.get("updates", 0)))
    tensors = {theirs: (theirs, weights[name]) for name, theirs in names.items()} | averages
    fitting.check_finite({key: tensor for key, (_, tensor) in tensors.items()})
    params = {key: np.ascontiguousarray(translation.to_theirs(name, tensor.numpy())) for key, (name, tensor) in tensors.items()}
    params |= {name: np.array(value) for name, value in zip(PERCENTILES, np.asarray(percentiles))}
    params |= {name: np.array(updates, np.int32) for name in COUNTERS}
    steps = checkpoint.get("agent_steps", int(checkpoint.get("step", 0)) // config.get("action_repeat", 1))
    counters = checkpoint.get("counters") or {"updates": updates, "batches": updates, "actions": steps // config["envs"]}
    return {"params": dict(sorted(params.items())), "counters": counters, "steps": steps, "options": options.theirs(config)}


def _check_exportable(config: dict, stored: Stored) -> None:
    """Raises ValueError if the original has no agent with these settings."""
    has_images = sizes.conv_stacks(sizes.shapes_of(stored.weights), sizes.DECODER)
    needed = {**NEEDED, **(NEEDED_FOR_IMAGES if has_images else {})}
    wrong = [f"{name} {show(config[name])}" for name, allowed in needed.items() if config[name] not in allowed]
    wrong += [] if config["dyn_discrete"] else ["dyn_discrete 0"]
    if wrong:
        raise ValueError(f"the original has no agent with {first(wrong)}; only flat agents of dreamerv3_2025 can be exported")


def _optimizer(stored: Stored, names: dict[str, str], updates: int) -> tuple[int, dict[str, tuple[str, Tensor]]]:
    """The number of updates, and by their names in the original the moments of all parameters, each with the parameter's name there.

    Args:
        names: of our tensors in the original.
        updates: if no parameter has moments yet.
    """
    by_name, found = moments("_opt", stored), {}
    for name, theirs in names.items():
        for key, prefix in MOMENTS.items() if TRAINED.fullmatch(theirs) else ():
            if prefix + in_optimizer(theirs) in found:
                raise ValueError(f"two of its parameters would have the name {prefix + in_optimizer(theirs)}; rename a key")
            zeros = stored.weights[name].new_zeros(stored.weights[name].shape)
            found[prefix + in_optimizer(theirs)] = theirs, by_name.get(name, {}).get(key, zeros)
    return max([updates, *(int(slots["step"]) for slots in by_name.values())]), found


def _conventions(spaces: dict, config: dict, weights: dict[str, Tensor]) -> Conventions:
    """The original's names and layout for an agent of ours."""
    if not isinstance(spaces, dict):
        raise ValueError("it does not tell its observations and actions; continue its run for one step, which stores them")
    observed, actions = space_of(spaces.get("observation")).spaces, ActionCodec(space_of(spaces.get("action"))).parts
    unequal = [key for key, part in actions.items() if len(set(part.classes or ())) > 1]
    if unequal:
        raise ValueError(f"the original has no action with different numbers of classes, as {first(unequal)} here")
    stacks, keys = sizes.conv_stacks(sizes.shapes_of(weights), sizes.DECODER), sizes.vector_keys(weights)
    return Conventions(
        deter=config["dyn_deter"],
        vector_units=config["encoder.mlp_units"] if keys else 0,
        stages=len(stacks[0]) if stacks else 0,
        blocks={"dyn/dynhid0": config["dyn_blocks"], "dyn/dyngru": config["dyn_blocks"], "dec/sp0": config["decoder.blocks"]},
        vectors={key: KINDS["vectors"][isinstance(observed[key], OneHot)] for key in keys},
        actions={key: KINDS["actions"][part.classes is not None] for key, part in actions.items()},
    )


def _named_as_there(stored: Stored, conventions: Conventions, task: str) -> tuple[Stored, Conventions]:
    """Names a vector without a name as the original's gym suite does."""
    if list(conventions.vectors) != [sizes.NAMELESS] or not task.startswith("gym_"):
        return stored, conventions
    return sizes.rename_vector(stored, "image"), conventions._replace(vectors={"image": conventions.vectors[sizes.NAMELESS]})


def write(folder: pathlib.Path, state: dict) -> pathlib.Path:
    """Writes what `export` returns as a run of the original, into a new folder; returns the folder of the checkpoint in it.

    Raises:
        OSError: if the folder exists, or cannot be written.
    """
    name = f"{datetime.datetime.now():%Y%m%dT%H%M%SF%f}"
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _fill(partial, name, state)
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / "ckpt" / name


def _fill(folder: pathlib.Path, name: str, state: dict) -> None:
    """Writes the files of a run whose only checkpoint has this name."""
    checkpoint = folder / "ckpt" / name
    checkpoint.mkdir(parents=True)
    with open(folder / "config.yaml", "wb") as file:
        settings.write_yaml(state["options"], file)
    contents = {FILE: {key: state[key] for key in ("params", "counters")}, "step.pkl": state["steps"], "replay.pkl": None}
    for file, content in contents.items():
        (checkpoint / file).write_bytes(pickle.dumps(content, protocol=4))
    (checkpoint / "done").touch()
    (folder / "ckpt" / "latest").write_text(name)
