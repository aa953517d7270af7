"""The report on latents: its measures against closed forms, and the command itself."""

import json
import math
import types

import numpy as np
import pytest
import torch

import dreamer
import latent_report
import tools
from envs import EnvBatch, atari, make_envs
from networks import RSSM, HierarchicalRSSM
from play import measures, playing, probes, report

pytestmark = pytest.mark.slow

COMMON = dict(deter=10, hidden=12, num_actions=3, embed=7)


# Probes


def grouped(groups: int, steps: int) -> np.ndarray:
    return np.arange(groups).repeat(steps)


def test_probes_tell_what_is_linear_from_noise_and_constants():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8000, 20))
    signal = x @ rng.normal(size=20)
    noisy = signal + signal.std() * rng.normal(size=8000)  # half of its variance can be predicted
    targets = np.stack([signal, 1e-5 * noisy, rng.normal(size=8000), np.ones(8000)], 1)
    found = probes.cross_validated([x], targets, grouped(8, 1000))
    np.testing.assert_allclose(found.share[:3], [1.0, 0.5, 0.0], atol=0.03)
    assert (found.low[:3] <= found.share[:3]).all() and (found.share[:3] <= found.high[:3]).all()
    assert np.isnan([found.share[3], found.low[3], found.high[3]]).all()


def shares_by_hand(blocks: list[np.ndarray], targets: np.ndarray, groups: np.ndarray) -> list[float]:
    """The shares of `cross_validated`, variable by variable, from normal equations."""
    found = []
    for y in targets.T:
        error = total = 0.0
        for fold in range(4):
            judge, choose = groups % 4 == fold, groups % 4 == (fold + 1) % 4
            scores = []
            for fit, ahead, penalties in ((~judge & ~choose, choose, probes.PENALTIES), (~judge, judge, None)):
                x = np.concatenate([(block - block[fit].mean(0)) / np.sqrt(block[fit].var(0).mean()) for block in blocks], 1)
                for penalty in probes.PENALTIES[[np.argmin(scores)]] if penalties is None else penalties:
                    normal = x[fit].T @ x[fit] + penalty * fit.sum() * np.eye(x.shape[1])
                    predicted = x[ahead] @ np.linalg.solve(normal, x[fit].T @ (y[fit] - y[fit].mean())) + y[fit].mean()
                    scores.append(((predicted - y[ahead]) ** 2).mean())
            error += ((predicted - y[judge]) ** 2).sum()
            total += ((y[~judge].mean() - y[judge]) ** 2).sum()
        found.append(1 - error / total)
    return found


@pytest.mark.parametrize("size", [6, 90])  # fewer features than steps, and more
def test_every_group_is_predicted_by_the_others_with_a_penalty_that_others_chose(size):
    rng = np.random.default_rng(0)
    blocks, groups = [rng.normal(size=(60, size)), 30.0 * rng.normal(size=(60, 3))], rng.permutation(grouped(6, 10))
    targets = np.stack([blocks[0][:, 0] + blocks[1][:, 0] / 30, blocks[0].mean(1) + rng.normal(size=60), 5.0 + groups + blocks[0][:, 1]], 1)
    np.testing.assert_allclose(probes.cross_validated(blocks, targets, groups).share, shares_by_hand(blocks, targets, groups), atol=1e-6)


def test_probes_do_not_learn_an_environment_by_heart():
    rng = np.random.default_rng(0)
    groups = grouped(8, 50)
    target = rng.normal(size=(8, 1))[groups] + 0.01 * rng.normal(size=(400, 1))
    which = np.eye(8)[groups]  # features say which environment it is, and that alone
    mixed = rng.permutation(groups)  # if environments were not kept apart, that would be enough
    assert probes.cross_validated([which], target, mixed).share[0] > 0.99
    assert probes.cross_validated([which], target, groups).share[0] == pytest.approx(0.0, abs=1e-6)  # no better than a constant
    x, y = rng.normal(size=(80, 200)), rng.normal(size=(80, 1))  # the steps of four groups can be fitted exactly with 200 features
    assert probes.cross_validated([x], y, grouped(8, 10)).share[0] < 0.1


def test_variables_that_hardly_change_within_an_environment_have_a_share_of_their_whole_variance():
    rng = np.random.default_rng(0)
    groups = grouped(8, 100)
    level = rng.normal(size=8)[groups]
    x = np.stack([level + 0.1 * rng.normal(size=800), rng.normal(size=800)], 1)
    found = probes.cross_validated([x], (level + 1e-3 * rng.normal(size=800))[:, None], groups)
    assert found.share[0] == pytest.approx(0.98, abs=0.02)


