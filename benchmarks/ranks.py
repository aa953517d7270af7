"""Measures updates of two processes against one, and works out on paper what more of them cost:

    python benchmarks/ranks.py
    python benchmarks/ranks.py --paper

Without --paper, one process and --ranks processes update the same agent on batches of the same size by turns, each process on
one thread. The table has medians of ratios, because seconds differ from minute to minute. The ratio of CPU times, those of one
process to those of the slowest of several, tells on a busy machine what the speed-up would be on an idle one. With --paper
nothing is measured: the tables of docs/scale.md follow from counted parameters, operations and bytes, and from the assumptions
that they name.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import socket
import statistics
import sys
import time
import unittest.mock
from collections.abc import Iterator

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import console
import tools
from benchmarks.costs import SIZES, count
from benchmarks.shapes import SHAPES
from benchmarks.speed import by_turns
from models import latent_layout
from scale import ranks

MEASURED = ("images", "small", "size1m_images", "size12m_images")
STEP_BYTES = 64 * 64 * 3 + 4 * 6 + 4 + 3  # image, 6 actions, reward and flags of a stored step
COUNTED_STEPS = 16  # of a sequence, whose operations and saved tensors are counted; those of longer ones are in proportion
# Assumptions of the tables on paper
RATE = 50e12  # operations per second of a GPU
LINKS = {"NVLink": 200e9, "100 Gbit/s": 12.5e9}  # bytes per second
RANKS = (2, 4, 8, 16)
GPUS, STEPS, RATIO = 64, 10**9, 64  # of the largest run: processes with a default batch each, agent steps, train_ratio
LARGE = SIZES[3:]  # sizes of its agent


# Measured


def _updates(name: str, rank: int, size: int, port: int, pipe) -> None:
    """A process of a group: takes an update whenever it is asked.

    Sends its seconds, its CPU time, the seconds in all-reduces with waiting, and those of one all-reduce of all gradients.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    tools.keep_freed_memory()
    reduced, average_ = [], ranks.average_

    def timed_average_(values) -> None:
        begun = time.perf_counter()
        average_(values)
        reduced.append(time.perf_counter() - begun)

    with ranks.joined(), unittest.mock.patch.object(ranks, "average_", timed_average_):
        agent, share = SHAPES[name].agent(), slice(None)
        batch = SHAPES[name].batch(agent._config)
        rows = ranks.share(agent._config.batch_size)
        share = slice(rank * rows, (rank + 1) * rows)
        batch = {key: {k: v[share] for k, v in value.items()} if isinstance(value, dict) else value[share] for key, value in batch.items()}
        gradients = [torch.zeros_like(parameter) for optimizer in agent.optimizers().values() for parameter in optimizer._params]
        while pipe.recv():
            ranks.total(0)  # waits for the others
            reduced.clear()
            begun, used = time.perf_counter(), time.process_time()
            agent.update(batch)
            seconds, used, within = time.perf_counter() - begun, time.process_time() - used, sum(reduced)
            ranks.total(0)  # waits for the others
            begun = time.perf_counter()
            average_(gradients)
            pipe.send((seconds, used, within, time.perf_counter() - begun))


