"""Steps environments with a policy and keeps what comes back."""

import pathlib
from typing import NamedTuple

import numpy as np

import console
from envs import EnvBatch
from envs.spaces import ActionCodec, is_summed
from replay import Replay
from storage.disk import Disk
from storage.episodes import save_episode


class Finished(NamedTuple):
    """An episode after its end: which environment played it, its agent steps, and sums over them (`return`, and `log_` keys).

    One that is `cut` was ended from outside: by the run's end, or since its environment failed.
    """

    env: int
    length: int
    sums: dict[str, float]
    cut: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {**self.sums, "length": self.length}


class Collector:
    """Steps several environments with a policy, one step at a time.

    A policy is anything with `act(obs, state, training) -> (actions, state)`, where state["action"] holds the actions as the
    vectors (N, A) that are stored; see `Dreamer.act`.

    Args:
        envs: the environments.
        replay: where steps are stored; None to store none.
        directory: where finished episodes are written; None to write none.
        disk: what writes them, if a failure must not end the run, see `episodes.save_episode`.
        seed: of the environments.
        training: passed on to the policy, which may act differently in evaluation.
    Attributes:
        written: of which environments episodes are written, (N,) bool; all at first.
    """

    def __init__(
        self,
        envs: EnvBatch,
        replay: Replay | None = None,
        directory: pathlib.Path | None = None,
        disk: Disk | None = None,
        *,
        seed: int,
        training: bool,
    ):
        self._envs, self._replay, self._directory, self._disk, self._training = envs, replay, directory, disk, training
        self.written = np.ones(envs.count, bool)
        self._begin(seed)

    def _begin(self, seed: int | None) -> None:
        self._state = None
        self._sums = {}
        self._lengths = np.zeros(self._envs.count, int)
        self._episodes = [[] for _ in range(self._envs.count)]
        self._obs = self._envs.reset(seed)
        self._action_vectors = None
        self._sum()
        self._store(self._obs)

    def restart(self) -> None:
        """Ends the open episodes as cut off and begins new ones, with an empty policy state."""
        self.close_episodes()
        self._begin(None)

    def send(self, policy) -> None:
        """Lets the policy act and starts the environments' step."""
        actions, self._state = policy.act(self._obs, self._state, self._training)
        self._action_vectors = self._state["action"].cpu().numpy()
        self._envs.send(actions)

    def receive(self) -> tuple[int, list[Finished]]:
        """Waits for the step; returns the number of agent steps taken (a reset is none) and the episodes that ended."""
        had_ended, self._obs = self._obs["is_last"], self._envs.recv()
        finished = self._cut(np.flatnonzero(self._obs["is_first"] & ~had_ended))
        self._store(self._obs)
        self._sum()
        self._lengths += ~self._obs["is_first"]
        for env in np.flatnonzero(self._obs["is_last"]):
            finished.append(self._finish(int(env)))
        return int((~self._obs["is_first"]).sum()), finished

    def _finish(self, env: int) -> Finished:
        """Writes the episode of an environment."""
        finished = Finished(env, int(self._lengths[env]), {name: float(values[env]) for name, values in self._sums.items()})
        self._lengths[env] = 0
        self._save(env)
        return finished

    def step(self, policy) -> tuple[int, list[Finished]]:
        """`send` and `receive` in one."""
        self.send(policy)
        return self.receive()

    def close_episodes(self) -> list[Finished]:
        """Writes the open episodes as if a time limit had cut them off, and returns them."""
        return self._cut(np.arange(self._envs.count))

    def _cut(self, envs: np.ndarray) -> list[Finished]:
        """Ends the open episodes of some environments after their last step; of an episode without a step nothing stays."""
        if self._replay is not None and len(envs):
            self._replay.end_episodes(envs)
        closed = []
        for env in map(int, envs):
            if self._lengths[env]:
                for step in self._episodes[env][-1:]:
                    step["is_last"] = np.array(True)
                closed.append(self._finish(env)._replace(cut=True))
            self._episodes[env] = []
        return closed

    def _sum(self) -> None:
        """Adds up what is logged per episode, from zero where an episode begins."""
        for key, value in self._obs.items():
            if key == "reward" or is_summed(key):
                name = "return" if key == "reward" else key[len("log_") :]
                before = np.where(self._obs["is_first"], 0.0, self._sums.get(name, 0.0))
                self._sums[name] = before + value.reshape(self._envs.count, -1).sum(-1)

    def _store(self, obs: dict[str, np.ndarray]) -> None:
        if self._replay is None and self._directory is None:
            return
        if self._action_vectors is None:
            self._action_vectors = np.zeros((self._envs.count, ActionCodec(self._envs.act_space).size), np.float32)
        step = {**obs, "action": np.where(obs["is_first"][:, None], np.float32(0.0), self._action_vectors)}
        if self._replay is not None:
            self._replay.add(step)
        if self._directory is not None:
            for env, episode in enumerate(self._episodes):
                episode.append({key: value[env].copy() for key, value in step.items()})

    def _save(self, env: int) -> None:
        episode, self._episodes[env] = self._episodes[env], []
        if episode and self.written[env]:
            save_episode(self._directory, {key: np.stack([step[key] for step in episode]) for key in episode[0]}, self._disk)


def play_episodes(
    policy, envs: EnvBatch, episodes: int, seed: int, stop=False, *, sample: bool = False, directory: pathlib.Path | None = None
) -> list[Finished]:
    """Plays episodes with a policy that is not exploring, with its most likely actions or with sampled ones.

    Each environment plays a fixed share of them: to take whichever end first would favour short episodes. They are written into a
    directory, if one is given.
    """
    collector = Collector(envs, directory=directory, seed=seed, training=sample)
    progress = console.Progress("record" if directory else "evaluate", episodes, "episodes", nested=True)
    share = np.array([episodes // envs.count + (env < episodes % envs.count) for env in range(envs.count)])
    results = []
    with progress:
        while share.any() and not stop:
            collector.written = share > 0
            for episode in collector.step(policy)[1]:
                if share[episode.env] and not episode.cut:
                    share[episode.env] -= 1
                    results.append(episode)
            progress.update(len(results))
    return results
