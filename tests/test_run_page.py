"""The web page of a run: its charts, what it shows, that it stops nothing, and that a browser has nothing to complain about."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

import console
import dreamer
import settings
from pages import __main__ as run_page_command
from pages import charts, curves, run_page, web
from pages.curves import Curve
from play import report
from training import logs, writers

pytestmark = pytest.mark.slow


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with attributes and text; fails where a closing tag has no opening one or the other way round."""

    VOID = ("meta", "link", "img")

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """The folder of a short Pong run with two levels, which has been continued."""
    logdir = tmp_path_factory.mktemp("run") / "pong <i>"
    flags = "--configs defaults debug hdreamer --task atari_pong --device cpu --eval_every 300 --debug_hierarchical true"
    for steps in ("500", "700"):
        assert dreamer.main([*flags.split(), "--steps", steps, "--logdir", str(logdir)]) == 0
    return logdir


def parsed(logdir: pathlib.Path) -> Parsed:
    return Parsed((logdir / "report" / "index.html").read_text(encoding="utf-8"))


# What the page shows


def test_training_leaves_a_page_with_curves_videos_levels_and_settings(trained):
    page = parsed(trained)
    assert page.all("title") and "atari_pong" in page.text
    shown = [attrs["aria-label"] for attrs in page.all("svg")]
    written = curves.read(trained).curves
    assert {"return", "length", "image loss", "kl", "perplexity", "active", "train/model_grad_norm"} <= set(shown)
    lines = sum(len(panel) for section in run_page.arrange(written).values() for panel in section.values())
    assert lines == len(written)  # every metric is somewhere
    videos = [attrs["src"] for attrs in page.all("img")]
    assert videos == ["../videos/episode_000000700.gif", "../videos/openl_image_000000700.gif"]  # the latest
    assert all((trained / "report" / path).exists() for path in videos)
    for text in ("evaluation return", "of 700 frames", "dyn_deter", "Settings changed on the way", "top ", "bottom ", str(trained)):
        assert text in page.text, text
    evaluation = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [row["eval/return"] for row in evaluation if "eval/return" in row][-1]
    assert f"evaluation {console.number(last)}" in page.text


def test_nothing_comes_from_outside_and_a_finished_run_is_not_loaded_anew(trained):
    page = parsed(trained)
    references = [attrs[key] for _, attrs in page.elements for key in ("src", "href") if key in attrs]
    assert all(reference.startswith(("../videos/", "data:,")) for reference in references)
    assert not page.all("script") and not [attrs for attrs in page.all("meta") if "http-equiv" in attrs]
    run_page.write(trained, run_page.read_settings(trained), training=True)
    assert {"http-equiv": "refresh", "content": "60"} in parsed(trained).all("meta")
    assert run_page_command.main([str(trained)]) == 0
    assert not [attrs for attrs in parsed(trained).all("meta") if "http-equiv" in attrs]


def test_a_run_of_dreamerv3_torch_has_a_page(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 400, "train_return": -21.0}\n{"step": 800, "eval_return": 3.5, "image_loss": NaN}\n{"st'
    )
    assert run_page_command.main([str(tmp_path)]) == 0
    page = parsed(tmp_path)
    assert "evaluation 3.5" in page.text and "training -21" in page.text and "800" in page.text and " nan" in page.text
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out


def test_losses_of_held_out_episodes_stand_beside_those_of_training():
    names = ("train/kl", "eval/kl", "train/kl_top", "eval/kl_top", "eval/return", "cut_off/return")
    names += ("train/image_loss", "eval/image_loss", "train/robot/joints_loss")
    panels = {
        section: {title: list(lines) for title, lines in panels.items()}
        for section, panels in run_page.arrange(dict.fromkeys(names)).items()
    }
    assert panels == {
        "Returns": {"return": ["evaluation", "training, cut off"]},
        "Losses": {"image loss": ["training", "held out"], "robot/joints loss": ["training"], "kl": ["training", "held out"]},
        "Latent levels": {"kl": ["top", "top, held out"]},
        "All else": {},
    }