@contextlib.contextmanager
def group(name: str, size: int, found: list) -> Iterator:
    """Starts processes that update together; yields a step for `by_turns`, which adds the largest of what they tell to `found`."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_updates, args=(name, rank, size, port, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a process that dies ends the wait
        pipes.append(ours)

    def step() -> float:
        for pipe in pipes:
            pipe.send(True)
        found.append(tuple(map(max, zip(*[pipe.recv() for pipe in pipes]))))
        return found[-1][0]

    try:
        yield step
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(name: str, size: int, repeats: int) -> str:
    """The row of a shape, in Markdown."""
    shape, single, found = SHAPES[name], [], []
    with group(name, 1, single) as alone, group(name, size, found) as together:
        seconds = by_turns({"alone": alone, "together": together}, repeats)
    agent = shape.agent()
    sent = 4 * sum(parameter.numel() for optimizer in agent.optimizers().values() for parameter in optimizer._params)
    found = found[-repeats:]
    ratio = statistics.median(a / b for a, b in zip(seconds["alone"], seconds["together"]))
    used = statistics.median(a[1] / b[1] for a, b in zip(single[-repeats:], found))
    bare = statistics.median(bare for *_, bare in found)
    share, waiting = (statistics.median(each[part] / each[0] for each in found) for part in (3, 2))
    times = [f"{statistics.median(taken):.3f} s" for taken in seconds.values()]
    return (
        f"| {shape.about} | {' | '.join(times)} | **{ratio:.2f}** | {used:.2f} | {sent / 1e6:,.1f} MB | "
        f"{1e3 * bare:.0f} ms, {100 * share:.0f}% | {100 * waiting:.0f}% |"
    )


# On paper


def cost(size: str) -> dict[str, float]:
    """What a size of the version of 2025 costs with images of 64 x 64 x 3, two levels, and batches of 16 x 64 steps."""
    presets = ["dreamerv3_2025", size, "hdreamer_split"]
    config = tools.load_config(["defaults", *presets])
    found, longer = count(presets, device="meta", batch_length=COUNTED_STEPS), config.batch_length / COUNTED_STEPS
    latents = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in latent_layout(config).values())
    return {
        "parameters": found["parameters"],
        "sent": 4 * found["trained"],
        # Weights, gradients, their flat copy for the all-reduce, and two moments
        "state": 4 * (found["parameters"] + 4 * found["trained"]),
        "activations": found["activations"] * longer,
        "operations": found["operations"] * longer,
        "latents": latents,
        "dataset_size": config.dataset_size,
        "replay": (STEP_BYTES + latents) * config.dataset_size,
    }


def efficiency(found: dict[str, float], size: int, link: float) -> float:
    """Share of the perfect speed that so many processes reach, if an update is products and one ring all-reduce, one after the other."""
    computing = found["operations"] / RATE / size
    sending = 2 * (size - 1) / size * found["sent"] / link
    return computing / (computing + sending)


def size_row(size: str, found: dict[str, float]) -> str:
    """What ranks with this size of an agent hold and compute, and how far they speed it up, in Markdown."""
    shares = [" ".join(f"{100 * efficiency(found, size, link):.0f}" for size in RANKS) for link in LINKS.values()]
    return (
        f"| `{size}` | {found['parameters'] / 1e6:,.1f} M | {found['state'] / 1e9:,.2f} GB | {found['activations'] / 1e9:,.1f} GB | "
        f"{STEP_BYTES:,} + {found['latents']:,} | {found['dataset_size']:,}: {found['replay'] / 1e9:,.1f} GB | "
        f"{found['operations'] / 1e12:,.2f} | {found['sent'] / 1e6:,.0f} MB | {' | '.join(shares)} |"
    )


def plan_row(size: str, found: dict[str, float]) -> str:
    """A run of `STEPS` steps on `GPUS` GPUs, each with 16 sequences, in Markdown."""
    updates = STEPS * RATIO / (GPUS * 16 * 64)
    computing = found["operations"] / RATE
    sending = 2 * (GPUS - 1) / GPUS * found["sent"] / LINKS["100 Gbit/s"]
    seconds = updates * (computing + sending)
    checkpoint = 4 * found["parameters"] + 2 * found["sent"]
    return (
        f"| `{size}` | {1e3 * computing:,.0f} + {1e3 * sending:,.0f} ms | {seconds / 86400:,.1f} days | "
        f"{STEPS / seconds / GPUS:,.0f} | {checkpoint / 1e9:,.2f} GB |"
    )


def paper(sizes: list[str]) -> list[str]:
    """The lines of the tables."""
    costs = {size: cost(size) for size in sizes}
    shares = " | ".join(f"{name}: % at {', '.join(map(str, RANKS))}" for name in LINKS)
    return [
        "| size | parameters | weights, gradients, moments | activations | bytes of a step: data + latents | replay, `dataset_size` | "
        f"TFLOP | all-reduce | {shares} |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *[size_row(size, found) for size, found in costs.items()],
        "",
        "| size | update: products + all-reduce | run | steps/s of each process | checkpoint |",
        "|---|---|---|---|---|",
        *[plan_row(size, found) for size, found in costs.items() if size in LARGE],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="print the tables that need no measuring")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="sizes on paper")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(MEASURED), help="shapes to measure")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="updates of each (default: %(default)s)")
    options = parser.parse_args()
    if options.paper:
        console.say("\n".join(paper(options.sizes)))
        return
    console.say(f"| update | 1 process | {options.ranks} processes | speed-up | by CPU time | per all-reduce | its time | with waiting |")
    console.say("|---|---|---|---|---|---|---|---|")
    for name in options.shapes:
        console.say(measure(name, options.ranks, options.repeats))


if __name__ == "__main__":
    main()
