"""Settings of the two generations of DreamerV3: values, sizes, order of presets, combinations that are refused, stored runs."""

import copy
import pathlib

import pytest
import torch

import settings
import tools
from settings import files, loading, resume

NEW = "dreamerv3_2025"
# (value of the defaults, value of the preset), without the sizes.
TABLE = {
    "eval_sample": (False, True),
    "prefill": (2500, 1024),
    "prefill_policy": ("random", "policy"),
    "pretrain": (100, 0),
    "replay_context": (0, 1),
    "replay_online": (False, True),
    "train_ratio": (512.0, 512.0),
    "dyn_core": ("gru", "block_gru"),
    "dyn_blocks": (8, 8),
    "dyn_img_layers": (1, 2),
    "dyn_obs_layers": (1, 1),
    "initial": ("learned", "zeros"),
    "dyn_scale": (0.5, 1.0),
    "rep_scale": (0.1, 0.1),
    "kl_free": (1.0, 1.0),
    "norm": ("layer", "rms"),
    "encoder.norm": ("layer", "rms"),
    "decoder.norm": ("layer", "rms"),
    "encoder.cnn": ("strided", "pooled"),
    "decoder.cnn": ("strided", "pooled"),
    "encoder.kernel_size": (4, 5),
    "decoder.kernel_size": (4, 5),
    "decoder.blocks": (8, 8),
    "decoder.cnn_sigmoid": (False, True),
    "encoder.mlp_layers": (5, 3),
    "decoder.mlp_layers": (5, 3),
    "encoder.symlog_inputs": ("all", "numbers"),
    "decoder.vector_dist": ("symlog_mse", "auto"),
    "reward_head.dist": ("symlog_disc", "symexp_twohot"),
    "critic.dist": ("symlog_disc", "symexp_twohot"),
    "cont_head.discounted": (False, True),
    "discount": (0.997, 1 - 1 / 333),
    "imag_gradient": ("auto", "reinforce"),
    "actor.unimix_ratio": (0.01, 0.0),
    "actor.outscale": (1.0, 0.01),
    "reward_head.layers": (2, 1),
    "cont_head.layers": (2, 1),
    "actor.layers": (2, 3),
    "critic.layers": (2, 3),
    "imag_horizon": (15, 16),
    "critic.replay_scale": (0.0, 0.3),
    "optimizer": ("adam", "laprop"),
    "model_lr": (1e-4, 4e-5),
    "opt_eps": (1e-8, 1e-20),
    "agc": (0.0, 0.3),
    "warmup": (0, 1000),
}
# dyn_deter, width of all layers, classes and channels, dataset_size.
SIZES = {
    "size1m": (512, 64, 4, 1_000_000),
    "size12m": (2048, 256, 16, 750_000),
    "size25m": (3072, 384, 24, 600_000),
    "size50m": (4096, 512, 32, 500_000),
    "size100m": (6144, 768, 48, 400_000),
    "size200m": (8192, 1024, 64, 300_000),
    "size400m": (12288, 1536, 96, 250_000),
}
SIZE_SETTINGS = {
    *("dyn_deter", "dyn_hidden", "dyn_stoch", "dyn_discrete", "units", "dataset_size"),
    *(f"{net}.{name}" for net in ("encoder", "decoder") for name in ("cnn_depth", "mlp_units")),
}


@pytest.fixture(autouse=True, scope="module")
def configs_yaml_is_read_once():
    known, patch = files.sections(), pytest.MonkeyPatch()
    for module in (loading, resume):
        patch.setattr(module, "sections", lambda: copy.deepcopy(known))
    yield
    patch.undo()


def load(*presets: str, **overrides) -> settings.Config:
    return tools.load_config(["defaults", *presets], {"task": "gym_CartPole-v1", **overrides})


def flat(*presets: str, **overrides) -> dict:
    return settings.flatten(load(*presets, **overrides))


def stored_by_an_earlier_version() -> dict:
    path = pathlib.Path(__file__).parent / "data" / "earlier_runs" / "two_levels" / "config.yaml"
    return settings.read_yaml(path)


# Values


def test_each_generation_has_its_values():
    old, new = flat(), flat(NEW)
    assert {name: old[name] for name in TABLE} == {name: before for name, (before, _) in TABLE.items()}
    assert new["discount"] == pytest.approx(1 - 1 / 333, rel=1e-12)
    assert {name: new[name] for name in TABLE} == {name: after for name, (_, after) in TABLE.items()} | {"discount": new["discount"]}
    assert {name for name in old if old[name] != new[name]} <= TABLE.keys() | SIZE_SETTINGS


