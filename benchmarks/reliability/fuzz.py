"""Feeds damaged and malicious files to everything that reads them: each must load, or be refused in one line."""

import collections
import contextlib
import faulthandler
import io
import pathlib
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

import checkpoints
import dreamer
import settings
import tools
from benchmarks.reliability import mutations
from pages import curves, run_page
from replay import Replay
from training import folder, offline

SECONDS, BYTES = 20, 2 * 10**9  # limits for one file
TASK = "gym_CartPole-v1"


class Watch:
    """While `on`, records what Python writes, makes or removes outside a folder, and what it starts."""

    WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.copyfile")
    STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")

    def __init__(self, folder: pathlib.Path):
        self._folder, self.on, self.found = folder.resolve(), False, []
        sys.addaudithook(self._hear)  # there is no way to remove one

    def _hear(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event in self.STARTS or ((writes or event in self.WRITES) and not self._inside(args[0])):
            self.found.append(f"{event} {args!r:.200}")

    def _inside(self, path) -> bool:
        if isinstance(path, int) or "__pycache__" in str(path):
            return True
        return pathlib.Path(str(path)).resolve().is_relative_to(self._folder)


class Result(NamedTuple):
    """The outcome of a file: "loaded", "refused", or what went wrong."""

    outcome: str
    detail: str = ""


class Fuzz:
    """A finished run, and what reads its files.

    Args:
        folder: where everything is written.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "a" / "b" / "c"  # so that ../../ stays in what is looked at
        self.good, self.canary = self.folder / "good", folder / "canary"
        flags = ["--configs", "defaults", "debug", "--task", TASK, "--device", "cpu", "--eval_every", "0", "--hierarchical_mode", "true"]
        self.flags = [*flags, "--time_limit", "30"]
        with quiet():
            assert dreamer.main([*self.flags, "--steps", "120", "--logdir", str(self.good)]) == 0
        self.agent = dreamer.load_agent(self.good, "cpu")
        self.memory = Replay(self.agent.obs_space, self.agent.codec.size, capacity=200, streams=2, batch_size=2, batch_length=8)
        self.config = settings.load_config(*settings.parse_flags(self.flags))
        self.sources = {
            "checkpoint": (self.good / "latest.pt").read_bytes(),
            "episode": next(iter(sorted((self.good / "train_eps").glob("*.npz")))).read_bytes(),
            "config": (self.good / "config.yaml").read_bytes(),
        }
        self.watch = Watch(self.folder)

    def files(self, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
        """Yields mutated files and their kinds, the same ones for the same seed."""
        make = {"checkpoint": mutations.checkpoints, "episode": mutations.episodes, "config": mutations.configs}
        for number in range(count):
            kind = list(make)[number % len(make)]
            with quiet():
                content = make[kind](self.sources[kind], self.canary, random.Random(f"{seed} {number}"))
            yield kind, content

    def feed(self, kind: str, content: bytes, deep: bool) -> Result:
        """Gives the file to everything that reads its kind; with `deep` also to a run that resumes with it."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.good, run)
        name = {"checkpoint": "latest.pt", "episode": "train_eps/20990101T000000000000-x-31.npz", "config": "config.yaml"}[kind]
        (run / name).write_bytes(content)
        readers = {"checkpoint": self._checkpoint, "episode": self._episode, "config": self._config}[kind](run)
        if deep:
            readers.append(lambda: self._continue(run))
        outcomes, before = [], peak_bytes()
        for read in readers:
            outcomes.append(self._try(read))
        if peak_bytes() - before > BYTES:
            return Result("memory", f"{peak_bytes() - before:,} bytes")
        if self.watch.found or self.canary.exists() or any(self.folder.parent.parent.rglob("escaped*")):
            return Result("escaped", "; ".join(self.watch.found))
        wrong = [outcome for outcome in outcomes if outcome.outcome not in ("loaded", "refused")]
        return wrong[0] if wrong else max(outcomes)  # refused, if anything refused it

    def _try(self, read: Callable[[], object]) -> Result:
        def late(*_):
            raise TimeoutError

        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        self.watch.on = True
        try:
            with quiet() as told:
                read()
            return Result("refused" if "which cannot be read" in told.getvalue() else "loaded")
        except ValueError as error:
            one_line = str(error).strip() and len(str(error).splitlines()) == 1 and len(str(error)) < 2000
            return Result("refused") if one_line else Result("unclear", f"{error!r:.300}")
        except BaseException:
            return Result("crash", traceback.format_exc())
        finally:
            self.watch.on = False
            signal.alarm(0)

    def _checkpoint(self, run: pathlib.Path) -> list[Callable]:
        def take_up():
            self.agent.load_checkpoint(checkpoints.load(run / "latest.pt"))

        return [take_up, lambda: dreamer.load_agent(run, "cpu"), lambda: folder.stored_config(run)]

    def _episode(self, run: pathlib.Path) -> list[Callable]:
        def learn():
            recording = offline.survey("offline_traindir", str(run / "train_eps"), None, TASK, self.config)
            dreamer.Dreamer(recording.obs_space, recording.act_space, self.config).update(offline.fill(recording, self.config).sample())

        return [lambda: self.memory.load(run / "train_eps"), lambda: self.memory.sample(), learn]

    def _config(self, run: pathlib.Path) -> list[Callable]:
        def compare():
            return settings.changes_of_run(folder.stored_config(run), self.config, run)

        def load():
            return settings.load_config(stored=settings.read_yaml(run / "config.yaml"))

        def page():
            return run_page.write(run, run_page.read_settings(run)), curves.read(run)

        return [compare, load, page]

    def _continue(self, run: pathlib.Path) -> None:
        if code := dreamer.main([*self.flags, "--steps", "130", "--logdir", str(run)]):
            if code != 2:
                raise RuntimeError(f"exit code {code}")
            raise ValueError("told on stderr")


@contextlib.contextmanager
def quiet():
    """Hides what is printed; yields what goes to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield told


def peak_bytes() -> int:
    """Returns the peak resident memory of this process."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(count: int, folder: pathlib.Path, seed: int = 0, first: int = 0, deep_every: int = 10) -> dict[str, collections.Counter]:
    """Feeds `count` files and prints what went wrong; returns counts of outcomes by kind of file.

    Args:
        first: number of the first file, to look at it alone.
        deep_every: one of so many files is also given to a run that resumes with it.
    """
    faulthandler.enable()
    torch.set_num_threads(1)
    tools.set_seed(seed)
    fuzz, counts = Fuzz(folder), collections.defaultdict(collections.Counter)
    np.seterr(all="ignore")  # finite checks report numbers that overflow in a cast
    began = time.monotonic()
    for number, (kind, content) in enumerate(fuzz.files(count, seed)):
        if number < first:
            continue
        result = fuzz.feed(kind, content, deep=number // 3 % deep_every == 0)
        counts[kind][result.outcome] += 1
        if result.outcome not in ("loaded", "refused"):
            (folder / f"wrong-{number}").write_bytes(content)
            print(f"file {number}, {kind}: {result.outcome}\n{result.detail}", flush=True)
            fuzz.watch.found.clear()
            fuzz.canary.exists() and fuzz.canary.rmdir()
        if number % 200 == 199:
            print(f"{number + 1:,} files, {time.monotonic() - began:.0f} s, peak {peak_bytes() / 1e6:,.0f} MB", flush=True)
    return dict(counts)
