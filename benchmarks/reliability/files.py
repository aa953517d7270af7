"""Tests a full disk, memory, and malicious or damaged files, over long runs:

    python -m benchmarks.reliability files                  # all parts, about a quarter of an hour
    python -m benchmarks.reliability files --fuzz 2000      # one part
    python -m benchmarks.reliability files --updates 10000
    python -m benchmarks.reliability files --replay 10
    python -m benchmarks.reliability files --disk

    --fuzz COUNT      feeds this many mutated checkpoints, episodes and settings to everything that reads them
    --updates COUNT   resident memory over this many updates at `debug` size
    --replay TIMES    bytes of the replay memory against the printed bound, over this many times its capacity
    --disk            a run whose disk is full for a while, and one whose disk is full to the end

Returns 1 if a promise is broken.
"""

import argparse
import gc
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
import torch

import checkpoints
import settings
import tools
from benchmarks.reliability import fuzz
from collect import Collector
from dreamer import Dreamer
from envs import make_envs
from envs.spaces import ActionCodec
from exploration import Random
from replay import Replay
from storage.episodes import load_episode
from training import logs

ROOT = pathlib.Path(__file__).parents[2]
WARNINGS = {kind: f"{kind} cannot be written" for kind in ("the checkpoint", "episodes")}
GROWTH = 20e6  # bytes that resident memory may grow after the first tenth of the updates


