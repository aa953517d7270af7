"""Settings: order, types, names, presets."""

import pathlib

import pytest
import torch

import settings
import tools
from settings import help
from training import logs

ROOT = pathlib.Path(__file__).parent.parent


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


@pytest.mark.parametrize(
    "presets, sizes",
    [
        (["hdreamer"], (32, 32, 32, 32)),
        (["hdreamer_asymmetric"], (16, 16, 48, 48)),
        (["hdreamer_split"], (16, 32, 16, 32)),
        (["small", "hdreamer"], (8, 16, 8, 16)),
        (["hdreamer", "small"], (8, 16, 8, 16)),
    ],
)
def test_hierarchical_presets_have_their_sizes_in_any_order(presets, sizes):
    config = tools.load_config(["defaults", *presets])
    assert config.hierarchical_mode
    assert (config.dyn_stoch_top, config.dyn_discrete_top, config.dyn_stoch_bottom, config.dyn_discrete_bottom) == sizes


def test_flags_are_read_as_people_write_them():
    presets, flags = settings.parse_flags(
        [
            "--configs",
            "defaults",
            "--seed",
            "1",
            "--configs",
            "small",
            "--seed",
            "2",
            "--steps",
            "1e4",
            "--grayscale",
            "True",
            "--size",
            "32",
            "48",
            "--encoder.cnn_depth=8",
            "--actor.std",
            "0.5",
            "--model_lr",
            "3e-4",
            "--logdir",
            "runs/1",
            "--kl_free",
            "0",
        ]
    )
    config = tools.load_config(presets, flags)
    assert presets == ["defaults", "small"] and config.seed == 2
    assert (config.steps, config.grayscale, config.size, config.encoder.cnn_depth) == (10_000, True, [32, 48], 8)
    assert (config.actor.std, config.model_lr, config.logdir, config.kl_free) == ("0.5", 3e-4, "runs/1", 0.0)
    assert type(config.steps) is int and type(config.kl_free) is float


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("steps", "1e6", 1_000_000),
        ("steps", "1_000", 1000),
        ("steps", "2E3", 2000),
        ("model_lr", "1e-4", 1e-4),
        ("model_lr", ".5", 0.5),
        ("discount", "1", 1.0),
        ("norm", "true", True),
        ("norm", "True", True),
        ("norm", "FALSE", False),
        ("logdir", "null", None),
        ("logdir", "None", None),
        ("logdir", "12", "12"),
        ("size", "[32, 48]", [32, 48]),
        ("size", "(32, 48)", [32, 48]),
        ("size", "32,48", [32, 48]),
        ("grad_heads", "decoder", ["decoder"]),
        ("grad_heads", "(decoder, cont)", ["decoder", "cont"]),
        ("actor.std", "0.5", "0.5"),
        ("precision", "32", "32"),
        ("task", "gym_CartPole-v1", "gym_CartPole-v1"),
    ],
)
def test_values_parse_as_people_write_them(key, text, value):
    found = settings.flatten(tools.load_config([], {key: text}))[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("units", -3, "at least 1"),
        ("batch_length", 1, "at least 2"),
        ("imag_horizon", 1, "at least 2"),
        ("discount", 1.5, "at most 1"),
        ("actor.lr", 0, "above 0"),
        ("model_lr", "inf", "model_lr"),
        ("model_lr", "-1e-4", "above 0"),
        ("seed", -1, "at least 0"),
        ("size", [64], "multiples of 16"),
        ("size", [64, 60], "multiples of 16"),
        ("size", "[64, -64]", "multiples of 16"),
        ("precision", "64", "32, bf16"),
        ("envs", 0, "at least 1"),
        ("steps", "[", "type int"),
    ],
)
def test_values_out_of_range_are_refused(key, value, words):
    with pytest.raises(ValueError, match=words):
        tools.load_config([], {key: value})


def test_every_setting_has_a_comment_and_the_documentation_is_up_to_date():
    described = {setting.name: setting for setting in help.describe() if not setting.group.startswith("Suite")}
    assert described.keys() == settings.flatten(settings.plain(tools.load_config([], {"task": "crafter_reward"}))).keys()
    assert all(len(setting.comment) > 3 for setting in help.describe())
    assert (ROOT / "docs" / "configuration.md").read_text() == help.markdown(), "run python -m settings"


