"""What a person sees: the real command in a process of its own, in a pipe and in terminals."""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import zipfile

import pytest
import torch
from PIL import Image

import checkpoints
import dreamer
import settings
from settings import help

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
CARTPOLE = ["--configs", "defaults", "debug", "--task", "gym_CartPole-v1", "--device", "cpu", "--steps", "200", "--eval_every", "100"]


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "dreamer.py"), *flags]


def run(*flags: str, code: int = 0, **settings) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*flags), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **settings)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def error_of(*flags: str, **settings) -> str:
    """The single line on stderr with which the command refuses."""
    result = run(*flags, code=2, **settings)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A short hierarchical Pong run, started in a pipe: its folder and what it printed."""
    logdir = tmp_path_factory.mktemp("run") / "pong"
    flags = "--configs defaults debug hdreamer --task atari_pong --device cpu --steps 600 --eval_every 400 --debug_hierarchical true"
    result = run(*flags.split(), "--logdir", str(logdir))
    return logdir, result.stdout


# Settings


def test_help_lists_every_setting_with_its_default_and_comment():
    text = run("--help", env={**os.environ, "COLUMNS": "80"}).stdout
    assert max(len(line) for line in text.split("usage:")[1].splitlines()) <= 80
    words = " ".join(text.split())
    for setting in help.describe():
        assert f"--{setting.name} " in text and setting.comment in words, setting
    for group in ("Run", "Environment", "Replay", "Latent dynamics", "Networks", "Behavior", "Suite atari", "Presets"):
        assert re.search(rf"^{group}$", text, re.MULTILINE)
    assert "--train_ratio 512.0" in text and "--encoder.cnn_depth 32" in text


def test_the_command_of_the_older_programs_readme_is_accepted(tmp_path):
    # With a dm_control that cannot be imported: everything up to the environment is accepted, and the way out is named.
    (tmp_path / "dm_control.py").write_text("raise ModuleNotFoundError(\"No module named 'dm_control'\")")
    error = error_of(
        "--configs",
        "dmc_vision",
        "--task",
        "dmc_walker_walk",
        "--logdir",
        str(tmp_path / "logdir/dmc_walker_walk"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "dm_control" in error and "pip install -r requirements/dmc.txt" in error
    assert not (tmp_path / "logdir").exists()


def test_old_names_get_a_note_and_the_resolved_settings_are_stored(tmp_path):
    result = run(*CARTPOLE, "--steps", "1e2", "--parallel", "True", "--value.layers", "1", "--precision", "16", "--logdir", str(tmp_path))
    assert "note: parallel is ignored" in result.stderr and "note: value.layers is called critic.layers here" in result.stderr
    assert "bf16" in result.stderr
    stored = settings.read_yaml(tmp_path / "config.yaml")
    assert (stored["steps"], stored["critic"]["layers"], stored["precision"]) == (100, 1, "bf16")
    assert re.search(r"critic.layers +2 -> 1\n", result.stdout) and re.search(r"precision +32 -> bf16\n", result.stdout)
    assert "dyn_rec_depth" not in result.stdout  # a default


def test_flags_without_effect_are_named_in_one_warning_and_not_when_the_agent_is_loaded(tmp_path, capsys):
    flags = ["--dyn_stoch_top", "4", "--dyn_discrete_top", "4", "--eval_every", "0"]
    lines = run(*CARTPOLE, *flags, "--logdir", str(tmp_path)).stderr.splitlines()
    warning = "warning: without effect: dyn_discrete_top, dyn_stoch_top, since hierarchical_mode is false"
    assert [line for line in lines if "without effect" in line] == [warning]
    dreamer.load_agent(tmp_path, device="cpu")
    assert "without effect" not in "".join(capsys.readouterr())


# Resume


def test_a_continued_run_refuses_other_sizes_and_records_other_rates(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path))
    before = (tmp_path / "config.yaml").read_text()
    error = error_of(*CARTPOLE, "--logdir", str(tmp_path), "--dyn_deter", "24", "--hierarchical_mode", "true")
    assert "dyn_deter 16 -> 24" in error and "hierarchical_mode false -> true" in error
    assert (tmp_path / "config.yaml").read_text() == before
    assert "task gym_CartPole-v1 -> gym_Pendulum-v1" in error_of(*CARTPOLE, "--logdir", str(tmp_path), "--task", "gym_Pendulum-v1")

    output = run(*CARTPOLE, "--logdir", str(tmp_path), "--steps", "300", "--train_ratio", "2").stdout
    assert "Resuming at frame 200" in output and re.search(r"train_ratio +4.0 -> 2.0\n", output)
    changes = [json.loads(line) for line in (tmp_path / "config_changes.jsonl").read_text().splitlines()]
    assert [(change["step"], change["setting"], change["from"], change["to"]) for change in changes] == [
        (200, "steps", "200", "300"),
        (200, "train_ratio", "4.0", "2.0"),
    ]
    assert settings.read_yaml(tmp_path / "config.yaml")["train_ratio"] == 2.0


# What people see


def test_a_pipe_gets_a_summary_and_plain_lines(finished):
    logdir, output = finished
    assert "\r" not in output and "\x1b" not in output
    modules = r"(encoder|dynamics|decoder|reward|cont|actor|critic|slow critic) ([\d,]+\d)"
    counts = {name: int(number.replace(",", "")) for name, number in re.findall(modules, " ".join(output.split()))}
    total = int(re.search(r"parameters +([\d,]+):", output)[1].replace(",", ""))
    tensors = checkpoints.load(logdir / "latest.pt")["agent_state_dict"]
    assert sum(counts.values()) == total == sum(tensor.numel() for tensor in tensors.values()) - 2  # without the range of returns
    assert counts["dynamics"] == sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("_wm.dynamics"))
    assert re.search(r"device +cpu \(\d+ threads?\), precision 32\n", output)
    assert re.search(r"replay +[\d,]+ steps, [\d,]+ bytes", output) and "1 to train, 2 to evaluate" in output
    for line in (
        "prefill: 50 of 50 steps in",
        "pretrain: 2 of 2 updates in",
        "train: 600 of 600 frames in",
        "evaluate: 2 of 2 episodes in",
    ):
        assert line in output
    line = re.search(r"^frame 600 \| .*$", output, re.MULTILINE)[0]
    assert re.search(
        r"\| return -\d.* length 100 \| loss image [\d,]+ reward [\d.]+ cont .* \| \d.* frames/s \d.* updates/s \d+ updates$", line
    )
    assert "Finished at frame 600" in output


def test_metrics_videos_and_latent_statistics_are_written(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logdir, output = finished
    events = EventAccumulator(str(logdir), size_guidance={"images": 0})
    events.Reload()
    names = [
        f"train/{name}_{level}"
        for level in ("top", "bottom")
        for name in ("kl", "prior_entropy", "post_entropy", "perplexity", "active", "delta")
    ]
    assert set(names) | {"eval/return", "episode/length", "train/image_loss", "time/fps"} <= set(events.Tags()["scalars"])
    assert "openl_image" in events.Tags()["images"]
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert any(set(names) <= line.keys() for line in lines)
    assert re.search(r"^    top latents: kl .* perplexity .* delta ", output, re.MULTILINE)
    path, _ = sorted((logdir / "videos").glob("openl_*.gif"))  # at 400 frames, and at the end
    with Image.open(path) as video:
        assert video.n_frames == 12 and video.size == (2 * 64, 4 * 64)  # truth, model, error, top alone


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_gets_bars_with_rate_and_time_left_that_fit_its_width(tmp_path, columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command(*CARTPOLE, "--prefill", "100", "--logdir", str(tmp_path)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)
    chunks, deadline = [], time.monotonic() + 200
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 1.0)[0]:
            try:
                chunks.append(os.read(ours, 65536))
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.wait(30) == 0
    screen = b"".join(chunks).decode()
    for phase, unit in (("prefill", "steps"), ("pretrain", "updates"), ("train", "frames"), ("evaluate", "episodes")):
        assert re.search(rf"{phase}: +\d+%\|.*\[[\d:]+<[\d:?]+, .*{unit}", screen), phase
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen).replace("\r", "\n").splitlines()
    own = [line for line in lines if not line.startswith("    python dreamer.py")]  # to copy, so in one piece
    assert max(len(line) for line in own if not line.startswith("  run")) <= columns
    assert any(re.match(r"frame \d+ \| ", line) for line in lines)


# Device and precision


def test_a_deterministic_run_repeats_and_a_compiled_one_stores_the_same_names(tmp_path):
    results = {}
    repeating = ["--deterministic_run", "true"]
    for name, flags in {"a": repeating, "b": repeating, "compiled": ["--compile", "true"]}.items():
        output = run(*CARTPOLE, "--task", "gym_Pendulum-v1", "--eval_every", "0", *flags, "--logdir", str(tmp_path / name)).stdout
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        results[name] = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
    assert "compiled" in output
    assert results["a"] == results["b"] and any("train/model_loss" in line for line in results["a"])
    states = {name: checkpoints.load(tmp_path / name / "latest.pt")["agent_state_dict"] for name in results}
    assert states["compiled"].keys() == states["a"].keys()
    for name, tensor in states["a"].items():
        torch.testing.assert_close(states["compiled"][name], tensor, atol=1e-4, rtol=1e-3)


# Stopping


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    # One update takes far longer than the time that is allowed here.
    process = subprocess.Popen(
        command(
            *CARTPOLE,
            "--steps",
            "100000",
            "--prefill",
            "200",
            "--batch_size",
            "4000",
            "--batch_length",
            "64",
            "--train_ratio",
            "1e6",
            "--logdir",
            str(tmp_path),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for awaited, pause in (("pretrain", 2.0), ("Stopping after this update", 1.0)):
        assert any(line.startswith(awaited) for line in process.stdout)  # reads on until then
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Stopped at once" in rest and "Traceback" not in rest


@pytest.mark.parametrize("reader", [["true"], ["head", "-n", "40"]], ids=" ".join)
def test_a_reader_that_goes_away_takes_nothing_with_it(tmp_path, reader):
    process = subprocess.Popen(command(*CARTPOLE, "--logdir", str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    subprocess.run(reader, stdin=process.stdout, stdout=subprocess.DEVNULL, check=True)
    process.stdout.close()
    assert process.wait(120) == 0
    assert checkpoints.load(tmp_path / "latest.pt")["step"] == 200


# Bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--encoder.cnn_dept", "4"], ["'encoder.cnn_dept'", "did you mean 'encoder.cnn_depth'"]),
        (["--config", "hdreamer"], ["'config'", "did you mean 'configs'"]),
        (["--configs", "hdreame"], ["'hdreame'", "did you mean 'hdreamer'"]),
        (["--task", "atri_pong"], ["'atri'", "did you mean 'atari'"]),
        (["--task", "atari_pog"], ["atari_pog", "did you mean 'atari_pong'"]),
        (["--steps", "many"], ["'steps' is 'many'", "type int", "1000000"]),
        (["--batch_length", "1"], ["'batch_length' is 1", "at least 2"]),
        (["--size", "64", "60"], ["[64, 60]", "multiples of 16"]),
        (["--device", "cuda:7"], ["cuda:7", "--device auto"]),
        (["--device", "gpu"], ["'gpu'", "auto, cpu, cuda"]),
        (["--configs", "debug", "--logdir", "/dev/null/run"], ["/dev/null", "--logdir"]),
        (["--task", "gym_NoSuchThing-v0"], ["NoSuchThing"]),
        (["--task", "gym_LunarLander-v3"], ["LunarLander", "pip install"]),
        (["--dataset_size", "1e11", "--steps", "1e11"], ["replay memory", "set dataset_size to at most"]),
        (["--configs", "minecraft"], ["minecraft_diamond", "--task gym_<id>"]),
        (["--logdir", "my", "run"], ["'logdir'", "one name"]),
        (["--encoder.mlp_keys", "(", "--task", "gym_CartPole-v1"], ["'encoder.mlp_keys' is '('", "regular expression"]),
        (["--act", "Threshold"], ["Threshold", "SiLU"]),
        (["--decoder.vector_dist", "onehot"], ["onehot", "symlog_mse, mse, normal, binary"]),
        (["--seed", "1e10"], ["'seed'", "at most 2147483647"]),
        (["--configs", "debug", "--dyn_deter", "100000000"], ["allocate"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_bad_input_is_answered_in_one_line_with_the_way_out(tmp_path, flags, words):
    missing, folder = tmp_path / "missing", tmp_path / "folder"
    missing.mkdir()
    folder.mkdir()
    (missing / "Box2D.py").write_text("raise ModuleNotFoundError(\"No module named 'Box2D'\")")
    error = error_of(
        *flags, *([] if "--device" in flags else ["--device", "cpu"]), cwd=folder, env={**os.environ, "PYTHONPATH": str(missing)}
    )
    assert all(word in error for word in words), error
    assert not list(folder.iterdir())  # nothing was written


ENVIRONMENTS = """
import gymnasium
from gymnasium import spaces

