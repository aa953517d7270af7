"""Settings: order, types, names, presets."""

import copy
import pathlib
import pickle

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


# (latents, classes) of top and bottom.
PRESET_SIZES = {
    ("default", "hdreamer"): ((32, 32), (32, 32)),
    ("default", "hdreamer_split"): ((16, 32), (16, 32)),
    ("default", "hdreamer_asymmetric"): ((16, 16), (48, 48)),
    ("small", "hdreamer"): ((16, 16), (16, 16)),
    ("small", "hdreamer_split"): ((8, 16), (8, 16)),
    ("small", "hdreamer_asymmetric"): ((16, 16), (48, 48)),
    ("debug", "hdreamer"): ((4, 4), (4, 4)),
    ("debug", "hdreamer_split"): ((2, 4), (2, 4)),
    ("debug", "hdreamer_asymmetric"): ((16, 16), (48, 48)),
}


@pytest.mark.parametrize("size, levels", PRESET_SIZES)
def test_presets_with_two_levels_mean_the_same_in_any_order(size, levels):
    for presets in [[levels]] if size == "default" else [[size, levels], [levels, size]]:
        config = tools.load_config(["defaults", *presets])
        top, bottom = PRESET_SIZES[size, levels]
        assert settings.level_sizes(config) == {"top": top, "bottom": bottom}
        assert config.hierarchical_mode and config.kl_free == 1.0


@pytest.mark.parametrize("size, flat", [("defaults", (32, 32)), ("small", (16, 16)), ("debug", (4, 4))])
def test_presets_with_two_levels_differ_from_flat_ones_in_sizes_alone(size, flat):
    assert settings.level_sizes(tools.load_config([size])) == {"flat": flat}
    for preset in ("hdreamer", "hdreamer_split", "hdreamer_asymmetric"):
        one, two = (settings.flatten(tools.load_config(presets)) for presets in ([size], [size, preset]))
        differing = {name for name in one if one[name] != two[name]}
        assert differing <= {"hierarchical_mode", *settings.SIZES} - {"dyn_stoch", "dyn_discrete"}


@pytest.mark.parametrize(
    "value, stored, latents",
    [
        (8, 8, 8), (8.0, 8, 8), ("8", 8, 8), ("1e1", 10, 10), ("1/1", "1/1", 12), ("1/2", "1/2", 6), (" 1 / 2 ", "1/2", 6),
        ("02/04", "2/4", 6), ("3/2", "3/2", 18), ("5/12", "5/12", 5),
    ],
)  # fmt: skip
def test_latents_of_a_level_are_a_number_or_a_share(value, stored, latents):
    for name, level in (("dyn_stoch_top", "top"), ("dyn_stoch_bottom", "bottom")):
        config = tools.load_config(["hdreamer"], {"dyn_stoch": 12, name: value})
        assert config[name] == stored and type(config[name]) is type(stored)
        assert settings.level_sizes(config)[level] == (latents, 32)
        assigned = tools.load_config(["hdreamer"], {"dyn_stoch": 12})
        setattr(assigned, name, value)
        assert assigned == config


@pytest.mark.parametrize(
    "value",
    ["0/1", "3/0", "0/0", "a/b", "-1/2", "1/-2", "1/2/3", "1/", "/2", "1.5/2", "0.5", 0.5, "0", 0, -1, True, None, "null", "half", [1, 2],
     "1" * 10 + "/1"],
)  # fmt: skip
def test_other_numbers_of_latents_are_refused_by_name(value):
    for level in ("top", "bottom"):
        with pytest.raises(ValueError, match=f"setting 'dyn_stoch_{level}' is .*; it must be (a number, .* or a share .*1/2|at least 1)"):
            tools.load_config([], {f"dyn_stoch_{level}": value})


def test_classes_of_a_level_are_a_number_or_those_of_the_flat_latent():
    for value, stored, classes in [(None, None, 5), ("null", None, 5), ("None", None, 5), (7, 7, 7), ("7", 7, 7), (7.0, 7, 7)]:
        config = tools.load_config(["hdreamer"], {"dyn_discrete": 5, "dyn_discrete_top": value})
        assert config.dyn_discrete_top == stored and settings.level_sizes(config) == {"top": (32, classes), "bottom": (32, 5)}
    for value in ("1/2", 0.5, "many", -1, True):
        with pytest.raises(ValueError, match="setting 'dyn_discrete_top' is .*; it must be (a number, .* or null|at least 0)"):
            tools.load_config([], {"dyn_discrete_top": value})


def test_a_share_that_is_no_whole_number_is_refused_where_it_is_read():
    refused = "'dyn_stoch_top' is 2/4 of dyn_stoch 5, which is no whole number; give dyn_stoch_top as a number, such as 2, or a dyn_stoch "
    for presets, overrides in [(["hdreamer"], {}), ([], {"hierarchical_mode": True, "dyn_stoch_bottom": "1/5"})]:
        with pytest.raises(ValueError, match=f"{refused}that is a multiple of 2"):
            tools.load_config(presets, {"dyn_stoch": 5, "dyn_stoch_top": "2/4", **overrides})
    config = tools.load_config([], {"dyn_stoch": 5, "dyn_stoch_top": "2/4"})  # one level
    assert settings.level_sizes(config) == {"flat": (5, 32)}
    config.hierarchical_mode = True
    with pytest.raises(ValueError, match=refused):
        settings.level_sizes(config)


