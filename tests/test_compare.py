"""Comparing runs: reading metrics.jsonl, groups and their names, means over seeds, and the command itself."""

import json
import pathlib

import matplotlib
import numpy as np
import pytest
from PIL import Image

import compare
import settings
import tools
from pages import comparison, curves

pytestmark = pytest.mark.slow


def write_run(
    folder: pathlib.Path, returns: dict[int, float], presets: tuple[str, ...] = (), metric: str = "eval/return", **overrides
) -> pathlib.Path:
    """A folder with the settings of a run, and with its evaluations or another metric."""
    folder.mkdir(parents=True)
    config = tools.load_config(["defaults", *presets], {"task": "gym_CartPole-v1", "logdir": str(folder), **overrides})
    with open(folder / "config.yaml", "wb") as file:
        settings.write_yaml(config, file)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": frame, metric: value}) + "\n" for frame, value in returns.items()))
    return folder


def runs_of(*folders: pathlib.Path | str) -> list[comparison.Run]:
    """The runs in these folders that have evaluations."""
    metric, runs = comparison.read_runs(comparison.find_runs(map(str, folders)), "eval/return", None)
    assert metric == "eval/return"
    return runs


def groups_of(*folders: pathlib.Path | str, by: list[str] | None = None) -> dict[str, dict[str, int]]:
    """{task: {label: runs}} as the command would group them."""
    runs = runs_of(*folders)
    return {task: {group.label: len(group.runs) for group in groups} for task, groups in comparison.group_runs(runs, by).items()}


# Reading


def test_a_line_that_is_still_being_written_is_left_out_and_damaged_ones_are_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "a": 2, "text": "x", "flag": true}\n\xff\xfe\n[3]\n{"a": 4}\n{"step": 5, "a": NaN}\n{"step": 6, "a": 7}'
    )
    found, damaged = curves.read(tmp_path)
    assert damaged == 3 and list(found) == ["a"]
    np.testing.assert_array_equal(found["a"].steps, [1, 5])
    np.testing.assert_array_equal(found["a"].values, [2.0, np.nan])
    np.testing.assert_array_equal(curves.finite(found["a"]).values, [2.0])
    assert curves.read(tmp_path / "missing") == ({}, 0)


def test_frames_that_a_continued_run_goes_over_again_count_as_written_last(tmp_path):
    steps = [1, 2, 3, 4, 2, 3, 3, 5]
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "a": {number}}}\n' for number, step in enumerate(steps)))
    curve = curves.read(tmp_path).curves["a"]
    assert list(zip(*curve)) == [(1, 0.0), (2, 4.0), (3, 6.0), (5, 7.0)]


def test_metrics_of_dreamerv3_torch_have_the_names_of_this_program(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 400, "train_return": 1.0, "train_length": 2.0}\n{"step": 800, "eval_return": 3.0}\n'
        '{"step": 800, "image_loss": 4.0, "fps": 5.0, "prior_ent": 6.0}\n'
    )
    assert sorted(curves.read(tmp_path).curves) == [
        "episode/length",
        "episode/return",
        "eval/return",
        "time/fps",
        "train/image_loss",
        "train/prior_entropy",
    ]


def test_means_over_seeds_are_taken_where_all_seeds_are():
    one = curves.Curve(np.array([0, 10, 20]), np.array([0.0, 10.0, 20.0]))
    other = curves.Curve(np.array([5, 15]), np.array([1.0, 3.0]))
    band = curves.over_seeds([one, other])
    assert list(zip(*band)) == [(5, 3.0, 1.0, 5.0), (10, 6.0, 2.0, 10.0), (15, 9.0, 3.0, 15.0)]


