"""Every command that README and docs show. What needs nothing beyond requirements.txt is run, shortened by flags alone."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import gymnasium
import pytest
import torch

import compare
import dream
import dreamer
import evaluate
import latent_report
import record
import settings
import tools
from benchmarks import draw
from checkpoints import __main__ as export
from checkpoints.jax_original import __main__ as jax_export
from envs import OPTIONAL
from old_files import DATA
from pages import __main__ as run_page_command
from pages import filmstrip

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
MAINS = {module.__name__: module.main for module in (compare, dream, dreamer, evaluate, latent_report, record)}
MAINS |= {"checkpoints": export.main, "checkpoints.jax_original": jax_export.main}
MAINS |= {"pages": run_page_command.main, "pages.filmstrip": filmstrip.main}
RUN = "logdir/20261129-230605-gym_CartPole-v1"  # the example on many pages

# Flags that come after those of the page, so these hold.
DREAMER = {
    "prefill": 40, "pretrain": 1, "train_ratio": 2, "batch_size": 2, "batch_length": 12, "eval_every": 60, "eval_episode_num": 2,
    "time_limit": 60, "dataset_size": 1000, "dyn_deter": 16, "dyn_hidden": 16, "units": 16, "encoder.cnn_depth": 2,
    "decoder.cnn_depth": 2, "encoder.mlp_units": 16, "decoder.mlp_units": 16, "device": "cpu",
}  # fmt: skip
SIZES = [name for name in DREAMER if name.rpartition(".")[2] in ("dyn_deter", "dyn_hidden", "units", "cnn_depth", "mlp_units")]
OFFLINE = {"eval_every": 2, "steps": 4}
SHORT = {"record": ["--episodes", "2"], "evaluate": ["--episodes", "1", "--video_steps", "12"], "latent_report": ["--steps", "400"]}
SHORT["pages.filmstrip"] = ["--sequence", "1"]
SHORT["dream"] = ["--measure"]


def documented(page: str) -> list[tuple[str, bool]]:
    """The command lines of a page in order, without comments behind them, each with whether the page says that it is refused."""
    found = re.findall(r"^    ((?:python|pip|tensorboard|mkdir|\.ci/).*)$(\n*    error: )?", PAGES[page], re.MULTILINE)
    return [(re.sub(r"\s+#.*", "", command).replace(" RUN", f" {RUN}").strip(), bool(error)) for command, error in found]


EVERY = [command for page in PAGES for command, _ in documented(page)]


def script_of(command: str) -> str:
    """The script or package that a command runs, without .py; empty for other programs."""
    return (
        command.removeprefix("python -m ").removeprefix("python ").split()[0].removesuffix(".py") if command.startswith("python ") else ""
    )


def suite_of(command: str) -> str:
    return (re.search(r"--task ([a-z]*)", command) or ["", ""])[1]


def shortened(command: str) -> list[str]:
    """The arguments of a command of one of MAINS, for the least that it can do."""
    words = shlex.split(command.replace("python -m ", "python "))[2:]
    script = script_of(command)
    if script == "record" and "--steps" in words:
        return [*words, "--steps", "60"]
    if script != "dreamer":
        return words + SHORT.get(script, [])
    if "--configs" not in words:  # resumes a run, with its own settings
        return [*words, "--steps", "150"]
    logdir = words[words.index("--logdir") + 1] if "--logdir" in words else "new"
    goes_on = pathlib.Path(logdir, "latest.pt").exists()
    flags = {**DREAMER, "steps": 150 if goes_on else 90}
    for origin, steps in (("jax_reference", 3600), ("pretrained/cartpole", 12_130)):  # goes on at frame 3,564 or 12,074, with its sizes
        if origin in command:
            flags = {name: value for name, value in flags.items() if name not in SIZES} | {"steps": steps}
    if "--offline_traindir" in words:
        flags |= OFFLINE
    if "--eval_episode_num" in words:
        del flags["eval_episode_num"]
    return words + [text for key, value in flags.items() for text in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> pathlib.Path:
    """A folder with the runs and recordings that the pages speak of."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for logdir, presets, task in [
            (RUN, "small hdreamer_split", "gym_CartPole-v1"),
            ("logdir/flat", "small", "gym_CartPole-v1"),
            ("logdir/pong", "hdreamer", "atari_pong"),
            ("logdir/flat_pong", "", "atari_pong"),
        ]:
            command = f"python dreamer.py --configs defaults {presets} --task {task} --logdir {logdir}"
            assert dreamer.main(shortened(command)) == 0
        shutil.copytree("logdir/flat_pong/train_eps", "logdir/old_pong/train_eps")
        assert export.main(["logdir/flat_pong/latest.pt", "logdir/old_pong/latest.pt"]) == 0
        for name, seed in (("recorded", 0), ("held_out", 1)):
            assert record.main(shortened(f"python record.py --task gym_CartPole-v1 --episodes 9 --seed {seed} --out {name}")) == 0
    for name, source in (("run", RUN), ("learning/two_levels-0", RUN), ("picture", "logdir/pong")):
        shutil.copytree(folder / source, folder / "logdir" / name)
    (folder / "logdir" / "old_pong" / "metrics.jsonl").write_text(json.dumps({"step": 84, "eval_return": -20.0}) + "\n")
    for name in ("dreamerv3_torch/atari", "jax_reference/checkpoint_cartpole"):
        shutil.copytree(DATA.parent / name, folder / "tests" / "data" / name)
    module = PAGES["your_environment.md"].split("```python\n")[1].split("```")[0]
    (folder / "my_walk.py").write_text(module)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(script_of(command) in MAINS for command, _ in documented(page))])
