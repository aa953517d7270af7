"""Measures how fast hDreamer is on this machine, and prints tables:

    python benchmarks/speed.py

Variants alternate in one process and are compared by ratios, because seconds differ between machines and from minute to
minute. All results are also written to --out: a JSON file, and the growth curves as a PNG file. It takes about an hour
on two cores; --only selects parts, and --shapes shapes of updates. --against FOLDER, with a checkout of dreamerv3-torch,
alternates that program's updates and policy steps with ours; --jax FOLDER, with one of danijar/dreamerv3, alternates its
updates with those of the shapes of 2025.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import console
import distributions
import layers
import networks
import tools
from benchmarks.rival import peak_memory
from benchmarks.shapes import LARGE, LARGE_SETTINGS, SHAPES, Shape
from replay import Replay
from storage.files import json_text
from storage.memory import available_memory

WARM_UP = 3  # steps until the kernel has provided the memory of an update
MEASURES_MEMORY = pathlib.Path("/proc/self/status").exists()
IN_A_ROW = 20  # policy steps per turn, because threads of the previous process keep spinning for some milliseconds


def by_turns(steps: dict[str, Callable[[], float]], repeats: int, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Runs steps alternately, several times each; returns their seconds by name. A step returns its own seconds."""
    seconds = {name: [] for name in steps}
    for repeat in range(-warm_up, repeats):
        for name, step in steps.items():
            taken = step()
            if repeat >= 0:
                seconds[name].append(taken)
    return seconds


def timed(function: Callable, *args, times: int = 1) -> Callable[[], float]:
    """Wraps a function as a step for `by_turns`, which calls it `times` times and returns the seconds of one call."""

    def step() -> float:
        start = time.perf_counter()
        for _ in range(times):
            function(*args)
        return (time.perf_counter() - start) / times

    return step


