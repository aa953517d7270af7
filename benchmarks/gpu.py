"""Measures updates, policy steps and a minute of training on a GPU, and prints Markdown tables, in less than ten minutes:

    python benchmarks/gpu.py

Without a GPU, `--device cpu --quick` runs all of it with tiny networks, which only shows that the script works.
"""

import argparse
import gc
import json
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tools
from benchmarks.shapes import SHAPES, Shape

SIZES = {"default sizes, 2023": "images", "size12m, 2025": "size12m_images", "size1m, 2025": "size1m_images"}
MODES = {"plain": {"cuda_graph": "false"}, "CUDA graph": {"cuda_graph": "true"}, "compiled": {"cuda_graph": "false", "compile": True}}
WARM_UP = 5  # updates: with a CUDA graph three plain ones, the capture, and one more
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
COLUMNS = ["size", "precision", "update", "updates/s", "ms", "replayed frames/s", "launches", "kernels", "peak memory"]


def say_row(cells: list) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def say_table(title: str, columns: list[str]) -> None:
    print(f"\n{title}\n")
    say_row(columns)
    say_row(["---"] * len(columns))


def wait_for(device: str) -> None:
    """Waits until the device has computed everything."""
    if device.startswith("cuda"):  # a CPU has computed it already
        torch.cuda.synchronize(device)


def seconds_of(step: Callable, count: int, device: str) -> float:
    """Seconds of one step, from `count` in a row."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    wait_for(device)
    return (time.perf_counter() - start) / count


def count_kernels(step: Callable, device: str) -> tuple[int, int]:
    """How often a step asks the GPU for something, and how many kernels the GPU runs; zeros on a CPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]  # CUDA only where there is one
    with profile(activities=activities) as recorded:
        step()
        wait_for(device)
    events = recorded.events()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.name.startswith("Mem")]
    return sum(event.name in LAUNCHES for event in events), len(kernels)


def measure_update(name: str, shape: Shape, precision: str, mode: str, options) -> None:
    """Prints the row of one way to update."""
    device = options.device
    if device.startswith("cuda"):  # only CUDA's allocator counts
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    agent = shape.agent(options.presets, device=device, precision=precision, **MODES[mode])
    batch = shape.batch(agent._config)
    for _ in range(WARM_UP):
        agent.update(batch)
    count = max(2, min(options.updates, int(options.seconds / seconds_of(lambda: agent.update(batch), 1, device))))
    seconds = seconds_of(lambda: agent.update(batch), count, device)
    launches, kernels = count_kernels(lambda: agent.update(batch), device)
    peak = f"{torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB" if device.startswith("cuda") else ""
    frames = agent._config.batch_size * agent._config.batch_length / seconds
    say_row([name, precision, mode, f"{1 / seconds:.1f}", f"{1e3 * seconds:.1f}", f"{frames:,.0f}", f"{launches:,}", f"{kernels:,}", peak])


def measure_updates(options) -> None:
    say_table("Updates of images 64 x 64 x 3, one level of latents:", COLUMNS)
    for name, key in SIZES.items():
        for precision in ("32", "bf16"):
            for mode in options.modes:
                if mode != "compiled" or precision == "bf16":  # it takes about a minute to compile
                    measure_update(name, SHAPES[key], precision, mode, options)
                    torch.compiler.reset()


def measure_policy(options) -> None:
    say_table("Policy step, from images to actions on the CPU, bf16:", ["size", "1 environment", "16 environments"])
    for name, key in SIZES.items():
        agent = SHAPES[key].agent(options.presets, device=options.device, precision="bf16", cuda_graph="false")
        cells = []
        for count in (1, 16):
            obs, state, seconds = SHAPES[key].observe(count), None, []
            for _ in range(options.updates + WARM_UP):
                start = time.perf_counter()
                _, state = agent.act(obs, state, training=True)
                seconds.append(time.perf_counter() - start)
            cells.append(f"{1e3 * statistics.median(seconds[WARM_UP:]):.2f} ms")
        say_row([name, *cells])


def measure_training(options) -> None:
    """Trains in a process of its own, which is stopped like with Ctrl-C, and prints what it has logged."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE.parent / "dreamer.py"), *options.run, "--device", options.device, "--logdir", folder]
        command += ["--precision", "auto", "--eval_every", "0", "--log_every", "200", "--steps", "1000000"]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            run.communicate(timeout=options.training)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=120)
        log = pathlib.Path(folder) / "metrics.jsonl"
        if run.returncode or not log.exists():
            raise SystemExit(f"error: the training run ended with {run.returncode}:\n{output}")
        entries = [json.loads(line) for line in log.read_text().splitlines()]
    frames, updates = entries[-1]["step"], max(entry.get("time/updates", 0) for entry in entries)
    say_table(f"{options.training} seconds of `dreamer.py {' '.join(options.run)}`, from its start:", ["frames", "updates"])
    say_row([f"{frames:,}", f"{updates:,.0f}"])


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<number>, or cpu with --quick (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few repeats")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled updates, which take minutes")
    options = parser.parse_args(argv)
    try:
        tools.pick_device(options.device)
    except ValueError as error:
        print(f"error: {error}. Without a GPU, --device cpu --quick shows that this script runs", file=sys.stderr)
        return 2
    on_gpu = options.device.startswith("cuda")  # elsewhere there is no graph, and compiling tiny networks tells nothing
    options.modes = [mode for mode in MODES if mode == "plain" or (on_gpu and not (mode == "compiled" and options.no_compile))]
    options.presets = ["debug"] if options.quick else []
    options.updates, options.seconds, options.training = (3, 0.5, 15) if options.quick else (100, 10.0, 60)
    options.run = "--configs defaults dreamerv3_2025 --task atari_pong".split()
    if options.quick:
        options.run = "--configs defaults debug --task gym_CartPole-v1".split()
    tools.allow_tf32()  # as dreamer.py does
    print(f"{tools.describe_device(options.device)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {platform.machine()}")
    measure_updates(options)
    measure_policy(options)
    measure_training(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
