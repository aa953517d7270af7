"""The report on latents: its measures against closed forms, and the command itself."""

import json
import math

import numpy as np
import pytest
import torch

import agents
import latent_report
import latents
import probes
import tools
from envs import EnvBatch, atari, make_envs
from networks import RSSM, HierarchicalRSSM

COMMON = dict(deter=10, hidden=12, num_actions=3, embed=7)


# Probes


def test_probes_tell_what_is_linear_from_noise_and_constants():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 20))
    signal = x @ rng.normal(size=20)
    noisy = signal + signal.std() * rng.normal(size=6000)  # half of its variance can be predicted
    targets = np.stack([signal, noisy, rng.normal(size=6000), np.ones(6000)], 1)
    found = probes.r_squared(x, targets, np.repeat([0, 1, 2], 2000))
    np.testing.assert_allclose(found[:3], [1.0, 0.5, 0.0], atol=0.05)
    assert np.isnan(found[3])


@pytest.mark.parametrize("part", [probes.FIT, probes.CHOOSE, probes.JUDGE])
def test_a_variable_that_is_constant_in_any_part_has_no_score(part):
    rng = np.random.default_rng(0)
    x, parts = rng.normal(size=(600, 5)), np.repeat([0, 1, 2], 200)
    y = 1e-5 * x[:, :1].copy()
    assert probes.r_squared(x, y, parts)[0] > 0.99  # a small scale is no constant
    y[parts == part] = 0.0
    assert np.isnan(probes.r_squared(x, y, parts)[0])


def test_probes_do_not_learn_an_environment_by_heart():
    rng = np.random.default_rng(0)
    which = np.eye(8)[:, None].repeat(50, 1)  # features say which environment it is, and that alone
    target = rng.normal(size=(8, 1, 1)) + 0.01 * rng.normal(size=(8, 50, 1))
    assert probes.cross_validated(which, target)[0] < 0.0
    x = rng.normal(size=(8, 50, 6))
    assert probes.cross_validated(x, x[..., :1])[0] > 0.99


def test_probes_are_judged_on_steps_that_they_have_not_seen():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 200)), rng.normal(size=(150, 1))  # 50 steps can be fitted exactly with 200 features
    assert probes.r_squared(x, y, np.repeat([0, 1, 2], 50))[0] < 0.2


# Information


def test_information_of_known_codes():
    rssm = RSSM(stoch=3, discrete=4, unimix_ratio=0.0, **COMMON)
    index = torch.cartesian_prod(*[torch.arange(4)] * 3).repeat(10, 1)  # 640 steps, 64 different codes
    codes = torch.nn.functional.one_hot(index, 4).float()
    assert latents.information(rssm, {"logit": 60.0 * codes, "stoch": codes})["flat"] == pytest.approx(math.log(64), abs=1e-3)
    coins = torch.zeros(640, 3, 4)  # every step has the same uniform code
    assert latents.information(rssm, {"logit": coins, "stoch": codes})["flat"] == pytest.approx(0.0, abs=1e-3)


def test_information_is_at_most_the_logarithm_of_the_steps():
    rssm = RSSM(stoch=30, discrete=8, unimix_ratio=0.0, **COMMON)
    codes = torch.nn.functional.one_hot(torch.randint(8, (100, 30)), 8).float()
    assert latents.information(rssm, {"logit": 60.0 * codes, "stoch": codes})["flat"] == pytest.approx(math.log(100), abs=1e-3)


# Errors and spread


def test_shares_of_variance_count_numbers_alike_and_leave_out_constants():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 3)) * [1.0, 100.0, 0.0]
    error = np.stack([np.full(2000, 0.5), np.full(2000, 20.0), np.full(2000, 9.0)], 1)
    assert latent_report.share_of_variance(error, truth) == pytest.approx((0.25 + 0.04) / 2, rel=0.1)


def test_error_and_spread_of_known_dreams():
    rng = np.random.default_rng(0)
    came = rng.normal(size=(400, latent_report.HORIZON, 2))
    dreams = came[:, None] + 1.0 + 0.5 * rng.normal(size=(400, latent_report.DREAMS, latent_report.HORIZON, 2))
    found = latent_report.measure_dreams({"vector": came}, {"top": {"vector": dreams}})["top"]["vector"]
    np.testing.assert_allclose(np.mean(found["error"]), 1.25, rtol=0.05)
    np.testing.assert_allclose(np.mean(found["spread"]), 0.25, rtol=0.05)


def test_dreams_start_where_the_episode_goes_on():
    first = np.zeros((2, 100), bool)
    first[:, 0] = first[0, 40] = True
    starts = latent_report.starts_of_dreams({"is_first": first}, np.random.default_rng(0))
    whole = {(0, time) for time in (*range(5, 10), *range(44, 70))} | {(1, time) for time in range(5, 70)}
    assert len(starts) == latent_report.STARTS and {tuple(start) for start in starts.tolist()} <= whole


# Levels from the prior, and dreams in which one level varies


def hierarchical() -> HierarchicalRSSM:
    rssm = HierarchicalRSSM(stoch_top=4, discrete_top=5, stoch_bottom=6, discrete_bottom=3, **COMMON)
    with torch.no_grad():
        rssm._top_to_prior.weight.normal_()
    return rssm


