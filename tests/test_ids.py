"""The pass over every registered id: what counts as trained, refused or failed, how it goes on, and its table."""

import contextlib
import json
import multiprocessing
import signal
import time
import types

import gymnasium
import pytest

import dreamer
import tools
from benchmarks import ids, suites
from envs import make_envs

FINITE = {f"train/{loss}": 0.5 for loss in suites.LOSSES}


@pytest.mark.parametrize(
    "code, errors, trained, result",
    [
        (0, "", "yes, 2 updates", ("one update", "")),
        (0, "warning: a\nnote\nwarning: b\n", "yes, 2 updates", ("one update", "warning: a; warning: b")),
        (0, "", "no: train/actor_loss is nan", ("failed", "no: train/actor_loss is nan")),
        (2, "warning: a\nerror: no such task\n", "no: nothing logged", ("refused", "no such task")),
        (2, "error: one\nerror: two\n", "", ("failed", "exit code 2: error: one error: two")),
        (2, "error: one\nTraceback of a worker\n", "", ("failed", "exit code 2: error: one Traceback of a worker")),
        (1, "error: lost\n", "yes, 2 updates", ("failed", "exit code 1: error: lost")),
        (2, "", "", ("failed", "exit code 2: ")),
    ],
)
def test_an_id_is_trained_on_refused_with_one_line_or_has_failed(code, errors, trained, result):
    assert ids.judge(code, errors, trained) == result


def command(wrong: str = "", **metrics):
    """Stands for `dreamer.main`: writes metrics into the folder of the run; `wrong` says what goes wrong."""

    def run(argv):
        if wrong == "hangs":
            while True:
                with contextlib.suppress(Exception):  # as careless environments do
                    time.sleep(0.001)
        elif wrong == "raises":
            raise ZeroDivisionError("division")
        elif wrong == "leaves a process":
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
        elif wrong == "is stopped":
            print("Summary\nStopped at frame 3, everything is saved. To resume:")
        folder = argv[argv.index("--logdir") + 1]
        ids.pathlib.Path(folder).mkdir()
        ids.pathlib.Path(folder, "metrics.jsonl").write_text(json.dumps({"step": 32, **metrics}))
        return 130 if wrong == "never began" else 0

    return run


@pytest.mark.parametrize(
    "main, result, reason",
    [
        (command(**FINITE, **{"time/updates": 1.0}), "one update", ""),
        (command(**{**FINITE, "train/value_loss": float("inf")}), "failed", "no: train/value_loss is inf"),
        (command("hangs"), "failed", "TooLong: no end after 0.05 seconds"),
        (command("raises"), "failed", "ZeroDivisionError: division"),
        (command("leaves a process", **FINITE), "failed", "1 processes of it are left"),
    ],
)
def test_an_id_that_hangs_raises_or_leaves_processes_has_failed_and_the_pass_goes_on(monkeypatch, main, result, reason):
    monkeypatch.setattr(dreamer, "main", main)
    handler = signal.getsignal(signal.SIGALRM)
    found = ids.attempt("gym_Mine-v0", limit=0.05 if "TooLong" in reason else 60.0)
    assert (found["result"], found["reason"]) == (result, reason)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is handler
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("wrong", ["is stopped", "never began"])
def test_ctrl_c_in_a_run_is_no_result_of_its_id(monkeypatch, wrong):
    monkeypatch.setattr(dreamer, "main", command(wrong, **FINITE))
    with pytest.raises(KeyboardInterrupt):
        ids.attempt("gym_Mine-v0", limit=60.0)


def test_an_id_that_ended_the_whole_program_has_failed_the_next_time(tmp_path):
    path = tmp_path / "new" / "ids.json"
    results = ids.Results(path)
    results["gym_A-v0"] = {"result": ids.TRAINED, "reason": ""}
    results["gym_B-v0"] = {"result": ids.STARTED, "reason": ""}
    results["gym_C-v0"] = {"result": ids.REFUSED, "reason": "no"}
    results["gym_D-v0"] = {"result": ids.TRAINED, "reason": ""}
    results["gym_D-v0"] = None
    results = ids.Results(path)
    tasks = [f"gym_{letter}-v0" for letter in "ABCD"]
    assert results.by_task["gym_B-v0"] == {"result": "failed", "reason": "it ended or blocked the whole program"}
    assert results.missing(tasks, None) == ["gym_D-v0"]
    assert results.missing(tasks, "failed") == ["gym_B-v0", "gym_D-v0"]
    assert results.missing(tasks, "all") == tasks


def test_every_registered_id_has_its_suite_and_its_row(monkeypatch):
    spec = lambda entry_point, vector=None: types.SimpleNamespace(entry_point=entry_point, vector_entry_point=vector)
    registry = {
        "CartPole-v1": spec("gymnasium.envs.classic_control.cartpole:CartPoleEnv"),
        "phys2d/CartPole-v1": spec("gymnasium.envs.phys2d:CartPole"),
        "VectorOnly-v0": spec(None, "gymnasium.envs.tabular:Many"),
        "MiniGrid-Empty-5x5-v0": spec("minigrid.envs:EmptyEnv"),
        "BabyAI-GoTo-v0": spec("minigrid.envs.babyai:GoTo"),
        "popgym-RepeatFirstEasy-v0": spec("popgym.envs:RepeatFirst"),
        "ALE/Pong-v5": spec("ale_py.env:AtariEnv"),
    }
    monkeypatch.setattr(gymnasium, "registry", registry)
    monkeypatch.setattr(ids.importlib, "import_module", lambda name: None)
    assert ids.registered() == {
        "gym_CartPole-v1": "gymnasium: classic_control",
        "gym_phys2d/CartPole-v1": "gymnasium: phys2d",
        "gym_VectorOnly-v0": "gymnasium: tabular",
        "minigrid_Empty-5x5-v0": "MiniGrid",
        "minigrid_BabyAI-GoTo-v0": "BabyAI",
        "popgym_RepeatFirstEasy": "POPGym",
    }


