"""A web page of a run: curves, latest videos, settings. Training keeps it up to date; `python -m pages` writes it
for any other run, also of dreamerv3-torch. The page needs no server and nothing from outside.
"""

import datetime
import html
import pathlib
import re
import time
import urllib.parse

import console
import settings
from pages import charts, curves, web
from pages.curves import Curve
from storage import files

SECONDS_BETWEEN_PAGES = 60.0
SHARE_OF_TIME = 0.01  # of the training's time that pages may take at most
STYLE = (
    charts.STYLE
    + """
.tiles { display: flex; flex-wrap: wrap; gap: .6em; margin: 1em 0 }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .45em .9em }
.tiles b { display: block; font-size: 1.3em; font-variant-numeric: tabular-nums } progress { width: 100%; accent-color: var(--link) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21em), 1fr)); gap: .8em }
.videos { display: flex; flex-wrap: wrap; gap: 1em 2em } .videos figure { margin: 0; max-width: 100% }
.videos figcaption { max-width: 42em } .videos img { image-rendering: pixelated; height: 28em; object-fit: contain; object-position: left }
"""
)
TILES = {
    "eval/return": "evaluation return",
    "episode/return": "training return",
    "time/updates": "updates",
    "time/fps": "frames a second",
    "time/updates_per_second": "updates a second",
}
LINES = {"episode": "training", "eval": "evaluation", "cut_off": "training, cut off"}
OPEN_LOOP = (
    "replayed sequences; in rows: truth, model (the first five steps are reconstructed, all later ones dreamed from the "
    "actions alone), error, and with two levels what the top level alone sees"
)


class RunPage:
    """The page of a run that trains, a writer of `training.logs.Logger`.

    Args:
        logdir: folder of the run.
    """

    def __init__(self, logdir: pathlib.Path):
        self._logdir, self._due, self._settings = logdir, 0.0, None

    def scalars(self, step: int, means: dict[str, float]) -> None:
        """Writes the page, if that is due; its curves come from metrics.jsonl."""
        if time.monotonic() >= self._due:
            self._write(training=True)

    def video(self, name: str, path: pathlib.Path, step: int) -> None:
        """Nothing: the page shows what is in videos/ when it is written."""

    def close(self) -> None:
        """Writes the page a last time."""
        self._write(training=False)

    def _write(self, training: bool) -> None:
        began = time.monotonic()
        try:
            self._settings = self._settings or read_settings(self._logdir)
            write(self._logdir, self._settings, training)
        finally:
            now = time.monotonic()
            self._due = now + max(SECONDS_BETWEEN_PAGES, (now - began) / SHARE_OF_TIME)


def write(logdir: pathlib.Path, stored: dict, training: bool = False) -> pathlib.Path:
    """Writes the page of a run and returns its path.

    Args:
        stored: settings of the run, empty if unknown.
        training: the page loads itself anew every minute.
    """
    path = logdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as file:  # a browser never meets half a page
        file.write(page(logdir, stored, training).encode())
    return path


def read_settings(logdir: pathlib.Path) -> dict:
    """The settings of a run; empty if there are none, as in runs of dreamerv3-torch."""
    path = logdir / "config.yaml"
    return settings.read_yaml(path) if path.exists() else {}


def page(logdir: pathlib.Path, stored: dict, training: bool) -> str:
    """The page as HTML."""
    found, unit = curves.read(logdir).curves, curves.unit(stored)
    end = max((int(curve.steps[-1]) for curve in found.values()), default=0)
    drawn = {
        section: "".join(charts.chart(title, lines, end, unit) for title, lines in panels.items())
        for section, panels in arrange(found).items()
    }
    sections = {section: f'<div class="grid">{panels}</div>' for section, panels in drawn.items() if panels}
    sections = {"Returns": "", "Latest videos": videos(logdir, unit), **sections, **about_settings(logdir, stored)}
    body = summary(logdir, stored, found, end, training) + "".join(
        f"<h2>{heading}</h2>{content}\n" for heading, content in sections.items() if content
    )
    title = str(stored.get("task", logdir.resolve().name))
    return web.document(title, body, style=STYLE, reload_seconds=int(SECONDS_BETWEEN_PAGES) if training else None)


