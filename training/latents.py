"""The latents in the replay memory across the end of a run: `latents.npz` in its folder."""

import pathlib
import time

import console
import settings
from replay import Replay
from storage.disk import Disk

FILE = "latents.npz"
KIND = "the latents of replay"
PAUSE = 20  # the next write waits for this many times the duration of the last one, so that writing takes at most 5% of the time


class LatentFile:
    """Saves and loads the latents of a replay memory.

    The file is up to date after `save(last=True)`; before that it is as old as the last write.

    Args:
        replay: the memory; if it stores none, nothing is done.
        logdir: folder of the run.
        disk: performs the writes.
    Attributes:
        path: of the file.
    """

    def __init__(self, replay: Replay, logdir: pathlib.Path, disk: Disk):
        self._replay, self.path, self._disk = replay, logdir / FILE, disk
        self._next = 0.0  # when the next writing is due

    def load(self, config: settings.Config) -> None:
        """Restores the latents of the loaded steps; if that fails, warns and leaves zeros."""
        if not self._replay.stores_latents or not len(self._replay):
            return
        levels = settings.level_sizes(config)
        # A code is 1 + class index, or 0 for zero latents, see `RSSM.pack`.
        codes = {"stoch" if level == "flat" else f"stoch_{level}": classes + 1 for level, (_, classes) in levels.items()}
        try:
            loaded = self._replay.load_latents(self.path, codes)
        except Exception as error:  # damaged files cause errors of nearly any kind
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
            console.warn(
                f"latents of replayed steps cannot be read from {self.path} ({reason}); they begin with zeros, which updates replace"
            )
        else:
            console.say(f"{loaded:,} of the observations in memory have the latents that they had.")

    def save(self, last: bool = False) -> None:
        """Writes the latents if they have changed and the last write was long enough ago; with `last`, whenever it was."""
        begun = time.monotonic()
        if not self._replay.latents_changed or (begun < self._next and not last):
            return
        self._disk.attempt(KIND, self.path.parent, lambda: self._replay.save_latents(self.path))
        ended = time.monotonic()
        self._next = ended + PAUSE * (ended - begun)
