"""Steps environments with a policy, and stores the steps."""

import pathlib
import uuid
from typing import NamedTuple

import numpy as np

import console
from envs import EnvBatch
from envs.spaces import ActionCodec, is_summed
from replay import Replay
from storage.disk import Disk
from storage.episodes import new_stem, save_episode


class Finished(NamedTuple):
    """A finished episode.

    Args:
        env: index of the environment.
        length: agent steps.
        sums: sums over its steps: `return`, and logged observations without their prefix `log_`, see `is_summed`.
        cut: whether it ended early, because the run ended or the environment failed.
    """

    env: int
    length: int
    sums: dict[str, float]
    cut: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers to log."""
        return {**self.sums, "length": self.length}


class OpenEpisode:
    """The steps of an episode that has not ended, until they are written.

    A long one is written in parts with the same id. Each file is an episode that loads by itself: the last step of a part has `is_last`
    there, as at a time limit. The next part begins with that step, without action and reward, so that agent steps and rewards of all
    parts add up.
    """

    MOST_BYTES = 2**29  # that wait in memory; no episode of the suites takes as much, so that theirs stay whole
    STEP_BYTES = 2**11  # that a step takes beside its arrays

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forgets the steps; the next one begins an episode."""
        self._steps, self._bytes, self._id, self._continues = [], 0, uuid.uuid4().hex, False

    def append(self, step: dict[str, np.ndarray]) -> None:
        self._steps.append(step)
        self._bytes += self.STEP_BYTES + sum(value.nbytes for value in step.values())

    def cut(self) -> None:
        """Ends the episode at its last step, as a time limit would."""
        for step in self._steps[-1:]:
            step["is_last"] = np.array(True)

    @property
    def is_full(self) -> bool:
        """Whether a part is to be written."""
        return self._bytes > self.MOST_BYTES and len(self._steps) > 1

    def take(self) -> tuple[str, dict[str, np.ndarray]] | None:
        """The stem of a file, and the steps, as arrays (L, ...), which are forgotten; None if there are none beyond the part before."""
        stem, steps, known = new_stem(self._id), self._steps, int(self._continues)
        self.clear()
        return (stem, {key: np.stack([step[key] for step in steps]) for key in steps[0]}) if len(steps) > known else None

    def take_part(self) -> tuple[str, dict[str, np.ndarray]]:
        """`take` in the middle of an episode; the next part begins with the last step of this one."""
        id, last = self._id, self._steps[-1]
        stem, part = self.take()
        part["is_last"][-1] = True
        self._id, self._continues = id, True
        counted = {key: np.zeros_like(value) for key, value in last.items() if key in ("action", "reward") or is_summed(key)}
        self.append({**last, **counted, "is_first": np.array(True), "is_terminal": np.array(False)})
        return stem, part


class Collector:
    """Steps N environments with a policy, one step at a time.

    A policy has a method `act(obs, state, training) -> (actions, state)`, see `Dreamer.act`. state["action"] holds the
    action vectors (N, A) that are stored. It may have a method `stored_latents(state)` that returns the latents to store,
    (N, ...) by key.

    Args:
        envs: the environments.
        replay: replay memory that receives the steps; None to store none.
        directory: folder for episodes, which are written when they end, long ones in parts; None to write none.
        disk: writes the episodes such that failures do not end the run, see `save_episode`; None to raise them.
        seed: seed of the environments.
        training: passed to the policy: sample actions, or take the most likely ones.
    Attributes:
        written: which environments' episodes are written, (N,) bool; all by default.
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
        self._episodes = [OpenEpisode() for _ in range(self._envs.count)]
        self._obs = self._envs.reset(seed)
        self._action_vectors = None
        self._sum()
        self._store(self._obs)

    def restart(self) -> None:
        """Cuts the open episodes, resets all environments, and clears the policy's state."""
        self.close_episodes()
        self._begin(None)

    def send(self, policy) -> None:
        """Lets the policy act, stores its latents if both it and the memory have them, and starts the environments' step."""
        actions, self._state = policy.act(self._obs, self._state, self._training)
        if self._replay is not None and self._replay.stores_latents and hasattr(policy, "stored_latents"):
            self._replay.set_newest_latents(policy.stored_latents(self._state))
        self._action_vectors = self._state["action"].cpu().numpy()
        self._envs.send(actions)

    def receive(self) -> tuple[int, list[Finished]]:
        """Waits for the step that `send` started.

        Returns:
            number of agent steps, not counting resets; episodes that ended.
        """
        had_ended, self._obs = self._obs["is_last"], self._envs.recv()
        finished = self._cut(np.flatnonzero(self._obs["is_first"] & ~had_ended))
        self._store(self._obs)
        self._sum()
        self._lengths += ~self._obs["is_first"]
        for env in np.flatnonzero(self._obs["is_last"]):
            finished.append(self._finish(int(env)))
        for env, episode in enumerate(self._episodes):
            if episode.is_full:
                self._write(env, *episode.take_part())
        return int((~self._obs["is_first"]).sum()), finished

    def _finish(self, env: int) -> Finished:
        """Writes and returns an environment's finished episode."""
        finished = Finished(env, int(self._lengths[env]), {name: float(values[env]) for name, values in self._sums.items()})
        self._lengths[env] = 0
        self._save(env)
        return finished

    def step(self, policy) -> tuple[int, list[Finished]]:
        """`send` followed by `receive`."""
        self.send(policy)
        return self.receive()

    def close_episodes(self) -> list[Finished]:
        """Cuts the open episodes as a time limit would, writes them and returns them."""
        return self._cut(np.arange(self._envs.count))

    def _cut(self, envs: np.ndarray) -> list[Finished]:
        """Ends the open episodes of these environments at their last step. Episodes without a step are dropped."""
        if self._replay is not None and len(envs):
            self._replay.end_episodes(envs)
        closed = []
        for env in map(int, envs):
            if self._lengths[env]:
                self._episodes[env].cut()
                closed.append(self._finish(env)._replace(cut=True))
            self._episodes[env].clear()
        return closed

    def _sum(self) -> None:
        """Adds the step to the sums of each episode."""
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
        """Writes what is not written yet of an episode that has ended."""
        if taken := self._episodes[env].take():
            self._write(env, *taken)

    def _write(self, env: int, stem: str, episode: dict[str, np.ndarray]) -> None:
        """Writes the newest steps of an environment as an episode, arrays (L, ...)."""
        if self.written[env]:
            path = save_episode(self._directory, episode, self._disk, stem)
            if self._replay is not None:
                self._replay.note_episode(env, len(episode["reward"]), path.name)


def play_episodes(
    policy, envs: EnvBatch, episodes: int, seed: int, stop=False, *, sample: bool = False, directory: pathlib.Path | None = None
) -> list[Finished]:
    """Plays episodes with a policy that does not explore.

    Each environment plays a fixed share of the episodes. Counting the first ones to end would favour short episodes.

    Args:
        policy: as in `Collector`.
        envs: the environments.
        episodes: number of episodes.
        seed: seed of the environments.
        stop: ends the loop once it is true.
        sample: whether actions are drawn; False takes the most likely ones.
        directory: folder that the episodes are written to; None to write none.
    Returns:
        the episodes that ended by themselves.
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
    if cut := envs.tell_cut([episode.length for episode in results]):
        console.say(cut)
    return results
