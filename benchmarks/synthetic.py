"""Small environments that ask for one ability each.

    gym_benchmarks.synthetic:Together-v0        one hidden event changes all things, each in its own way
    gym_benchmarks.synthetic:FourTogether-v0    the same with four things of four values instead of eight of eight
    gym_benchmarks.synthetic:FourApart-v0       each of the four has events of its own, as frequent
    gym_benchmarks.synthetic:Recall-v0          what was shown has to be said some time later
    gym_benchmarks.synthetic:Grid-v0            one cell far away is rewarded, nothing else

The four things behave the same when seen one by one, together or apart. Only a model that knows what belongs together can tell them apart.
"""

import gymnasium
import numpy as np
from gymnasium import spaces


class Switches(gymnasium.Env):
    """Things that show one of several values each, as noisy one-hot vectors, and switch now and then.

    The second action turns all things one value further. The reward is the share of things that show their first value.

    Args:
        together: one hidden code for all things, or one for each.
        things, values: how many there are, and of how many values each shows one.
    """

    CHANCE = 0.15  # of a code to be drawn anew, per step
    NOISE = 0.3
    LENGTH = 50

    def __init__(self, together: bool, things: int = 8, values: int = 8):
        self._together, self._things, self._values = together, things, values
        world = np.random.default_rng(0)  # what a code means for each thing, the same in all episodes and environments
        self._meaning = np.stack([world.permutation(self._values) for _ in range(self._things)])
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._things * self._values,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _draw(self) -> np.ndarray:
        """New codes (things,)."""
        codes = self.np_random.integers(self._values, size=1 if self._together else self._things)
        return np.broadcast_to(codes, self._things)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time, self._turned, self._codes = 0, 0, self._draw()
        return self._observe(), {}

    def step(self, action) -> tuple:
        self._time += 1
        self._turned += int(action)
        switch = self.np_random.random(1 if self._together else self._things) < self.CHANCE
        self._codes = np.where(switch, self._draw(), self._codes)
        return self._observe(), float((self._shown() == 0).mean()), False, self._time >= self.LENGTH, {}

    def least_kl(self) -> float:
        """What a step adds to what was known, in nats: the entropy of the codes given the last ones."""
        stays, changes = 1 - self.CHANCE * (1 - 1 / self._values), self.CHANCE / self._values
        entropy = -stays * np.log(stays) - (self._values - 1) * changes * np.log(changes)
        return float(entropy * (1 if self._together else self._things))

    def least_observation(self) -> float:
        """Squared error of observations after symlog, if values are known and noise is not: summed over numbers, mean over steps."""
        noise = np.linspace(-6, 6, 4001)
        weights = np.exp(-0.5 * noise**2) / np.exp(-0.5 * noise**2).sum()
        variances = []
        for clean in (0.0, 1.0):
            squashed = np.sign(clean + self.NOISE * noise) * np.log1p(np.abs(clean + self.NOISE * noise))
            variances.append(weights @ squashed**2 - (weights @ squashed) ** 2)
        return float(self._things * (variances[1] + (self._values - 1) * variances[0]))

    def least_open_loop(self, steps: np.ndarray) -> np.ndarray:
        """Squared error of the best prediction of observations so many steps after values that are known; of a guess for infinity."""
        known = (1 - self.CHANCE) ** np.asarray(steps, float)
        return self._things * (self._values * self.NOISE**2 + (1 - 1 / self._values) * (1 - known**2))

    def _shown(self) -> np.ndarray:
        """The value that each thing shows, (things,)."""
        return (self._meaning[np.arange(self._things), self._codes] + self._turned) % self._values

    def _observe(self) -> np.ndarray:
        clean = np.eye(self._values)[self._shown()].ravel()
        return (clean + self.NOISE * self.np_random.standard_normal(clean.shape)).astype(np.float32)


class Recall(gymnasium.Env):
    """Shows one of several cues, then nothing for a while, then asks: the action that names the cue is rewarded with 1.

    An episode has several such trials. An observation has a number for each cue, and one that asks.
    """

    CUES, DELAY, TRIALS = 4, 5, 5

    def __init__(self):
        self.observation_space = spaces.Box(0.0, 1.0, (self.CUES + 1,), np.float32)
        self.action_space = spaces.Discrete(self.CUES)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._observe(), {}

    def step(self, action) -> tuple:
        trial_time = self._time % (self.DELAY + 2)
        reward = float(trial_time == self.DELAY + 1 and action == self._cue)
        self._time += 1
        ended = self._time == self.TRIALS * (self.DELAY + 2)
        return self._observe(), reward, ended, False, {}

    def _observe(self) -> np.ndarray:
        obs, trial_time = np.zeros(self.CUES + 1, np.float32), self._time % (self.DELAY + 2)
        if trial_time == 0:
            self._cue = int(self.np_random.integers(self.CUES))
            obs[self._cue] = 1.0
        obs[-1] = trial_time == self.DELAY + 1
        return obs


class Grid(gymnasium.Env):
    """A walk in four directions over a square of cells from one corner, rewarded with 1 for each step in the opposite one.

    Who walks at random seldom gets far before an episode ends.
    """

    SIDE, LENGTH = 12, 40
    MOVES = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])

    def __init__(self):
        self.observation_space = spaces.Box(0.0, 1.0, (2 * self.SIDE,), np.float32)  # row and column, each as a one-hot vector
        self.action_space = spaces.Discrete(len(self.MOVES))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time, self._place = 0, np.zeros(2, int)
        return self._observe(), {}

    def step(self, action) -> tuple:
        self._time += 1
        self._place = (self._place + self.MOVES[action]).clip(0, self.SIDE - 1)
        return self._observe(), float((self._place == self.SIDE - 1).all()), False, self._time >= self.LENGTH, {}

    def _observe(self) -> np.ndarray:
        return np.eye(self.SIDE, dtype=np.float32)[self._place].ravel()


gymnasium.register("Together-v0", Switches, kwargs={"together": True})
for name, together in (("FourTogether", True), ("FourApart", False)):
    gymnasium.register(f"{name}-v0", Switches, kwargs={"together": together, "things": 4, "values": 4})
gymnasium.register("Recall-v0", Recall)
gymnasium.register("Grid-v0", Grid)
