"""The web page of a run: curves, latest videos, settings.

Training keeps it up to date. `python -m pages` writes it for any other run, also of dreamerv3-torch. The page needs no server and
loads nothing from the network.
"""

import datetime
import html
import pathlib
import re
import time
import urllib.parse

from PIL import Image

import console
import settings
from pages import charts, curves, web
from pages.curves import Curve
from storage import files

SECONDS_BETWEEN_PAGES = 60.0
SHARE_OF_TIME = 0.01  # of the training time that writing pages may take at most
STYLE = (
    charts.STYLE
    + """
.tiles { display: flex; flex-wrap: wrap; gap: .6em; margin: 1em 0 }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .45em .9em }
.tiles b { display: block; font-size: 1.3em; font-variant-numeric: tabular-nums } progress { width: 100%; accent-color: var(--link) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21em), 1fr)); gap: .8em }
.videos { display: flex; flex-wrap: wrap; gap: 1em 2em } .videos figure { margin: 0; max-width: 100% }
.videos figcaption { max-width: 42em } .videos img { image-rendering: pixelated; height: 28em; object-fit: contain; object-position: left }
.videos .episode { max-width: 24em } .videos .episode img { height: 16em }
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
    "open-loop predictions of replayed sequences. Rows: ground truth; model (the first five steps are reconstructions, later steps are "
    "predicted from the actions only); error; with two levels also the decoded top level, with the bottom drawn from its prior"
)


class RunPage:
    """Keeps the page of a training run up to date; a writer of `training.logs.Logger`.

    Args:
        logdir: folder of the run.
    """

    def __init__(self, logdir: pathlib.Path):
        self._logdir, self._due, self._settings = logdir, 0.0, None

    def scalars(self, step: int, means: dict[str, float]) -> None:
        """Writes the page if it is due. Its curves come from metrics.jsonl."""
        if time.monotonic() >= self._due:
            self._write(training=True)

    def video(self, name: str, path: pathlib.Path, step: int) -> None:
        """Does nothing: the page shows what is in videos/ when it is written."""

    def close(self) -> None:
        """Writes the final page."""
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
        training: the page reloads every minute.
    """
    path = path_of(logdir)
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as file:  # a browser never reads half a page
        file.write(page(logdir, stored, training).encode())
    return path


def path_of(logdir: pathlib.Path) -> pathlib.Path:
    """Where the page of a run is."""
    return logdir / "report" / "index.html"


def refresh(logdir: pathlib.Path) -> None:
    """Writes the page of a run again, unless there is none, or the run still trains and writes it every minute."""
    path = path_of(logdir)
    if path.exists() and web.RELOAD not in path.read_text(encoding="utf-8"):
        write(logdir, read_settings(logdir))


def read_settings(logdir: pathlib.Path) -> dict:
    """The settings of a run; empty if it has none, such as a run of dreamerv3-torch."""
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
    """How far the run is, its latest numbers, and a link to the latent report."""
    steps, unit = stored.get("steps"), curves.unit(stored)
    tiles = [(f"{end:,}", f"of {steps:,} {unit}s" if steps else f"{unit}s")]
    tiles += [(console.number(found[name].values[-1]), text) for name, text in TILES.items() if name in found]
    when = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    state = "Training; this page reloads every minute. Written" if training else "Written"
    more = ' <a href="../latents/index.html">Latent report</a>' if (logdir / "latents" / "index.html").exists() else ""
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
    """The latest video of every kind. Files are called <kind>_<step>.gif."""
    latest = {}
    for path in sorted((logdir / "videos").glob("*_*.gif")):
        kind, _, step = path.stem.rpartition("_")
        if step.isdecimal() and path.name.isprintable():
            latest[kind] = (path, int(step))  # the step in a name has leading zeros, so the last name is the latest
    shown = [
        f'<figure class="{"episode" if kind == "episode" else "other"}">'
        f"<figcaption>{html.escape(video_caption(kind, path, f'{unit} {step:,}'))}</figcaption>"
        f'<img src="../videos/{urllib.parse.quote(path.name)}" alt="{html.escape(kind)}"></figure>'
        for kind, (path, step) in latest.items()
    ]
    return f'<div class="videos">{"".join(shown)}</div>' if shown else ""


def video_caption(kind: str, path: pathlib.Path, when: str) -> str:
    """What a video shows; a film of an episode has return and length as the comment of its GIF."""
    if kind.startswith("openl_"):
        return f"{kind}, {when}: {OPEN_LOOP}"
    elif kind != "episode":
        return f"{kind}, {when}"
    try:
        with Image.open(path) as video:
            comment = video.info.get("comment", b"").decode(errors="replace")
    except OSError:  # a damaged file must not cost the page
        comment = ""
    return ", ".join(filter(None, [f"a real episode, played by the agent at {when}", comment]))


def about_settings(logdir: pathlib.Path, stored: dict) -> dict[str, str]:
    """By heading: settings that differ from the defaults, those changed during the run, and all settings."""
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
