"""Published agents: what is in them, what their cards say, how they are found, and the ones that come with the program."""

import json
import pathlib
import re
import shlex
import zipfile

import numpy as np
import pytest
import torch

import checkpoints
import dreamer
import evaluate
import settings
from checkpoints import files, publish
from dreamer import load_agent
from envs import make_envs
from storage.episodes import load_episode, save_episode

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = sorted(path.parent for path in (ROOT / "pretrained").glob("*/agent.pt"))
ROWS = {key: {"mean": 5.0, "low": 4.0, "high": 6.0, "least": 3.0, "most": 7.0} for key in ("return", "length")}
MEASURED = {"parameters": 7, "seed": 0, "sample": True, "summary": ROWS, "scores": {}, "random": ROWS, "episodes": [{}, {}]}
HOW = {"count": 2, "flags": [], "overwrite": False, "note": "", "licence": "MIT"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run that has ended."""
    overrides = {"task": "gym_CartPole-v1", "steps": 60, "prefill": 40, "eval_every": 0, "device": "cpu", "eval_sample": True}
    overrides["logdir"] = str(tmp_path_factory.mktemp("run") / "run")
    training = dreamer.start(settings.load_config(["debug", "hdreamer_split"], overrides))
    dreamer.run_to_end(training)
    return training


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder in place of the program's pretrained/; nothing is played."""
    folder = tmp_path / "program" / "pretrained"
    for module in (checkpoints, files):
        monkeypatch.setattr(module, "SHIPPED", folder)
    monkeypatch.setattr(publish, "evaluate", lambda folder, count, flags: MEASURED)
    return folder


def everything(tree) -> list:
    """The keys and values of nested containers."""
    if isinstance(tree, dict):
        return [*tree, *(value for branch in tree.values() for value in everything(branch))]
    elif isinstance(tree, (list, tuple)):
        return [value for branch in tree for value in everything(branch)]
    return [tree]


def answers(agent, count: int = 3) -> list[np.ndarray]:
    """Actions and latents of a few steps, with fixed random numbers."""
    rng, found, state = np.random.default_rng(0), [], None
    torch.manual_seed(1)
    for _ in range(4):
        obs = {
            key: rng.integers(0, 256, (count, *shape), np.uint8) if len(shape) == 3 else rng.normal(size=(count, *shape)).astype(np.float32)
            for key, shape in agent._wm.encoder.shapes.items()
        }
        actions, state = agent.act(obs, state, training=True)
        found += [np.asarray(actions), *(state[key].cpu().numpy() for key in sorted(state))]
    return found


def check_published(run, shelf: pathlib.Path) -> None:
    """Publishes the agent of a run and compares the two."""
    publish.publish(str(run.logdir), "mine", **HOW)
    agent, weights = load_agent("pretrained/mine", "cpu"), run.agent.state_dict()
    assert all(np.array_equal(*pair) for pair in zip(answers(agent), answers(load_agent(run.logdir, "cpu"))))
    stored = torch.load(shelf / "mine" / "agent.pt", weights_only=True)
    assert stored["agent_state_dict"].keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in stored["agent_state_dict"].items())
    assert stored["optims_state_dict"] == stored["random_state"] == {}
    others = everything({key: value for key, value in stored.items() if key != "agent_state_dict"})
    assert not [value for value in others if torch.is_tensor(value)]
    assert not [value for value in others if isinstance(value, str) and str(run.logdir.parent) in value]
    assert agent.updates == run.agent.updates and (stored["step"], stored["updates"]) == (run.step, run.agent.updates)
    assert (shelf / "mine" / "agent.pt").stat().st_size < 0.6 * (run.logdir / "latest.pt").stat().st_size


def test_a_published_agent_answers_bit_for_bit_as_the_run_and_keeps_no_optimizer_or_path(finished, shelf):
    check_published(finished, shelf)


@pytest.mark.slow
def test_agents_of_every_kind_are_published_bit_for_bit(trained, shelf):
    check_published(trained, shelf)


def test_a_clip_is_the_first_steps_of_a_recorded_episode(finished, shelf):
    publish.publish(str(finished.logdir), "mine", **HOW)
    clip = load_episode(shelf / "mine" / "moments.npz")
    lengths = {path: int(path.stem.rpartition("-")[2]) for path in (finished.logdir / "train_eps").glob("*.npz")}
    recorded = [load_episode(path) for path, length in lengths.items() if length == max(lengths.values())]
    assert len(clip["action"]) == min(max(lengths.values()), publish.MOMENTS)
    assert any(all(np.array_equal(value, episode[key][: len(value)]) for key, value in clip.items()) for episode in recorded)
    assert (shelf / "mine" / "moments.npz").stat().st_size <= publish.MOMENTS_BYTES


