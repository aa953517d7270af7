"""The checkpoint format of the JAX original (danijar/dreamerv3, the version of 2025): reading.

A run there has `ckpt/latest`, the name of the newest folder `ckpt/<time>`. That holds `agent.pkl`, parameters and optimizer by name,
`step.pkl`, the number of steps, and the empty file `done`. Beside `ckpt` are `config.yaml` and `replay`.
"""

import collections
import contextlib
import pathlib
import re

import numpy as np
import torch

import settings
from checkpoints.dreamerv3_torch import trained
from checkpoints.jax_original import options
from checkpoints.jax_original.names import BEHAVIOR, TRAINED, WM, Conventions, Translation, conventions_of
from checkpoints.sizes import MEANING, is_nameless, latent_entries, shapes_of
from checkpoints.sizes import read as read_sizes
from console import first
from envs.spaces import ActionPart
from settings.files import show
from storage import archives, pickles

FILE = "agent.pkl"
FOLDER, MOST_NAME = re.compile(r"\w[\w.-]*"), 200  # of ckpt
ENTRIES = frozenset(["origin", "notes", "agent_steps", "conventions", "counters"])  # of a checkpoint that `convert` alone makes
PERCENTILES = ("retnorm/lo/value", "retnorm/hi/value")
MOMENTS = {"exp_avg_sq": "opt/state/1/1/", "exp_avg": "opt/state/2/1/"}
NOT_WEIGHTS = re.compile(r"retnorm/(lo|hi)/value|slowval_count/value|opt/.*")
COUNTS = re.compile(r"opt/step/value|opt/state/[12]/0|opt/state/\d+/count")


def locate(folder: pathlib.Path) -> pathlib.Path | None:
    """Finds the newest agent.pkl of a run, given its folder, its `ckpt`, or a folder in that; None if this is none of them.

    Raises:
        ValueError: if it is incomplete, or if `ckpt/latest` leads nowhere.
    """
    parent = folder / "ckpt" if (folder / "ckpt" / "latest").is_file() else folder
    latest = parent / "latest"
    if latest.is_file() and not (folder / FILE).is_file():
        name = latest.read_bytes()[:MOST_NAME].decode(errors="replace").strip()
        if not FOLDER.fullmatch(name) or not (parent / name / FILE).is_file():
            raise ValueError(f"{latest} names {name!r:.100}, where there is no {FILE}; give a folder beside it that has one")
        folder = parent / name
    if not (folder / FILE).is_file():
        return None
    if not (folder / "done").exists():
        raise ValueError(f"{folder} is incomplete, since it has no file 'done'; give another folder in {folder.parent}")
    return folder / FILE