def test_the_scale_of_features_does_not_matter():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(800, 5)), rng.normal(size=(800, 5))
    y, groups = x[:, :1].copy(), grouped(8, 100)
    plain = probes.cross_validated([x, noise], y, groups)
    np.testing.assert_allclose(probes.cross_validated([1e-4 * x, 1e3 * noise], y, groups), plain, rtol=1e-6)


def test_the_interval_of_a_share_is_that_of_resampled_groups():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.normal(size=(200, 1))
    y += x[:, :1]
    same = probes.cross_validated([np.tile(x, (8, 1))], np.tile(y, (8, 1)), grouped(8, 200))
    np.testing.assert_allclose(same.low, same.high)  # groups that are alike leave nothing to chance
    x = rng.normal(size=(4000, 3))
    y = x[:, 0] + rng.normal(size=4000)
    found = probes.cross_validated([x], y[:, None], grouped(400, 10))
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.96 * np.std((y - x[:, 0]) ** 2) / np.sqrt(4000) / y.var(), rel=0.4)


@pytest.mark.parametrize("groups", [4, 5])
def test_a_few_groups_have_no_interval(groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40 * groups, 3))
    y = x[:, :1] + rng.normal(size=(len(x), 1))
    found = probes.cross_validated([x], y, grouped(groups, 40))
    assert np.isfinite(found.share[0]) and np.isfinite([found.low[0], found.high[0]]).tolist() == [groups >= 5] * 2
    first = np.zeros((groups, 40), bool)
    row = measures.measure_probes({"h": [x.reshape(groups, 40, 3)]}, {"place": y.reshape(groups, 40)}, first)["h"]["place"]
    assert row["share"] == found.share[0] and [row["low"] is None, row["high"] is None] == [groups < 5] * 2


# Information


def likelihoods(logit: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """ln q of every code at every step, of posteriors with these logits, both (N, S, K)."""
    return {"flat": torch.einsum("isk,jsk->ij", codes, logit.log_softmax(-1))}


def test_information_of_known_codes():
    index = torch.cartesian_prod(*[torch.arange(4)] * 3).repeat(10, 1)  # 640 steps, 64 different codes
    codes = torch.nn.functional.one_hot(index, 4).float()
    assert measures.information(likelihoods(60.0 * codes, codes))["flat"] == pytest.approx(math.log(64), abs=1e-3)
    coins = torch.zeros(640, 3, 4)  # every step has the same uniform code
    assert measures.information(likelihoods(coins, codes))["flat"] == pytest.approx(0.0, abs=1e-3)


def test_information_is_at_most_the_logarithm_of_the_steps():
    codes = torch.nn.functional.one_hot(torch.randint(8, (100, 30)), 8).float()
    assert measures.information(likelihoods(60.0 * codes, codes))["flat"] == pytest.approx(math.log(100), abs=1e-3)


def test_a_bottom_that_repeats_the_chance_of_the_top_tells_nothing():
    rssm = hierarchical()
    with torch.no_grad():
        rssm._top_to_post.weight.normal_(std=5.0)
    blind = rssm.filter(torch.zeros(1, 1, 7), torch.zeros(1, 1, 3), None, rssm.initial(1))
    post = rssm.filter(torch.zeros(300, 1, 7), torch.zeros(300, 1, 3), None, rssm.initial(300))
    post = {key: value[:, 0] for key, value in post.items()}
    torch.testing.assert_close(post["deter"], blind["deter"][:, 0].expand(300, -1))  # steps differ in what is drawn alone
    assert post["logit_bottom"].std(0).mean() > 0.5
    found = measures.information(rssm.code_likelihoods(post, torch.zeros(300, 7)))
    assert found == {"top": pytest.approx(0.0, abs=1e-4), "bottom": pytest.approx(0.0, abs=1e-4)}


def test_likelihoods_of_codes_are_those_of_posteriors_with_another_top():
    rssm = hierarchical()
    embed, start = torch.randn(5, 7), rssm.initial(5)
    with torch.no_grad():
        rssm._top_to_post.weight.normal_()
        rssm._prior_weight.normal_()
        post = {key: value[:, 0] for key, value in rssm.filter(embed[:, None], torch.randn(5, 1, 3), None, start).items()}
        found = rssm.code_likelihoods(post, embed)
        x_prior = rssm._img_out_layers(post["deter"])
        x_post = rssm._obs_out_layers(torch.cat([post["deter"], embed], -1))
        for name in ("top", "bottom"):  # each code at its own step: what the posterior itself says
            torch.testing.assert_close(found[name].diagonal(), rssm.get_dist(post, name).log_prob(post["stoch_" + name]))
        for i, j in np.ndindex(5, 5):
            codes = {key: value[i] for key, value in post.items()}
            for name, above in (("top", None), ("bottom", codes["stoch_top"])):
                logit = rssm.level_logits(name, above, x_prior[j], x_post[j]).view_as(codes["logit_" + name])
                log_prob = rssm.get_dist({"logit_" + name: logit}, name).log_prob(codes["stoch_" + name])
                torch.testing.assert_close(found[name][i, j], log_prob)


# Errors and spread


def share(error: np.ndarray, truth: np.ndarray) -> float:
    return measures.share_of_variance(error, measures.variance_of(truth))


def test_the_share_of_a_vector_is_the_median_of_its_numbers_that_change():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 5)) * [1.0, 100.0, 0.0, 1e-3, 1.0] + [0.0, 7.0, 5.0, 0.0, 0.0]
    error = np.tile([0.5, 20.0, 9.0, 9.0, 0.3], (2000, 1))
    assert share(error, truth) == pytest.approx((0.25 + 0.09) / 2, rel=0.1)  # of 0.04, 0.09, 0.25 and a huge one
    assert measures.variance_of(np.full((50, 3), 0.1, np.float32)) is None


