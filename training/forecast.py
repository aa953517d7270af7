"""Estimates how long a run takes, once its first updates have been timed."""

import time

import console

UPDATES = 20  # that are timed
LONG = 6 * 3600.0  # seconds from which on a shorter run is suggested
SHORT_RUN = "python dreamer.py --configs defaults small hdreamer_split --task gym_CartPole-v1 --steps 6000"


class Forecast:
    """Times the first updates and environment steps, and prints one estimate of the time that is left.

    The time between two counts belongs to the second one.

    Attributes:
        untimed: updates that are not timed. The first one also allocates memory and compiles; a CUDA graph begins later.
    """

    def __init__(self):
        self._last, self.untimed, self._done = None, 1, False
        self._frames, self._frame_seconds = 0, 0.0
        self._updates, self._update_seconds = 0, 0.0

    def count_frames(self, frames: int) -> None:
        """Counts frames that were collected."""
        if (seconds := self._lap()) is not None:
            self._frames += frames
            self._frame_seconds += seconds

    def count_update(self, updates_left: float, frames_left: int, on_cpu: bool) -> None:
        """Counts an update; prints the estimate after `UPDATES` timed ones.

        Args:
            updates_left, frames_left: until the end of the run.
            on_cpu: suggest a short run beside a long one.
        """
        seconds = self._lap()
        if self._done or seconds is None or self.untimed:
            self.untimed = max(0, self.untimed - 1)
            return
        self._updates += 1
        self._update_seconds += seconds
        if self._updates == UPDATES:
            self._done = True
            stepping = frames_left * self._frame_seconds / max(1, self._frames)
            console.say(estimate(self._update_seconds / UPDATES, updates_left, stepping, on_cpu))

    def pause(self) -> None:
        """Leaves out the time until the next count, which an evaluation has taken."""
        self._last = None

    def _lap(self) -> float | None:
        """Seconds since the last count; None after a pause."""
        now, last = time.monotonic(), self._last
        self._last = now
        return None if last is None else now - last


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
    if unit == "seconds":
        return f"{max(2, round(count))} seconds"
    return f"{count:.1f} {unit}" if count < 9.95 and length > 60 else f"{count:,.0f} {unit}"
