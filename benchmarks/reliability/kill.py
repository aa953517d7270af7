"""Kills and stops runs again and again, and counts what they lose:

    python -m benchmarks.reliability kill                    # 100 kills and 10 stops; took 17 minutes
    python -m benchmarks.reliability kill --kills 4 --stops 1
    python -m benchmarks.reliability kill --kills 10 --stops 4 --ranks 2

SIGKILL ends runs of CartPole (four environments in processes) and Pong (two in threads): at random moments, from the
start of the process on, and while a checkpoint or an episode is being written. After each kill the folder is checked,
and the same command resumes the run. Then SIGTERM and Ctrl-C stop runs of CartPole, which must lose nothing. Returns 1
if anything is lost. With --ranks the runs are of several processes, of which a random one is killed each time; the others
must end within 30 seconds.
"""

import argparse
import collections
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import checkpoints
from benchmarks.reliability.journal import FINISHED, STEPS, episode_number
from storage.episodes import load_episode

ROOT = pathlib.Path(__file__).parents[2]
COMMON = "--configs defaults debug --device cpu --steps 1000000 --checkpoint_every 1 --dataset_size 100000"
TASKS = {  # with the frames of an agent step
    "CartPole": (f"{COMMON} --task gym_Journal-v0 --import benchmarks.reliability.journal --envs 4 --eval_every 0", 1),
    "Pong": (f"{COMMON} --task atari_pong --envs 2 --time_limit 160 --eval_every 2000 --eval_episode_num 1 --size 32 32", 4),
}
MOMENTS = ("starting", "running", "writing a checkpoint", "writing an episode")