def resident_bytes() -> int:
    """Returns the resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def updates(count: int) -> list[int]:
    """Returns resident bytes after each tenth of the updates at `debug` size, while the environment is stepped."""
    tools.keep_freed_memory()
    config = settings.load_config(["defaults", "debug"], {"task": "gym_CartPole-v1", "device": "cpu", "hierarchical_mode": True})
    envs = make_envs(config, 1, training=True)
    size = ActionCodec(envs.act_space).size
    memory = Replay(envs.obs_space, size, capacity=config.dataset_size, streams=1, batch_size=2, batch_length=12)
    agent = Dreamer(envs.obs_space, envs.act_space, config, dataset=memory)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        collector = Collector(envs, memory, pathlib.Path(folder), seed=0, training=True)
        logger = logs.Logger(pathlib.Path(folder))
        for number in range(1, count + 1):
            collector.step(agent)
            logger.add(agent.update(), "train")
            if number % 100 == 0:
                with fuzz.quiet():
                    logger.write(number)
            if number % (count // 10) == 0:
                gc.collect()
                found.append(resident_bytes())
                print(f"{number:,} updates: {found[-1] / 1e6:.1f} MB", flush=True)
        logger.close()
    envs.close()
    return found


def replay(times: int, capacity: int = 5000) -> tuple[int, int, int]:
    """Returns printed bound, bytes of the arrays and resident growth, after `times` the capacity of Pong steps."""
    config = settings.load_config(["defaults", "debug"], {"task": "atari_pong", "device": "cpu", "envs": 2})
    envs = make_envs(config, 2, training=True)
    codec = ActionCodec(envs.act_space)
    memory = Replay(envs.obs_space, codec.size, capacity=capacity, streams=2, batch_size=16, batch_length=64)
    collector, policy = Collector(envs, memory, seed=0, training=True), Random(codec, 0)
    sizes = []
    for lap in range(times):
        for _ in range(capacity // 2):
            collector.step(policy)
        next(memory)
        held = sum(array.nbytes for array in memory._arrays.values())
        sizes.append(resident_bytes())
        print(
            f"{(lap + 1) * capacity:,} steps: holds {len(memory):,}, {held:,} of {memory.nbytes:,} bytes, resident {sizes[-1] / 1e6:.1f} MB"
        )
    envs.close()
    return memory.nbytes, held, sizes[-1] - sizes[0]


class SmallDisk:
    """A folder whose disk can be filled: a small file system where one can be mounted, else a limit on file sizes.

    Args:
        folder: where it is made.
        size: bytes.
        mount: False for the limit on file sizes, which needs no root.
    """

    def __init__(self, folder: pathlib.Path, size: int = 8 * 2**20, mount: bool = True):
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        self.mounted = mount and subprocess.run(command, capture_output=True).returncode == 0

    def fill(self, process: subprocess.Popen) -> None:
        """Fills the disk."""
        if not self.mounted:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    def empty(self, process: subprocess.Popen) -> None:
        """Frees space again."""
        if self.mounted:
            (self.folder / "ballast").unlink()
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """Unmounts the file system."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def train(logdir: pathlib.Path, steps: int) -> tuple[subprocess.Popen, list[str], threading.Thread]:
    """Starts a run that saves every second; returns it, the growing list of its output lines, and their reader."""
    flags = ["--configs", "defaults", "debug", "--task", "gym_CartPole-v1", "--device", "cpu", "--eval_every", "500"]
    flags += ["--checkpoint_every", "1", "--steps", str(steps), "--logdir", str(logdir)]
    command = [sys.executable, str(ROOT / "dreamer.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    reader = threading.Thread(target=lambda: [said.append(line) for line in process.stdout], daemon=True)
    reader.start()
    return process, said, reader


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, said: list[str], seconds: float = 120.0) -> None:
    """Waits until a condition holds.

    Raises:
        RuntimeError: if the process ends first, or after `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"waited in vain; the run's exit code is {process.poll()}, it said:\n{''.join(said[-20:])}")
        time.sleep(0.05)


def disk(recovers: bool) -> list[str]:
    """Returns what went wrong with a run whose disk fills up in the middle, and has space again later or not."""
    with tempfile.TemporaryDirectory() as folder:
        small = SmallDisk(pathlib.Path(folder))
        try:
            return run_on_full_disk(small, recovers)
        finally:
            small.close()


def run_on_full_disk(small: SmallDisk, recovers: bool, steps: int = 6000, seconds: float = 6.0) -> list[str]:
    """As `disk`; the disk is full to the end, or for at least `seconds` and until the run has warned."""
    logdir = small.folder / "run"
    process, said, reader = train(logdir, steps)
    metrics = logdir / "metrics.jsonl"
    wait_for(lambda: (logdir / "previous.pt").exists() and metrics.exists(), process, said)
    small.fill(process)
    start = time.monotonic()
    wait_for(lambda: all(any(text in line for line in said) for text in WARNINGS.values()), process, said)
    time.sleep(max(0.0, start + seconds - time.monotonic()))
    good, lines = checkpoints.load(logdir / "latest.pt"), metrics.read_text()
    left_over = [path.name for path in logdir.rglob("*.partial")]
    if recovers:
        small.empty(process)
    process.wait(timeout=300)
    reader.join()
    last = checkpoints.load(logdir / "latest.pt")
    stored = sum(len(load_episode(path)["reward"]) - 1 for path in (logdir / "train_eps").glob("*.npz"))
    print("".join(line for line in said if line.startswith(("warning", "error", "What could"))))
    output = "".join(said)
    checks = {
        "half a line in metrics.jsonl": not lines or lines.endswith("\n"),
        "temporary files are left over": not left_over or left_over == ["latest.partial"],  # the moment of a write
        "no free space in a warning": re.search(r"[\d.]+ MB are free in", output),
        "more than a warning a minute of each kind": output.count(WARNINGS["episodes"]) <= 2,
        f"exit code {process.returncode}": process.returncode == (0 if recovers else 1),
        "an older checkpoint than the last good one": last["step"] >= good["step"],
    }
    if recovers:
        checks |= {f"{stored} stored steps": stored == steps, f"frame {last['step']} in the checkpoint": last["step"] == steps}
        checks["no word that all is written now"] = "is on the disk now" in output
    else:
        checks["no error at the end"] = "error: not everything could be written" in output
    return [wrong for wrong, right in checks.items() if not right]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=0, metavar="COUNT")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="number of the first mutated file")
    parser.add_argument("--updates", type=int, default=0, metavar="COUNT")
    parser.add_argument("--replay", type=int, default=0, metavar="TIMES")
    parser.add_argument("--disk", action="store_true")
    options = parser.parse_args(argv)
    if not (options.fuzz or options.updates or options.replay or options.disk):
        options.fuzz, options.updates, options.replay, options.disk = 2000, 10_000, 10, True
    torch.set_num_threads(1)
    wrong = []
    if options.updates:
        sizes = updates(options.updates)
        wrong += ["resident memory grows"] if max(sizes) - sizes[0] > GROWTH else []
    if options.replay:
        bound, held, growth = replay(options.replay)
        wrong += ["replay memory leaves its bound"] if held > bound or growth > GROWTH else []
    if options.disk:
        wrong += [f"full disk: {text}" for recovers in (True, False) for text in disk(recovers)]
    if options.fuzz:
        with tempfile.TemporaryDirectory() as folder:
            counts = fuzz.run(options.fuzz, pathlib.Path(folder), first=options.first)
        for kind, outcomes in counts.items():
            print(f"{kind}s: {dict(outcomes)}")
        wrong += (
            ["a file was neither loaded nor refused"] if np.any([set(found) - {"loaded", "refused"} for found in counts.values()]) else []
        )
    print("\n".join(f"BROKEN: {text}" for text in wrong) or "all as promised")
    return 1 if wrong else 0