def test_the_share_of_an_image_is_that_of_all_pixels():
    truth = np.zeros((100, 4, 4, 1))
    truth[::2, :2] = 1.0  # half of the pixels have a variance of 1/4
    assert share(np.full(truth.shape, 0.5), truth) == pytest.approx(0.25 / 0.125)
    assert measures.variance_of(np.full((50, 4, 4, 3), 0.3, np.float32)) is None


def test_the_share_of_onehots_is_that_of_all_classes():
    truth = np.zeros((100, 3))
    truth[np.arange(100), [0] * 50 + [1] * 50] = 1.0  # the last class never comes; the others have a variance of 1/4
    assert share(np.tile([0.5, 0.5, 0.1], (100, 1)), truth) == pytest.approx((0.25 + 0.25 + 0.01) / (0.25 + 0.25))


def test_error_and_spread_of_known_dreams():
    rng = np.random.default_rng(0)
    came = rng.normal(size=(400, measures.HORIZON, 2))
    dreams = came[:, None] + 1.0 + 0.5 * rng.normal(size=(400, measures.DREAMS, measures.HORIZON, 2))
    still = np.ones_like(came)
    found = measures.measure_dreams({"vector": came, "still": still}, {"top": {"vector": dreams, "still": still[:, None]}})["top"]
    assert list(found) == ["vector"]  # of what never changes there is no share
    np.testing.assert_allclose(np.mean(found["vector"]["error"]), 1.25, rtol=0.05)
    np.testing.assert_allclose(np.mean(found["vector"]["spread"]), 0.25, rtol=0.05)


def test_dreams_start_where_the_episode_goes_on_and_do_not_overlap():
    first = np.zeros((2, 100), bool)
    first[:, 0] = first[0, 40] = True
    starts = measures.starts_of_dreams({"is_first": first}, np.random.default_rng(0))
    whole = {(0, time) for time in (*range(5, 10), *range(45, 70))} | {(1, time) for time in range(5, 70)}
    assert {tuple(start) for start in starts.tolist()} <= whole
    assert {env for env, _ in starts} == {0, 1}
    for env in (0, 1):
        assert (np.diff(np.sort(starts[starts[:, 0] == env, 1])) >= measures.HORIZON).all()
    assert len(measures.starts_of_dreams({"is_first": first[:, :35]}, np.random.default_rng(0))) == 0
    assert len(measures.starts_of_dreams({"is_first": first[:, :36]}, np.random.default_rng(0))) == 2


def test_a_dream_has_the_actions_that_came_after_its_start(monkeypatch):
    """In a world whose state is the sum of all actions, dreams that are right are what came."""
    rng = np.random.default_rng(0)
    action = rng.normal(size=(2, 80, 3)).astype(np.float32)
    place = action.cumsum(1)
    dynamics = types.SimpleNamespace(device="cpu", levels={"flat": None})
    dynamics.imagine_with_action = lambda action, state, sample: {"deter": state["deter"][:, None] + action.cumsum(1)}
    monkeypatch.setattr(measures, "decode", lambda model, state: {"vector": state["deter"].numpy()})
    starts = np.array([[0, 5], [1, 44], [0, 40]])
    came, predicted = measures.dream(
        types.SimpleNamespace(dynamics=dynamics), {"action": action, "vector": place}, {"deter": torch.tensor(place)}, starts
    )
    np.testing.assert_array_equal(came["vector"], [place[env, time + 1 : time + 31] for env, time in starts])
    expected = np.broadcast_to(came["vector"][:, None], predicted["flat"]["vector"].shape)
    np.testing.assert_allclose(predicted["flat"]["vector"], expected, atol=1e-4)