def test_the_commands_of_a_page_do_what_it_says(page, workplace, tmp_path, monkeypatch, capsys):
    shutil.copytree(workplace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.delitem(sys.modules, "my_walk", raising=False)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry.copy())  # which the page's module adds to
    for command, refused in documented(page):
        if command.startswith("mkdir"):
            subprocess.run(command, shell=True, check=True)
        elif script_of(command) in MAINS and suite_of(command) not in OPTIONAL and not re.search("wandb|FOLDER", command):
            code = MAINS[script_of(command)](shortened(command))
            assert code == (2 if refused else 0), f"{command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("command", sorted({command for command in EVERY if script_of(command) == "dreamer"}))
def test_a_training_command_has_settings_that_exist(command):
    config = tools.load_config(*settings.parse_flags(shlex.split(command)[2:]))
    assert config.task.startswith(suite_of(command))


def test_every_optional_suite_of_the_pages_is_tried_by_the_script_for_suites():
    trials = (ROOT / ".ci" / "suites").read_text()
    suites = {suite_of(command) for command in EVERY} & set(OPTIONAL)
    assert suites == set(OPTIONAL)
    for suite in suites:
        assert f"--task {suite}_" in trials, suite


def test_every_requirements_file_that_a_page_installs_exists():
    files = [word for command in EVERY if command.startswith("pip") for word in command.split() if word.endswith(".txt")]
    assert len(files) > 8
    assert not [file for file in files if not (ROOT / file).exists()]


@pytest.mark.parametrize("command", sorted({command for command in EVERY if script_of(command).startswith(("benchmarks/", "-m"))}))
def test_an_experiment_of_the_pages_has_these_flags(command):
    words = shlex.split(command)
    assert not [word for word in words if word.endswith(".py") and not (ROOT / word).exists()]
    result = subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for flag in (word for word in words if word.startswith("--")):
        assert flag in result.stdout, flag


def test_the_tables_of_results_are_those_of_the_stored_results():
    for page, tables in draw.tables().items():
        assert draw.fill(PAGES[page.name], tables) == PAGES[page.name]


@pytest.mark.parametrize("page, lines", [("README.md", 120), ("results.md", 200), ("reliability.md", 40)])
def test_a_page_that_newcomers_read_stays_short(page, lines):
    assert len(PAGES[page].splitlines()) <= lines


def test_every_link_leads_to_a_page_and_a_heading():
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        prose = re.sub(r"`[^`\n]*`|^    .*$", "", prose, flags=re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose):
            path, _, heading = "".join(link).partition("#")
            if path.startswith("http"):
                continue
            assert not path or (folder / path).exists(), f"{name}: {path}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", (folder / path).read_text() if path else text, re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in anchors, f"{name}: {path}#{heading}"


def test_the_python_of_the_readme_runs_as_printed(monkeypatch):
    code = PAGES["README.md"].split("\n    import ", 1)[1].split("\n\n## ")[0]
    monkeypatch.chdir(ROOT)
    scope = {}
    exec("\n".join(line.removeprefix("    ") for line in f"import {code}".splitlines()), scope)
    agent = scope["agent"]
    assert agent.act_space.contains(scope["action"])
    assert list(agent._wm.dynamics.levels) == ["top", "bottom"]
    stored = scope["checkpoint"]["agent_state_dict"]["_task_behavior.actor.mean_layer.bias"]
    assert torch.equal(agent._task_behavior.actor.mean_layer.bias, stored)


@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_the_command_for_uv_prints_the_help():
    command = re.search(r"`(uv run .*?)`", PAGES["first_run.md"])[1]
    words = shlex.split(command.replace("uv run", "uv run --offline"))  # a test downloads nothing
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if result.returncode and re.search("offline|network was disabled", result.stderr):
        pytest.skip("uv has not downloaded the packages yet")
    assert result.returncode == 0 and "--dyn_stoch_top" in result.stdout, result.stderr