class Killed:
    """A run that is started and ended from outside, and its folder.

    Args:
        ranks: processes of the run, which torchrun starts if there are several.
    Attributes:
        counts: what was found, by what it is.
    """

    def __init__(self, name: str, folder: pathlib.Path, ranks: int = 1):
        flags, self._repeat = TASKS[name]
        self.name, self.counts = name, collections.Counter({"unreadable episodes": 0})
        self.logdir, self._journal, self._log = folder / "run", folder / "journal", folder / "log.txt"
        self._journal.mkdir()
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        self._command = [sys.executable, *launcher, "dreamer.py", *flags.split(), "--logdir", str(self.logdir)]
        self._ranks = ranks
        self._steps: dict[pathlib.Path, int] = {}  # of every episode that was found on the disk
        self._before, self._expected = None, 0  # frame and updates of the checkpoint; the frame to go on at
        self._process = None

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JOURNAL": str(self._journal)}
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait_until(self, moment: str, rng: random.Random) -> bool:
        """Waits for a moment to kill; returns whether it came."""
        deadline = time.monotonic() + 120
        while self._ranks > 1 and len(children_of(self._process.pid)) < self._ranks and time.monotonic() < deadline:
            time.sleep(0.02)
        if moment == "starting":
            time.sleep(rng.uniform(0.0, 8.0))
            return True
        while "train:" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run does not train:\n{self._log.read_text()}")
            time.sleep(0.02)
        pattern = {"writing a checkpoint": "*.partial", "writing an episode": "train_eps/*.partial"}.get(moment)
        end = time.monotonic() + (rng.uniform(0.0, 4.0) if pattern is None else 20.0)
        while time.monotonic() < end:
            if pattern and any(self.logdir.glob(pattern)):
                return True
            time.sleep(0.0 if pattern else 0.02)
        return pattern is None

    def end(self, number: signal.Signals, rng: random.Random) -> int:
        """Sends a signal to the process but not to its workers; counts processes left behind; returns the exit code.

        Of a run of several processes, SIGKILL ends one of them, and other signals go to torchrun.
        """
        ranks = children_of(self._process.pid) if self._ranks > 1 else []
        os.kill(rng.choice(ranks) if ranks and number == signal.SIGKILL else self._process.pid, number)
        begun = time.monotonic()
        code = self._process.wait(timeout=120)
        self.counts["ends after more than 30 s"] += time.monotonic() - begun > 30
        deadline = time.monotonic() + 10
        sessions = [self._process.pid, *ranks]  # torchrun starts a session for each
        while (left := processes_of_sessions(sessions)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.counts["processes left behind"] += len(left)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return code

    def look(self) -> None:
        """Compares what is on the disk with what was there before."""
        counts = self.counts
        checkpoint = self.logdir / "latest.pt"
        if checkpoint.exists() or self._before:
            try:
                stored = checkpoints.load(checkpoint)
                progress = (stored["step"], stored["updates"])
                counts["checkpoints lost"] += bool(self._before and progress < self._before)
                self._before = progress
            except (ValueError, OSError):
                counts["checkpoints lost"] += 1
        paths = set(self.logdir.glob("train_eps/*.npz"))
        counts["files of episodes gone"] += len(self._steps.keys() - paths)
        for path in paths - self._steps.keys():
            try:
                self._steps[path] = len(load_episode(path)["reward"]) - 1
            except Exception:
                counts["unreadable episodes"] += 1
        self._expected = max(self._before[0] if self._before else 0, sum(self._steps.values()) * self._repeat)

    def look_at_restart(self) -> None:
        """Compares the frame at which the run resumes with the files on the disk; counts unreadable files."""
        found = re.search(r"Resuming at frame ([\d,]+)", self._log.read_text())
        if found or self._expected:
            counted = int(found[1].replace(",", "")) if found else 0
            self.counts["frames counted twice"] += max(0, counted - self._expected)
            self.counts["frames forgotten"] += max(0, self._expected - counted)
        self.counts["restarts"] += 1
        self.counts["warnings of unreadable files"] += self._log.read_text().count("cannot be read")

    def finished(self) -> None:
        """Compares the episodes on the disk with those whose end the environments saw received."""
        if self.name != "CartPole":
            return
        numbers = collections.Counter(episode_number(load_episode(path)["number"][0]) for path in self._steps)
        path = self._journal / FINISHED
        received = [int(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.counts["episodes finished"] += len(received)
        self.counts["finished episodes lost"] += sum(number not in numbers for number in received)
        self.counts["episodes stored twice"] += sum(count - 1 for count in numbers.values())

    def steps(self) -> tuple[int, int]:
        """Returns the steps that the environments took, and those on the disk."""
        return (self._journal / STEPS).stat().st_size, sum(self._steps.values())

    def too_many_updates(self) -> int:
        """Returns the updates beyond those that settings and frames allow; a resume must not catch up on updates."""
        step, updates = self._before
        per_step = 4 / (2 * 12)  # train_ratio / (batch_size * batch_length) of `debug`
        return max(0, int(updates - 2 - step / self._repeat * per_step - 1))


def processes_of_sessions(sessions: list[int]) -> list[int]:
    """Returns the processes of sessions, including zombies."""
    return [pid for pid, _, session in _processes() if session in sessions]


def children_of(parent: int) -> list[int]:
    """Returns the processes that a process has started."""
    return [pid for pid, found, _ in _processes() if found == parent]


def _processes() -> list[tuple[int, int, int]]:
    """Returns all processes, with their parents and sessions."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        found.append((int(path.parent.name), int(fields[1]), int(fields[3])))
    return found


def kill(name: str, kills: int, folder: pathlib.Path, rng: random.Random, ranks: int = 1) -> collections.Counter:
    """Kills a run `kills` times, at each kind of moment in turn."""
    run = Killed(name, folder, ranks)
    for number in range(kills):
        moment = MOMENTS[number % len(MOMENTS)]
        run.start()
        came = run.wait_until(moment, rng)
        run.counts[f"kills {moment}" if came else "kills at no special moment"] += 1
        if number and moment != "starting":
            run.look_at_restart()
        run.counts["ends without an error"] += not run.end(signal.SIGKILL, rng)
        run.look()
    run.finished()
    run.counts["updates too many"] += run.too_many_updates()
    return run.counts


def stop(name: str, stops: int, folder: pathlib.Path, rng: random.Random, ranks: int = 1) -> collections.Counter:
    """Stops a run `stops` times, by SIGTERM and Ctrl-C in turn. The exit code of torchrun is not 0 then, whatever the run does."""
    run = Killed(name, folder, ranks)
    for number in range(stops):
        run.start()
        run.wait_until("running", rng)
        run.counts["wrong exit codes"] += bool(run.end((signal.SIGTERM, signal.SIGINT)[number % 2], rng)) and ranks == 1
        run.look()
        run.counts["stops"] += 1
    run.finished()
    taken, stored = run.steps()
    run.counts["steps taken"], run.counts["steps lost"] = taken, taken - stored
    return run.counts


MUST_BE_ZERO = (
    "checkpoints lost", "unreadable episodes", "warnings of unreadable files", "files of episodes gone", "finished episodes lost",
    "episodes stored twice", "frames counted twice", "frames forgotten", "updates too many", "processes left behind", "steps lost",
    "wrong exit codes", "ends after more than 30 s", "ends without an error",
)  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="three of four of CartPole, the rest of Pong (default: %(default)s)")
    parser.add_argument("--stops", type=int, default=10, help="stops of CartPole (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments (default: %(default)s)")
    options = parser.parse_args(argv)
    rng, broken = random.Random(options.seed), 0
    plan = [("CartPole", kill, options.kills - options.kills // 4), ("Pong", kill, options.kills // 4), ("CartPole", stop, options.stops)]
    for name, what, times in plan:
        if times:
            with tempfile.TemporaryDirectory() as folder:
                counts = what(name, times, pathlib.Path(folder), rng, options.ranks)
            print(f"{name}, {what.__name__} {times} times")
            for key, count in sorted(counts.items(), key=lambda item: item[0] in MUST_BE_ZERO):
                bad = key in MUST_BE_ZERO and count
                broken += bool(bad)
                print(f"  {key:32}{count:>8,}{'   BROKEN' if bad else ''}")
    return 1 if broken else 0