def test_a_run_on_recorded_episodes_counts_updates(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "train/kl": 3.0}\n{"step": 40, "train/kl": 2.0}\n')
    run_page.write(tmp_path, {**settings.load_config(), "offline_traindir": "recorded", "steps": 40})
    text = parsed(tmp_path).text
    assert "of 40 updates" in text and "over updates" in text and "update 20: 3" in text and "frame" not in text.split("Settings")[0]


def colours_of(text: str) -> list[dict[str, tuple[str, str]]]:
    """The colours of each chart on a page, on a light and a dark page, by the names of its curves, which its curves have in this order."""
    found = []
    light, dark = (
        dict(re.findall(r"\.(k\d+) { --own: (#\w+) }", part))
        for part in text.split("</style>")[0].split("(prefers-color-scheme: dark)")[-2:]
    )
    for chart in re.findall(r'<figure class="chart">.*?</figure>', text, re.DOTALL):
        names = re.findall(r'<b class="(k\d+)">(.*?) ?[^ ]+</b>', chart)
        assert [kind for kind, _ in names] == re.findall(r'<g class="(k\d+)">', chart)
        found.append({name: (light[kind], dark[kind]) for kind, name in names})
    return found


def test_a_name_has_one_colour_on_the_whole_page_and_another_than_its_neighbours(tmp_path):
    names = "episode/return eval/return cut_off/return eval/length cut_off/length cut_off/log_wins train/kl eval/kl eval/image_loss".split()
    names += [f"{part}/kl_{level}" for part in ("train", "eval") for level in ("flat", "top", "bottom")]
    names += ["train/delta_bottom", "train/active_flat", "time/fps"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **dict.fromkeys(names, 1.0)}) + "\n" for step in (1, 2)))
    run_page.write(tmp_path, {})
    charts_of_page = colours_of((tmp_path / "report" / "index.html").read_text())
    colours = {}
    for chart in charts_of_page:
        for theme in (0, 1):
            assert len({pair[theme] for pair in chart.values()}) == len(chart)
        for name, pair in chart.items():
            assert colours.setdefault(name, pair) == pair, name
    levels = [f"{level}{more}" for level in ("flat", "top", "bottom") for more in ("", ", held out")]
    assert colours.keys() == {"training", "evaluation", "training, cut off", "held out", *levels, ""}
    assert sum(map(len, charts_of_page)) == len(names)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_a_run_is_refused(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_page_command.main([str(tmp_path / folder)]) == 2
    assert re.fullmatch(r"error: .* holds no run: there is no metrics.jsonl; give the folder of a run\n", capsys.readouterr().err)


def test_tables_show_texts_as_they_are():
    text = web.text_table(["a&b"], [["<script>"]]) + web.number_table({"<x>": {"y": 0.25}, "z": {}})
    assert [cell for cell in Parsed(web.document("<title>", text)).texts if cell.strip()] == [
        "<title>",
        "<title>",
        "a&b",
        "<script>",
        "<x>",
        "z",
        "y",
        "0.25",
    ]
    nothing = {"trained": {"h": {}}, "untrained": {"h": {}}}
    numbers = {"levels": {"top": {"kl": 1.0}}, "levels_untrained": {"top": {"kl": 2.0}}, "reconstruction": {}, "probes": nothing}
    text = report.page("<title>", "about", numbers, [])
    assert text.count("<title>") == 1 and "top, untrained" in text and "nothing is probed" in text


def test_levels_of_a_report_are_columns_and_their_statistics_rows():
    rows = report.tables(report_numbers())["codes"].split("<tr>")[1:]
    assert [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows] == [
        ["", "top", "bottom", "top, untrained", "bottom, untrained"],
        *([name, "1", "2", "1", "2"] for name in STATISTICS_OF_LEVELS),
    ]


def test_a_probe_without_an_interval_is_shown_without():
    text = report.tables(report_numbers())["probes"]
    assert "<td>0.50 (0.25 to 0.75), 0.10</td>" in text and "<td>0.50, 0.10</td>" in text


STATISTICS_OF_LEVELS = "categoricals classes kl prior_entropy post_entropy perplexity active delta information information_limit".split()


def report_numbers() -> dict:
    """Numbers of a latent report with two levels, three observations with long names, and all of its parts."""
    keys = ["image", "robot/joint_positions_of_the_left_arm", "robot/joint_velocities_of_the_left_arm"]
    levels = {name: dict.fromkeys(STATISTICS_OF_LEVELS, number) for number, name in ((1, "top"), (2, "bottom"))}
    choices = ("posterior", "bottom from the prior", "top from the prior, bottom kept", "top and bottom from the prior")
    errors = {key + more: 123.456 for key in keys for more in ("", ", mean of 8 draws")}
    curve = {"error": [0.123456] * 30, "spread": [1234.5] * 30}
    combinations = ["z_top", "z_bottom", "h", "z_top + z_bottom", "z_top + h", "z_bottom + h", "z_top + z_bottom + h"]
    probed = {
        "robot/joint_positions_of_the_left_arm[12]": dict(share=0.5, low=0.25, high=0.75),
        "reward": dict(share=0.5, low=None, high=None),
    }
    return {
        "levels": levels,
        "levels_untrained": levels,
        "reconstruction": dict.fromkeys(choices, errors),
        "open_loop": {name: dict.fromkeys(keys, curve) for name in ("top", "bottom", "top and bottom")},
        "probes": {"trained": dict.fromkeys(combinations, probed), "untrained": dict.fromkeys(combinations, dict.fromkeys(probed, 0.1))},
    }


# Charts


def points(svg: str) -> np.ndarray:
    """The vertices (n, 2) of the only curve of a chart."""
    (found,) = re.findall(r'<polyline points="([^"]+)"', svg)
    return np.array([pair.split(",") for pair in found.split()], float)


def labels(svg: str) -> dict[str, float]:
    """Where the labels of the vertical axis are."""
    return {text: float(down) for down, text in re.findall(r'y="([\d.]+)" text-anchor="end">([^<]+)<', svg)}


def test_a_curve_goes_through_its_values_on_the_axes():
    svg = charts.chart("loss", {"": Curve(np.array([0, 250, 1000]), np.array([0.0, 30.0, 10.0]))}, 1000)
    drawn, ticks = points(svg), labels(svg)
    np.testing.assert_allclose(drawn[:, 0], charts.LEFT + (charts.RIGHT - charts.LEFT) * np.array([0.0, 0.25, 1.0]), atol=0.06)
    assert list(ticks) == ["0", "10", "20", "30"]
    np.testing.assert_allclose(drawn[:, 1], [ticks["0"] - 3, ticks["30"] - 3, ticks["10"] - 3], atol=0.11)  # text hangs 3 below its line
    assert "<title>frame 250: 30</title>" in svg


def test_values_over_orders_of_magnitude_have_a_logarithmic_axis():
    svg = charts.chart("loss", {"": Curve(np.array([1, 2, 3]), np.array([1e4, 1e2, 1e1]))}, 3)
    drawn = points(svg)[:, 1]
    np.testing.assert_allclose((drawn[1] - drawn[0]) / (drawn[2] - drawn[1]), 2.0, rtol=0.01)
    assert list(labels(svg)) == ["10", "100", "1,000", "10k"]


@pytest.mark.parametrize(
    "end, expected", [(1, ["0", "1"]), (2, ["0", "1", "2"]), (4, ["0", "1", "2", "3", "4"]), (10, ["0", "2", "4", "6", "8", "10"])]
)
def test_few_steps_are_counted_in_whole_numbers(end, expected):
    svg = charts.chart("loss", {"": Curve(np.array([end]), np.array([0.5]))}, end)
    assert re.findall(r'text-anchor="middle">([^<]+)<', svg) == expected


def test_long_curves_become_short_texts_and_keep_their_range():
    rng = np.random.default_rng(0)
    svg = charts.chart("x", {"": Curve(np.arange(100_000), rng.normal(size=100_000))}, 100_000)
    assert len(points(svg)) == charts.POINTS and "<polygon" in svg and "<circle" not in svg and len(svg) < 15_000


@pytest.mark.parametrize("values", [[5.0], [2.0, 2.0], [np.nan, 1.0, np.inf], [np.nan], [-1e-30, 1e-30], [1e300, -1e300], [0.0, 0.0]])
def test_odd_curves_are_drawn_within_the_chart(values):
    svg = charts.chart("x", {"top": Curve(np.arange(len(values)), np.array(values))}, len(values) - 1)
    Parsed(f"<body>{svg}</body>")
    if np.isfinite(values).any():
        drawn = points(svg)
        assert ((drawn >= 0) & (drawn <= [charts.WIDTH, charts.HEIGHT])).all()
    assert f"top {console.number(values[-1])}" in svg


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 17), (0.001, 0.0042), (5e5, 1.2e6), (99.9, 100)])
def test_ticks_are_round_and_a_handful(low, high):
    ticks = charts.round_ticks(low, high)
    assert 3 <= len(ticks) <= 8 and min(ticks) >= low - 1e-9 and max(ticks) <= high + 1e-9
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125" and np.allclose(np.array(ticks) / step, np.round(np.array(ticks) / step))


