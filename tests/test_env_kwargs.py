"""Settings that are dicts, and settings of evaluation environments, without any environment."""

import io
import pathlib
import signal
import threading

import gymnasium
import pytest
from ruamel.yaml import YAML

import dreamer
import record
import settings
from envs import EnvBatch, _adapted, processes
from settings.files import load_yaml, show
from training.stop import StopSignal

KWARGS = {
    "map_name": "8x8",
    "is_slippery": False,
    "size": 3,
    "rate": 0.5,
    "word": "true",
    "none": None,
    "levels": [1, 2],
    "inner": {"a": "1"},
}


def load(words: str | list[str] = (), task: str = "gym_FrozenLake-v1", **overrides) -> settings.Config:
    presets, flags = settings.parse_flags(words.split() if isinstance(words, str) else list(words))
    return settings.load_config(presets, {"task": task, **flags, **overrides})


@pytest.mark.parametrize(
    "words",
    [
        ["--env_kwargs", '{map_name: 8x8, size: 3, word: "true"}'],
        ["--env_kwargs={map_name: 8x8, size: 3, word: 'true'}"],
        ["--env_kwargs", '{"map_name": "8x8", "size": 3, "word": "true"}'],
        ["--env_kwargs", "{map_name:", "8x8,", "size:", "3,", "word:", '"true"}'],
        ["--env_kwargs", 'map_name: 8x8\nsize: 3\nword: "true"'],
    ],
)
def test_a_dict_on_the_command_line_is_read_as_yaml(words):
    config = load(words)
    assert config.env_kwargs == {"map_name": "8x8", "size": 3, "word": "true"} and type(config.env_kwargs) is dict
    assert config.was_given("env_kwargs") and config.eval_env_kwargs == {}


def test_a_dict_stays_as_it_is_in_files_in_memory_and_as_text():
    config, file = load(env_kwargs=KWARGS), io.BytesIO()
    settings.write_yaml(config, file)
    stored = load_yaml(file.getvalue().decode())
    assert stored["env_kwargs"] == KWARGS and settings.holds_settings(stored)
    assert settings.load_config(stored=stored).env_kwargs == KWARGS
    assert settings.flatten(config)["env_kwargs"] == KWARGS == load(["--env_kwargs", show(KWARGS)]).env_kwargs
    config.env_kwargs = "{size: 4}"
    assert config.env_kwargs == {"size": 4} and stored["env_kwargs"] == KWARGS


@pytest.mark.parametrize(
    "words, message",
    [
        ("--env_kwargs 8x8", "setting 'env_kwargs' is '8x8'; it must be a dict .* such as --env_kwargs '{map_name: 8x8}'"),
        ("--eval_env_kwargs null", "setting 'eval_env_kwargs' is 'null'; it must be a dict"),
        ("--env_kwargs {1: 2}", "must be a dict of names"),
        ("--env_kwargs {a: [{b: 1}]}", "must be a dict of names"),
        ("--env_kwargs {a: 1", "must be a dict of names"),
        ("--env_kwargs {a: no}", "has the word no, which may mean a text or false; write false, or quote it .* '{name: \"no\"}'"),
        ("--env_kwargs {a: [1, Off]}", "the word Off, which may mean a text or false"),
        ("--eval_env_kwargs {a: {b: YES}}", "'eval_env_kwargs' has the word YES, which may mean a text or true; write true"),
        ("--env_kwargs {on: 1}", "the word on, which may mean a text or true"),
        ("--env_kwargs {a: None}", "the word None, which may mean a text or null; write null"),
        ("--env_kwargs.map_name 8x8", "'env_kwargs.map_name': env_kwargs is one dict: --env_kwargs '{map_name: 8x8}'"),
        ("--task atari_pong --env_kwargs {}", "unknown setting 'env_kwargs'.*it is a setting of the gym suite"),
        ("--eval_time_limit -1", "eval_time_limit.*at least 0"),
    ],
)
def test_what_is_no_dict_of_plain_values_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        load(words, **({"task": "atari_pong"} if "atari" in words else {}))


@pytest.mark.filterwarnings("ignore:.*YAML 1.1", "ignore:\\s*In YAML")
def test_words_with_quotes_are_texts_here_and_for_every_reader_of_a_runs_settings():
    words = {"a": "no", "b": ["off", "12:30:00", "0x1f"], "c": {"on": "Yes", "a: b": "1"}, "e": "y", "n": "None", "f": False, "g": None}
    config, file = (
        load(
            ["--env_kwargs", '{a: "no", b: ["off", \'12:30:00\', "0x1f"], c: {"on": "Yes", "a: b": "1"}, e: y, n: "None", f: false, g: ~}']
        ),
        io.BytesIO(),
    )
    assert config.env_kwargs == words == load(env_kwargs=words).env_kwargs
    settings.write_yaml(config, file)
    stored = YAML(typ="safe", pure=True)
    stored.version = (1, 1)
    assert stored.load(file.getvalue().decode())["env_kwargs"] == words
    assert load_yaml("env_kwargs: {a: no}") == {"env_kwargs": {"a": "no"}}  # in settings of an earlier run
    assert load(["--env_kwargs", show(words)]).env_kwargs == words