def test_resampled_levels_come_from_their_prior_and_the_others_stay():
    rssm = hierarchical()
    post, prior = rssm.observe(torch.randn(500, 2, 7), torch.randn(500, 2, 3), torch.zeros(500, 2))
    bottom = rssm.resample(post, ["bottom"])
    assert torch.equal(bottom["stoch_top"], post["stoch_top"]) and not torch.equal(bottom["stoch_bottom"], post["stoch_bottom"])
    torch.testing.assert_close(bottom["logit_bottom"], prior["logit_bottom"])  # given the posterior's top
    top = rssm.resample(post, ["top"])
    assert torch.equal(top["stoch_bottom"], post["stoch_bottom"]) and torch.equal(top["logit_bottom"], post["logit_bottom"])
    torch.testing.assert_close(top["logit_top"], prior["logit_top"])
    both = rssm.resample(post, ["top", "bottom"])
    expected = rssm._bottom_prior(rssm._img_out_layers(post["deter"]), rssm._summarise(both["stoch_top"]))
    torch.testing.assert_close(both["logit_bottom"].flatten(-2), expected)  # given the top that was drawn anew
    shares = both["stoch_top"].mean((0, 1)), rssm.get_dist(both, "top").probs.mean((0, 1))
    torch.testing.assert_close(*shares, atol=0.07, rtol=0.0)
    assert all(torch.equal(state["deter"], post["deter"]) for state in (bottom, top, both))


def test_in_a_dream_only_the_named_levels_vary():
    rssm = hierarchical()
    start, action = rssm.initial(200), torch.zeros(200, 1, 3)
    for levels in (["top"], ["bottom"], ["top", "bottom"]):
        state = rssm.imagine_with_action(action, start, sample=levels)
        most_likely = {name: rssm.get_dist(state, name).mode for name in rssm.levels}
        for name in rssm.levels:
            assert torch.equal(state["stoch_" + name], most_likely[name]) == (name not in levels), (levels, name)


@pytest.mark.parametrize("names", [["botom"], "top"])
def test_a_level_that_does_not_exist_is_refused(names):
    rssm = hierarchical()
    with pytest.raises(ValueError, match="no latent level.*top, bottom"):
        rssm.resample(rssm.initial(2), names)
    with pytest.raises(ValueError, match="no latent level.*top, bottom"):
        rssm.img_step(rssm.initial(2), torch.zeros(2, 3), sample=names)


# Atari with the machine's memory


def test_sticky_actions_follow_the_seed():
    config = tools.load_config(overrides={"task": "atari_pong", "noops": 0, "sticky": True})
    memories = []
    for seed in (1, 2, 1):
        env = atari.AtariWithMemory("pong", config)
        env.reset(seed=seed)
        memories.append(np.array([env.step(action % 6)[0]["log_memory"] for action in range(200)]))
    assert (memories[0] == memories[2]).all() and (memories[0] != memories[1]).any()


def test_images_beside_the_memory_are_those_that_the_agent_was_trained_on():
    config = tools.load_config(overrides={"task": "atari_pong", "noops": 0})
    usual, with_memory = make_envs(config, 1, training=False), EnvBatch(atari.make_with_memory("pong", 1, config))
    first, second = usual.reset(0), with_memory.reset(0)
    rng, memory = np.random.default_rng(0), []
    for _ in range(80):
        np.testing.assert_allclose(first["image"].astype(int), second["image"], atol=1)
        assert first["reward"] == second["reward"]
        memory.append(second["log_memory"][0])
        action = rng.integers(6, size=1)
        usual.send(action)
        with_memory.send(action)
        first, second = usual.recv(), with_memory.recv()
    enemy_score = np.array(memory)[:, atari.MEMORY["pong"]["enemy score"]]
    assert enemy_score[0] == 0 and enemy_score[-1] >= 1 and (np.diff(enemy_score) >= 0).all()
    for envs in (usual, with_memory):
        envs.close()


# The command


def test_the_command_writes_a_page_with_figures_and_numbers(trained, capsys):
    assert latent_report.main([str(trained.logdir), "--envs", "4", "--steps", "800", "--device", "cpu"]) == 0
    folder = trained.logdir / "latents"
    report = json.loads((folder / "report.json").read_text())
    levels = list(trained.agent._wm.dynamics.levels)
    assert list(report["levels"]) == levels and report["steps"] == 800
    parts = {f"z_{name}" for name in levels} if len(levels) > 1 else {"z"}
    assert parts | {"h"} < report["probes"]["trained"].keys() == report["probes"]["untrained"].keys()
    text = (folder / "index.html").read_text()
    for name in ("codes", "reconstructions", "dreams", "spread", "probes"):
        assert f'src="{name}.png"' in text and (folder / f"{name}.png").stat().st_size > 5000
    assert str(folder / "index.html") in capsys.readouterr().out


def test_playing_again_with_the_seed_gives_the_same(trained):
    records = []
    for _ in range(2):
        agent, envs, _ = latent_report.make_player(trained.logdir, 4, "cpu")
        records.append(agents.play(agent, envs, 20, seed=3))
        envs.close()
        torch.rand(7)
    for key, value in records[0].items():
        np.testing.assert_array_equal(value, records[1][key])


def test_chunks_of_a_sequence_are_observed_as_a_whole(trained, monkeypatch):
    monkeypatch.setattr(agents, "CHUNK", 7)
    agent, envs, _ = latent_report.make_player(trained.logdir, 4, "cpu")
    data = agents.play(agent, envs, 40, seed=0)
    envs.close()
    observe = agent._wm.dynamics.observe
    monkeypatch.setattr(agent._wm.dynamics, "observe", lambda *args: observe(*args, sample=False))
    post, _ = agents.observe(agent._wm, data)
    whole = agent._wm.preprocess(data)
    expected, _ = observe(agent._wm.encoder(whole), whole["action"], whole["is_first"], sample=False)
    torch.testing.assert_close(post["deter"], expected["deter"].detach(), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    "flags, expected",
    [(["missing"], "there is no checkpoint"), (["--envs", "2", "."], "at least 4"), (["--steps", "10", "."], "at least 288")],
)
def test_what_cannot_be_reported_is_said(flags, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = latent_report.main(flags)
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and expected in capsys.readouterr().err
