"""What a sweep shows of its runs: a table that is drawn again and again in a terminal, elsewhere a line for each change."""

import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

from console import number

COLUMNS = ("run", "state", "frames", "return", "frames/s", "time left")


class Progress:
    """How far a run is, from what is appended to its metrics.jsonl.

    Attributes:
        frame: of the last entry.
        returned: the return of the last evaluation, or of training episodes where there are no evaluations; None without either.
        speed: frames per second of the last entry; None if it has none.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._read, self._evaluated = path, 0, False
        self.frame, self.returned, self.speed = 0, None, None

    def update(self) -> None:
        """Reads the lines that are new and complete."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                lines = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return
        self._read += len(lines) + bool(lines)
        for line in lines.splitlines():
            try:
                row = json.loads(line)
                self.frame = int(row["step"])
            except (ValueError, TypeError, LookupError):  # of a run that was killed
                continue
            self._evaluated |= "eval/return" in row
            self.returned = row.get("eval/return" if self._evaluated else "episode/return", self.returned)
            self.speed = row.get("time/fps", self.speed)


def cells(name: str, state: str, frames: int, progress: Progress) -> tuple[str, ...]:
    """A row of the table, see `COLUMNS`.

    Args:
        frames: the length of the run; 0 for what has no frames.
    """
    if not frames:
        return name, state, "", "", "", ""
    runs = state == "runs" and progress.speed
    frame = frames if state == "done" else progress.frame  # a result may be of another machine
    return (
        name,
        state,
        f"{frame:,} of {frames:,}",
        "" if progress.returned is None else f"{progress.returned:.4g}",
        number(progress.speed) if runs else "",
        _hours(max(0, frames - progress.frame) / progress.speed) if runs else "",
    )


def _hours(seconds: float) -> str:
    """Hours and minutes, as "2 h 05 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Screen:
    """Shows the rows of a sweep. In a terminal the table takes the place of the one before; rows that do not fit are counted."""

    def __init__(self):
        self._live, self._height, self._shown = sys.stdout.isatty(), 0, {}

    def show(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Shows rows of `cells`."""
        if self._live:
            text = _table(rows, *shutil.get_terminal_size())
            back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
            print(back + text, flush=True)
            self._height = text.count("\n") + 1
            return
        for row in rows:
            name, state, frames, returned, *_ = row
            if self._shown.get(name) != state:
                self._shown[name] = state
                about = [state, *([f"{frames} frames"] if frames else []), *([f"return {returned}"] if returned else [])]
                print(f"{name}: {', '.join(about)}", flush=True)

    def keep(self) -> None:
        """Leaves what is shown where it is; the next table comes below."""
        self._height = 0


def _table(rows: Sequence[tuple[str, ...]], columns: int, lines: int) -> str:
    """Rows below their titles, as many as fit: first those that are neither done nor waiting."""
    counts = [f"{sum(row[1].split()[0] == state for row in rows)} {state}" for state in dict.fromkeys(row[1].split()[0] for row in rows)]
    shown = list(rows)
    if len(rows) > (room := max(1, lines - 4)):
        first = sorted(rows, key=lambda row: row[1] == "done" or row[1].startswith("waits"))[:room]
        shown = [row for row in rows if row in first]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *shown)]
    texts = []
    for row in (COLUMNS, *shown):
        words = [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths))]
        texts.append("  ".join(words).rstrip())
    texts.append(f"{len(rows)} in all: {', '.join(counts)}")
    return "\n".join(text[: columns - 1] for text in texts)