def summary(logdir: pathlib.Path, stored: dict, found: dict[str, Curve], end: int, training: bool) -> str:
    """Where the run is, and its latest numbers."""
    steps, unit = stored.get("steps"), curves.unit(stored)
    tiles = [(f"{end:,}", f"of {steps:,} {unit}s" if steps else f"{unit}s")]
    tiles += [(console.number(found[name].values[-1]), text) for name, text in TILES.items() if name in found]
    when = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    state = "Training; this page loads itself anew every minute. Written" if training else "Written"
    more = ' <a href="../latents/index.html">What the latent levels hold</a>' if (logdir / "latents" / "index.html").exists() else ""
    bar = f'<progress max="{steps}" value="{min(end, steps)}"></progress>' if steps else ""
    return (
        f'<p class="faint">{html.escape(str(logdir))}. {state} {when}.{more}</p>{bar}'
        f'<div class="tiles">{"".join(f"<div><b>{value}</b>{text}</div>" for value, text in tiles)}</div>'
        f'<p class="faint">Curves are over {unit}s; long ones show means of equal parts, with their range as a shade.</p>\n'
    )


def arrange(found: dict[str, Curve]) -> dict[str, dict[str, dict[str, Curve]]]:
    """Curves by section, panel and name in the panel: training beside evaluation, the levels of a statistic together."""
    sections = {"Returns": {}, "Losses": {}, "Latent levels": {}, "All else": {}}
    for name in sorted(found, key=lambda name: (name not in ("episode/return", "eval/return"), name.startswith("eval/"))):
        if match := re.fullmatch(r"(?:train/(\w+)|eval/(kl))_(flat|top|bottom)", name):
            section, title, line = "Latent levels", match[1] or match[2], match[3] + (", held out" if match[2] else "")
        elif match := re.fullmatch(r"(train|eval)/(kl|.+_loss)", name):
            section, title, line = "Losses", match[2].replace("_", " "), "held out" if match[1] == "eval" else "training"
        elif match := re.fullmatch(r"(episode|eval|cut_off)/(.+)", name):
            section, title, line = "Returns" if match[2] in ("return", "length") else "All else", match[2], LINES[match[1]]
        else:
            section, title, line = "All else", name, ""
        sections[section].setdefault(title, {})[line] = found[name]
    return sections


def videos(logdir: pathlib.Path, unit: str) -> str:
    """The latest video of every kind, <kind>_<step>.gif."""
    latest = {}
    for path in sorted((logdir / "videos").glob("*_*.gif")):
        kind, _, step = path.stem.rpartition("_")
        if step.isdigit():
            latest[kind] = (path, int(step))  # names have the step with leading zeros: the last is the latest
    shown = [
        f"<figure><figcaption>{html.escape(kind)}, {unit} {step:,}"
        f"{': ' + OPEN_LOOP if kind.startswith('openl_') else ''}</figcaption>"
        f'<img src="../videos/{urllib.parse.quote(path.name)}" alt="{html.escape(kind)}"></figure>'
        for kind, (path, step) in latest.items()
    ]
    return f'<div class="videos">{"".join(shown)}</div>' if shown else ""


def about_settings(logdir: pathlib.Path, stored: dict) -> dict[str, str]:
    """By heading: settings that are not the defaults, those that were changed on the way, and all of them."""
    if not stored:
        return {}
    differing = [[name, new, old] for name, old, new in settings.changes_from_defaults(settings.Config(stored)) if new != "-"]
    changes = [
        [f"{row['step']:,}", *(str(row.get(key, "")) for key in ("setting", "from", "to"))]
        for row in curves.read_rows(logdir / "config_changes.jsonl")[0]
    ]
    return {
        "Settings that differ from the defaults": web.text_table(["setting", "", "default"], differing),
        "Settings changed on the way": web.text_table([curves.unit(stored), "setting", "from", "to"], changes) if changes else "",
        "All settings": web.text_table(["setting", ""], [list(pair) for pair in settings.shown(stored).items()]),
    }