# While training


def test_pages_are_written_once_a_minute_and_at_the_end(tmp_path, monkeypatch):
    logger = logs.Logger(tmp_path, more=[run_page.RunPage(tmp_path)])
    written, clock = [], [1000.0]
    monkeypatch.setattr(run_page, "write", lambda logdir, stored, training: written.append(training))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for second in range(0, 150, 10):
        clock[0] = 1000.0 + second
        logger.add({"loss": 1.0})
        logger.write(second)
    assert written == [True, True, True]
    logger.close()
    assert written == [True, True, True, False]


def test_a_slow_page_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    page, clock = run_page.RunPage(tmp_path), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def write(*_) -> None:
        clock[0] += 5.0

    monkeypatch.setattr(run_page, "write", write)
    starts = []
    while clock[0] < 2000:
        before = clock[0]
        page.scalars(0, {})
        if clock[0] > before:
            starts.append(before)
        clock[0] += 1.0
    assert starts == [0.0, 505.0, 1010.0, 1515.0]


def test_a_page_that_fails_is_told_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "report").write_text("a file where the folder should be")
    logger = logs.Logger(tmp_path, more=[writers.Forgiving(run_page.RunPage(tmp_path))])
    for step in range(3):
        logger.add({"loss": 1.0})
        logger.write(step)
    logger.close()
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and warnings[0].startswith("warning: RunPage failed; training goes on (FileExistsError")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