def test_sizes_of_stored_settings_are_those_of_the_run(tmp_path):
    config = tools.load_config(["small", "hdreamer_split"])
    with open(tmp_path / "config.yaml", "wb") as file:
        settings.write_yaml(config, file)
    stored = settings.read_yaml(tmp_path / "config.yaml")
    assert settings.level_sizes(stored) == settings.level_sizes(config) == {"top": (8, 16), "bottom": (8, 16)}
    for name, value in (("dyn_stoch_top", "many"), ("dyn_discrete_bottom", [3]), ("dyn_stoch", None)):
        with pytest.raises(ValueError, match=f"setting '{name}' is"):
            settings.level_sizes({**stored, name: value})


def test_what_was_given_one_by_one_is_known_and_survives_a_copy():
    config = tools.load_config(["small"], {"task": "gym_X-v0", "encoder": {"cnn_depth": 3}, "step": 5})
    assert config.given == {"task", "encoder.cnn_depth", "steps"} and "given" not in config
    copied = copy.deepcopy(config)
    copied.seed = 3
    assert copied.given == {"task", "encoder.cnn_depth", "steps", "seed"} and config.given == {"task", "encoder.cnn_depth", "steps"}
    assert pickle.loads(pickle.dumps(config)).given == config.given and settings.Config().given == frozenset()
    with pytest.raises(AttributeError, match="unknown setting 'given'"):
        config.given = frozenset()


@pytest.mark.parametrize(
    "given, text",
    [
        ({"dyn_stoch_top": 4, "dyn_discrete_bottom": 4}, "dyn_discrete_bottom, dyn_stoch_top, since hierarchical_mode is false"),
        ({"hierarchical_mode": True, "dyn_stoch": 4, "dyn_stoch_top": 2, "dyn_stoch_bottom": 2}, "dyn_stoch, since dyn_stoch_top and"),
        ({"hierarchical_mode": True, "dyn_discrete": 4, "dyn_discrete_top": 2, "dyn_discrete_bottom": 2}, "dyn_discrete, since dyn_disc"),
        ({"dyn_mean_act": "tanh5", "dyn_min_std": 0.2}, "dyn_mean_act, dyn_min_std, since the latent is categorical"),
        ({"dyn_discrete": 0, "unimix_ratio": 0.1}, "unimix_ratio, since dyn_discrete is 0"),
        ({"critic": {"slow_target": False, "slow_target_update": 3}}, "critic.slow_target_update, since critic.slow_target is false"),
        ({"expl_until": 9}, "expl_until, since expl_behavior is greedy"),
        ({"expl_behavior": "random", "disag_log": True, "expl_extr_scale": 1}, "disag_log, expl_extr_scale, since expl_behavior is random"),
        ({"eval_every": 0, "eval_envs": 3, "video_pred_log": True}, "eval_envs, video_pred_log, since eval_every is 0"),
        ({"eval_episode_num": 0, "eval_sample": True}, "eval_sample, since eval_episode_num is 0"),
        ({"dyn_blocks": 4}, "dyn_blocks, since dyn_core is gru"),
        ({"decoder": {"blocks": 4}}, "decoder.blocks, since decoder.cnn is strided"),
        ({"prefill": 0, "prefill_policy": "policy"}, "prefill_policy, since prefill is 0"),
        ({"offline_traindir": "x", "prefill": 3, "envs": 2}, "envs, prefill, since offline_traindir is given"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named_with_the_reason(given, text):
    (found,) = settings.without_effect(tools.load_config([], given))
    assert found.startswith(f"without effect: {text}")


@pytest.mark.parametrize(
    "presets, given",
    [
        (["small", "debug", "hdreamer_asymmetric", "crafter"], {}),  # presets are not told
        ([], {"dyn_stoch": 4, "dyn_discrete": 4, "unimix_ratio": 0.1, "critic.slow_target_update": 3, "eval_envs": 2, "prefill": 3}),
        (["hdreamer"], {"dyn_stoch": 4, "dyn_stoch_top": 3, "dyn_discrete": 4, "dyn_discrete_top": 4}),
        (["hdreamer_asymmetric"], {"dyn_stoch": 4, "dyn_discrete": 4, "from_checkpoint": "flat.pt"}),
        ([], {"dyn_discrete": 0, "dyn_min_std": 0.2}),
        ([], {"expl_behavior": "plan2explore", "disag_log": True, "expl_until": 9}),
    ],
)
def test_settings_with_an_effect_are_not_named(presets, given):
    assert settings.without_effect(tools.load_config(presets, given)) == []


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
        ("compile", "true", True),
        ("compile", "True", True),
        ("compile", "FALSE", False),
        ("norm", "rms", "rms"),
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
        ("precision", "64", "32, bf16, auto"),
        ("norm", "batch", "layer, rms, none"),
        ("encoder.cnn", "resnet", "setting 'encoder.cnn' is 'resnet'; allowed are strided, pooled"),
        ("dyn_core", "lstm", "gru, block_gru"),
        ("decoder.norm", "1", "layer, rms, none"),
        ("encoder.symlog_inputs", "some", "all, numbers, none"),
        ("optimizer", "sgd", "adam, laprop"),
        ("prefill_policy", "none", "random, policy"),
        ("replay_context", 2, "at most 1"),
        ("dyn_blocks", 0, "at least 1"),
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
        ({"compile": "1"}, "type bool"),
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
        return len(list(budget.due()))

    budget = tools.UpdateBudget(train_ratio=512, batch_steps=1024)
    assert [updates(budget, 1) for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    budget = tools.UpdateBudget(train_ratio=3.3, batch_steps=7)
    assert sum(updates(budget, step % 3) for step in range(1000)) == int(999 * 3.3 / 7)


def test_updates_that_a_stop_leaves_out_stay_due():
    budget, asked = tools.UpdateBudget(train_ratio=1, batch_steps=1), []
    budget.add(5)
    for _ in budget.due(asked):  # true once it is not empty
        asked += [1] * (budget.credit == 3)
    assert budget.credit == 3 and len(list(budget.due())) == 3


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
