"""Files from strangers: archives that announce or unpack to far too much, names that lead elsewhere, and mutated ones of all kinds."""

import collections
import io
import pathlib
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch

import checkpoints
import dreamer
import evaluate
import latent_report
import record
import settings
from benchmarks.reliability import fuzz, mutations
from envs.spaces import space_of
from old_files import DATA, Payload
from pages import curves
from storage import archives
from storage.episodes import load_episode, save_episode
from test_replay import episode, make
from training import folder, logs, offline, writers

pytestmark = pytest.mark.slow

REPLAY_NAME = "20260101T000000-x-9.npz"


def npz(path: pathlib.Path, entries: list[tuple[str, bytes]]) -> pathlib.Path:
    path.write_bytes(mutations.packed(entries, zipfile.ZIP_DEFLATED))
    return path


def array(value, **kwargs) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(value), **kwargs)
    return buffer.getvalue()


def good_entries() -> list[tuple[str, bytes]]:
    return [(f"{key}.npy", array(value)) for key, value in episode(0, 9).items()]


def bomb(path: pathlib.Path) -> pathlib.Path:
    """6 GB of zeros in 6 MB."""
    head = mutations._npy_head((3 * 2**30 - 128,), "|u1")
    path.write_bytes(mutations.bomb(["reward.npy", "action.npy"], head, 3 * 2**30))
    assert path.stat().st_size < 10e6
    return path