# A browser


def browse(page: pathlib.Path, profile: pathlib.Path, *flags: str) -> str:
    """What a browser prints that opens the page; fails if the page makes it complain."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium")
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    command = [browser, *(f"--{flag}" for flag in quiet.split()), f"--user-data-dir={profile}", "--enable-logging=stderr", *flags]
    result = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr, result.stderr
    return result.stdout


def test_tables_of_a_report_fit_on_a_page(tmp_path):
    page = tmp_path / "index.html"
    measure = "[...document.querySelectorAll('.scroll')].map(table => table.scrollWidth - table.clientWidth).join(' ')"
    text = report.page("Latents", "about", report_numbers(), [])
    page.write_text(f"{text}<script>document.body.append('beyond: ' + {measure} + ';')</script>")
    beyond = re.search("beyond: ([-0-9 ]*);<", browse(page, tmp_path / "profile", "--window-size=1280,2000", "--dump-dom"))
    assert beyond[1].split() == ["0"] * 4


def test_a_browser_shows_the_page_and_has_nothing_to_complain_about(trained, tmp_path):
    picture = tmp_path / "page.png"
    browse(trained / "report" / "index.html", tmp_path / "profile", "--window-size=1200,2000", f"--screenshot={picture}")
    from PIL import Image

    with Image.open(picture) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(10**7)}
    assert image.size == (1200, 2000) and {(0x1F, 0x6F, 0xC4), (0xD9, 0x57, 0x1F)} <= colors  # both curves of the first chart