@pytest.mark.parametrize("count, parts", [(7, 300), (300, 300), (1000, 300), (10_001, 37)])
def test_a_thinned_curve_keeps_ends_extremes_and_mean(count, parts):
    rng = np.random.default_rng(count)
    frames, values = np.sort(rng.choice(10**6, count, replace=False)), rng.normal(size=count)
    band = curves.thinned(curves.Curve(frames, values), parts)
    assert len(band.steps) == min(count, parts) and (np.diff(band.steps) > 0).all()
    assert (band.low.min(), band.high.max()) == (values.min(), values.max())
    expected = [part.mean() for part in np.array_split(values, len(band.mean))]
    assert abs(np.mean(band.mean) - np.mean(expected)) < 0.05
    if count <= parts:
        np.testing.assert_array_equal(band.mean, values)


def test_a_curve_of_one_entry_at_the_start_has_a_final_value():
    assert curves.final_value(curves.Curve(np.array([0]), np.array([3.0]))) == 3.0


# Groups


def test_runs_that_differ_in_seed_and_folder_are_one_group_and_tasks_are_apart(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "flat" / str(seed), {1000: 1.0}, seed=seed)
        write_run(tmp_path / "two" / str(seed), {1000: 2.0}, ("hdreamer",), seed=seed, steps=5 + seed, device="cpu")
    write_run(tmp_path / "pendulum", {1000: 3.0}, task="gym_Pendulum-v1")
    assert groups_of(tmp_path) == {"gym_CartPole-v1": {"flat": 3, "two levels": 3}, "gym_Pendulum-v1": {"flat": 1}}
    assert groups_of(tmp_path, tmp_path / "flat", tmp_path / "flat" / "1") == groups_of(tmp_path)  # each run counts once


def test_sizes_of_the_other_kind_of_latent_do_not_part_runs(tmp_path):
    write_run(tmp_path / "a", {1000: 1.0}, dyn_stoch_top=3)
    write_run(tmp_path / "b", {1000: 1.0}, dyn_stoch_bottom=5)
    assert groups_of(tmp_path) == {"gym_CartPole-v1": {"flat": 2}}
    write_run(tmp_path / "c", {1000: 1.0}, dyn_stoch=8)
    assert groups_of(tmp_path) == {"gym_CartPole-v1": {"latent 32x32": 2, "latent 8x32": 1}}


def test_sizes_are_shown_as_the_numbers_that_they_mean(tmp_path):
    numbers = {"dyn_stoch_top": 8, "dyn_discrete_top": 16, "dyn_stoch_bottom": 8, "dyn_discrete_bottom": 16}
    for name, presets, sizes, shown in [
        ("default", ["hdreamer"], {}, "32x32+32x32"),
        ("split", ["small", "hdreamer_split"], {}, "8x16+8x16"),
        ("numbers", ["small"], {"hierarchical_mode": True, **numbers}, "8x16+8x16"),
        ("flat", ["small"], numbers, "16x16"),
    ]:
        run = write_run(tmp_path / name, {1000: 1.0}, presets, **sizes)
        assert comparison.describe(settings.read_yaml(run / "config.yaml"))["latent"] == shown
    earlier = pathlib.Path(__file__).parent / "data" / "earlier_runs" / "two_levels" / "config.yaml"
    assert comparison.describe(settings.read_yaml(earlier))["latent"] == "2x4+2x4"


def test_names_are_a_few_settings_and_the_rest_is_told_besides(tmp_path):
    write_run(tmp_path / "a", {1000: 1.0}, ("small",))
    write_run(tmp_path / "b", {1000: 1.0}, ("small", "hdreamer"))
    write_run(tmp_path / "c", {1000: 1.0}, ("small", "hdreamer"), model_lr=0.5)
    write_run(tmp_path / "d", {1000: 1.0}, ("small", "hdreamer"), model_lr=0.5, **{"actor.lr": 0.25, "critic.lr": 0.25})
    labels = groups_of(tmp_path)["gym_CartPole-v1"]
    assert len(labels) == 4 and all(label.count(",") <= 2 for label in labels)
    for group in comparison.group_runs(runs_of(tmp_path))["gym_CartPole-v1"]:
        told = {**dict(part.rsplit(" ", 1) for part in group.label.split(", ")[1:]), **group.besides}
        assert {"model_lr", "actor.lr", "critic.lr"} <= told.keys() and "units" not in told