@contextlib.contextmanager
def threads(count: int):
    """Sets the number of PyTorch's threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def other_program(command: list[str], checkout: str | None, name: str, batch: dict[str, np.ndarray]):
    """Starts a program from a checkout. Yields a function from a line for it to a step for `by_turns`; None without a checkout."""
    if not checkout:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "batch.npz"
        np.savez(path, **{key: value for key, value in batch.items() if isinstance(value, np.ndarray)})  # not our stored latents
        try:
            process = subprocess.Popen(
                [*command, checkout, name, str(torch.get_num_threads()), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise SystemExit(f"error: {command[0]} does not start: {error.strerror}; give the path of a Python") from None
        try:
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"error: the program in {checkout} does not start, see above")

            def ask(line: str) -> float:
                process.stdin.write(line + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise SystemExit(f"error: the program in {checkout} ended, see above")
                return float(answer)

            yield lambda line: lambda: ask(line)
        finally:
            process.kill()
            process.wait()


def dreamerv3_torch(checkout: str | None, name: str, batch: dict[str, np.ndarray]):
    """Starts `rival.py`, as `other_program` does."""
    known = {key: value for key, value in batch.items() if key != "is_last"}
    known["discount"] = np.ones_like(batch["reward"])
    return other_program([sys.executable, str(HERE / "rival.py")], checkout, name, known)


def jax_original(python: str, checkout: str | None, name: str, batch: dict[str, np.ndarray]):
    """Starts `jax_original.py`, as `other_program` does."""
    return other_program([python, str(HERE / "jax_original.py")], checkout, name, batch)


# The parts


def measure_machine(_) -> dict:
    """Measures peak GFLOP/s of square products, and of products with each library that `layers.linear` chooses from."""
    peaks = {}
    for name, dtype, size in (("float32", torch.float32, 2048), ("bfloat16", torch.bfloat16, 512)):
        a = torch.randn(size, size).to(dtype)
        for count in (1, torch.get_num_threads()):
            with threads(count):
                best = min(by_turns({"": timed(torch.mm, a, a)}, 10)[""])
            peaks[f"peak {name}, {count} thread{'s' if count > 1 else ''}"] = 2 * size**3 / best / 1e9
    layers.choose_library()
    for rows, inp, out in ((15360, 512, 512), (4096, 1024, 1536), (1024, 512, 512)):
        x, weight = torch.randn(rows, inp), torch.randn(out, inp)
        libraries = {"PyTorch's own": torch.nn.functional.linear, "oneDNN": layers._onednn_linear}
        seconds = by_turns({name: timed(product, x, weight, None) for name, product in libraries.items()}, 10)
        peaks |= {f"{rows} x {inp} x {out}, {name}": 2 * rows * inp * out / min(taken) / 1e9 for name, taken in seconds.items()}
    chosen = "oneDNN" if layers._onednn else "PyTorch's own"
    console.say(
        console.table(
            "Machine",
            [
                ("processor", f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"),
                ("torch", torch.__version__),
                ("products", f"large ones in float32 by {chosen}"),
                *[(name, f"{peak:.1f} GFLOP/s") for name, peak in peaks.items()],
            ],
        )
    )
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "products": chosen, "gflops": peaks}


def operations(shape: Shape, presets: list[str] = ()) -> int:
    """Counts the floating-point operations of products and convolutions in one update."""
    agent = shape.agent(presets)
    with FlopCounterMode(display=False) as counter:
        agent.update(shape.batch(agent._config))
    return counter.get_total_flops()


def measure_updates(options) -> dict:
    """Measures updates at every shape: flat, two levels, bfloat16, compiled, other programs; time, operations, peak memory."""
    results = {}
    for name in options.shapes:
        shape = SHAPES[name]
        with threads(1 if shape.single_thread else torch.get_num_threads()):
            results[name] = measure_shape(name, shape, options)
    return results


def describe(variant: str, result: dict, alternated: bool) -> str:
    """The row of a variant, from the results of all variants by name."""
    own = result[variant]
    values, median = own["seconds"], statistics.median(own["seconds"])
    about = f"{median:7.3f} s  ({min(values):.3f} to {max(values):.3f})"
    if not alternated:
        return f"{about}, by itself"

    def relative(name: str) -> str:
        return f", {statistics.median(a / b for a, b in zip(values, result[name]['seconds'])):.3f} of {name}"

    about += relative("flat")
    if own["operations"]:
        about += f", {own['operations'] / 1e9:.1f} GFLOP, {own['operations'] / median / 1e9:.0f} GFLOP/s"
    if own["bytes"]:
        about += f", {own['bytes'] / 1e6:,.0f} MB"
    return about + "".join(relative(name) for name in ("dreamerv3-torch", "the JAX original") if name in result)


def measure_shape(name: str, shape: Shape, options) -> dict:
    agents = {variant: shape.agent(presets) for variant, presets in shape.variants.items()}
    if options.compile:
        agents["flat, compiled"] = shape.agent(compile=True)
    config = agents["flat"]._config
    batches = {variant: shape.batch(agent._config) for variant, agent in agents.items()}
    steps = {variant: timed(agent.update, batches[variant]) for variant, agent in agents.items()}
    with (
        dreamerv3_torch(None if config.replay_context else options.against, name, batches["flat"]) as other,
        jax_original(options.jax_python, options.jax if config.replay_context else None, name, batches["flat"]) as original,
    ):
        if other:
            steps["dreamerv3-torch"] = other("update")
        if original:
            steps["the JAX original"] = original("update")
        seconds = by_turns(steps, options.repeats if name != "small" else 4 * options.repeats)
    if options.bf16:
        # Not alternated: on a processor that does not compute in bfloat16 an update takes many times as long.
        agent = shape.agent(precision="bf16")
        seconds["flat, bfloat16"] = by_turns({"": timed(agent.update, batches["flat"])}, 2, 1)[""]
    memory = {variant: memory_of_updates(name, presets, {}, [3])[0] for variant, presets in shape.variants.items() if MEASURES_MEMORY}
    counts = {variant: operations(shape, presets) for variant, presets in shape.variants.items()}
    result = {
        variant: {"seconds": values, "operations": counts.get(variant), "bytes": memory.get(variant)} for variant, values in seconds.items()
    }
    rows = [(variant, describe(variant, result, alternated=variant in steps)) for variant in seconds]
    count = torch.get_num_threads()
    console.say(
        console.table(
            f"Update: {shape.about}, {config.batch_size} x {config.batch_length}, {count} thread"
            f"{'s' if count > 1 else ''}, medians of {len(seconds['flat'])}",
            rows,
        )
    )
    return result


def sample_by_exponentials(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draws one random number per class, as `torch.multinomial` does, instead of one per categorical."""
    index = (probs.detach() / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)
    return torch.zeros_like(index, dtype=torch.float32).expand_as(probs).scatter(-1, index, 1.0)


# The optimisations that can be switched off: module and name of what is replaced, and the replacement.
MEANS = {
    "the faster library for products": (layers, "_onednn", False),
    "one weight gradient for all steps": (networks, "weight_gradients_once", contextlib.nullcontext),
    "one random number per categorical": (distributions, "sample_onehot", sample_by_exponentials),
}


