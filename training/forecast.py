"""Estimates how long a run takes, once its first updates have been timed."""

import time

import console

UPDATES = 20  # that are timed
LONG = 6 * 3600.0  # seconds from which on a shorter run is suggested
SHORT_RUN = "python dreamer.py --configs defaults small hdreamer_split --task gym_CartPole-v1 --steps 6000"


class Forecast:
    """Times the first environment steps and updates, and prints one estimate of the time that is left."""

    def __init__(self):
        self._began = time.monotonic()
        self._frames, self._frame_seconds = 0, 0.0
        self._updates, self._updates_began = 0, 0.0
        self._done = False

    def count_frames(self, frames: int) -> None:
        """Counts frames that were collected; those after the first update are not timed."""
        if not self._updates:
            self._frames += frames
            self._frame_seconds = (time.monotonic() - self._began) / self._frames

    def restart(self) -> None:
        """Starts the timing of updates again, after an interruption."""
        self._updates = 0

    def count_update(self, updates_left: float, frames_left: int, on_cpu: bool) -> None:
        """Counts an update. The clock starts after the first one, which also allocates memory and compiles.

        Args:
            updates_left, frames_left: until the end of the run.
            on_cpu: suggest a short run beside a long one.
        """
        if self._done:
            return
        if not self._updates:
            self._updates_began = time.monotonic()
        self._updates += 1
        if self._updates > UPDATES:
            self._done = True
            seconds = (time.monotonic() - self._updates_began) / UPDATES
            console.say(estimate(seconds, updates_left, frames_left * self._frame_seconds, on_cpu))


def estimate(update_seconds: float, updates: float, stepping_seconds: float, on_cpu: bool) -> str:
    """The time that a run takes: its updates, and the seconds that environments take."""
    total = updates * update_seconds + stepping_seconds
    text = f"Estimate: this run takes about {duration(total)} more, {updates:,.0f} updates of {console.number(update_seconds)} s."
    if on_cpu and total > LONG:
        text += f"\n  A run that learns on a CPU within minutes:\n      {SHORT_RUN}\n  docs/speed.md says what shortens a run."
    return text


def duration(seconds: float) -> str:
    """A length of time with two digits, in the largest unit of which there are at least one and a half."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, length = next(pair for pair in units if seconds >= 1.5 * pair[1] or pair[1] == 1)
    count = seconds / length
    return f"{count:.1f} {unit}" if count < 9.95 and length > 60 else f"{count:,.0f} {unit}"
