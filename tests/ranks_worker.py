"""Updates tiny agents with the rows and random numbers that a process has of a batch; tests/test_ranks.py compares the results.

    python tests/ranks_worker.py FOLDER
    torchrun --nproc_per_node 4 tests/ranks_worker.py FOLDER

Each process has rows of the same batches, and of the random numbers that a single process would draw for them.
"""

import contextlib
import pathlib
import sys
import unittest.mock

import numpy as np
import torch
from gymnasium import spaces

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tools
from dreamer import Dreamer
from models import latent_layout
from optim import AdamOptimizer, LaPropOptimizer
from scale import ranks

BATCH, LENGTH, UPDATES = 4, 7, 3
IMAGES = spaces.Dict({"image": spaces.Box(0, 255, (16, 16, 3), np.uint8)})
VECTORS = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (5,), np.float32)})
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)
EXPLORE = {"expl_behavior": "plan2explore", "disag_units": 16, "disag_layers": 1, "disag_models": 3}
CASES = {
    "2023, flat, REINFORCE, images": (IMAGES, DISCRETE, [], {}),
    "2023, two levels, dynamics gradient, vectors": (VECTORS, CONTINUOUS, ["hdreamer"], {}),
    "2023, flat, dynamics gradient, images": (IMAGES, CONTINUOUS, [], {}),
    "2023, two levels, Plan2Explore, vectors": (VECTORS, DISCRETE, ["hdreamer_split"], EXPLORE),
    "2025, flat, continuous, vectors": (VECTORS, CONTINUOUS, ["dreamerv3_2025"], {}),
    "2025, two levels, discrete, images": (IMAGES, DISCRETE, ["dreamerv3_2025", "hdreamer"], {}),
    "2025, flat, Plan2Explore, vectors": (VECTORS, CONTINUOUS, ["dreamerv3_2025"], EXPLORE),
}


def batches(config, obs_space: spaces.Dict, act_space: spaces.Space) -> list[dict]:
    """Global batches (B, T, ...) with episodes that end, at other steps in every row."""
    rng, made, lead = np.random.default_rng(0), [], (BATCH, LENGTH)
    for _ in range(UPDATES):
        batch = {}
        for key, space in obs_space.spaces.items():
            drawn = rng.integers(0, 256, (*lead, *space.shape)) if key == "image" else rng.normal(size=(*lead, *space.shape))
            batch[key] = drawn.astype(space.dtype)
        if act_space is DISCRETE:
            batch["action"] = np.eye(3, dtype=np.float32)[rng.integers(3, size=lead)]
        else:
            batch["action"] = rng.uniform(-1, 1, (*lead, 2)).astype(np.float32)
        batch["reward"] = rng.normal(size=lead).astype(np.float32)
        batch["is_first"] = rng.random(lead) < 0.2
        batch["is_last"] = np.roll(batch["is_first"], -1, 1)
        batch["is_terminal"] = batch["is_last"] & (rng.random(lead) < 0.5)
        if config.replay_context:
            layout = latent_layout(config)
            batch["replay.context"] = {
                key: (rng.normal(size=(BATCH, *shape)) if key == "deter" else rng.integers(0, 5, (BATCH, *shape))).astype(dtype)
                for key, (shape, dtype) in layout.items()
            }
        made.append(batch)
    return made


def rows(value):
    """The share of this process of arrays (B, ...)."""
    if isinstance(value, dict):
        return {key: rows(part) for key, part in value.items()}
    count = len(value) // ranks.count()
    return value[ranks.rank() * count : (ranks.rank() + 1) * count]


@contextlib.contextmanager
def shared_random_numbers():
    """Within this, a process draws its rows of the random numbers that a single process would draw."""
    generator = torch.Generator().manual_seed(0)

    def draw(kind, shape) -> torch.Tensor:
        shape = torch.Size(shape)
        assert shape[:2] == (BATCH // ranks.count(), LENGTH) or shape[0] == BATCH * LENGTH // ranks.count(), f"not one per row: {shape}"
        drawn = kind((shape[0] * ranks.count(), *shape[1:]), generator=generator, dtype=torch.float64)
        return rows(drawn).to(torch.get_default_dtype())

    rand, randn = torch.rand, torch.randn
    with (
        unittest.mock.patch.object(torch, "rand", lambda shape, device=None: draw(rand, shape)),
        unittest.mock.patch.object(torch, "randn", lambda shape, device=None: draw(randn, shape)),
        unittest.mock.patch.object(torch, "rand_like", lambda like: draw(rand, like.shape)),
        unittest.mock.patch.object(torch, "randn_like", lambda like: draw(randn, like.shape)),
    ):
        yield


@contextlib.contextmanager
def all_in_double(agent: Dreamer):
    """Within this, an agent that was built in float64 computes in it, beyond Adam's step counts and its flag of a skipped step."""
    as_float, preprocess = torch.Tensor.float, agent._wm.preprocess

    def as_double(value: torch.Tensor) -> torch.Tensor:
        return as_float(value) if value.dtype == torch.bool and not value.ndim else value.double()

    def inputs(batch: dict) -> dict:
        data = preprocess(batch)  # from integers and float32, so that nothing has been rounded
        context = {key: {name: part.double() for name, part in value.items()} for key, value in data.items() if isinstance(value, dict)}
        return {**{key: value.double() for key, value in data.items() if key not in context}, **context}

    with unittest.mock.patch.object(torch.Tensor, "float", as_double), unittest.mock.patch.object(agent._wm, "preprocess", inputs):
        yield


@contextlib.contextmanager
def recorded_gradients(found: list):
    """Within this, the gradients of every step are kept before they are clipped."""

    def recording(method):
        def call(optimizer):
            found.append([parameter.grad.clone() for parameter in optimizer._params if parameter.grad is not None])
            return method(optimizer)

        return call

    with contextlib.ExitStack() as patched:
        for kind in (AdamOptimizer, LaPropOptimizer):
            patched.enter_context(unittest.mock.patch.object(kind, "_clipped_norm", recording(kind._clipped_norm)))
        yield


def updated(name: str, dtype: torch.dtype) -> dict:
    """Gradients of every optimizer step, and weights and moments after the updates."""
    obs_space, act_space, presets, overrides = CASES[name]
    config = tools.load_config(
        [*presets, "debug"],
        {"device": "cpu", "precision": "32", "imag_horizon": 4, "warmup": 0, "batch_size": BATCH, "batch_length": LENGTH, **overrides},
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        agent, gradients = Dreamer(obs_space, act_space, config), []
        assert {value.dtype for value in agent.state_dict().values()} == {dtype}
        exact = all_in_double(agent) if dtype == torch.float64 else contextlib.nullcontext()
        with exact, shared_random_numbers(), recorded_gradients(gradients):
            for batch in batches(config, obs_space, act_space):
                losses = agent.update(rows(batch))
    finally:
        torch.set_default_dtype(torch.float32)
    moments = [list(slots.values()) for optimizer in agent.optimizers().values() for slots in optimizer.state_dict()["state"].values()]
    return {
        "gradients": gradients,
        "weights": agent.state_dict(),
        "moments": moments,
        "losses": {key: value for key, value in losses.items() if key.endswith(("grad_norm", "return_scale"))},
    }


def save(folder: pathlib.Path) -> None:
    """Writes what this process finds into a folder."""
    found = {(name, str(dtype)): updated(name, dtype) for name in CASES for dtype in (torch.float64, torch.float32)}
    torch.save(found, folder / f"{ranks.rank()}_of_{ranks.count()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.joined():
        save(pathlib.Path(sys.argv[1]))