def measure_means(options) -> dict:
    """Measures how much slower an update is without each of `MEANS`, and when freed memory returns to the kernel."""
    results = {}
    for name in options.shapes:
        shape = SHAPES[name]
        with threads(1 if shape.single_thread else torch.get_num_threads()), contextlib.ExitStack() as opened:
            agent = shape.agent()
            batch = shape.batch(agent._config)

            def without(mean: str) -> None:
                with unittest.mock.patch.object(*MEANS[mean]):
                    agent.update(batch)

            steps = {"": timed(agent.update, batch), **{mean: timed(without, mean) for mean in MEANS}}
            for keep in (True, False):
                steps[f"keep {keep}"] = opened.enter_context(worker(name, keep, torch.get_num_threads()))
            seconds = by_turns(steps, options.repeats if name != "small" else 4 * options.repeats)
        seconds["freed memory is kept"] = seconds.pop("keep False")
        base = {mean: seconds["keep True" if mean == "freed memory is kept" else ""] for mean in seconds}
        results[name] = {
            mean: statistics.median(a / b for a, b in zip(taken, base[mean]))
            for mean, taken in seconds.items()
            if mean not in ("", "keep True")
        }
        console.say(
            console.table(
                f"Time of an update without it, relative to one with it: {shape.about}",
                [(mean, f"{ratio:.3f}") for mean, ratio in results[name].items()],
            )
        )
    return results


@contextlib.contextmanager
def worker(name: str, keep: bool, count: int):
    """Yields a step for `by_turns`: an update in a process of its own, which keeps freed memory or not."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_updates, args=(name, keep, count, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies ends the wait

    def step() -> float:
        ours.send(True)
        return ours.recv()

    try:
        yield step
    finally:
        process.kill()
        process.join()


def _updates(name: str, keep: bool, count: int, pipe) -> None:
    torch.set_num_threads(count)
    if keep:
        tools.keep_freed_memory()
    shape = SHAPES[name]
    agent = shape.agent()
    step = timed(agent.update, shape.batch(agent._config))
    while pipe.recv():
        pipe.send(step())


def measure_policy(options) -> dict:
    """Measures one policy step on images, for 1 and 16 environments."""
    shape = SHAPES["images"]
    agents = {"flat": shape.agent(), "hdreamer": shape.agent(["hdreamer"])}
    steps, states = {}, {}

    def act(name: str, agent, count: int, obs: dict) -> None:
        _, states[name, count] = agent.act(obs, states.get((name, count)), training=True)

    with dreamerv3_torch(options.against, "images", shape.batch(shape.config())) as other:
        for count in (1, 16):
            obs = shape.observe(count)
            steps.update({f"{name}, {count}": timed(act, name, agent, count, obs, times=IN_A_ROW) for name, agent in agents.items()})
            if other:
                steps[f"dreamerv3-torch, {count}"] = other(f"policy {count} {IN_A_ROW}")
        seconds = by_turns(steps, 2 * options.repeats)
    rows = []
    for name, values in seconds.items():
        about = f"{1e3 * statistics.median(values):6.2f} ms"
        old = seconds.get(f"dreamerv3-torch, {name.rpartition(' ')[-1]}")
        if old and old is not values:
            about += f", {statistics.median(a / b for a, b in zip(values, old)):.3f} of dreamerv3-torch"
        rows.append((f"{name} environment{'s' if name.endswith('16') else ''}", about))
    console.say(console.table("Policy step, images", rows))
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_replay(options) -> dict:
    """Measures how long it takes to copy a batch of 16 x 64 images from full memories of several sizes."""
    results = {}
    for stored in (10**3, 10**4, 10**5, 10**6):
        free = available_memory()
        if free is not None and 13_000 * stored > 0.8 * free.bytes:
            console.say(f"{stored:,} steps do not fit into memory here.")
            continue
        memory = Replay(
            spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), 6, capacity=stored, streams=1, batch_size=16, batch_length=64
        )
        rng, length = np.random.default_rng(0), 1000
        episode = {
            "image": rng.integers(0, 256, (length, 64, 64, 3), np.uint8),
            "action": np.zeros((length, 6), np.float32),
            "reward": np.zeros(length, np.float32),
            "is_first": np.arange(length) == 0,
            "is_last": np.arange(length) == length - 1,
            "is_terminal": np.zeros(length, bool),
        }
        for _ in range(stored // length):
            memory.add_episode(episode)
        results[stored] = statistics.median(by_turns({"": timed(memory.sample)}, 20 * options.repeats)[""])
        del memory
    console.say(
        console.table(
            "Replay: a batch of 16 x 64 images",
            [(f"{stored:,} steps stored", f"{1e3 * seconds:.2f} ms") for stored, seconds in results.items()],
        )
    )
    return results


def _updates_with_peaks(name: str, presets: list[str], settings: dict, updates: list[int], pipe) -> None:
    """Sends the bytes that the first updates[0] updates add to the process's peak, the next updates[1], and so on."""
    tools.keep_freed_memory()
    shape = SHAPES[name]
    agent = shape.agent(presets, **settings)
    batch = shape.batch(agent._config)

    peaks = [peak_memory()]
    for count in updates:
        for _ in range(count):
            agent.update(batch)
        peaks.append(peak_memory())
    pipe.send([after - before for before, after in itertools.pairwise(peaks)])


