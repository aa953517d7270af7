"""The latents in the replay memory across the end of a run: `latents.npz` in its folder, of further processes `latents_<rank>.npz`."""

import pathlib
import time

import console
import settings
from replay import Replay
from scale import ranks
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
        self._replay, self._disk = replay, disk
        self.path = logdir / (f"latents_{ranks.rank()}.npz" if ranks.rank() else FILE)
        self._next = 0.0  # when the next writing is due
        self._complete = False  # whether the last writing succeeded

    def load(self, config: settings.Config) -> None:
        """Restores the latents of the loaded steps, which any process may have written; if that fails, warns and leaves zeros."""
        if not self._replay.stores_latents or not len(self._replay):
            return
        levels = settings.level_sizes(config)
        # A code is 1 + class index, or 0 for zero latents, see `RSSM.pack`.
        codes = {"stoch" if level == "flat" else f"stoch_{level}": classes + 1 for level, (_, classes) in levels.items()}
        loaded = 0
        for path in self.written() or [self.path]:
            try:
                loaded += self._replay.load_latents(path, codes)
            except Exception as error:  # damaged files cause errors of nearly any kind
                reason = "there is no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
                console.warn(
                    f"latents of replayed steps cannot be read from {path} ({reason}); they begin with zeros, which updates replace"
                )
        if loaded:
            console.say(f"{loaded:,} of the observations in memory have the latents that they had.")

    def written(self) -> list[pathlib.Path]:
        """The files of all processes, the newest last."""
        return sorted(self.path.parent.glob("latents*.npz"), key=lambda path: path.stat().st_mtime)

    def save(self, last: bool = False) -> None:
        """Writes the latents if they have changed and the last write was long enough ago; with `last`, whenever it was."""
        begun = time.monotonic()
        if not self._replay.latents_changed or (begun < self._next and not last):
            return
        self._complete = self._disk.attempt(KIND, self.path.parent, lambda: self._replay.save_latents(self.path))
        ended = time.monotonic()
        self._next = ended + PAUSE * (ended - begun)

    def remove_others(self) -> None:
        """After the last `save`: removes files of processes that the run no longer has, if the present ones hold what is in them."""
        if not self._complete:
            return
        known = {FILE, *(f"latents_{rank}.npz" for rank in range(1, ranks.count()))}
        for path in self.written():
            if path.name not in known:
                path.unlink()