def test_a_run_keeps_its_arguments_and_may_evaluate_with_others():
    stored = settings.plain(load(env_kwargs={"word": "true"}))
    with pytest.raises(ValueError, match=r'env_kwargs \{word: "true"\} -> \{word: true\}'):
        settings.changes_of_run(stored, load(env_kwargs={"word": True}), pathlib.Path("run"))
    changed = settings.changes_of_run(stored, load(env_kwargs={"word": "true"}, eval_env_kwargs={"size": 3}), pathlib.Path("run"))
    assert changed == [("eval_env_kwargs", "{}", "{size: 3}")]
    earlier = {key: value for key, value in stored.items() if "env_kwargs" not in key and key != "eval_time_limit"}
    assert settings.changes_of_run(earlier, load(), pathlib.Path("run")) == []


@pytest.mark.parametrize(
    "flags, training, capped, limit, kwargs",
    [
        ({}, False, True, (108_000, 108_000), {"a": 1, "b": 3}),
        ({}, True, False, (0, 0), {"a": 1, "b": 2}),
        ({"time_limit": 500}, False, True, (500, 0), {"a": 1, "b": 3}),
        ({"time_limit": 500, "eval_time_limit": 400}, False, True, (400, 400), {"a": 1, "b": 3}),
        ({"eval_time_limit": 0}, False, True, (0, 0), {"a": 1, "b": 3}),
        ({}, True, True, (108_000, 108_000), {"a": 1, "b": 2}),  # episodes that are recorded
    ],
)
def test_evaluation_environments_have_their_own_arguments_and_the_shorter_time_limit(flags, training, capped, limit, kwargs):
    config = load(env_kwargs={"a": 1, "b": 2}, eval_env_kwargs={"b": 3}, **flags)
    adapted, cut = _adapted(config, training, capped)
    assert (adapted.time_limit, cut, adapted.env_kwargs) == (*limit, kwargs)
    assert config.env_kwargs == {"a": 1, "b": 2} and config.time_limit == flags.get("time_limit", 0)


class Nothing:
    num_envs, single_observation_space, single_action_space = 1, None, None


@pytest.mark.parametrize(
    "limit, repeat, words",
    [(12, 1, "1 of 3 episodes were cut off at 12 frames (eval_time_limit)"), (12, 4, "3 of 3"), (3, 4, "3 of 3"), (0, 1, ""), (13, 1, "")],
)
def test_episodes_that_were_cut_off_are_counted(limit, repeat, words):
    told = EnvBatch(Nothing, limit=limit, repeat=repeat).tell_cut([3, 12, 7])
    assert told.startswith(words) and bool(told) == bool(words)


@pytest.mark.parametrize(
    "task, words",
    [
        ("gym_CartPole-v1", "gymnasium has an environment of that name; choose another name"),
        ("gym_CartPole", "gymnasium has an environment of that name; choose another name"),
        ("gym_a b", "gymnasium does not allow that name"),
        ("gym_module:walk", "needs a task gym_<name>"),
        ("atari_pong", "needs a task gym_<name>"),
    ],
)
def test_a_function_makes_no_environment_under_a_name_that_others_have(task, words, tmp_path, capsys):
    flags = ["--configs", "debug", "--device", "cpu", "--task", task, "--logdir", str(tmp_path / "run")]
    assert dreamer.main(flags, make_env=gymnasium.Env) == 2
    assert f"error: task is '{task}'" in (error := capsys.readouterr().err) and words in error and not (tmp_path / "run").exists()


def test_recording_takes_no_arguments_of_evaluations(tmp_path, capsys):
    flags = ["--task", "gym_CartPole-v1", "--episodes", "1", "--out", str(tmp_path / "out"), "--eval_env_kwargs", "{a: 1}"]
    assert record.main(flags) == 2 and not (tmp_path / "out").exists()
    assert "record.py uses the environments for training; give --env_kwargs" in capsys.readouterr().err


def test_only_forked_processes_hint_at_threads():
    assert "see docs/your_environment.md" in processes.hint_at_threads(None) and not processes.hint_at_threads("spawn")


def test_signals_are_handled_in_the_main_thread_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignal() as stop:
            found.append((signal.getsignal(signal.SIGTERM), bool(stop)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    enter()
    assert found[0] == (before, False) and found[1][0] != before and signal.getsignal(signal.SIGTERM) == before