@pytest.mark.parametrize("size", SIZES)
def test_a_size_preset_sets_the_sizes_alone(size):
    deter, width, depth, steps = SIZES[size]
    new, bare = flat(NEW, size), flat(NEW)
    assert {name for name in new if new[name] != bare[name]} == (set() if size == "size12m" else SIZE_SETTINGS - {"dyn_stoch"})
    expected = dict.fromkeys(SIZE_SETTINGS, width) | {"dyn_deter": deter, "dyn_stoch": 32, "dyn_discrete": depth, "dataset_size": steps}
    assert {name: new[name] for name in SIZE_SETTINGS} == expected | {"encoder.cnn_depth": depth, "decoder.cnn_depth": depth}


@pytest.mark.parametrize("size", SIZES)
def test_levels_follow_the_flat_latent_at_every_size(size):
    classes = SIZES[size][2]
    assert settings.level_sizes(load(NEW, size)) == {"flat": (32, classes)}
    levels = {
        "hdreamer": ((32, classes), (32, classes)),
        "hdreamer_split": ((16, classes), (16, classes)),
        "hdreamer_asymmetric": ((16, 16), (48, 48)),
    }
    for preset, (top, bottom) in levels.items():
        for order in ([NEW, size, preset], [NEW, preset, size], [preset, NEW, size]):
            assert settings.level_sizes(load(*order)) == {"top": top, "bottom": bottom}


@pytest.mark.parametrize("size", SIZES)
def test_replay_memory_with_latents_and_images_fits_into_16_gb(size):
    config = load(NEW, size, "hdreamer_asymmetric")  # the most categoricals
    image, deter, classes, rest = 64 * 64 * 3, 4 * config.dyn_deter, 16 + 48, 4 * 18 + 60  # Atari's actions, reward, flags
    assert 0.8 * 16e9 < config.dataset_size * (image + deter + classes + rest) < 16e9


def test_debug_sizes_work_in_the_new_generation():
    config = load(NEW, "debug", "hdreamer_split")
    assert (config.dyn_deter, config.decoder.cnn_depth, config.encoder.kernel_size, config.optimizer) == (16, 2, 5, "laprop")
    assert load(NEW, "size1m", "debug") == load(NEW, "debug")


# Order of presets


@pytest.mark.parametrize("presets", [["size1m"], ["size1m", NEW], ["hdreamer", "size400m"], ["size12m", NEW, "size1m"]])
def test_a_size_preset_without_its_generation_before_it_is_refused(presets):
    size = next(name for name in presets if name.startswith("size"))
    with pytest.raises(ValueError, match=f"preset '{size}' .* must stand after it: --configs defaults {NEW} {size}"):
        load(*presets)


@pytest.mark.parametrize(
    "presets, way_out",
    [
        ([NEW, "small"], "use size1m"),
        (["small", NEW], "use size1m"),
        ([NEW, "size1m", "crafter"], "give crafter before it"),
        ([NEW, "minecraft"], "give minecraft before it"),
    ],
)
def test_presets_with_sizes_of_2023_are_refused_after_the_new_generation(presets, way_out):
    with pytest.raises(ValueError, match=way_out):
        tools.load_config(presets)


def test_debug_stands_after_the_new_generation():
    with pytest.raises(ValueError, match="overrides the sizes of 'debug'; give debug after it"):
        tools.load_config(["debug", "dreamerv3_2025"])
    assert tools.load_config(["dreamerv3_2025", "debug"]).dyn_deter == 16


def test_presets_of_tasks_go_with_the_new_generation():
    for presets in (["crafter", NEW, "size1m"], ["minecraft", NEW], [NEW, "atari100k"], [NEW, "dmc_proprio"], ["memorymaze", NEW]):
        config = tools.load_config(presets)
        assert (config.optimizer, config.reward_head.layers, config.critic.layers) == ("laprop", 1, 3)
    assert tools.load_config(["crafter", NEW, "size1m"]).dyn_deter == 512


# Combinations


