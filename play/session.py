"""What a person does in a dream, and what there is to see: between `Dream` and the page.

Shapes: H height, W width, C channels, n numbers of a vector, S latents of a level, K classes.
"""

import collections
import json
import struct
from collections.abc import Collection

import numpy as np
from torch import nn

from play import clip, controls
from play.camera import as_rgb, shrink
from play.clip import Seen
from play.dream import Dream, View
from play.moments import Moment
from play.world import World, pictured
from storage import files
from storage.gif import encode_gif

FRAMES = 300  # that a film shows at most
EVENTS = 20  # in one request, at most
SIDE = 512  # pixels of the longest side of a decoded image that is sent, at most
WORLD = -1  # the place of the world among the moments


class Session:
    """A dream, the world beside it, and what was seen.

    Args:
        agent: a trained `dreamer.Dreamer`.
        moments: where the dream may begin.
        modules: modules that may be imported for the environment.
        seed: of the first dream; each further one has the next.
    """

    def __init__(self, agent: nn.Module, moments: list[Moment], modules: Collection[str] = (), seed: int = 0):
        self._agent, self._moments, self._modules, self._seed = agent, moments, modules, seed - 1
        self.dream = Dream(agent)
        self._world, self._beside, self._problem = None, False, ""
        self._film: collections.deque[Seen] = collections.deque(maxlen=FRAMES)
        self._start, self._action = 0, None
        self._restart(0)

    def about(self) -> dict:
        """What the page must know of the agent: its task, levels, observations and actions, and the moments."""
        config, seen = self._agent._config, self._seen(self.dream.view(mean=False), 0)
        return {
            "task": config.task,
            "agent": f"{sum(self._agent.parameter_counts().values()):,} parameters, {self._agent.updates:,} updates",
            "levels": [{"name": name, "stoch": level.stoch, "discrete": level.discrete} for name, level in self.dream.levels.items()],
            "images": [key for key, value in seen.items() if value.ndim == 3],
            "vectors": {key: len(value) for key, value in seen.items() if value.ndim == 1},
            "controls": controls.controls(self._agent.codec, config),
            "moments": [moment.name for moment in self._moments],
        }

    def pictures(self) -> bytes:
        """The pictures of the moments, as `pack` packs them, by their numbers."""
        return pack({}, {str(number): moment.picture for number, moment in enumerate(self._moments) if moment.picture is not None})

    def do(self, request: dict) -> bytes:
        """Does what a request asks for, and returns what there is to see, packed by `pack`.

        Args:
            request: `events`, a list of them, see `_do`; `mean`: whether to show the view without the last level; `grids`: whether
                to show priors and codes.
        Raises:
            ValueError: for a request that means nothing, or cannot be done.
        """
        events = request.get("events", [])
        if not isinstance(events, list) or len(events) > EVENTS:
            raise ValueError(f"events is a list of at most {EVENTS}")
        for event in events:
            if not isinstance(event, list) or not event:
                raise ValueError(f"{event!r:.60} is no event")
            self._do(*event)
        return self._show(bool(request.get("mean", True)), bool(request.get("grids", True)), bool(events))

    def _do(self, name: str, *arguments) -> None:
        try:
            if name == "step":
                self._step(*arguments)
            elif name == "restart":
                self._restart(*arguments)
            elif name == "wake":
                self._wake()
            elif name == "take":
                level, number = arguments
                self.dream.take(level, self._moment(number).state)
            elif name == "restore":
                self.dream.restore(*arguments)
                self._begin(None)
            elif name in ("hold", "redraw", "set_class"):
                getattr(self.dream, name)(*arguments)
            else:
                raise ValueError(f"{name!r:.60} is no event")
        except TypeError as error:
            raise ValueError(f"the event {name!r:.60} has other arguments") from error

    def _step(self, entries: list | None) -> None:
        """Takes a step with an action, or, without one, with the agent's."""
        if entries is None:
            action = self.dream.policy(self._agent._config.eval_sample)
        else:
            action = controls.to_vector(self._agent.codec.layout, entries)
        self.dream.step(action)
        self._action = controls.to_entries(self._agent.codec.layout, action)
        if self._beside:
            try:
                self._world.step(action)
            except (ValueError, RuntimeError) as error:  # it fails again and again, or observes something else
                self._lose_world(error)

    def _restart(self, number: int) -> None:
        """Begins a dream in a moment, in the world, or, where there are no moments, at the first step of a dreamt episode."""
        if number == WORLD:
            return self._restart_world()
        state = self._moment(number).state if self._moments or number else None
        self._seed += 1
        self.dream.start(state, self._seed)
        self._begin(number)

    def _restart_world(self) -> None:
        try:
            if self._world is None:
                self._world = World(self._agent, self._modules)
            self._seed += 1
            self._world.start(self._seed)
        except (ValueError, OSError, RuntimeError) as error:
            return self._lose_world(error)
        self._begin(WORLD)
        self.dream.start(self._world.state, self._seed)

    def _wake(self) -> None:
        """Begins a dream where the world is now."""
        if not self._beside:
            raise ValueError("there is no world beside the dream")
        self._seed += 1
        self.dream.start(self._world.state, self._seed)
        self._action = None

    def _begin(self, number: int | None) -> None:
        self._start, self._beside, self._action, self._problem = number, number == WORLD, None, ""
        self._film.clear()

    def _lose_world(self, error: Exception) -> None:
        self._problem = " ".join(str(error).split())[:400]
        self.close()

    def _moment(self, number: int) -> Moment:
        if type(number) is not int or not 0 <= number < len(self._moments):
            raise ValueError(f"there is no moment {number!r:.20}; there are {len(self._moments)}")
        return self._moments[number]

    def _show(self, mean: bool, grids: bool, changed: bool) -> bytes:
        view, world = self.dream.view(mean), self._beside
        views = {name: self._seen(view, index) for index, name in enumerate(["dream", "mean"][: 1 + mean])}
        if world:
            views["world"] = self._world.seen()
        if changed:
            self._film.append(Seen(self.dream.steps, views))
        arrays = {f"{name}/{key}": _sent(value) for name, seen in views.items() for key, value in seen.items()}
        if grids:
            arrays |= self._grids()
        about = {
            "steps": self.dream.steps,
            "reward": view.reward,
            "cont": view.cont,
            "value": view.value,
            "action": self._action,
            "held": sorted(self.dream.held),
            "start": self._start,
            "problem": self._problem,
        }
        self._problem = ""  # it is told once
        if world:
            place = {"steps": self._world.steps, "return": self._world.score, "reward": self._world.reward, "ended": self._world.ended}
            about["world"] = place
        return pack(about, arrays)

    def _seen(self, view: View, index: int) -> dict[str, np.ndarray]:
        """The observations of a view as a person sees them, images as bytes."""
        observed = {key: _as_bytes(value[index]) if value.ndim == 4 else value[index] for key, value in view.observed.items()}
        return pictured(self._agent._config.task, observed)

    def _grids(self) -> dict[str, np.ndarray]:
        """Codes and priors of all levels; probabilities as bytes."""
        found = {}
        for name, level in self.dream.levels.items():
            prior, code = self.dream.prior(name), self.dream.code(name)
            if level.discrete:
                found |= {f"probs/{name}": _as_bytes(prior[0]), f"code/{name}": code.astype(np.int32)}
            else:
                found |= {f"mean/{name}": prior[0], f"std/{name}": prior[1], f"code/{name}": code}
        return found

    def gif(self, fps: int) -> bytes:
        """What was seen since the dream began, the last `FRAMES` frames of it, as an animated GIF.

        Raises:
            ValueError: if `fps` is no number from 1 to 50, or nothing was seen.
        """
        if type(fps) is not int or not 1 <= fps <= 50:
            raise ValueError(f"fps is {fps!r:.20}; it is a number from 1 to 50")
        if not self._film:
            raise ValueError("nothing has happened yet; take a step first")
        frames = [Seen(seen.steps, {**seen.views, "difference": clip.difference(seen.views)}) for seen in self._film]
        last = list(self.dream.levels)[-1]
        title = "top alone" if last == "bottom" else "h alone"
        return encode_gif(clip.film(frames, {"mean": title}), fps, f"a dream of {self._agent._config.task}")

    def close(self) -> None:
        """Ends the world, also while another thread waits for it, which then fails."""
        world, self._world, self._beside = self._world, None, False
        if world is not None:
            world.close()


def _as_bytes(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as bytes."""
    return np.rint(255.0 * share.clip(0.0, 1.0)).astype(np.uint8)


def _sent(value: np.ndarray) -> np.ndarray:
    return shrink(as_rgb(value), SIDE) if value.ndim == 3 else value.astype(np.float32)


def pack(about: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """A message: the length of its head in 4 bytes, the head as JSON, which lists the arrays, and the bytes of these."""
    listed = [{"name": name, "shape": array.shape, "dtype": array.dtype.name} for name, array in arrays.items()]
    head = files.json_text({**about, "arrays": listed}).encode()
    return b"".join([struct.pack("<I", len(head)), head, *(np.ascontiguousarray(array).tobytes() for array in arrays.values())])


def unpack(message: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """What `pack` packed."""
    start = 4 + struct.unpack("<I", message[:4])[0]
    about, arrays = json.loads(message[4:start]), {}
    for entry in about.pop("arrays"):
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"]))
        arrays[entry["name"]] = np.frombuffer(message, dtype, count, start).reshape(entry["shape"])
        start += count * dtype.itemsize
    return about, arrays