# What is known of the state


def test_known_are_vectors_states_and_reward_but_no_events():
    data = {key: np.ones((2, 3, 2), np.float32) for key in ("place", "log_state_place", "log_state_room", "log_wins", "action")}
    data |= {"image": np.ones((2, 3, 4, 4, 1), np.uint8), "reward": np.ones((2, 3), np.float32), "is_first": np.ones((2, 3), bool)}
    names = [f"{name}[{index}]" for name in ("place", "log_state_place", "room") for index in range(2)]
    assert list(measures.state_variables(data, "gym_Mine-v0")) == [*names, "reward"]


def test_the_reward_that_first_steps_have_is_not_probed():
    rng = np.random.default_rng(0)
    first = np.zeros((4, 50), bool)
    first[:, ::10] = True
    features = {"h": [np.concatenate([first[..., None], rng.normal(size=(4, 50, 2))], -1)]}
    found = measures.measure_probes(features, {"reward": 1.0 - first, "place": features["h"][0][..., 1]}, first)
    assert list(found["h"]) == ["place"] and found["h"]["place"]["share"] > 0.99


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
    expected = rssm.level_logits("bottom", both["stoch_top"], rssm._img_out_layers(post["deter"]))
    torch.testing.assert_close(both["logit_bottom"].flatten(-2), expected)  # given the top that was drawn anew
    shares = both["stoch_top"].mean((0, 1)), rssm.get_dist(both, "top").probs.mean((0, 1))
    torch.testing.assert_close(*shares, atol=0.07, rtol=0.0)
    assert all(torch.equal(state["deter"], post["deter"]) for state in (bottom, top, both))


def test_levels_from_the_prior_are_called_what_they_are():
    rssm = hierarchical()
    post = rssm.filter(torch.randn(50, 2, 7), torch.randn(50, 2, 3), torch.zeros(50, 2))
    choices = measures.choices_to_resample(types.SimpleNamespace(dynamics=rssm))
    drawn = {
        name: {level for level in rssm.levels if not torch.equal(rssm.resample(post, levels)["stoch_" + level], post["stoch_" + level])}
        for name, levels in choices.items()
    }
    assert drawn == {
        "bottom from the prior": {"bottom"},
        "top from the prior, bottom kept": {"top"},
        "top and bottom from the prior": {"top", "bottom"},
    }


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


