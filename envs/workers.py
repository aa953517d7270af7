"""Runs each environment in a worker process. An environment may raise, hang, die or return invalid values; the run continues."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np

import console
from envs import processes
from envs.check import RENDER_MODE, Trial, check_values
from envs.modules import describe, shortened

RESTARTS = 3  # allowed in a row, that is without a completed episode or GOOD_STEPS steps in between
GOOD_STEPS = 1000
SEED_STRIDE = 1000  # between the seeds of an environment and of its replacement; larger than the number of environments
STOPPING = 5.0  # seconds that a worker is still waited for once the run is to stop
LOOK_EVERY = 0.5  # seconds between looks at whether the run is to stop
ALIVE = 2.0  # seconds after which an idle worker checks whether the main process still exists
# A worker has no window and no sound: SDL, which pygame draws with, must not look for a display. pygame must not print its greeting.
NO_WINDOW = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}


class Workers:
    """A gymnasium vector environment with NEXT_STEP autoreset, `step_async` and `step_wait`.

    An environment that fails is restarted with a warning. If its process has died or hangs, it is restarted in a new process. In
    both cases the failed step returns the first observation of a new episode with an unused seed, and info["restarted"], an (N,)
    bool array, marks the environment.

    Args:
        make_env: builds one environment with dict observations. It is called in the workers alone. If the environment offers the
            render mode rgb_array, it is also called with render_mode="rgb_array".
        trial: what is known of the environment.
        observation_space: of what `make_env` builds.
        count: number of environments.
        timeout: seconds that a step or reset may take; 0 for no limit.
        start: how processes start, see `processes.start`.
    Attributes:
        stop: once it is true, a worker is waited for `STOPPING` seconds more. Then a KeyboardInterrupt ends the step.
    Raises:
        RuntimeError: in a daemonic process.
    """

    def __init__(
        self,
        make_env: Callable[..., gymnasium.Env],
        trial: Trial,
        observation_space: gymnasium.spaces.Dict,
        count: int,
        timeout: float = 0.0,
        start: str | None = None,
    ):
        self.trial, self.stop = trial, False
        self.single_observation_space, self.single_action_space = observation_space, trial.action_space
        # `_renders`: environment 0 is built to render. `_render_problem`: why it cannot render.
        self._renders = trial.render_mode == RENDER_MODE
        self._render_problem = "" if self._renders or trial.offers_rendering else f"does not render {RENDER_MODE}"
        self._make_env, self._method, self._timeout, self.num_envs = make_env, start, timeout or None, count
        self._seed, self._restarts = None, 0
        self._failures, self._good_steps = np.zeros(count, int), np.zeros(count, int)
        self._workers, self._closed = [], False
        # A process that ends waits for its child processes. This finalizer runs before that and stops them.
        multiprocessing.util.Finalize(self, _stop_all, (self._workers,), exitpriority=0)
        try:
            for _ in range(count):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def _start(self) -> tuple:
        """Starts a worker; returns its process and the connection to it."""
        expected = self.single_observation_space, self.single_action_space
        return processes.start("worker", _work, (self._make_env, expected), self._method)

    def reset(self, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict]:
        """Starts new episodes. If a seed is given, environment i gets `seed + i`."""
        self._seed = self._seed if seed is None else seed
        for index in range(self.num_envs):
            self._ask(index, ("reset", None if seed is None else seed + index))
        obs, *_, info = self._collect()
        return obs, info

    def step_async(self, actions: np.ndarray | list) -> None:
        """Starts a step with N actions."""
        for index, action in enumerate(actions):
            self._ask(index, ("step", action))

    def step_wait(self) -> tuple:
        """Waits for the step. Returns observations, rewards, terminated and truncated, each (N, ...), and info."""
        return self._collect()

    def prepare_render(self) -> str:
        """Lets `render` show environment 0, which is built with render_mode="rgb_array" at the next reset; see `EnvBatch`."""
        if not self._renders and not self._render_problem:
            self._renders = True
            self._ask(0, ("prepare_render", None))
        return self._render_problem

    def render(self) -> np.ndarray | str:
        """Renders environment 0, while no step is pending: an image (H, W, C) uint8, or why there is none.

        If rendering hangs or kills the process, the next step restarts the environment. After a failure nothing is rendered again.
        """
        if self._render_problem:
            return self._render_problem
        self._ask(0, ("render", None))
        answer = self._answer(0, self._deadline())
        if isinstance(answer, _Gone):
            processes.stop(*self._workers[0])  # otherwise a late answer would be taken for that of the next step
            answer = f"cannot be rendered: {answer}"
        if isinstance(answer, str):
            self._render_problem = answer
        return answer

    def _ask(self, index: int, request: tuple) -> None:
        with contextlib.suppress(OSError):  # `_answer` notices a worker that has died
            self._workers[index][1].send(request)

    def _collect(self) -> tuple:
        """Waits for all answers and stacks them; restarts environments that have failed."""
        deadline = self._deadline()
        answers, restarted = [], np.zeros(self.num_envs, bool)
        for index in range(self.num_envs):
            answer = self._answer(index, deadline)
            while isinstance(answer, str):
                restarted[index] = True
                self._restart(index, answer)
                answer = self._answer(index, self._deadline())
            answers.append(answer)
        obs, *rest = zip(*answers)
        reward, terminated, truncated = map(np.array, rest)
        self._good_steps += 1
        self._failures[terminated | truncated | (self._good_steps > GOOD_STEPS)] = 0
        return {key: np.stack([each[key] for each in obs]) for key in obs[0]}, reward, terminated, truncated, {"restarted": restarted}

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _answer(self, index: int, deadline: float | None) -> tuple | np.ndarray | str:
        """Waits for a worker's answer: a step or an image, an error as text, or `_Gone` if the worker does not answer."""
        process, connection = self._workers[index]
        try:
            if not self._waits(index, deadline):
                hint = processes.hint_at_threads(self._method)
                return _Gone(f"it has not answered for {self._timeout:g} seconds (setting env_timeout){hint}")
            return connection.recv()
        except (EOFError, OSError):
            process.join(1.0)
            return _Gone(f"its process has died (exit code {process.exitcode})")

    def _waits(self, index: int, deadline: float | None) -> bool:
        """Waits until a worker answers; returns whether it does so before the deadline.

        Raises:
            KeyboardInterrupt: if the run is to stop, and the worker still does not answer.
        """
        connection, asked = self._workers[index][1], None
        while not connection.poll(LOOK_EVERY if deadline is None else max(0.0, min(LOOK_EVERY, deadline - time.monotonic()))):
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            if self.stop and asked is None:
                asked = now
                console.say(f"waiting for environment {index}, for {STOPPING:g} seconds at most")
            if asked is not None and now - asked > STOPPING:
                console.warn(f"environment {index} does not answer; its episode is cut off, so that the run can stop")
                raise KeyboardInterrupt
        return True

    def _restart(self, index: int, reason: str) -> None:
        """Starts a new episode in a new environment.

        Raises:
            EnvironmentFailed: after more than RESTARTS failures in a row, if it has other spaces than before, or if all are closed.
        """
        if self._closed:  # by another thread
            raise EnvironmentFailed("the environments are closed")
        if isinstance(reason, _Different):
            raise EnvironmentFailed(f"environment {index} cannot be used: {reason}")
        self._failures[index] += 1
        self._good_steps[index] = 0
        if self._failures[index] > RESTARTS:
            raise EnvironmentFailed(f"environment {index} has failed {self._failures[index]} times in a row. The last time: {reason}")
        brief = shortened(reason.strip().splitlines()[-1])
        console.warn(f"environment {index} is restarted ({self._failures[index]} of at most {RESTARTS} times in a row): {brief}")
        if isinstance(reason, _Gone):
            processes.stop(*self._workers[index])
            self._workers[index] = self._start()
            if index == 0 and self._renders and not self._render_problem:
                self._ask(index, ("prepare_render", None))
        self._restarts += 1
        self._ask(index, ("reset", None if self._seed is None else (self._seed + index + SEED_STRIDE * self._restarts) % 2**31))

    def close(self) -> None:
        """Ends all workers. A worker that does not end within two seconds is killed."""
        self._closed = True
        for index in range(len(self._workers)):
            self._ask(index, ("close", None))
        deadline = time.monotonic() + 2.0
        for process, connection in self._workers:
            process.join(max(0.0, deadline - time.monotonic()))
            processes.stop(process, connection)
        self._workers.clear()