def test_a_clip_of_large_images_is_shortened_until_it_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "MOMENTS_BYTES", 52_000)
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)  # 12,288 bytes a step
    save_episode(tmp_path / "eps", {"image": noise, "reward": np.zeros(40, np.float32), "is_terminal": np.zeros(40, bool)})
    publish.save_moments(tmp_path / "moments.npz", tmp_path / "eps")
    assert len(load_episode(tmp_path / "moments.npz")["image"]) == 4  # 256, 128, ..., 4: of 8 steps alone the images have 98,304
    publish.save_moments(tmp_path / "none.npz", tmp_path / "no folder")
    assert not (tmp_path / "none.npz").exists()


@pytest.mark.parametrize(
    "presets, overrides",
    [
        (["small", "hdreamer_split"], {"task": "atari_road_runner", "size": [32, 32], "actor.lr": 1e-4, "batch_size": 16, "seed": 2}),
        (["dreamerv3_2025", "size12m", "hdreamer"], {"task": "gym_CartPole-v1", "dyn_deter": 64, "encoder.mlp_keys": "a|b"}),
        (["hdreamer_asymmetric"], {"task": "dmc_walker_walk", "from_checkpoint": "a folder", "compile": True}),
        (["debug"], {"task": "gym_Ant-v5", "env_kwargs": {"healthy": [1, "no"], "xml": None}}),
    ],
    ids=str,
)
def test_the_command_on_a_card_means_the_same_settings(presets, overrides):
    config = settings.load_config(presets, {**overrides, "logdir": "somewhere"})
    words = shlex.split(publish.command_of(config))
    assert words[:4] == ["python", "dreamer.py", "--configs", "defaults"] and "somewhere" not in words
    again = settings.load_config(*settings.parse_flags(words[2:]))
    assert settings.flatten(again) == {**settings.flatten(config), "logdir": None}
    assert len(words) < 2 * len(overrides) + 12  # presets stand for the rest


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "pretrained/a", "a b", "ä", "x" * 65, "-x"])
def test_a_name_that_is_a_path_or_odd_is_refused(shelf, name):
    with pytest.raises(ValueError, match="it must be a word of letters, digits, _ and -"):
        publish.publish("anything", name, **HOW)
    assert not shelf.exists()


def test_a_name_that_is_taken_needs_the_flag_and_a_failure_keeps_the_old_agent(finished, shelf, monkeypatch, capsys):
    folder = publish.publish(str(finished.logdir), "mine", **{**HOW, "note": "First."})
    assert publish.main([str(finished.logdir), "mine"]) == 2
    assert re.fullmatch(r"error: .*mine exists; give another name, or --overwrite to replace it\n", capsys.readouterr().err)

    def fail(*_):
        raise ValueError("no environment")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "evaluate", fail)
        with pytest.raises(ValueError, match="no environment"):
            publish.publish(str(finished.logdir), "mine", **{**HOW, "overwrite": True})
    assert "First." in (folder / "README.md").read_text() and [path.name for path in shelf.iterdir()] == ["mine"]
    publish.publish(str(finished.logdir), "mine", **{**HOW, "overwrite": True, "note": "Second."})
    assert "Second." in (folder / "README.md").read_text() and [path.name for path in shelf.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "run, words",
    [
        ("empty", "there is no checkpoint"),
        (str(ROOT / "tests/data/dreamerv3_torch/atari"), "holds no settings and spaces as runs of this program store them"),
        (str(ROOT / "tests/data/jax_reference/checkpoint_cartpole"), "holds no settings and spaces as runs of this program store them"),
    ],
)
def test_what_is_no_run_of_this_program_is_refused_in_one_line_and_nothing_is_written(tmp_path, shelf, capsys, run, words):
    (tmp_path / "empty").mkdir()
    assert publish.main([str(tmp_path / run), "mine"]) == 2
    assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)
    assert not shelf.exists()


def test_episodes_must_be_at_least_one(finished, shelf):
    with pytest.raises(ValueError, match="--episodes is 0; a card needs at least one"):
        publish.publish(str(finished.logdir), "mine", **{**HOW, "count": 0})


