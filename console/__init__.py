"""What a run prints: its summary at the start, progress of its phases, one line per log interval.

Progress is a bar in a terminal, and plain lines in a file or pipe.
"""

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0
SECONDS_OF_BRIEF = 5.0


class _Tolerant:
    """A stream that goes silent where its reader is gone or the disk is full, instead of ending the run that prints to it."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._going_silent():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))  # names may have letters that it lacks
        return len(text)

    def flush(self) -> None:
        with self._going_silent():
            self._stream.flush()

    @contextlib.contextmanager
    def _going_silent(self):
        try:
            yield
        except OSError:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())


@contextlib.contextmanager
def tolerant_output():
    """Within this, a closed pipe or terminal stops what is printed, and nothing else."""
    with contextlib.redirect_stdout(_Tolerant(sys.stdout)), contextlib.redirect_stderr(_Tolerant(sys.stderr)):
        yield


def say(text: str) -> None:
    """Prints above the progress bars."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(text: str) -> None:
    """Prints a warning to stderr, above the progress bars."""
    tqdm.write(f"warning: {text}", file=sys.stderr)


class Progress:
    """Progress of a phase, with rate and time left. Use as a context manager.

    Args:
        phase: its name.
        total: the count that ends it.
        unit: what is counted, in plural.
        done: the count that it begins with.
        nested: runs within another phase; its bar vanishes at the end.
        brief: usually takes no time; shown only if it takes longer than `SECONDS_OF_BRIEF`.
    """

    def __init__(self, phase: str, total: int, unit: str, done: int = 0, nested: bool = False, brief: bool = False):
        self._phase, self._total, self._unit = phase, total, unit
        self._start, self._done = min(done, total), min(done, total)
        self._began = self._printed = time.monotonic()
        self._bar, self._brief = None, brief
        if sys.stdout.isatty():
            self._bar = tqdm(
                desc=phase,
                total=total,
                initial=self._start,
                unit=f" {unit}",
                unit_scale=total >= 10_000,
                file=sys.stdout,
                dynamic_ncols=True,
                miniters=1,
                smoothing=0.05,
                leave=not nested and not brief,
                delay=SECONDS_OF_BRIEF if brief else 0.0,
            )
        elif not brief:
            say(f"{phase}: {self._start:,} of {total:,} {unit}")

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, episodes: Sequence = ()) -> None:
        """Sets the count, and shows the return of the last of the episodes that have ended, if any."""
        done = min(done, self._total)
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done
        if self._bar is not None and episodes:
            self._bar.set_postfix_str(f"return {episodes[-1].sums['return']:.4g}")
        if self._bar is None and time.monotonic() - self._printed > (SECONDS_OF_BRIEF if self._brief else SECONDS_BETWEEN_LINES):
            self._brief = False
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        rate = (self._done - self._start) / seconds
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
        say(
            f"{self._phase}: {self._done:,} of {self._total:,} {self._unit} ({100 * self._done / self._total:.0f}%), "
            f"{number(rate)} {self._unit}/s, {left} left"
        )

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._start and not self._brief:
            seconds = time.monotonic() - self._began
            say(f"{self._phase}: {self._done:,} of {self._total:,} {self._unit} in {tqdm.format_interval(seconds)}")


def number(value: float) -> str:
    """Three digits, or all before the point with separators."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def first(texts: list[str], separator: str = ", ", count: int = 3) -> str:
    """The first few of many texts, and how many there are beside them."""
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return separator.join(texts[:count]) + more


def table(title: str, rows: list[tuple[str, str]]) -> str:
    """A title and rows of a name and a value, aligned."""
    indent = 2 + max((len(name) for name, _ in rows), default=0) + 2
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    lines = [title]
    for name, value in rows:
        lines += textwrap.wrap(
            value,
            width,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        ) or [f"  {name}"]
    return "\n".join(lines)
