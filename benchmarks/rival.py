"""Runs dreamerv3-torch's own update and policy step, from a checkout of it, for `speed.py --against`.

It is a process of its own, since its modules have the names of ours: python rival.py CHECKOUT SHAPE THREADS BATCH, where BATCH is
an .npz file. Every line that it reads is answered: "update" and "policy N K", for K steps in a row with N environments, by the
seconds of one step, "peak" by the most bytes of memory that it has had.
"""

import argparse
import contextlib
import pathlib
import sys
import time
import warnings

import gymnasium
import numpy as np
import torch
from ruamel.yaml import YAML

# Its sizes for the shapes of shapes.py; it has no preset for the small one.
PRESETS = {"images": ["atari100k"], "vectors": ["dmc_proprio"], "small": []}
SMALL = {
    "dyn_deter": 128,
    "dyn_hidden": 128,
    "units": 128,
    "dyn_stoch": 16,
    "dyn_discrete": 16,
    "batch_size": 8,
    "batch_length": 32,
    "encoder": {"mlp_keys": ".*", "cnn_keys": "$^", "mlp_layers": 2, "mlp_units": 128},
    "decoder": {"mlp_keys": ".*", "cnn_keys": "$^", "mlp_layers": 2, "mlp_units": 128},
    "actor": {"dist": "onehot", "std": "none"},
    "imag_gradient": "reinforce",
}


def merge(base: dict, update: dict) -> dict:
    for key, value in update.items():
        base[key] = merge(dict(base[key]), value) if isinstance(value, dict) and key in base else value
    return base


def main() -> None:
    checkout, name, threads = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    here = pathlib.Path(__file__).parent
    sys.path[:] = [path for path in sys.path if pathlib.Path(path or ".").resolve() not in (here.resolve(), here.parent.resolve())]
    sys.path.insert(0, str(checkout.resolve()))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    spaces, batch = load_batch(pathlib.Path(sys.argv[4]))
    with contextlib.redirect_stdout(sys.stderr):
        import models
        import networks

        # Its MLP makes a tensor on the GPU unless it is told otherwise, and its encoder does not tell.
        networks.MLP.__init__.__defaults__ = tuple("cpu" if value == "cuda" else value for value in networks.MLP.__init__.__defaults__)

        sections = YAML(typ="safe", pure=True).load((checkout / "configs.yaml").read_text())
        settings = dict(sections["defaults"])
        for update in [SMALL] if name == "small" else [sections[preset] for preset in PRESETS[name]]:
            merge(settings, update)
        floats = {key: float(value) for key, value in settings.items() if isinstance(value, str) and value[:1].isdecimal()}
        action = batch["action"]
        config = argparse.Namespace(**merge(settings, {**floats, "device": "cpu", "compile": False, "num_actions": action.shape[-1]}))
        world_model = models.WorldModel(spaces, None, 0, config).to("cpu")
        behavior = models.ImagBehavior(config, world_model).to("cpu")
        world_model.requires_grad_(False), behavior.requires_grad_(False)

    def update() -> None:
        start, *_ = world_model._train(batch)
        behavior._train(start, lambda feat, state, action: world_model.heads["reward"](world_model.dynamics.get_feat(state)).mode())

    state = {}

    @torch.no_grad()
    def policy(count: int) -> None:
        obs = {key: value[:1, 1].repeat(count, 0) for key, value in batch.items() if key not in ("action", "reward", "discount")}
        data = world_model.preprocess(obs)
        latent, last = state.get(count, (None, None))
        latent, _ = world_model.dynamics.obs_step(latent, last, world_model.encoder(data), data["is_first"])
        actor = behavior.actor(world_model.dynamics.get_feat(latent))
        sampled = actor.sample()
        actor.log_prob(sampled)
        state[count] = {key: value.detach() for key, value in latent.items()}, sampled.detach()

    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "peak":
            print(peak_memory(), flush=True)
            continue
        count, times = map(int, numbers) if numbers else (0, 1)
        start = time.perf_counter()
        for _ in range(times):
            update() if what == "update" else policy(count)
        print((time.perf_counter() - start) / times, flush=True)


def peak_memory() -> int:
    """The most bytes of memory that this process has had; not getrusage's, which begins with those of the parent."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def load_batch(path: pathlib.Path) -> tuple[gymnasium.spaces.Dict, dict[str, np.ndarray]]:
    """A batch, and the spaces that it comes from."""
    with np.load(path, allow_pickle=False) as file:
        batch = {key: file[key] for key in file.files}
    if not any(value.ndim == 5 for value in batch.values()):  # it fails without an image, which its encoder is told to leave out
        batch["image"] = np.zeros((*batch["reward"].shape, 1, 1, 3), np.uint8)
    observed = {key: value for key, value in batch.items() if key not in ("action", "reward", "is_first", "is_terminal", "discount")}
    return gymnasium.spaces.Dict(
        {
            key: gymnasium.spaces.Box(0, 255, value.shape[2:], np.uint8)
            if value.ndim == 5
            else gymnasium.spaces.Box(-np.inf, np.inf, value.shape[2:], np.float32)
            for key, value in observed.items()
        }
    ), batch


if __name__ == "__main__":
    main()