def test_named_bytes_of_boxing_move_with_actions_and_count_the_score():
    config = tools.load_config(overrides={"task": "atari_boxing", "noops": 0})
    env = atari.AtariWithMemory("boxing", config)
    env.reset(seed=0)
    directions = ["RIGHT", "DOWN", "LEFT", "UP"]
    meanings = [action.name for action in env._actions]
    rng, memories, rewards, pushed = np.random.default_rng(0), [env._ale.getRAM().astype(int)], [], []
    for step in range(400):
        pushed.append(directions[step // 4 % 4] if step < 200 else None)  # then actions at random
        action = meanings.index(pushed[-1]) if pushed[-1] else rng.integers(len(meanings))
        obs, reward, *_ = env.step(action)
        memories.append(obs["log_memory"].astype(int))
        rewards.append(reward)
    found = {name: np.array(memories)[:, index] for name, index in atari.MEMORY["boxing"].items()}
    for direction, name, sign in (("RIGHT", "player x", 1), ("LEFT", "player x", -1), ("DOWN", "player y", 1), ("UP", "player y", -1)):
        change = np.diff(found[name])[[other == direction for other in pushed]]
        assert (sign * change).mean() > 0.5, (direction, change)  # of about 4; at a rope or at the opponent it cannot go on
    for name in ("enemy x", "enemy y"):
        assert np.ptp(found[name]) > 10 and np.abs(np.diff(found[name])).max() < 16  # it moves, and does not jump
    tens_and_ones = {name: found[name] // 16 * 10 + found[name] % 16 for name in ("player score", "enemy score", "clock")}
    np.testing.assert_array_equal(np.diff(tens_and_ones["player score"] - tens_and_ones["enemy score"]), rewards)
    assert np.any(rewards) and set(np.diff(tens_and_ones["clock"]) % 60) == {0, 59}  # stays, or a second less
    assert (tens_and_ones["clock"][0] - tens_and_ones["clock"][-1]) % 60 == pytest.approx(400 * 4 / 61, abs=2)


# Figures


@pytest.mark.parametrize("stoch, discrete", [(1, 2), (2, 4), (3, 3), (30, 8), (32, 32)])
def test_categoricals_and_classes_are_counted_in_whole_numbers(stoch, discrete):
    rssm = RSSM(stoch=stoch, discrete=discrete, **COMMON)
    post = rssm.filter(torch.randn(2, 3, 7), torch.randn(2, 3, 3), torch.zeros(2, 3))
    figure = report.draw_codes(types.SimpleNamespace(dynamics=rssm), {key: value.detach() for key, value in post.items()})
    figure.canvas.draw()
    for axis, count in ((figure.axes[0].xaxis, discrete), (figure.axes[0].yaxis, stoch)):
        ticks = [tick for tick in axis.get_majorticklocs() if -0.5 <= tick <= count - 0.5]
        assert ticks and set(ticks) <= set(range(count)), ticks
        assert all(label.get_text().isdigit() for label, tick in zip(axis.get_majorticklabels(), axis.get_majorticklocs()) if tick in ticks)


# The command


def test_the_command_writes_a_page_with_figures_and_numbers(trained, capsys):
    assert latent_report.main([str(trained.logdir), "--envs", "5", "--steps", "800", "--device", "cpu"]) == 0
    folder = trained.logdir / "latents"
    report = json.loads((folder / "report.json").read_text())
    levels = list(trained.agent._wm.dynamics.levels)
    assert list(report["levels"]) == levels and report["steps"] == 800
    parts = {f"z_{name}" for name in levels} if len(levels) > 1 else {"z"}
    assert parts | {"h"} < report["probes"]["trained"].keys() == report["probes"]["untrained"].keys()
    text = (folder / "index.html").read_text()
    shares = report["probes"]["trained"]["h"]
    assert shares and all(row["low"] <= row["share"] <= row["high"] for row in shares.values())
    assert "reward" not in shares or trained.config.task != "gym_CartPole-v1"  # where it is always 1
    assert list(report["levels_untrained"]) == levels and report["levels_untrained"] != report["levels"]
    for name in ("codes", "reconstructions", "dreams", "spread", "probes"):
        assert f'src="{name}.png"' in text and (folder / f"{name}.png").stat().st_size > 5000
    assert str(folder / "index.html") in capsys.readouterr().out


def test_a_checkpoint_with_gaussian_latents_has_a_report_without_codes(tmp_path):
    flags = ["--task", "gym_Pendulum-v1", "--dyn_discrete", "0", "--steps", "150", "--device", "cpu", "--logdir", str(tmp_path)]
    assert dreamer.main(["--configs", "defaults", "debug", *flags]) == 0
    assert latent_report.main([str(tmp_path / "latest.pt"), "--envs", "4", "--steps", "200", "--device", "cpu"]) == 0
    text = (tmp_path / "latents" / "index.html").read_text()
    assert "codes.png" not in text and "probes.png" in text and "reward" in text and "the other level is" not in text


def test_playing_again_with_the_seed_gives_the_same(trained):
    records = []
    for _ in range(2):
        agent, envs, _ = latent_report.make_player(trained.logdir, 4, "cpu")
        records.append(playing.play(agent, envs, 20, seed=3))
        envs.close()
        torch.rand(7)
    for key, value in records[0].items():
        np.testing.assert_array_equal(value, records[1][key])


def test_chunks_of_a_sequence_are_observed_as_a_whole(trained, monkeypatch):
    monkeypatch.setattr(playing, "CHUNK", 7)
    agent, envs, _ = latent_report.make_player(trained.logdir, 4, "cpu")
    data = playing.play(agent, envs, 40, seed=0)
    envs.close()
    observe = agent._wm.dynamics.observe
    monkeypatch.setattr(agent._wm.dynamics, "observe", lambda *args: observe(*args, sample=False))
    post, _ = playing.observe(agent._wm, data)
    whole = agent._wm.preprocess(data)
    expected, _ = observe(agent._wm.encoder(whole), whole["action"], whole["is_first"], sample=False)
    torch.testing.assert_close(post["deter"], expected["deter"].detach(), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["missing"], "there is no checkpoint"),
        (["--envs", "2", "."], "at least 4"),
        (["--steps", "10", "."], "at least 288"),
        (["--seed", "-1", "."], "from 0 to"),
    ],
)
def test_what_cannot_be_reported_is_said(flags, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = latent_report.main(flags)
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and expected in capsys.readouterr().err
