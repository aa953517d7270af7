"""Environments in worker processes, one in each, which may raise, hang, die or return nonsense without ending the run."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np

import console
from envs import processes
from envs.check import check_values

RESTARTS = 3  # in a row: without an episode that ends, or so many good steps, in between
GOOD_STEPS = 1000
SEED_STRIDE = 1000  # between the seeds of an environment and of the one in its place; more than there are environments
ALIVE = 2.0  # seconds after which a worker that has nothing to do looks whether the main process still lives


class Workers:
    """A gymnasium vector environment with NEXT_STEP autoreset, `step_async` and `step_wait`.

    An environment that fails is made anew, with a warning; if its process has died or hangs, in another one. The step that failed
    returns the first observation of a new episode, whose seed has not been used before, and info["restarted"] says where that was
    so, (N,) bool.

    Args:
        make_env: builds one environment with dict observations; called in the workers, and once here.
        count: how many.
        timeout: seconds that a step or reset may take; 0 for no limit.
        start: how processes start, see `processes.start`.
    Raises:
        RuntimeError: in a daemonic process.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], count: int, timeout: float = 0.0, start: str | None = None):
        env = make_env()  # errors surface here, not in a worker
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        env.close()
        self._make_env, self._method, self._timeout, self.num_envs = make_env, start, timeout or None, count
        self._seed, self._made_anew = None, 0
        self._failures, self._good_steps = np.zeros(count, int), np.zeros(count, int)
        self._workers = []
        # Before a process ends it waits for those that it has started, but runs this first.
        multiprocessing.util.Finalize(self, _stop_all, (self._workers,), exitpriority=0)
        try:
            for _ in range(count):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def _start(self) -> tuple:
        """A process and the connection to it."""
        return processes.start("worker", _work, (self._make_env,), self._method)

    def reset(self, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Begins new episodes; environment i is seeded with seed + i, if there is a seed."""
        self._seed = self._seed if seed is None else seed
        for index in range(self.num_envs):
            self._ask(index, ("reset", None if seed is None else seed + index))
        obs, *_, info = self._collect()
        return obs, info

    def step_async(self, actions: np.ndarray) -> None:
        """Starts a step with N actions."""
        for index, action in enumerate(actions):
            self._ask(index, ("step", action))

    def step_wait(self) -> tuple:
        """Waits for the step: observations, rewards, terminated, truncated, each (N, ...), and info."""
        return self._collect()

    def _ask(self, index: int, request: tuple) -> None:
        with contextlib.suppress(OSError):  # if it has died, that shows when its answer is waited for
            self._workers[index][1].send(request)

    def _collect(self) -> tuple:
        """All answers, put together; environments that have failed are made anew for it."""
        deadline = self._deadline()
        answers, restarted = [], np.zeros(self.num_envs, bool)
        for index in range(self.num_envs):
            answer = self._answer(index, deadline)
            while isinstance(answer, str):
                restarted[index] = True
                self._make_anew(index, answer)
                answer = self._answer(index, self._deadline())
            answers.append(answer)
        obs, *rest = zip(*answers)
        reward, terminated, truncated = map(np.array, rest)
        self._good_steps += 1
        self._failures[terminated | truncated | (self._good_steps > GOOD_STEPS)] = 0
        return {key: np.stack([each[key] for each in obs]) for key in obs[0]}, reward, terminated, truncated, {"restarted": restarted}

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _answer(self, index: int, deadline: float | None) -> tuple | str:
        """What a worker answers: a step, or the traceback of its environment; `_Gone` if it does not answer."""
        process, connection = self._workers[index]
        try:
            if not connection.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return _Gone(f"it has not answered for {self._timeout:g} seconds (setting env_timeout)")
            return connection.recv()
        except (EOFError, OSError):
            process.join(1.0)
            return _Gone(f"its process has died (exit code {process.exitcode})")

    def _make_anew(self, index: int, reason: str) -> None:
        """Begins a new episode in a new environment.

        Raises:
            EnvironmentFailed: if that has not helped for RESTARTS times in a row.
        """
        self._failures[index] += 1
        self._good_steps[index] = 0
        if self._failures[index] > RESTARTS:
            raise EnvironmentFailed(f"environment {index} has failed {self._failures[index]} times in a row. The last time: {reason}")
        brief = reason.strip().splitlines()[-1]
        console.warn(f"environment {index} is started anew ({self._failures[index]} of at most {RESTARTS} times in a row): {brief}")
        if isinstance(reason, _Gone):
            processes.stop(*self._workers[index])
            self._workers[index] = self._start()
        self._made_anew += 1
        self._ask(index, ("reset", None if self._seed is None else (self._seed + index + SEED_STRIDE * self._made_anew) % 2**31))

    def close(self) -> None:
        """Ends all workers; one that has not ended by itself after two seconds is killed."""
        for index in range(len(self._workers)):
            self._ask(index, ("close", None))
        deadline = time.monotonic() + 2.0
        for process, connection in self._workers:
            process.join(max(0.0, deadline - time.monotonic()))
            processes.stop(process, connection)
        self._workers.clear()


class EnvironmentFailed(RuntimeError):
    """An environment fails again and again; the message has its own traceback."""


class _Gone(str):
    """Why a worker does not answer."""


def _stop_all(workers: list[tuple]) -> None:
    for process, connection in workers:
        processes.stop(process, connection)


def _work(make_env: Callable[[], gymnasium.Env], connection: multiprocessing.connection.Connection) -> None:
    """A worker: answers requests with steps (observation, reward, terminated, truncated), or with a traceback if there is none."""
    # A signal reaches the whole process group. The main process decides when to stop, and still needs its workers then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    env, ended = None, True
    for request, value in _requests(connection):
        try:
            if request == "reset" and value is not None:
                # For environments that draw from these: NumPy's is the same in all workers otherwise, and Python's any.
                random.seed(value)
                np.random.seed(value % 2**32)
            env = env or make_env()
            if request == "reset" or ended:
                answer = env.reset(seed=value if request == "reset" else None)[0], 0.0, False, False
            else:
                answer = env.step(value)[:4]
            check_values(*answer)
            ended = bool(answer[2] or answer[3])
        except Exception:  # an environment may raise anything; whoever asked says what it was
            answer, ended = traceback.format_exc(), True
            _close(env)
            env = None
        with contextlib.suppress(OSError):  # if nobody listens any more, there are no more requests
            connection.send(answer)
    _close(env)


def _requests(connection: multiprocessing.connection.Connection) -> Iterator[tuple]:
    """What the main process asks for, until it has closed the connection or has ended."""
    parent = multiprocessing.parent_process().pid
    with contextlib.suppress(EOFError, OSError):
        while True:
            # Workers hold copies of each other's connections, so that its end is not seen there.
            while not connection.poll(ALIVE):
                if os.getppid() != parent:
                    return
            request = connection.recv()
            if request[0] == "close":
                return
            yield request


def _close(env: gymnasium.Env | None) -> None:
    if env is not None:
        with contextlib.suppress(Exception):  # it has failed anyway, or is not needed any more
            env.close()