def test_the_table_has_one_row_per_family_and_groups_ids_by_reason():
    families = {f"gym_{name}": "a" for name in ("One", "Two", "Three", "Four", "Five", "Six")} | {"minigrid_Seven": "b"}
    missing = lambda name: {"result": "refused", "reason": f"cannot make '{name}': no module x|y (/home/a/{name}.py, line 3)"}
    results = {
        "gym_One": {"result": "one update", "reason": "warning: values"},
        **{f"gym_{name}": missing(name) for name in ("Two", "Three", "Four", "Five")},
        "gym_Six": {"result": "failed", "reason": "TooLong"},
    }
    groups = "Two, Three, Four and 1 more: refused: cannot make 'ID': no module x/y; Six: failed: TooLong"
    assert ids.rows(families, results) == [["a", "6", "1", "4", "1", groups], ["b", "1", "0", "0", "0", "Seven: not tried"]]


@pytest.fixture
def three(monkeypatch, tmp_path):
    """Three ids, of which the second fails, and the flags of a pass over them; `tried` lists what was tried."""
    tried, page = [], tmp_path / "page.md"
    page.write_text(f"Before.\n{ids.BEGIN}\nold\n{suites.END}\nAfter.\n")

    def attempt(task, limit):
        tried.append(task)
        return {"result": ids.FAILED if task == "gym_Two" else ids.TRAINED, "reason": "", "seconds": 1.0}

    monkeypatch.setattr(ids, "registered", lambda: dict.fromkeys(("gym_One", "gym_Two", "gym_Three"), "family"))
    monkeypatch.setattr(ids, "attempt", attempt)
    return types.SimpleNamespace(tried=tried, page=page, flags=["--results", str(tmp_path / "ids.json"), "--page", str(page)])


def test_a_pass_goes_on_with_the_ids_that_have_no_result_and_then_writes_its_table(three, capsys):
    before = three.page.read_text()
    assert ids.main(["One", "Th", *three.flags]) == 0
    assert three.tried == ["gym_One", "gym_Three"] and three.page.read_text() == before  # the table is not complete
    assert ids.main(three.flags) == 1
    assert three.tried == ["gym_One", "gym_Three", "gym_Two"]
    lines = three.page.read_text().splitlines()
    assert lines[:2] == ["Before.", ids.BEGIN] and lines[-2:] == [suites.END, "After."]
    assert lines[4] == "| family | 3 | 2 | 0 | 1 | Two: failed |" and "torch" in lines[6] and "old" not in lines
    assert ids.main(["--again", "failed", *three.flags]) == 1
    assert three.tried[3:] == ["gym_Two"]
    capsys.readouterr()
    assert ids.main(["--list", "T", *three.flags]) == 1
    assert capsys.readouterr().out.startswith("gym_Two: failed\ngym_Three: one update\n| ids |") and len(three.tried) == 4


def test_a_pass_that_is_stopped_tries_the_same_id_again(three, monkeypatch, capsys):
    def stopped(task, limit):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ids, "attempt", stopped)
        assert ids.main(three.flags) == 130
    assert capsys.readouterr().err == "Stopped; the same command goes on.\n"
    ids.main(three.flags)
    assert three.tried == ["gym_One", "gym_Two", "gym_Three"]


def test_a_pass_without_the_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(ids.sys.modules, "popgym", None)
    monkeypatch.setitem(ids.sys.modules, "minigrid", None)
    with pytest.raises(SystemExit):
        ids.main([])
    assert "pip install -r requirements/minigrid.txt -r requirements/popgym.txt" in capsys.readouterr().err


def test_the_page_of_environments_has_a_place_for_the_table_of_ids():
    before, table, after = suites.around(suites.PAGE.read_text(), ids.BEGIN)
    assert suites.BEGIN in before and table.startswith(f"\n| {' | '.join(ids.COLUMNS)} |\n") and "## Atari" in after


def test_a_level_that_the_package_cannot_generate_is_refused_without_another_name():
    pytest.importorskip("minigrid")
    config = tools.load_config([], {"task": "minigrid_WFC-MazeSimple-v0"})
    with pytest.raises(ValueError, match="task 'minigrid_WFC-MazeSimple-v0' is not supported: the package minigrid lacks the patterns"):
        make_envs(config, 1, training=True)


@pytest.mark.slow
def test_an_update_is_logged_for_an_id_and_an_unknown_one_is_refused():
    assert ids.attempt("gym_CartPole-v1", 300.0)["result"] == "one update"
    found = ids.attempt("gym_CartPoleX-v1", 300.0)
    assert found["result"] == "refused" and "CartPoleX" in found["reason"]