def test_groups_differ_in_what_is_asked_for(tmp_path):
    for number, (seed, rate) in enumerate([(0, 0.1), (1, 0.1), (0, 0.2), (1, 0.2)]):
        write_run(tmp_path / str(number), {1000: 1.0}, seed=seed, model_lr=rate)
    assert groups_of(tmp_path, by=["seed"]) == {"gym_CartPole-v1": {"seed 0": 2, "seed 1": 2}}
    with pytest.raises(ValueError, match="did you mean 'model_lr'"):
        groups_of(tmp_path, by=["model_l"])


def test_sizes_of_latents_are_grouped_by_whatever_they_are_called(tmp_path):
    for number, stoch in enumerate((4, 8, 8)):
        write_run(tmp_path / str(number), {0: 0.0}, ("small",), dyn_stoch=stoch)
    expected = {"gym_CartPole-v1": {"latent 4x16": 1, "latent 8x16": 2}}
    assert groups_of(tmp_path, by=["dyn_stoch"]) == groups_of(tmp_path, by=["latent", "dyn_discrete"]) == expected


def test_updates_of_runs_on_recorded_episodes_are_not_called_frames(tmp_path):
    write_run(tmp_path / "online", {100: 1.0})
    write_run(tmp_path / "offline", {60: 1.0}, offline_traindir="recorded")
    tasks = comparison.group_runs(runs_of(tmp_path / "offline", tmp_path / "online"), ["offline_traindir"])
    assert comparison.final_table(tasks).splitlines()[0].endswith("frames or updates")
    offline = {task: [group for group in groups if group.runs[0].unit == "update"] for task, groups in tasks.items()}
    assert comparison.final_table(offline).splitlines()[0].endswith("  updates")
    assert comparison.draw(offline, "eval/return").axes[0].get_xlabel() == "updates"


def test_a_run_from_before_a_setting_existed_has_its_default(tmp_path):
    write_run(tmp_path / "new", {1000: 1.0})
    old = write_run(tmp_path / "old", {1000: 1.0}) / "config.yaml"
    old.write_text("".join(line for line in old.read_text().splitlines(True) if not line.startswith(("kl_free", "seed"))))
    assert groups_of(tmp_path) == {"gym_CartPole-v1": {"flat": 2}}


def test_labels_by_hand_come_before_settings(tmp_path):
    write_run(tmp_path / "a", {1000: 1.0})
    write_run(tmp_path / "b", {1000: 1.0}, model_lr=0.5)
    write_run(tmp_path / "x=y", {1000: 1.0}, ("hdreamer",))
    assert groups_of(f"mine={tmp_path / 'a'}", f"mine={tmp_path / 'b'}", tmp_path / "x=y") == {
        "gym_CartPole-v1": {"mine": 2, "two levels": 1}
    }


# Figures


def test_a_few_steps_are_counted_in_whole_numbers(tmp_path):
    tasks = comparison.group_runs(runs_of(write_run(tmp_path / "a", {1: 1.0, 2: 3.0})))
    figure = comparison.draw(tasks, "eval/return")
    figure.canvas.draw()
    ticks = [tick for tick in figure.axes[0].get_xticks() if 0 <= tick <= 2]
    assert ticks == [0, 1, 2]


# The command


