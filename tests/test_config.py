"""Settings: order, types, names, presets."""

import pytest
import torch

import settings
import tools


def test_order_is_defaults_suite_presets_flags():
    assert tools.load_config(["defaults"], {"task": "gym_CartPole-v1"}).action_repeat == 1
    assert tools.load_config(["defaults"], {"task": "atari_pong"}).action_repeat == 4
    config = tools.load_config(["atari100k", "small"], {"task": "atari_pong", "train_ratio": "7"})
    assert (config.steps, config.units, config.train_ratio) == (400_000, 128, 7)
    assert tools.load_config(["small", "atari100k"]).train_ratio == 1024
    assert tools.load_config(["atari100k", "small"]).train_ratio == 128


def test_defaults_are_atari_pong_with_ales_settings():
    config = tools.load_config()
    assert (config.task, config.time_limit, config.sticky, config.noops, config.lives) == ("atari_pong", 108000, False, 30, "unused")
    assert "sticky" not in tools.load_config([], {"task": "gym_CartPole-v1"})


@pytest.mark.parametrize("presets, sizes", [
    (["hdreamer"], (32, 32, 32, 32)), (["hdreamer_asymmetric"], (16, 16, 48, 48)), (["hdreamer_split"], (16, 32, 16, 32)),
    (["small", "hdreamer"], (8, 16, 8, 16)), (["hdreamer", "small"], (8, 16, 8, 16)),
])
def test_hierarchical_presets_have_their_sizes_in_any_order(presets, sizes):
    config = tools.load_config(["defaults", *presets])
    assert config.hierarchical_mode
    assert (config.dyn_stoch_top, config.dyn_discrete_top, config.dyn_stoch_bottom, config.dyn_discrete_bottom) == sizes


def test_flags_are_read_as_people_write_them():
    presets, flags = settings.parse_flags(
        ["--configs", "defaults", "small", "--steps", "1e4", "--grayscale", "True", "--size", "32", "48", "--encoder.cnn_depth=8",
         "--actor.std", "0.5", "--model_lr", "3e-4", "--logdir", "runs/1", "--kl_free", "0"])
    config = tools.load_config(presets, flags)
    assert presets == ["defaults", "small"]
    assert (config.steps, config.grayscale, config.size, config.encoder.cnn_depth) == (10_000, True, [32, 48], 8)
    assert (config.actor.std, config.model_lr, config.logdir, config.kl_free) == ("0.5", 3e-4, "runs/1", 0.0)
    assert type(config.steps) is int and type(config.kl_free) is float


@pytest.mark.parametrize("overrides, words", [
    ({"dyn_stoch_botom": 3}, "did you mean 'dyn_stoch_bottom'"), ({"encoder.depth": 3}, "unknown setting 'encoder.depth'"),
    ({"steps": "1.5"}, "type int"), ({"norm": "1"}, "type bool"), ({"units": True}, "type int"), ({"size": "64"}, "type list"),
    ({"task": "dmc_walker"}, "suite"), ({"task": "atari"}, "suite"),
])
def test_wrong_settings_are_refused_by_name(overrides, words):
    with pytest.raises(ValueError, match=words):
        tools.load_config([], overrides)


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="did you mean 'hdreamer_split'"):
        tools.load_config(["hdreamer_splt"])


def test_entries_are_attributes_that_can_be_assigned_but_not_invented():
    config = tools.load_config()
    config.hierarchical_mode = True
    config.encoder.cnn_depth = 4
    assert config["hierarchical_mode"] is True and config.encoder["cnn_depth"] == 4
    with pytest.raises(AttributeError, match="did you mean 'hierarchical_mode'"):
        config.hierarchical = True
    with pytest.raises(AttributeError, match="did you mean 'cnn_depth'"):
        print(config.encoder.cnn_dept)
    with pytest.raises(ValueError, match="type bool"):
        config.hierarchical_mode = "yes"


def test_old_names_are_accepted_with_a_note(capsys):
    config = tools.load_config([], {"task": "atari_pong", "stickey": "true", "parallel": "true"})
    assert config.sticky is True and "parallel is ignored" in capsys.readouterr().err


def test_every_calls_once_per_multiple_and_does_not_catch_up_after_a_resume():
    every = tools.Every(10)
    assert [count for count in range(0, 36, 4) if every(count)] == [12, 20, 32]
    assert not tools.Every(10, start=57)(59) and tools.Every(10, start=57)(60)
    assert not tools.Every(0)(10)


def test_updates_replay_every_step_as_often_as_asked():
    def updates(budget: tools.UpdateBudget, steps: int) -> int:
        budget.add(steps)
        return budget.take()

    budget = tools.UpdateBudget(train_ratio=512, batch_steps=1024)
    assert [updates(budget, 1) for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    budget = tools.UpdateBudget(train_ratio=3.3, batch_steps=7)
    assert sum(updates(budget, step % 3) for step in range(1000)) == int(999 * 3.3 / 7)


def test_logger_writes_means_lines_and_videos(tmp_path):
    logger = tools.Logger(tmp_path)
    logger.add({"loss": torch.tensor(1.0)}, "train")
    logger.add({"loss": torch.tensor(4.0), "n": 2}, "train")
    assert logger.write(8) == {"train/loss": 2.5, "train/n": 2.0}
    assert logger.write(9) == {}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 8, "train/loss": 2.5, "train/n": 2.0}\n'
    path = logger.video("openl", torch.rand(5, 12, 8, 1).numpy(), 3)
    logger.close()
    from PIL import Image
    with Image.open(path) as gif:
        assert gif.n_frames == 5 and gif.size == (8, 12)