def from_fresh_process(function: Callable, *args):
    """Runs a function in a new process; returns what it sends through the pipe, its last argument."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*args, theirs))
    process.start()
    theirs.close()  # so that a process that dies ends the wait
    result = ours.recv()
    process.join()
    return result


def memory_of_updates(*args) -> list[int]:
    """Runs `_updates_with_peaks` in a new process."""
    return from_fresh_process(_updates_with_peaks, *args)


def _large_updates(once: bool, precision: str, count: int, pipe) -> None:
    """Sends median seconds of updates of a large world model, and the bytes they add to the process's peak."""
    tools.keep_freed_memory()
    agent = LARGE.agent(precision=precision, **LARGE_SETTINGS)
    data = agent._wm.preprocess(LARGE.batch(agent._config))
    before, step = peak_memory(), timed(agent._wm.update, data)
    with contextlib.nullcontext() if once else unittest.mock.patch.object(networks, "weight_gradients_once", contextlib.nullcontext):
        seconds = [step() for _ in range(count + 1)][1:]
    pipe.send((statistics.median(seconds), peak_memory() - before))


def measure_recurrence(options) -> dict:
    """Measures what weight gradients formed once save: seconds and memory of a large world model's update."""
    results, rows = {}, []
    for precision in ("32", *(["bf16"] if options.bf16 else [])):
        for name, once in (("once for all steps", True), ("at every step", False)):
            seconds, memory = from_fresh_process(_large_updates, once, precision, options.repeats)
            results[f"{precision}, {name}"] = {"seconds": seconds, "bytes": memory}
            rows.append((f"precision {precision}, {name}", f"{seconds:.2f} s, {memory / 1e9:.1f} GB"))
    console.say(console.table(f"Weight gradients of the recurrence: {LARGE.about}", rows))
    return results


def measure_memory(options) -> dict:
    """Measures peak memory of updates, each in a new process."""
    if not MEASURES_MEMORY:
        console.say("This system does not report the peak memory of a process.")
        return {}
    results = {"float32": memory_of_updates("images", [], {}, [3])[0]}
    if options.bf16:
        results["bfloat16"] = memory_of_updates("images", [], {"precision": "bf16"}, [2])[0]
    if options.against:
        with dreamerv3_torch(options.against, "images", SHAPES["images"].batch(SHAPES["images"].config())) as other:
            before = other("peak")()
            by_turns({"": other("update")}, 3, 0)
            results["dreamerv3-torch"] = other("peak")() - before
    sizes = {"batch_size": 4, "batch_length": 16}
    results["growth over 1,000 small updates, after 500"] = memory_of_updates("small", [], sizes, [500, 1000])[1]
    console.say(
        console.table(
            "Peak memory of updates, images, beyond weights and program",
            [(name, f"{value / 1e6:,.0f} MB") for name, value in results.items()],
        )
    )
    return results