class Text(gymnasium.Env):
    observation_space, action_space = spaces.Text(5), spaces.Discrete(2)

class IntegerActions(gymnasium.Env):
    observation_space, action_space = spaces.Box(0.0, 1.0, (3,)), spaces.Sequence(spaces.Discrete(2))

gymnasium.register("Text-v0", Text)
gymnasium.register("IntegerActions-v0", IntegerActions)
"""


@pytest.mark.parametrize(
    "name, words",
    [
        ("Text-v0", ["observation", "Text(", "Box, Discrete"]),
        ("IntegerActions-v0", ["action space", "Sequence", "Discrete, MultiDiscrete"]),
    ],
)
def test_spaces_that_nothing_can_handle_are_refused(tmp_path, name, words):
    (tmp_path / "odd_environments.py").write_text(ENVIRONMENTS)
    error = error_of(
        "--configs",
        "debug",
        "--task",
        f"gym_odd_environments:{name}",
        "--logdir",
        str(tmp_path / "run"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert all(word in error for word in words), error


def test_a_damaged_episode_is_skipped_named_and_counted(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path))
    damaged, emptied, *_ = sorted((tmp_path / "train_eps").glob("*.npz"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 :] = b"x" * (len(content) - len(content) // 2)
    damaged.write_bytes(content)
    emptied.write_bytes(b"")
    result = run(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path))
    assert damaged.name in result.stderr and emptied.name in result.stderr and "skipped 2 damaged episodes" in result.stderr
    assert "Resuming at frame 200" in result.stdout


def test_a_damaged_checkpoint_is_named_with_a_command_that_brings_back_the_last_good_one(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path))
    path = tmp_path / "latest.pt"
    path.write_bytes(path.read_bytes()[:5000])
    error = error_of(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path))
    assert str(path) in error and "damaged" in error
    frame = int(re.search(r"from frame ([\d,]+)", error)[1].replace(",", ""))
    assert 100 <= frame <= 200
    subprocess.run(shlex.split(re.search(r"mv .*$", error)[0]), check=True)
    assert "Resuming at frame 200" in run(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path)).stdout
    # Wrong bytes inside a tensor, which only its checksum tells.
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        tensor = max((entry for entry in archive.infolist() if "/data/" in entry.filename), key=lambda entry: entry.file_size)
    middle = tensor.header_offset + tensor.file_size // 2  # past the entry's short header
    content[middle : middle + 200] = bytes(byte ^ 255 for byte in content[middle : middle + 200])
    path.write_bytes(content)
    assert "checksum" in error_of(*CARTPOLE, "--steps", "300", "--logdir", str(tmp_path))
    for name in ("latest.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"PK")
    assert "Move it away" in error_of(*CARTPOLE, "--steps", "300", "--logdir", str(tmp_path))


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path))
    path = tmp_path / "latest.pt"
    path.unlink()
    path.mkdir()  # cannot be opened, by root either
    error = error_of(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path))
    assert f"{path} cannot be opened: Is a directory" in error and "damaged" not in error and "mv " not in error


def test_a_checkpoint_of_other_sizes_is_refused_with_the_settings_that_differ(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path / "one"))
    other = [
        *CARTPOLE,
        "--dyn_deter",
        "24",
        "--units",
        "20",
        "--logdir",
        str(tmp_path / "other"),
        "--from_checkpoint",
        str(tmp_path / "one"),
    ]
    error = error_of(*other)
    assert "dyn_deter 24 here, 16 in the checkpoint; units 20 here, 16 in the checkpoint" in error, error
    assert error.strip().endswith("Flags that fit: --dyn_deter 16 --units 16"), error


def test_a_foreign_settings_file_and_an_incomplete_checkpoint_are_refused(tmp_path):
    run(*CARTPOLE, "--logdir", str(tmp_path))
    path = tmp_path / "latest.pt"
    checkpoint = checkpoints.load(path)
    checkpoint["random_state"] = {}
    torch.save(checkpoint, path)
    assert "incomplete" in error_of(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path))
    (tmp_path / "config.yaml").write_text("1: b")
    assert "config.yaml is damaged" in error_of(*CARTPOLE, "--steps", "250", "--logdir", str(tmp_path))


def test_debug_shows_where_an_error_came_from():
    result = subprocess.run(command("--debug", "true", "--steps", "many"), capture_output=True, text=True, timeout=100)
    assert result.returncode == 1 and "Traceback" in result.stderr and "'steps' is 'many'" in result.stderr
