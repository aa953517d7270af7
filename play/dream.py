"""A dream: the imagination of a world model, one step at a time, in which a person may change each level of the latent.

Shapes: A action, D deter, S latents of a level, K classes, V views of a state.
"""

import base64
import binascii
import contextlib
import functools
import json
import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributions import bounded
from networks import Level, State
from tools import autocast

SEEDS = 2**32  # the number of different seeds of PyTorch's generator on a CPU
LARGEST = 1e6  # of a number in a saved state


class View(NamedTuple):
    """What a state of a dream says.

    Attributes:
        observed: decoded observations by key, (V, ...), images in [0, 1]. The first view is the state's own. In the second one, if
            there is one, the last level is not its code but the mean of its prior.
        reward: predicted reward of the step that led here.
        cont: predicted probability that the episode goes on.
        value: the critic's estimate.
    """

    observed: dict[str, np.ndarray]
    reward: float
    cont: float
    value: float


class Dream:
    """A state of the world model, and the steps and changes that lead to the next one.

    The *code* of a level is its drawn latents. With every step a level is drawn from its prior, or, if it is held, keeps its code. A
    change by hand applies to the code of one level alone. Others follow with the next step.

    Random numbers follow from the seed and from how often some were drawn. So a saved dream goes on as the first one does.

    Args:
        agent: a trained `dreamer.Dreamer`.
    Attributes:
        levels: the levels of the latent by name, from top to bottom.
        held: names of the levels that keep their code.
        steps: steps since the start.
    """

    def __init__(self, agent: nn.Module):
        self._config, self._model, self._behavior = agent._config, agent._wm, agent._task_behavior
        self._dynamics = agent._wm.dynamics
        self._size = agent.codec.size
        self.levels: dict[str, Level] = self._dynamics.levels
        self.start()

    @contextlib.contextmanager
    def _random(self) -> Iterator[None]:
        """Within this nothing has a gradient, and all random numbers are the dream's own."""
        device, seed = self._dynamics.device, (self._seed + self._draws) % SEEDS
        self._draws += 1
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), autocast(self._config):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond, for devices that are not there
            if device.type == "cuda":
                torch.cuda.manual_seed(seed)
            yield

    def _set(self, state: State) -> None:
        """Takes deter and codes of a state (1, ...); statistics become those of the prior, given these codes."""
        device = self._dynamics.device
        codes = {f"stoch{level.suffix}": state[f"stoch{level.suffix}"].to(device) for level in self.levels.values()}
        with torch.no_grad(), autocast(self._config):
            self._state = self._dynamics.prior(state["deter"].to(device), (), given=codes)

    def start(self, state: State | None = None, seed: int = 0) -> None:
        """Begins anew from a state (1, ...), such as a posterior, or at the first step of a dreamt episode. All levels follow."""
        self.held: set[str] = set()
        self.steps, self._seed, self._draws = 0, seed % SEEDS, 0
        if state is None:
            with self._random():
                state = self._dynamics.img_step(self._dynamics.initial(1), torch.zeros(1, self._size, device=self._dynamics.device))
        self._set(state)

    def step(self, action: np.ndarray) -> None:
        """Imagines the next state.

        Args:
            action: vector (A,).
        """
        given = {key: self._state[key] for key in (f"stoch{self.levels[name].suffix}" for name in self.held)}
        vector = torch.as_tensor(action, dtype=torch.float32, device=self._dynamics.device)[None]
        with self._random():
            self._state = self._dynamics.img_step(self._state, vector, given=given)
        self.steps += 1

    def policy(self, sample: bool) -> np.ndarray:
        """The agent's action (A,) in this state, sampled or the most likely one."""
        with self._random():
            policy = self._behavior.actor(self._dynamics.get_feat(self._state))
            return bounded(policy.sample() if sample else policy.mode)[0].float().cpu().numpy()

    def hold(self, level: str, on: bool = True) -> None:
        """Lets a level keep its code from now on, or follow its prior again."""
        self._level(level)
        self.held = self.held | {level} if on else self.held - {level}

    def redraw(self, level: str) -> None:
        """Draws the code of a level from its prior, given deter and the level above."""
        self._level(level)
        with self._random():
            state = self._dynamics.resample(self._state, [level])
        self._set(state)

    def set_class(self, level: str, index: int, value: int) -> None:
        """Sets one categorical of a level to a class.

        Raises:
            ValueError: if there is no such level, categorical or class.
        """
        stoch, discrete, suffix = self._level(level)
        if not discrete:
            raise ValueError(f"the level {level!r} has Gaussian latents, which have no classes; redraw it instead")
        if type(index) is not int or type(value) is not int or not (0 <= index < stoch and 0 <= value < discrete):
            raise ValueError(
                f"the level {level!r} has {stoch} categoricals of {discrete} classes, and no class {value} of categorical {index}"
            )
        code = self._state[f"stoch{suffix}"].clone()
        code[:, index] = F.one_hot(torch.tensor(value), discrete).to(code)
        self._set({**self._state, f"stoch{suffix}": code})

    def take(self, level: str, state: State) -> None:
        """Takes the code of a level from another state (1, ...). Deter and the other levels stay."""
        key = f"stoch{self._level(level).suffix}"
        self._set({**self._state, key: state[key]})

    def _level(self, name: str) -> Level:
        if name not in self.levels:
            raise ValueError(f"there is no level {name!r}; the agent has {', '.join(self.levels)}")
        return self.levels[name]

    @property
    def state(self) -> State:
        """Deter, codes and the statistics of their priors, (1, ...)."""
        return dict(self._state)

    def code(self, level: str) -> np.ndarray:
        """The code of a level: class indices (S,), or the numbers (S,) of Gaussian latents."""
        _, discrete, suffix = self._level(level)
        code = self._state[f"stoch{suffix}"][0]
        return (code.argmax(-1) if discrete else code.float()).cpu().numpy()

    def prior(self, level: str) -> tuple[np.ndarray, ...]:
        """The prior of a level, given deter and the code above: probabilities (S, K); of Gaussians, means and deviations, each (S,)."""
        dist = self._dynamics.get_dist(self._state, level)
        return tuple(part[0].cpu().numpy() for part in ((dist.probs,) if self.levels[level].discrete else (dist.mean, dist.std)))

    def view(self, mean: bool = True) -> View:
        """Decodes this state.

        Args:
            mean: whether there is a second view, with the mean of the last level's prior. Of two levels, it shows what the top
                alone says; of a flat latent, what deter alone says.
        """
        with torch.no_grad(), autocast(self._config):
            feat = own = self._dynamics.get_feat(self._state)  # (1, F)
            if mean:
                last = list(self.levels)[-1]
                average = {f"stoch{self.levels[last].suffix}": self._dynamics.get_dist(self._state, last).mean}
                feat = torch.cat([own, self._dynamics.get_feat({**self._state, **average})])  # (V, F)
            heads = self._model.heads
            observed = {key: dist.mean.float().cpu().numpy() for key, dist in heads["decoder"](feat).items()}
            cont = heads["cont"](own).mean / (self._config.discount if self._config.cont_head.discounted else 1.0)
            numbers = heads["reward"](own).mode, cont.clamp(max=1.0), self._behavior.value(own).mode
        return View(observed, *(number.item() for number in numbers))

    @functools.cached_property
    def fingerprint(self) -> int:
        """A number that tells agents apart: a checksum of the latent dynamics' weights."""
        found = 0
        for tensor in self._dynamics.state_dict().values():
            found = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), found)
        return found

    def save(self) -> str:
        """This state and its random numbers as a text of URL-safe characters, for `restore`."""
        about = {
            "agent": self.fingerprint,
            "steps": self.steps,
            "random": [self._seed, self._draws],
            "held": sorted(self.held),
            "codes": {name: self.code(name).tolist() for name in self.levels},
        }
        deter = self._state["deter"][0].float().cpu().numpy().astype("<f4")
        return f"{_encode(json.dumps(about, separators=(',', ':')).encode())}.{_encode(deter.tobytes())}"

    def restore(self, text: str) -> None:
        """Returns to a saved state.

        Raises:
            ValueError: if the text is of another agent, or damaged. Nothing has changed then.
        """
        try:
            head, _, tail = text.partition(".")
            about, deter = json.loads(_decode(head)), np.frombuffer(_decode(tail), "<f4").astype(np.float32)
            if about["agent"] != self.fingerprint:
                raise _OtherAgent
            steps, (seed, draws) = _count(about["steps"]), map(_count, about["random"])
            held = {name for name in about["held"] if self._level(name)}
            state = {f"stoch{level.suffix}": self._read_code(level, about["codes"][name]) for name, level in self.levels.items()}
            if len(deter) != self._dynamics.deter_size or not _all_small(deter):
                raise ValueError("deter has other numbers")
        except _OtherAgent:
            raise ValueError("the link is of another agent, or of this one before it learned more; it needs the same weights") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, binascii.Error) as error:
            raise ValueError("the link is damaged; copy the whole of it") from error
        self.held, self.steps, self._seed, self._draws = held, steps, seed, draws
        self._set({**state, "deter": torch.from_numpy(deter)[None]})

    def _read_code(self, level: Level, code: list) -> Tensor:
        """The latents (1, ...) of a saved code."""
        if len(code) != level.stoch:
            raise ValueError("a code has another length")
        if level.discrete:
            return F.one_hot(torch.tensor([_count(entry, level.discrete) for entry in code]), level.discrete).float()[None]
        numbers = np.array([float(entry) for entry in code], np.float32)
        if not _all_small(numbers):
            raise ValueError("a code has other numbers")
        return torch.from_numpy(numbers)[None]


class _OtherAgent(Exception):
    """A saved state is of another agent."""


def _count(value, limit: int = 2**53) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r:.40} is no number from 0 to {limit - 1}")
    return value


def _all_small(numbers: np.ndarray) -> bool:
    return all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers.tolist())


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