def test_runs_without_evaluations_are_compared_by_returns_of_training(tmp_path, capsys):
    flat = write_run(tmp_path / "flat", {1000: 10.0, 2000: 30.0}, metric="episode/return")
    two = write_run(tmp_path / "two", {1000: 10.0, 2000: 50.0}, ("hdreamer",), metric="episode/return")
    with open(two / "metrics.jsonl", "a") as file:
        file.write('{"step": 2000, "eval/return": NaN}\n')
    figure = tmp_path / "figure.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # texts as texts
        assert compare.main([str(flat), str(two), "--out", str(figure)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "episode/return, mean over the last quarter"
    assert [line.split()[-4] for line in output.out.splitlines()[2:4]] == ["30", "50"]
    assert "no run has eval/return; episode/return, of training episodes, is compared instead" in output.err
    assert ">episode/return<" in figure.read_text() and "eval/return" not in figure.read_text()


@pytest.mark.parametrize("flags", [[], ["--metric", "eval/return"]])
def test_where_some_runs_have_evaluations_or_they_are_asked_for_nothing_else_is_compared(flags, tmp_path, capsys):
    write_run(tmp_path / "training", {1000: 10.0}, metric="episode/return")
    if not flags:
        write_run(tmp_path / "evaluated", {1000: 20.0})
    assert compare.main([str(tmp_path), *flags, "--out", str(tmp_path / "figure.png")]) == (2 if flags else 0)
    output = capsys.readouterr()
    if flags:
        assert "'eval/return'" in output.err and not output.out
    else:
        assert output.out.startswith("eval/return, mean") and f"left out, without eval/return yet: {tmp_path / 'training'}" in output.err


def test_the_command_draws_figures_and_prints_final_values(tmp_path, capsys):
    write_run(tmp_path / "a", {1000: 0.0, 2000: 10.0, 3000: 20.0, 4000: 40.0}, seed=0)
    write_run(tmp_path / "b", {1000: 0.0, 2000: 10.0, 3000: 20.0, 4000: 60.0}, seed=1)
    write_run(tmp_path / "c", {1000: 0.0, 2000: 8.0}, ("hdreamer",), seed=7)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 1')
    old = tmp_path / "old"
    old.mkdir()
    (old / "metrics.jsonl").write_text('{"step": 1000, "eval_return": 5.0}\n')
    figures = [tmp_path / "figure.png", tmp_path / "figure.svg"]
    assert (
        compare.main(
            [
                str(tmp_path / "new"),
                f"reference={old}",
                *map(str, (tmp_path / "a", tmp_path / "b", tmp_path / "c")),
                "--task",
                "gym_CartPole-v1",
                "--out",
                *map(str, figures),
            ]
        )
        == 0
    )
    output = capsys.readouterr()
    rows = [line.split() for line in output.out.splitlines()]
    assert ["gym_CartPole-v1", "flat", "2", "0", "1", "50", "40", "60", "4,000"] in rows
    assert ["gym_CartPole-v1", "two", "levels", "1", "7", "8", "8", "8", "2,000"] in rows
    assert ["gym_CartPole-v1", "reference", "1", "?", "5", "5", "5", "1,000"] in rows
    assert output.err == f"warning: left out, without eval/return yet: {tmp_path / 'new'}\n"
    with Image.open(figures[0]) as image:
        assert min(image.size) > 300
    assert "<svg" in figures[1].read_text()


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["missing"], "no folder 'missing'"),
        (["label=missing"], "no folder 'missing'"),
        (["empty"], "holds no run"),
        (["run", "--metric", "eval/retrun"], "did you mean 'eval/return'"),
        (["run", "--out", "figure.xyz"], "written as .png, .svg"),
        (["run", "--out", "nowhere/figure.png"], "No such file"),
        (["run", "--by", "sed"], "did you mean 'seed'"),
        (["nonsense"], "no metrics yet"),
        (["damaged"], "config.yaml is damaged"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(flags, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(pathlib.Path("run"), {1000: 1.0})
    write_run(pathlib.Path("damaged"), {1000: 1.0})
    pathlib.Path("damaged/config.yaml").write_text("{")
    for name, text in (("empty", None), ("nonsense", "what is this\n")):
        pathlib.Path(name).mkdir()
        if text:
            pathlib.Path(name, "metrics.jsonl").write_text(text)
    try:
        code = compare.main(flags)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err.splitlines()
    assert code == 2 and expected in error[-1] and "Traceback" not in error