@pytest.mark.parametrize(
    "presets, given, words",
    [
        ([], {"critic.replay_scale": 0.3}, "critic.replay_scale 0.3 needs optimizer laprop, .* use --critic.replay_scale 0 or --optimizer"),
        ([], {"replay_context": 1}, "replay_context 1 needs optimizer laprop, .* use --replay_context 0 or --optimizer laprop"),
        ([], {"agc": 0.3}, "agc 0.3 is a setting of optimizer laprop, .* use --agc 0"),
        ([], {"warmup": 10}, "warmup 10 is a setting of optimizer laprop, .* use --warmup 0"),
        ([NEW], {"optimizer": "adam"}, "critic.replay_scale 0.3 needs optimizer laprop"),
        ([], {"encoder.cnn": "pooled"}, "encoder.kernel_size 4 is not odd, as encoder.cnn pooled needs it; use --encoder.kernel_size 5"),
        ([], {"decoder.kernel_size": 5}, "decoder.kernel_size 5 is not even, as decoder.cnn strided needs it; use --decoder.kernel_size 4"),
        ([NEW], {"decoder.kernel_size": 4}, "decoder.kernel_size 4 is not odd"),
        ([NEW], {"dyn_blocks": 7}, "dyn_blocks 7 does not divide dyn_deter 2048"),
        ([NEW], {"decoder.blocks": 5}, "decoder.blocks 5 does not divide both dyn_deter 2048 and 4 \\* decoder.cnn_depth, 64"),
        ([NEW], {"decoder.blocks": 128}, "decoder.blocks 128 does not divide"),
        ([NEW], {"dyn_discrete": 0}, "replay_context 1 stores classes of latents, and dyn_discrete 0 has none; use --replay_context 0"),
        ([NEW], {"imag_gradient": "dynamics"}, "imag_gradient dynamics needs optimizer adam, .* use --imag_gradient reinforce"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused_by_name(presets, given, words):
    with pytest.raises(ValueError, match=words):
        load(*presets, **given)


@pytest.mark.parametrize("name", ["grad_clip", "actor.lr", "actor.eps", "actor.grad_clip", "critic.lr", "critic.eps", "critic.grad_clip"])
def test_settings_of_three_optimizers_are_refused_where_there_is_one(name):
    value = flat()[name]
    with pytest.raises(ValueError, match=f"^{name}: unused with optimizer laprop, .* leave it out"):
        load(NEW, **{name: value})  # even the value that it has anyway
    assert load(**{name: value}) == load()
    *path, last = name.split(".")
    with pytest.raises(ValueError, match=f"^{name}: unused with optimizer laprop"):
        load(NEW, **({path[0]: {last: value}} if path else {last: value}))


def test_unusual_combinations_that_have_a_meaning_are_accepted():
    load(NEW, dyn_discrete=0, replay_context=0)  # Gaussian latents in a block GRU
    load(NEW, "debug", **{"dyn_core": "gru", "dyn_blocks": 7})
    load(optimizer="laprop", agc=0.3, warmup=10, replay_context=1)
    load(**{"norm": "rms", "encoder.cnn": "pooled", "encoder.kernel_size": 3, "critic.dist": "symexp_twohot", "dyn_core": "block_gru"})


# Earlier booleans


@pytest.mark.parametrize("name", ["norm", "encoder.norm", "decoder.norm", "encoder.symlog_inputs"])
def test_earlier_booleans_are_accepted_without_a_note(name, capsys):
    yes = "all" if name.endswith("inputs") else "layer"
    for value, word in [(True, yes), ("true", yes), ("True", yes), (False, "none"), ("FALSE", "none"), ("none", "none")]:
        assert flat(**{name: value})[name] == word
    config = load()
    *path, last = name.split(".")
    setattr(config[path[0]] if path else config, last, False)
    assert settings.flatten(config)[name] == "none"
    assert capsys.readouterr() == ("", "")


def test_a_run_stored_before_there_were_two_generations_resumes_as_2023(tmp_path, capsys):
    stored = stored_by_an_earlier_version()
    assert stored["norm"] is True and "optimizer" not in stored
    config = tools.load_config(stored=stored)
    assert (config.norm, config.encoder.norm, config.encoder.symlog_inputs) == ("layer", "layer", "all")
    assert (config.optimizer, config.dyn_core) == ("adam", "gru")
    assert settings.keep_stored(config, stored) is None
    assert settings.changes_of_run(stored, config, tmp_path) == settings.changes_of_model(stored, config) == []
    assert settings.shown(stored)["norm"] == "layer" and settings.completed(stored)["optimizer"] == "adam"
    assert capsys.readouterr() == ("", "")


# Resuming with other presets


def test_a_run_of_2023_stays_one_whatever_presets_are_given(tmp_path):
    for stored in (stored_by_an_earlier_version(), settings.plain(load("small", "hdreamer"))):
        config = tools.load_config([NEW, "hdreamer"], {"task": stored["task"]})
        note = settings.keep_stored(config, stored)
        found = settings.flatten(config)
        assert all(text in note for text in ("optimizer adam (now laprop)", "norm layer (now rms)", "agc 0.0 (now 0.3)", "model_lr"))
        kept = {name: before for name, (before, after) in TABLE.items() if before != after}
        stored = settings.completed(stored)
        assert {name: found[name] for name in kept} == {name: stored[name] for name in kept}
        assert not {name for name, *_ in settings.changes_of_run(stored, config, tmp_path)} & kept.keys()


def test_a_run_of_2025_stays_one_whatever_presets_are_given(tmp_path):
    stored = settings.plain(load(NEW, "size1m"))
    for presets in ([], ["small"], ["debug"], [NEW], [NEW, "size50m"]):
        config = load(*presets)
        settings.keep_stored(config, stored)
        found, before = settings.flatten(config), settings.flatten(stored)
        kept = TABLE.keys() - {"train_ratio"} | SIZE_SETTINGS - {"dataset_size"}
        assert {name: found[name] for name in kept} == {name: before[name] for name in kept}
        settings.changes_of_run(stored, config, tmp_path)  # nothing fixed changes


def test_flags_of_the_other_generation_are_refused_for_a_stored_run(tmp_path):
    stored = settings.plain(load(NEW, "size1m"))
    config = load("small", **{"critic.lr": 1e-4})
    with pytest.raises(ValueError, match="critic.lr: unused with optimizer laprop"):
        settings.keep_stored(config, stored)
    with pytest.raises(ValueError, match="critic.lr: unused"):
        tools.load_config(overrides={"critic.lr": 1e-4}, stored=stored)
    old = settings.plain(load())
    for name, value in {"optimizer": "laprop", "norm": "rms", "cont_head.discounted": True, "dyn_core": "block_gru"}.items():
        config = tools.load_config(overrides={name: value}, stored=old)
        with pytest.raises(ValueError, match=f"{name} .* -> "):
            settings.changes_of_run(old, config, tmp_path)
    with pytest.raises(ValueError, match="optimizer adam -> laprop"):
        settings.changes_of_run(stored_by_an_earlier_version(), tools.load_config([NEW], {"task": "gym_CartPole-v1"}), tmp_path)


def test_a_stored_run_of_2025_is_loaded_without_presets(tmp_path):
    config = load(NEW, "size1m", "hdreamer_split")
    with open(tmp_path / "config.yaml", "wb") as file:
        settings.write_yaml(config, file)
    assert tools.load_config(overrides={"seed": 0}, stored=settings.read_yaml(tmp_path / "config.yaml")) == config


# Precision


@pytest.mark.parametrize(
    "flags, precision, reason",
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "the processor computes in bfloat16, with AMX"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16", "the processor computes in bfloat16, with AVX-512"),
        ({"avx2": True}, "32", "no bfloat16 units are known on cpu"),
    ],
)
def test_precision_auto_is_what_the_processor_computes_in(flags, precision, reason, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert tools.pick_precision("auto", "cpu", 256) == (precision, reason)
    assert tools.pick_precision("auto", "mps", 256) == ("32", "no bfloat16 units are known on mps")
    for given in ("32", "bf16"):
        assert tools.pick_precision(given, "cpu", 64) == (given, "")


def test_precision_auto_is_float32_for_narrow_layers_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert tools.pick_precision("auto", "cpu", 64) == ("32", "layers of 64 units are faster in float32 on a CPU")


def test_precision_auto_is_what_the_gpu_computes_in(monkeypatch):
    for native, expected in ((True, ("bf16", "the GPU computes in bfloat16")), (False, ("32", "no bfloat16 units are known on cuda:1"))):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
        assert tools.pick_precision("auto", "cuda:1", 64) == expected


def test_an_epsilon_that_float32_rounds_to_zero_is_refused():
    with pytest.raises(ValueError, match="setting 'opt_eps' is 1e-50; it must be at least 1e-37"):
        tools.load_config(["dreamerv3_2025"], {"opt_eps": "1e-50"})