def run_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder of the run that an agent.pkl belongs to; its own folder, if it does not lie in the `ckpt` of one."""
    folder = path.resolve().parent
    return folder.parent.parent if folder.parent.name == "ckpt" else folder


def _latent_in_replay(replay: pathlib.Path) -> tuple[int, int] | None:
    """Latents and classes in the first readable replay chunk; None if there is none."""
    for path in sorted(replay.glob("*.npz"))[:10]:
        with contextlib.suppress(Exception):  # damaged ones cause errors of nearly any kind
            if path.is_file() and len(shape := archives.npz_headers(path)["dyn/stoch"].shape) == 3:
                return shape[1:]
    return None


def read_files(path: pathlib.Path) -> dict:
    """Reads an agent.pkl and the files that belong to it, and runs no code from them.

    Returns:
        `params` and `counters`, as stored; `steps`, of all environments, or None; `options`, the settings, empty without config.yaml;
        `latent`, latents and classes in the replay chunks, or None.
    Raises:
        Exception: nearly anything, for damaged files.
    """
    data = pickles.read(path)
    if not isinstance(data, dict) or not isinstance(data.get("params"), dict) or not data["params"]:
        raise ValueError("it holds no parameters of an agent")
    others = [name for name, array in data["params"].items() if not isinstance(name, str) or not isinstance(array, np.ndarray)]
    if others:
        raise ValueError(f"its parameters are not all arrays by name: {first([str(name) for name in others])}")
    counters = data.get("counters") if isinstance(data.get("counters"), dict) else {}
    counters = counters if all(type(counters.get(name)) is int for name in ("updates", "batches", "actions")) else {}
    steps = pickles.read(path.with_name("step.pkl")) if path.with_name("step.pkl").is_file() else None
    if steps is not None and (type(steps) is not int or not 0 <= steps < 2**53):
        raise ValueError(f"step.pkl holds {steps!r:.50}, which is no number of steps")
    config = run_folder(path) / "config.yaml"
    return {
        "params": data["params"],
        "counters": counters,
        "steps": steps,
        "options": settings.read_yaml(config) if config.is_file() else {},
        "latent": _latent_in_replay(run_folder(path) / "replay"),
    }


def convert(stored: dict) -> dict:
    """Converts what `read_files` returns to a checkpoint for `Dreamer.load_checkpoint`.

    Returns:
        `agent_state_dict` and `optims_state_dict` by our names, `config`, and besides: `origin`, the program; `notes`, a text for the
        user; `agent_steps`, with the first observations of episodes; `conventions`, names in the file; `counters`, as stored;
        `updates`.
    Raises:
        ValueError: if they are not those of an agent of the original that has a counterpart here.
    """
    params = stored["params"]
    conventions = conventions_of(params)
    translation = Translation(conventions)
    weights = _weights(params, translation, options.normalisers(stored["options"]))
    # An agent there encodes and decodes all observations, so no `*_keys` are taken.
    told = {name: value for name, value in read_sizes(shapes_of(weights)).items() if name not in MEANING and not name.endswith("_keys")}
    config, learned = options.ours(stored["options"], told)
    levels = _levels(stored, config, weights)
    state = collections.OrderedDict(weights)
    state._metadata = {f"{WM}dynamics": {"levels": levels}} if levels else {}
    notes = [] if stored["options"] else ["there is no config.yaml: settings that tensors do not tell are those of dreamerv3_2025"]
    notes += [f"it learned with {first(learned)}"] if learned else []
    return {
        "agent_state_dict": state,
        "optims_state_dict": _optimizer(params, translation, weights) if any(name.startswith("opt/") for name in params) else {},
        "config": config,
        "origin": "DreamerV3 in JAX",
        "notes": "; ".join(notes),
        "agent_steps": stored["steps"] or 0,
        "conventions": conventions,
        "counters": stored["counters"],
        "updates": int(params.get("opt/step/value", 0)),
    }


def _weights(params: dict[str, np.ndarray], translation: Translation, normalisers: list[str]) -> dict[str, torch.Tensor]:
    """The agent's tensors by our names, without the state of the given normalisers, which hDreamer does not have."""
    left_out = re.compile("|".join([NOT_WEIGHTS.pattern, *(f"{name}/.*" for name in normalisers)]))
    names = {name: translation.our_name(name) for name in params if not left_out.fullmatch(name)}
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        raise ValueError(f"it has parameters that no layer of hDreamer has: {first(unknown)}")
    missing = [f"slow{name}" for name in params if name.startswith("val/") and f"slow{name}" not in params]
    if missing:
        raise ValueError(f"it lacks the slow critic's {first(missing)}")
    weights = {ours: _tensor(translation.to_ours(name, params[name]), name) for name, ours in names.items()}
    if "retnorm" not in normalisers:
        weights[f"{BEHAVIOR}ema_vals"] = torch.stack([_tensor(_array(params, name, ()), name) for name in PERCENTILES])
    return weights