class EnvironmentFailed(RuntimeError):
    """An environment has failed too often in a row, or has other spaces than before. The message says why."""


class _Gone(str):
    """Why a worker does not answer."""


class _Different(str):
    """How the spaces of an environment differ from those of the instance before."""


class _OtherSpaces(Exception):
    """An environment has other spaces than the instance before; the message says which."""


def _stop_all(workers: list[tuple]) -> None:
    for process, connection in workers:
        processes.stop(process, connection)


def _work(make_env: Callable[..., gymnasium.Env], expected: tuple, connection: multiprocessing.connection.Connection) -> None:
    """A worker. It answers a request with a step (observation, reward, terminated, truncated) or an image, or with an error as text.

    Args:
        expected: observation space and action space that each instance must have.
    """
    processes.outlive_signals()
    env, ended, renders, problem, pid = None, True, False, "", os.getpid()
    for request, value in _requests(connection):
        try:
            if request == "prepare_render":
                _close(env)
                env, ended, renders = None, True, True
                continue
            if request == "reset" and value is not None:
                # For environments that use global generators. NumPy's would be the same in all workers, Python's unseeded.
                random.seed(value)
                np.random.seed(value % 2**32)
            if request == "render":
                answer = problem or _render(env)
            else:
                if env is None:
                    env, problem = _build(make_env, renders)
                    _check_spaces(env, expected)
                if request == "reset" or ended:
                    answer = env.reset(seed=value if request == "reset" else None)[0], 0.0, False, False
                else:
                    answer = env.step(value)[:4]
                check_values(*answer)
                ended = bool(answer[2] or answer[3])
        except BaseException as error:  # an environment may raise anything, and call sys.exit; the main process reports it
            if os.getpid() != pid:
                raise  # in a copy of this process that the environment has made
            answer, ended = _as_text(error), True
            _close(env)
            env = None
        with contextlib.suppress(OSError):  # if the main process is gone, there are no more requests
            connection.send(answer)
    _close(env)