def harmful_episodes(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Episodes that must not be read, by what their refusal says."""
    entries = good_entries()
    objects = array(np.array([Payload(folder / "attacked")] * 9, object), allow_pickle=True)  # written, to be refused
    return {
        "would unpack to": bomb(folder / "bomb.npz"),
        "more than once": npz(folder / "double.npz", [*entries, ("reward.npy", entries[0][1])]),
        "none of an array": npz(folder / "trick.npz", [*entries, ("../../escaped.npy", entries[0][1])]),
        "could run code": npz(folder / "objects.npz", [*entries, ("log_x.npy", objects)]),
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_harmful_episodes_are_skipped_in_a_runs_own_folder_and_an_error_in_one_that_was_given(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    config = settings.load_config(["debug"], {"task": "gym_X-v0"})
    for number, (words, harmful) in enumerate(harmful_episodes(tmp_path / "source").items()):
        folder = tmp_path / str(number)
        save_episode(folder, episode(5, 9))
        harmful.rename(folder / REPLAY_NAME)
        before = fuzz.peak_bytes()
        assert make().load(folder) == 8
        told = capsys.readouterr().err
        assert words in told and REPLAY_NAME in told and "skipped 1 damaged episode, loaded 1" in told
        with pytest.raises(ValueError, match=f"offline_traindir.*{REPLAY_NAME}.*{words}.*move that file away"):
            offline.survey("offline_traindir", str(folder), None, "", config)
        assert fuzz.peak_bytes() - before < 50e6
    assert not any(tmp_path.rglob("attacked")) and not any(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    "shape, dtype, words",
    [
        ((10**12,), "<f4", "announces"),
        ((2**40, 2**40), "|u1", "announces"),
        ((-3, -3), "|u1", "length|announces"),
        ((9, 10**9), "<U100", "announces"),
    ],
)
def test_a_header_that_announces_more_than_there_is_is_refused_unread(shape, dtype, words, tmp_path):
    head = mutations._npy_head(shape, dtype)
    path = npz(tmp_path / "x.npz", [*good_entries(), ("log_x.npy", head + bytes(9))])
    with pytest.raises(ValueError, match=words):
        load_episode(path)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("reward", np.array(["a"] * 9), "reward is <U1"),
        ("reward", np.zeros((9, 1), np.float32), "reward has shape"),
        ("vector", np.zeros(9, np.float32), "vector has shape"),
        ("action", np.zeros((9, 2), np.complex64), "action is complex64"),
        ("vector", np.zeros((0, 1), np.float32), "differ in length"),
    ],
)
def test_an_episode_of_other_arrays_is_skipped_and_the_memory_keeps_what_it_has(key, value, words, tmp_path, capsys):
    np.savez(tmp_path / REPLAY_NAME, **{**episode(0, 9), key: value})
    memory = make()
    assert memory.load(tmp_path) == 0 and len(memory) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_numbers_that_nothing_can_be_learned_from_are_refused(value, tmp_path):
    np.savez(tmp_path / REPLAY_NAME, **{**episode(0, 9), "vector": np.full((9, 1), value)})
    with pytest.raises(ValueError, match="vector has NaN, infinite values, or numbers beyond 1e"):
        offline.survey("offline_traindir", str(tmp_path), None, "", settings.load_config(["debug"], {"task": "gym_X-v0"}))


# Checkpoints


def saved(tree) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def entries_of(**more) -> dict:
    return {"agent_state_dict": {}, "optims_state_dict": {}, **more}


def harmful_checkpoints(folder: pathlib.Path) -> dict[str, bytes]:
    """Checkpoints that must not be read, by what their refusal says."""
    in_itself, attributes = {}, collections.OrderedDict()
    in_itself["x"] = in_itself
    attributes.get = 3
    calling = mutations.members(saved(entries_of()))
    pickle_of_30_gigabytes = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 * 10**10).to_bytes(5, "little") + b"\x85R."
    calling = [(name, pickle_of_30_gigabytes if name.endswith(".pkl") else content) for name, content in calling.items()]
    return {
        r"more than tensors.*\(posix mkdir\)": saved(entries_of(x=Payload(folder / "attacked"))),
        r"more than tensors.*\(builtins bytearray\)": mutations.packed(calling),
        "would unpack to 6,": mutations.bomb(["a/data.pkl", "a/data/0"], b"", 3 * 2**30),
        "hold each other": saved(entries_of(x=mutations.doubled(40))),
        "each other too often or too deeply": saved(entries_of(x=in_itself)),
        "attributes of its own": saved(entries_of(x=attributes)),
        "without as many numbers": saved(entries_of(x=torch.zeros(1).expand(10**12))),
        "a name of more than": saved(entries_of(x={"y" * 400: 1})),
        "no archive as torch.save": struct.pack("<q", -1) * 100,
    }


def test_harmful_checkpoints_are_refused_with_the_reason_and_little_memory(tmp_path):
    for words, content in harmful_checkpoints(tmp_path).items():
        path, before = tmp_path / "latest.pt", fuzz.peak_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            checkpoints.load(path)
        assert fuzz.peak_bytes() - before < 50e6, words
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("path", sorted(DATA.glob("*/latest.pt")), ids=lambda path: path.parent.name)
def test_nothing_is_harmful_in_real_checkpoints(path):
    archives.check_checkpoint(path)
    archives.check_values(torch.load(path, weights_only=True))


@pytest.mark.parametrize("name, value", [("dyn_deter", 10**7), ("units", 10**6), ("actor.layers", 10**9), ("disag_models", 10**8)])
def test_settings_of_an_agent_far_larger_than_its_weights_are_refused_before_it_is_built(name, value, trained, tmp_path):
    checkpoint = checkpoints.load(trained.logdir / "latest.pt")
    *sections, key = name.split(".")
    place = checkpoint["config"]
    for section in sections:
        place = place[section]
    place[key] = value
    checkpoint["config"]["expl_behavior"] = "plan2explore" if name.startswith("disag") else "greedy"
    torch.save(checkpoint, tmp_path / "latest.pt")
    before = fuzz.peak_bytes()
    with pytest.raises(ValueError, match="mean an agent of [0-9,]+ numbers|at most 1000"):
        dreamer.load_agent(tmp_path, "cpu")
    assert fuzz.peak_bytes() - before < 100e6


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "Box", "low": 0, "high": 1, "shape": [10**10], "dtype": "float32"},
        {"kind": "Box", "low": 0, "high": 1, "shape": [3], "dtype": "O"},
        {"kind": "MultiBinary", "n": [10**5, 10**5]},
        {"kind": "OneHot", "classes": [10**10]},
        {"kind": "OneHot", "classes": [2, -1]},
    ],
    ids=lambda description: str(description["kind"]),
)
def test_spaces_that_no_environment_has_are_refused(description):
    with pytest.raises(ValueError, match="describes no space"):
        space_of(description)


def test_a_checkpoint_does_not_decide_what_is_imported(trained, tmp_path):
    checkpoint = checkpoints.load(trained.logdir / "latest.pt")
    del checkpoint["spaces"]
    checkpoint["config"] = settings.plain(settings.load_config(["debug"], {"task": "gym_some_module:Own-v0"}))
    torch.save(checkpoint, tmp_path / "latest.pt")
    with pytest.raises(ValueError, match="some_module would be imported"):
        dreamer.load_agent(tmp_path, "cpu")


@pytest.mark.parametrize("changed", [{"import": "not_mine"}, {"task": "gym_not_mine:Own-v0"}], ids=str)
@pytest.mark.parametrize(
    "main, flags",
    [(evaluate.main, ["--logdir"]), (latent_report.main, []), (record.main, ["--out", "recorded", "--episodes", "1", "--logdir"])],
    ids=["evaluate", "latent_report", "record"],
)
def test_no_command_imports_what_only_a_file_names(main, flags, changed, trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "not_mine.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoints.load(trained.logdir / "latest.pt")
    known = settings.plain(settings.load_config(["debug"], {"task": "gym_CartPole-v1"}))  # without the settings of other suites
    checkpoint["config"] = {**known, **{key: value for key, value in checkpoint["config"].items() if key in known}}
    checkpoint["config"] |= {"task": "gym_CartPole-v1", **changed}
    torch.save(checkpoint, tmp_path / "latest.pt")
    assert main([*flags, str(tmp_path)]) == 2
    assert "is in the module not_mine, and a file does not decide what is imported" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()
    main([*flags, str(tmp_path), "--import", "not_mine"])
    assert (tmp_path / "imported").exists()
    sys.modules.pop("not_mine")


# Settings and names


@pytest.mark.parametrize(
    "text",
    [
        "task: x\na0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)),
        "task: &t [*t]",
        "task: x\nunits: " + "[" * 50_000,
        "task: x\nunits: " + "{a: " * 5000,
        "task: x\nunits: !!python/object/apply:os.mkdir [attacked]",
        "task: x\nunits: " + "9" * 5000,
        "task: x\nunits: 2001-99-99",
        "task: x\nunits: 0x" + "f" * 1000,
        "task: x\nunits: !!set {a}",
        "task: x\nencoder: {1: 2}",
        "task: x\nx: " + "y" * 10**6,
        "\x00",
    ],
    ids=lambda text: text[:40],
)
def test_settings_that_are_none_are_refused_in_one_line(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml is damaged \(.*\); repair or delete it") as error:
        settings.read_yaml(tmp_path / "config.yaml")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize("name", mutations.TRICKS)
def test_a_name_stays_in_the_folder_of_its_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = logs.Logger(tmp_path).video(f"openl_{name}", np.zeros((2, 8, 8, 3)), 3)
    assert path.is_file() and path.parent == tmp_path / "videos"
    logdir = folder.new_logdir(f"gym_{name}")
    assert logdir.is_dir() and logdir.resolve().parent == tmp_path / "logdir"


def test_the_id_of_a_run_elsewhere_is_no_path(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "import_wandb", lambda project: None)
    (tmp_path / "wandb_id.txt").write_text("../../escaped")
    with pytest.raises(ValueError, match="no id of a run"):
        writers.WandB("mine", tmp_path, settings.load_config())


def test_metrics_nested_without_end_are_lines_that_cannot_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n' + "[" * 200_000 + "\n")
    read, damaged = curves.read(tmp_path)
    assert damaged == 1 and list(read) == ["a"]


def test_names_of_observations_with_slashes_are_fine_in_episodes(tmp_path):
    # Nested observations are named so.
    path = save_episode(tmp_path, {**episode(0, 3), "camera/left": np.zeros((3, 2), np.float32)})
    assert "camera/left" in load_episode(path) and make().load(tmp_path) == 2


def test_mutated_files_load_or_are_refused_in_one_line(tmp_path):
    counts = fuzz.run(99, tmp_path, seed=1, deep_every=33)
    for kind, outcomes in counts.items():
        assert set(outcomes) <= {"loaded", "refused"}, (kind, outcomes)
        assert outcomes["refused"] > 20