def measure_growth(options) -> dict:
    """Measures seconds per update against batch size, batch length (two sequences) and horizon, `small` sizes."""
    shape, results = SHAPES["small"], {}
    with threads(1):
        for setting, values in (
            ("batch_size", (8, 16, 32, 64, 128)),
            ("batch_length", (32, 64, 128, 256, 512)),
            ("imag_horizon", (15, 30, 60, 120)),
        ):
            fixed = {"batch_size": 2} if setting == "batch_length" else {}
            steps = {}
            for value in values:
                agent = shape.agent(**{**fixed, setting: value})
                steps[value] = timed(agent.update, shape.batch(agent._config))
            seconds = by_turns(steps, max(2, options.repeats // 2), 1)
            results[setting] = {value: statistics.median(taken) for value, taken in seconds.items()}
    rows = []
    for setting, curve in results.items():
        first, last = next(iter(curve)), next(reversed(curve))
        rows.append((setting, f"{first} to {last}: {curve[last] / curve[first]:.2f} times the time for {last / first:.1f} times the work"))
    console.say(console.table("Growth of an update", rows))
    draw_growth(results, options.out / "growth.png")
    return results


def draw_growth(results: dict, path: pathlib.Path) -> None:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axis, (setting, curve) in zip(figure.subplots(1, len(results)), results.items()):
        values, seconds = list(curve), list(curve.values())
        axis.plot(values, seconds, "o-", label="measured")
        slope = seconds[-1] / values[-1]
        axis.plot([0, values[-1]], [0, slope * values[-1]], ":", color="gray", label="proportional")
        axis.set(xlabel=setting, ylabel="seconds per update", xlim=(0, None), ylim=(0, None))
        axis.legend()
    figure.savefig(path, dpi=120)


def measure_loop(options) -> dict:
    """Measures where a run's time goes: atari_pong, default sizes, train_ratio 512, after the first updates."""
    import dreamer

    with tempfile.TemporaryDirectory() as logdir, contextlib.redirect_stdout(sys.stderr):
        config = tools.load_config(
            ["defaults"],
            {
                "task": "atari_pong",
                "logdir": f"{logdir}/run",
                "prefill": 200,
                "pretrain": 3,
                "steps": 1000 + 8 * options.repeats,
                "eval_every": 0,
                "device": "cpu",
            },
        )
        run = dreamer.start(config)
        with contextlib.closing(run):
            dreamer.prefill(run)
            dreamer.pretrain(run)
            run.config.steps = run.step + 16 * options.repeats
            spent = {"update": 0.0, "policy": 0.0, "environment": 0.0}

            def counting(name: str, function: Callable) -> Callable:
                def call(*args, **kwargs):
                    start = time.perf_counter()
                    try:
                        return function(*args, **kwargs)
                    finally:
                        spent[name] += time.perf_counter() - start

                return call

            run.agent.update = counting("update", run.agent.update)
            run.agent.act = counting("policy", run.agent.act)
            run.data.envs.send = counting("environment", run.data.envs.send)
            run.data.envs.recv = counting("environment", run.data.envs.recv)
            start = time.perf_counter()
            dreamer.train(run)
            total = time.perf_counter() - start
    spent["the rest"] = total - sum(spent.values())
    console.say(
        console.table(
            f"Loop: atari_pong, train_ratio 512, {4 * options.repeats} agent steps",
            [(name, f"{seconds:7.3f} s, {100 * seconds / total:.2f}%") for name, seconds in spent.items()],
        )
    )
    return spent


def measure_start(options) -> dict:
    """Measures seconds from the command to the first environment step."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import dreamer, exploration, tools\n"
        "config = tools.load_config(['defaults', 'hdreamer'], {'task': 'atari_pong', 'logdir': sys.argv[2], 'eval_every': 0})\n"
        "run = dreamer.start(config)\n"
        "run.data.collector.step(exploration.Random(run.agent.codec, 0))\n"
        "print('seconds', time.time() - float(sys.argv[3]))\n"
        "run.close()"
    )
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as logdir:
            output = subprocess.run(
                [sys.executable, "-c", code, str(HERE.parent), f"{logdir}/run", str(time.time())],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            seconds.append(float(output.rpartition("seconds")[2].split()[0]))
    console.say(console.table("Start", [("to the first step of Pong, hdreamer", f"{statistics.median(seconds):.1f} s")]))
    return {"seconds": seconds}


PARTS = {
    "machine": measure_machine,
    "updates": measure_updates,
    "means": measure_means,
    "recurrence": measure_recurrence,
    "policy": measure_policy,
    "replay": measure_replay,
    "loop": measure_loop,
    "memory": measure_memory,
    "growth": measure_growth,
    "start": measure_start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="shapes of updates")
    parser.add_argument("--repeats", type=int, default=5, help="repeats per update; faster steps have more (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="also measure bfloat16; slow where the processor lacks it")
    parser.add_argument("--compile", action="store_true", help="also measure compiled updates; compiling takes minutes")
    parser.add_argument("--against", metavar="FOLDER", help="checkout of dreamerv3-torch to compare with")
    parser.add_argument("--jax", metavar="FOLDER", help="checkout of danijar/dreamerv3 to compare updates of 2025 with")
    parser.add_argument("--jax-python", metavar="PYTHON", default=sys.executable, help="Python that runs it (default: this one)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for speed.json and growth.png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tools.keep_freed_memory()
    path = options.out / "speed.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in options.only:
        results[part] = PARTS[part](options)
        path.write_text(json_text(results, indent=1))


if __name__ == "__main__":
    main()