def _as_text(error: BaseException) -> str:
    """An error as a worker sends it; the last line says what has happened."""
    if isinstance(error, _OtherSpaces):
        return _Different(error)
    return traceback.format_exc() + ("" if isinstance(error, Exception) else describe(error))


def _check_spaces(env: gymnasium.Env, expected: tuple) -> None:
    """Raises _OtherSpaces if an environment's spaces are not those of the instance before."""
    for kind, now, before in zip(("observation", "action"), (env.observation_space, env.action_space), expected):
        if now != before:
            raise _OtherSpaces(
                f"this instance has the {kind} space {shortened(str(now))}, the one before had {shortened(str(before))}; all must "
                "have the same"
            )


def _build(make_env: Callable[..., gymnasium.Env], renders: bool) -> tuple[gymnasium.Env, str]:
    """Builds an environment, if possible one that renders; also returns why it does not render."""
    problem = ""
    if renders:
        try:
            return make_env(render_mode=RENDER_MODE), problem
        except (Exception, SystemExit) as error:  # a film is not worth a run
            problem = f"cannot be built with render_mode={RENDER_MODE!r}: {describe(error)}"
    return make_env(), problem


def _render(env: gymnasium.Env) -> np.ndarray | str:
    """What an environment renders, (H, W, C) uint8, or why there is nothing. Random states are as before."""
    for name, value in NO_WINDOW.items():
        os.environ.setdefault(name, value)
    try:
        with _random_states_kept(env):
            image = env.render()
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        return f"needs a package to render: {error}"
    except (Exception, SystemExit) as error:  # a film is not worth a run
        return f"cannot be rendered: {describe(error)}"
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3, 4) and image.size:
        return np.array(image)  # an array of a subclass may not pass through the connection
    given = f"array of shape {image.shape} and dtype {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    return f"cannot be filmed: render() returned {given}; it must return an image (H, W, 3) uint8"


@contextlib.contextmanager
def _random_states_kept(env: gymnasium.Env) -> Iterator[None]:
    """Restores the random states that rendering may draw from, so that an episode is the same with and without a film."""
    own = getattr(env.unwrapped, "_np_random", None)
    bits = own.bit_generator if isinstance(own, np.random.Generator) else None
    python, numpy, state = random.getstate(), np.random.get_state(), bits.state if bits else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if bits:
            bits.state = state
            env.unwrapped._np_random = own


def _requests(connection: multiprocessing.connection.Connection) -> Iterator[tuple]:
    """The requests of the main process, until it closes the connection or ends."""
    parent = multiprocessing.parent_process().pid
    with contextlib.suppress(EOFError, OSError):
        while True:
            # Workers hold copies of each other's connections, so a connection stays open when the main process ends.
            while not connection.poll(ALIVE):
                if os.getppid() != parent:
                    return
            request = connection.recv()
            if request[0] == "close":
                return
            yield request


def _close(env: gymnasium.Env | None) -> None:
    if env is not None:
        with contextlib.suppress(Exception, SystemExit):  # it has failed already, or is no longer needed
            env.close()