def test_a_name_leads_to_the_programs_agent_from_any_folder_unless_there_is_one_here(tmp_path, shelf, monkeypatch):
    for folder in (shelf / "mine", shelf / ".unfinished", tmp_path / "here" / "pretrained" / "mine"):
        folder.mkdir(parents=True)
        (folder / "agent.pt").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoints.shipped() == ["mine"]
    for path in ("pretrained/mine", "pretrained/mine/", "./pretrained/mine", "pretrained/mine/agent.pt", pathlib.Path("pretrained/mine")):
        assert checkpoints.locate(path) == shelf / "mine" / "agent.pt"
    monkeypatch.chdir(tmp_path / "here")
    assert checkpoints.locate("pretrained/mine").samefile(tmp_path / "here" / "pretrained" / "mine" / "agent.pt")
    for path in ("pretrained/other", "pretrained"):
        with pytest.raises(ValueError, match=f"there is no agent '{path}'; those in .*pretrained are mine$"):
            checkpoints.locate(path)


def test_a_run_comes_before_a_published_agent_in_the_same_folder(tmp_path):
    (tmp_path / "agent.pt").touch()
    assert checkpoints.locate(tmp_path) == tmp_path / "agent.pt"
    (tmp_path / "latest.pt").touch()
    assert checkpoints.locate(tmp_path) == tmp_path / "latest.pt"