def _array(params: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter, which must have this shape."""
    if name not in params:
        raise ValueError(f"it lacks the parameter {name}")
    if params[name].shape != shape:
        raise ValueError(f"its parameter {name} has the shape {params[name].shape}, not {shape}")
    return params[name]


def _tensor(array: np.ndarray, name: str) -> torch.Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"its parameter {name} is of type {array.dtype}, not float32")
    return torch.from_numpy(np.array(array, np.float32, order="C"))  # a copy, since arrays are views of the file's bytes


def _levels(stored: dict, config: dict, weights: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """(latents, classes) of the flat latent, from config.yaml and the replay chunks, since tensors tell only the product.

    Empty without both. They are put into `config`.
    """
    told = {"config.yaml": (config["dyn_stoch"], config["dyn_discrete"])} if stored["options"] else {}
    told |= {"replay": tuple(stored["latent"])} if stored.get("latent") else {}
    entries = latent_entries(shapes_of(weights))
    for latents, classes in told.values():
        if latents * classes != entries or (latents, classes) != next(iter(told.values())):
            others = " and ".join(f"{name} of {size[0]} x {size[1]}" for name, size in told.items())
            raise ValueError(f"its parameters tell a latent of {entries} entries, its {others}")
    levels = list(told.values())[:1]
    config["dyn_stoch"], config["dyn_discrete"] = levels[0] if levels else (entries, 1)  # 1: unknown, see `latent_sizes`
    return levels


def _optimizer(params: dict[str, np.ndarray], translation: Translation, weights: dict[str, torch.Tensor]) -> dict:
    """The optimizer's state in the form of `torch.optim`, whose parameters are numbered in the order of `trained`."""
    counts = {name: _array(params, name, ()) for name in params if COUNTS.fullmatch(name)}
    if "opt/step/value" not in counts:
        raise ValueError("it lacks the parameter opt/step/value")
    different = sorted({count.item() for count in counts.values()})
    if len(different) != 1 or any(count.dtype.kind != "i" or count >= 2**31 for count in counts.values()):
        raise ValueError(f"the parts of its optimizer count different updates: {', '.join(map(str, different))}")
    step = torch.tensor(float(different[0]))
    names = {translation.our_name(name): name for name in params if TRAINED.fullmatch(name)}
    state, used = {}, set(counts)
    for number, ours in enumerate(trained("_opt", weights)):
        stored = {key: prefix + in_optimizer(names[ours]) for key, prefix in MOMENTS.items()}
        arrays = {key: _array(params, name, params[names[ours]].shape) for key, name in stored.items()}
        state[number] = {"step": step} | {
            key: _tensor(translation.to_ours(names[ours], array), stored[key]) for key, array in arrays.items()
        }
        if used & set(stored.values()):
            raise ValueError(f"two of its parameters have the name {stored['exp_avg']} in its optimizer")
        used |= set(stored.values())
    unknown = [name for name in params if name.startswith("opt/") and name not in used]
    if unknown:
        raise ValueError(f"its optimizer has states without a parameter: {first(unknown)}")
    return {"_opt": {"state": state, "param_groups": [{"params": list(state)}]}}


def in_optimizer(name: str) -> str:
    """The name of a parameter in the optimizer's state."""
    return name.lower().replace("_", "")


def is_converted(checkpoint: dict) -> bool:
    """Whether a checkpoint comes from the original, through `convert`."""
    return "conventions" in checkpoint


def frames(checkpoint: dict, action_repeat: int) -> int:
    """Environment frames that an agent of the original has seen; `action_repeat` counts if its run does not tell its own."""
    return checkpoint.get("agent_steps", 0) * checkpoint.get("config", {}).get("action_repeat", action_repeat)


def training_flags(checkpoint: dict, config: settings.Config) -> str:
    """The flags that set what differs between a run and one of the original in how they learn."""
    before, now = settings.flatten(checkpoint["config"]), settings.flatten(config)
    return " ".join(f"--{name} {show(before[name])}" for name in options.TRAINING if before[name] != now[name])


def renamed(checkpoint: dict, vectors: list[str], actions: dict[str, ActionPart]) -> dict[str, str]:
    """Keys of observations and actions that have another name in the original, by ours.

    The only action may have any name, and so may the only vector of an environment that has no name for it.

    Args:
        checkpoint: from `convert`.
        vectors: keys of our vectors.
        actions: parts of our actions by key.
    """
    theirs: Conventions = checkpoint["conventions"]
    same = [(vectors[0], *theirs.vectors)] if is_nameless(vectors, theirs.vectors) else []
    same += [(*actions, *theirs.actions)] if len(actions) == len(theirs.actions) == 1 else []
    return {here: there for here, there in same if here != there}