# The numbers of dreamerv3-torch's presets, and of its checkpoints where its configs.yaml has names that nothing reads.
PRESETS = {
    "dmc_proprio": {"steps": 500_000, "action_repeat": 2, "envs": 4, "encoder.mlp_keys": ".*", "encoder.cnn_keys": "$^", "units": 512},
    "dmc_vision": {"steps": 1_000_000, "action_repeat": 2, "envs": 4, "encoder.mlp_keys": "$^", "encoder.cnn_keys": "image"},
    "crafter": {
        "steps": 1_000_000,
        "task": "crafter_reward",
        "dyn_deter": 4096,
        "dyn_hidden": 1024,
        "units": 1024,
        "actor.layers": 5,
        "reward_head.layers": 5,
        "cont_head.layers": 5,
        "critic.layers": 2,
        "encoder.cnn_depth": 96,
        "decoder.cnn_depth": 96,
        "encoder.mlp_layers": 5,
        "decoder.mlp_units": 1024,
        "train_ratio": 512,
    },
    "memorymaze": {"steps": 100_000_000, "action_repeat": 2, "task": "memorymaze_9x9", "critic.layers": 2, "dyn_deter": 512},
    "minecraft": {
        "steps": 100_000_000,
        "envs": 16,
        "train_ratio": 16,
        "eval_episode_num": 0,
        "dyn_deter": 4096,
        "dyn_hidden": 1024,
        "units": 1024,
        "actor.layers": 5,
        "critic.layers": 2,
        "encoder.cnn_depth": 96,
        "time_limit": 36000,
        "encoder.mlp_keys": "inventory|inventory_max|equipped|health|hunger|breath|obs_reward",
        "decoder.mlp_keys": "inventory|inventory_max|equipped|health|hunger|breath",
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_sizes_of_the_older_programs_checkpoints(preset):
    found = settings.flatten(tools.load_config(["defaults", preset]))
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]


def test_a_continued_run_may_change_a_rate_but_not_a_size(tmp_path):
    stored = settings.plain(tools.load_config([], {"task": "gym_CartPole-v1", "logdir": "a"}))
    config = tools.load_config([], {"task": "gym_CartPole-v1", "logdir": "b", "train_ratio": 64, "actor.lr": 1e-4})
    assert settings.changes_of_run(stored, config, tmp_path) == [("train_ratio", "512.0", "64.0"), ("actor.lr", "3e-05", "0.0001")]
    for key, value in {
        "dyn_deter": 8,
        "hierarchical_mode": True,
        "encoder.cnn_depth": 8,
        "size": [32, 32],
        "action_repeat": 2,
        "critic.layers": 3,
        "actor.std": 1,
        "initial": "zeros",
        "reward_head.dist": "mse",
        "act": "ELU",
    }.items():
        with pytest.raises(ValueError, match=key):
            settings.changes_of_run(stored, tools.load_config([], {"task": "gym_CartPole-v1", key: value}), tmp_path)
    with pytest.raises(ValueError, match="task gym_CartPole-v1 -> gym_Pendulum-v1"):
        settings.changes_of_run(stored, tools.load_config([], {"task": "gym_Pendulum-v1"}), tmp_path)
    assert settings.changes_of_run({}, config, tmp_path) == []


def test_settings_survive_a_file(tmp_path):
    config = tools.load_config(["defaults", "minecraft", "small"])
    with open(tmp_path / "config.yaml", "wb") as file:
        settings.write_yaml(config, file)
    assert settings.read_yaml(tmp_path / "config.yaml") == settings.plain(config)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="damaged"):
        settings.read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"dyn_stoch_botom": 3}, "did you mean 'dyn_stoch_bottom'"),
        ({"encoder.depth": 3}, "unknown setting 'encoder.depth'"),
        ({"steps": "1.5"}, "type int"),
        ({"norm": "1"}, "type bool"),
        ({"units": True}, "type int"),
        ({"size": "64"}, "height and width"),
        ({"grad_heads": "a: b"}, "type str"),
        ({"task": "dmlab_rooms"}, "suite"),
        ({"task": "atari"}, "suite"),
    ],
)
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
    notes = capsys.readouterr().err
    assert config.sticky is True and "parallel is ignored" in notes and "stickey is called sticky here" in notes
    config = tools.load_config([], {"step": "1e8", "value.layers": 5, "precision": 16})
    assert (config.steps, config.critic.layers, config.precision) == (100_000_000, 5, "bf16")
    assert "bf16" in capsys.readouterr().err


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


def test_console_lines_show_statistics_of_the_latents_and_nothing_that_looks_like_them():
    means = {
        "train/active_units_loss": 1.0,
        "train/kl": 2.0,
        "train/kl_flat": 2.0,
        "train/prior_entropy_flat": 3.0,
        "train/post_entropy_flat": 0.9996,
        "episode/return": 999.7,
        "episode/length": 5.0,
        "time/fps": 0.0,
    }
    assert logs.metrics_lines(1234, means).splitlines() == [
        "frame 1,234 | return 1,000 length 5 | loss active_units 1 kl 2",
        "    flat latents: kl 2 prior_entropy 3 post_entropy 1",
    ]


def test_logger_writes_means_lines_and_videos(tmp_path):
    logger = logs.Logger(tmp_path)
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


def test_offline_folders_of_older_configs_mean_none_while_they_are_empty():
    config = tools.load_config([], {"offline_traindir": "", "offline_evaldir": None})
    assert not config.offline_traindir and not config.offline_evaldir