def test_pages_about_a_published_agent_leave_its_folder_as_it_is(tmp_path, shelf):
    for path in (shelf / "mine" / "agent.pt", tmp_path / "run" / "latest.pt"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert checkpoints.report_folder("pretrained/mine") == pathlib.Path("logdir/pretrained/mine")
    assert checkpoints.report_folder(shelf / "mine" / "agent.pt") == pathlib.Path("logdir/pretrained/mine")
    assert checkpoints.report_folder(tmp_path / "run") == checkpoints.report_folder(tmp_path / "run" / "latest.pt") == tmp_path / "run"


def test_a_compressed_checkpoint_is_read_unless_it_would_unpack_to_far_more(tmp_path):
    entries = {"agent_state_dict": {}, "optims_state_dict": {}}
    publish.save_compressed(tmp_path / "good.pt", {**entries, "x": torch.randn(10_000)})
    assert checkpoints.load(tmp_path / "good.pt").keys() == {*entries, "x"}
    assert {entry.compress_type for entry in zipfile.ZipFile(tmp_path / "good.pt").infolist()} == {zipfile.ZIP_DEFLATED}
    publish.save_compressed(tmp_path / "bomb.pt", {**entries, "x": torch.zeros(1_000_000)})
    with pytest.raises(ValueError, match="would unpack to 4,"):
        checkpoints.load(tmp_path / "bomb.pt")


def test_a_run_begins_with_a_published_agent_and_new_optimizers(finished, shelf, tmp_path, capsys):
    publish.publish(str(finished.logdir), "mine", **HOW)
    words = shlex.split(json.loads((shelf / "mine" / "card.json").read_text())["command"])[2:]
    more = ["--steps", str(finished.step + 40), "--logdir", str(tmp_path / "run"), "--device", "cpu"]
    assert dreamer.main([*words, "--from_checkpoint", str(shelf / "mine"), *more]) == 0
    told = capsys.readouterr().out
    assert "new, since a published agent has weights alone" in told
    assert f"Resuming at frame {finished.step} after {finished.agent.updates} updates, with 0 steps in memory." in told
    assert checkpoints.load(tmp_path / "run")["updates"] >= finished.agent.updates
    assert dreamer.main([str(shelf / "mine")]) == 2
    assert "is a published agent and no run; begin one with it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_numbers_on_a_card_are_what_evaluate_measures(finished, shelf, tmp_path, monkeypatch, capfd):
    monkeypatch.undo()  # plays, in a process of its own; its pages are not needed
    monkeypatch.setattr(checkpoints, "SHIPPED", shelf)
    assert publish.main([str(finished.logdir), "mine", "--episodes", "5", "--seed", "3", "--note", "A test."]) == 0
    card = json.loads((shelf / "mine" / "card.json").read_text())
    flags = ["--episodes", "5", "--seed", "3", "--random", "--json", str(tmp_path / "found.json")]
    assert evaluate.main([str(shelf / "mine"), *flags]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    command = "python evaluate.py pretrained/mine --episodes 5 --seed 3 --random"
    assert card["evaluation"] == {
        "command": command,
        "episodes": 5,
        **{key: found[key] for key in ("seed", "sample", "summary", "scores", "random")},
    }
    returns = [episode["return"] for episode in found["episodes"]]
    assert card["evaluation"]["summary"]["return"]["mean"] == pytest.approx(np.mean(returns), abs=1e-4)
    config, parameters = finished.config, sum(parameter.numel() for parameter in finished.agent.parameters())
    facts = (config.task, config.seed, finished.step, finished.agent.updates, parameters, 2025 if config.optimizer == "laprop" else 2023)
    assert tuple(card[key] for key in ("task", "seed", "frames", "updates", "parameters", "generation")) == facts
    assert (shelf / "mine" / "README.md").read_text() == publish.page(card) and "A test." in publish.page(card)
    assert sorted(path.name for path in (shelf / "mine").iterdir()) == ["README.md", "agent.pt", "card.json", "moments.npz"]
    capfd.readouterr()
    assert publish.main([str(finished.logdir), "other", "--nonsense", "1"]) == 2  # evaluate.py says why
    assert "unrecognized arguments: --nonsense 1" in capfd.readouterr().err and not (shelf / "other").exists()


def test_random_actions_are_evaluated_in_the_same_environments(finished, tmp_path, capsys):
    flags = ["--episodes", "6", "--random", "--json", str(tmp_path / "found.json")]
    assert evaluate.main([str(finished.logdir), *flags]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert 10 < found["random"]["return"]["mean"] < 40  # about 20, as the README says
    assert f"Random actions, 6 episodes\n  return  {found['random']['return']['mean']:.4g}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main([str(finished.logdir), "--episodes", "0", "--random"])
    assert "--random plays as many episodes, and --episodes is 0" in capsys.readouterr().err


# The agents that come with the program


def played(name: str, episodes: int) -> float:
    """Mean return of a few episodes, played as its evaluation was."""
    agent = load_agent(name, "cpu")
    return evaluate.summarise(evaluate.evaluate(agent, episodes, episodes, 1, agent._config.eval_sample).episodes)["return"]["mean"]


def test_the_agents_that_come_with_the_program_are_small():
    assert {folder.name for folder in SHIPPED} == {"cartpole", "road_runner"}
    assert sum(path.stat().st_size for path in (ROOT / "pretrained").rglob("*") if path.is_file()) < 8_000_000


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_agent_has_the_card_of_its_file_and_a_clip_that_it_can_observe(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    card = json.loads((folder / "card.json").read_text())
    assert (folder / "README.md").read_text() == publish.page(card)
    checkpoint = checkpoints.load(f"pretrained/{folder.name}")
    agent = load_agent(f"pretrained/{folder.name}", "cpu")
    assert not checkpoint["optims_state_dict"] and list(agent._wm.dynamics.levels) == ["top", "bottom"]
    assert (card["name"], card["task"], card["frames"]) == (folder.name, agent._config.task, checkpoint["step"])
    assert (card["updates"], card["parameters"]) == (agent.updates, sum(agent.parameter_counts().values()))
    again = settings.load_config(*settings.parse_flags(shlex.split(card["command"])[2:]))
    assert settings.flatten(again) == settings.flatten(settings.load_config(stored=checkpoint["config"]))
    assert card["evaluation"]["episodes"] == 20 and card["note"]
    assert card["evaluation"]["summary"]["return"]["low"] > 3 * card["evaluation"]["random"]["return"]["high"]
    clip = load_episode(folder / "moments.npz")
    assert clip["is_first"][0] and clip["action"].shape[1:] == (agent.codec.size,)
    assert all(clip[key].shape[1:] == shape for key, shape in agent._wm.encoder.shapes.items())


def test_the_page_of_the_shipped_agents_has_the_numbers_of_their_cards():
    text = (ROOT / "docs" / "pretrained.md").read_text()
    for folder in SHIPPED:
        assert publish.row(json.loads((folder / "card.json").read_text())) in text
    assert len(re.findall(r"^\| \[", text, re.MULTILINE)) == len(SHIPPED) and len(text.splitlines()) < 60


def test_the_shipped_agent_balances_the_pole():
    assert played("pretrained/cartpole", 3) > 150  # random actions: 20


@pytest.mark.slow
def test_the_shipped_agent_plays_road_runner():
    assert played("pretrained/road_runner", 3) > 150  # random actions: 12


def test_the_environment_of_a_shipped_agent_has_its_spaces():
    agent = load_agent("pretrained/cartpole", "cpu")
    envs = make_envs(agent._config, 1, training=False)
    envs.close()
    assert (envs.obs_space, envs.act_space) == (agent.obs_space, agent.act_space)
