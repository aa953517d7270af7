"""Adapters of optional suites: dm_env environments against a small one of our own; the suites themselves where they are installed."""

import functools
import json
import re
import types

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dreamer
import settings
import tools
from benchmarks import suites
from envs import OPTIONAL, SUITES, EnvBatch, crafter, make_envs
from envs.dmc import DmEnv
from envs.gym import ActionRepeat, OldGym, vectorize
from envs.metaworld import Drawn, MetaWorld
from envs.minigrid import KINDS, MISSION_LENGTH, WORD_BITS, WORDS, View, encode_mission
from envs.spaces import STATE_PREFIX

pytestmark = pytest.mark.slow


class Countdown:
    """A dm_env environment without dm_env: ends after three steps, truly or by a time limit; counts up from its seed."""

    def __init__(self, seed: int | None, terminal: bool, discrete: bool):
        self._start, self._terminal, self._discrete = seed or 0, terminal, discrete

    def observation_spec(self):
        spec = lambda shape, dtype: types.SimpleNamespace(shape=shape, dtype=np.dtype(dtype))
        return {"count": spec((), np.float64), "image": spec((16, 16, 3), np.uint8)}

    def action_spec(self):
        if self._discrete:
            return types.SimpleNamespace(num_values=4)
        return types.SimpleNamespace(shape=(2,), minimum=np.float64(-3.0), maximum=np.array([1.0, 2.0]))

    def reset(self):
        self._time = 0
        return self._step(None)

    def step(self, action):
        self._time += 1
        return self._step(float(self._time))

    def close(self):
        pass

    def _step(self, reward):
        last = self._time == 3
        obs = {"count": np.float64(100 * self._start + self._time), "image": np.full((16, 16, 3), self._time, np.uint8)}
        return types.SimpleNamespace(observation=obs, reward=reward, last=lambda: last, discount=0.0 if last and self._terminal else 1.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_dm_env_environment_keeps_rewards_ends_and_seeds(terminal):
    env = DmEnv(functools.partial(Countdown, terminal=terminal, discrete=False), repeat=2)
    assert env.observation_space["count"].shape == () and env.observation_space["image"] == spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert env.action_space == spaces.Box(np.array([-3.0, -3.0], np.float32), np.array([1.0, 2.0], np.float32))
    assert env.reset(seed=7)[0]["count"] == 700
    obs, reward, ended, cut, _ = env.step(np.zeros(2))
    assert (obs["count"], reward, ended, cut) == (702, 1.0 + 2.0, False, False)
    obs, reward, ended, cut, _ = env.step(np.zeros(2))
    assert (obs["count"], reward, ended, cut) == (703, 3.0, terminal, not terminal)  # the repeat stops where the episode ends
    assert env.reset()[0]["count"] == 700


def test_an_image_is_drawn_after_the_repeat_and_never_before_the_first_reset():
    drawn = []

    def draw(env, height, width):
        drawn.append(env._time)
        return np.zeros((height, width, 3), np.uint8)

    env = DmEnv(functools.partial(Countdown, terminal=True, discrete=True), repeat=2, draw=draw, size=(32, 48))
    assert env.action_space == spaces.Discrete(4) and env.observation_space["image"].shape == (32, 48, 3) and drawn == []
    env.reset(seed=0)
    env.step(1)
    assert drawn == [0, 2]
    assert env.render().shape == (240, 320, 3) and env.metadata["render_modes"] == ["rgb_array"]


@pytest.mark.parametrize("start", [None, "spawn"])
def test_dm_env_environments_run_in_workers(start):
    config = tools.load_config([], {"task": "gym_CartPole-v1", "size": [32, 32], "action_repeat": 2})
    make_env = functools.partial(DmEnv, functools.partial(Countdown, terminal=True, discrete=True), 2)
    envs = vectorize(make_env, 2, config, start)
    try:
        obs, _ = envs.reset(seed=5)
        np.testing.assert_array_equal(obs["count"], [[500.0], [600.0]])
        assert obs["image"].shape == (2, 32, 32, 3)
    finally:
        envs.close()


class OldCountdown:
    """An environment for the package gym, without it: a true end or a limit after three steps, told in one of two ways; no close()."""

    def __init__(self, seed: int | None, last: dict):
        space = lambda name, **attributes: type(name, (), attributes)()
        self._seed, self._last = seed or 0, last
        self.observation_space = space(
            "Dict",
            spaces={
                "count": space("Box", low=0.0, high=9.0, shape=(1,), dtype=np.dtype(np.float32)),
                "kind": space("Discrete", n=np.int64(3)),
                "parts": space("Tuple", spaces=(space("MultiDiscrete", nvec=np.array([2, 3])), space("MultiBinary", n=4))),
            },
        )
        self.action_space = space("Discrete", n=2)

    def reset(self):
        self._time = 0
        return {"count": np.float32([self._seed])}

    def step(self, action):
        self._time += 1
        done = self._time == 3
        return {"count": np.float32([self._seed + self._time])}, np.float32(action), done, self._last if done else {"discount": 1.0}


@pytest.mark.parametrize(
    "last, cut",
    [
        ({}, False),
        ({"TimeLimit.truncated": True}, True),
        ({"TimeLimit.truncated": False}, False),
        ({"discount": 1.0}, True),
        ({"discount": 0.0}, False),
    ],
)
def test_an_environment_of_the_old_interface_tells_its_end_from_a_limit(last, cut):
    env = OldGym(functools.partial(OldCountdown, last=last))
    assert env.action_space == spaces.Discrete(2) and env.observation_space == spaces.Dict(
        {
            "count": spaces.Box(0.0, 9.0, (1,), np.float32),
            "kind": spaces.Discrete(3),
            "parts": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)]),
        }
    )
    obs, info = env.reset(seed=5)
    assert (obs["count"], info) == (5, {})
    steps = [env.step(1) for _ in range(3)]
    assert [(obs["count"].item(), reward, ended, was_cut) for obs, reward, ended, was_cut, _ in steps] == [
        (6, 1.0, False, False),
        (7, 1.0, False, False),
        (8, 1.0, not cut, cut),
    ]
    assert env.reset()[0]["count"] == 5
    env.close()


def test_a_space_that_is_unknown_is_refused_by_name():
    strange = OldCountdown(None, {})
    strange.action_space = "a space of text"
    with pytest.raises(ValueError, match="a space of text.*allowed are Box"):
        OldGym(lambda seed: strange)


class OldCrafter:
    """As Crafter reports achievements: how often each was reached since the episode began. Wood at steps 2 and 3, a table at 3."""

    observation_space = spaces.Box(0, 255, (48, 32, 3), np.uint8)  # width, height
    action_space = spaces.Discrete(2)

    def reset(self):
        self._time = 0
        return np.zeros((32, 48, 3), np.uint8)

    def step(self, action):
        self._time += 1
        counts = {"wood": max(0, self._time - 1), "table": int(self._time >= 3), "diamond": 0}
        return np.zeros((32, 48, 3), np.uint8), 0.0, self._time == 5, {"achievements": counts, "discount": 1.0}


@pytest.mark.parametrize("repeat", [1, 2])
def test_an_achievement_is_logged_once_per_episode(repeat):
    env = ActionRepeat(crafter.Achievements(OldGym(lambda seed: OldCrafter()), ("wood", "table", "diamond")), repeat)
    for _ in range(2):
        steps, over = [env.reset()[0]], False
        assert env.observation_space.contains(steps[0])
        while not over:
            obs, _, ended, over, _ = env.step(0)
            steps.append(obs)
        assert not ended and len(steps) == 1 + -(-5 // repeat)
        assert [sum(step[f"log_achievement_{name}"] for step in steps) for name in ("wood", "table", "diamond")] == [1, 1, 0]


def test_crafters_score_is_the_geometric_mean_of_success_rates():
    # Rates of 50%, 100% and 0%: the cube root of 51 * 101 * 1, less 1.
    episodes = [
        {"return": 9.0, "achievement_wood": 1.0, "achievement_table": 1.0, "achievement_diamond": 0.0},
        {"return": 1.0, "achievement_wood": 0.0, "achievement_table": 1.0, "achievement_diamond": 0.0},
    ]
    score = EnvBatch(types.SimpleNamespace(num_envs=1, single_observation_space=None, single_action_space=None), crafter.scores).scores
    assert score(episodes) == {"score": pytest.approx((51 * 101 * 1) ** (1 / 3) - 1)} and score([]) == {}
    assert score([dict.fromkeys(episodes[0], 1.0)]) == {"score": pytest.approx(100.0)}


def test_an_evaluation_logs_the_suites_own_score_of_its_episodes(tmp_path, monkeypatch):
    def scores(episodes):
        return {"score": 100.0 * len(episodes) + min(episodes[0]["return"], 1.0)}

    monkeypatch.setattr("envs.gym.scores", scores, raising=False)
    command = ["--configs", "debug", "--task", "gym_CartPole-v1", "--steps", "120", "--eval_every", "100", "--logdir", str(tmp_path)]
    assert dreamer.main([*command, "--device", "cpu", "--video_pred_log", "false"]) == 0
    assert '"eval/score": 201.0' in (tmp_path / "metrics.jsonl").read_text()  # of debug's two episodes


def decode_mission(bits: np.ndarray) -> str:
    numbers = (bits.reshape(MISSION_LENGTH, WORD_BITS) @ 2 ** np.arange(WORD_BITS)).astype(int)
    return " ".join(WORDS[number - 1] for number in numbers if number)


def test_a_mission_can_be_read_from_its_numbers():
    assert len(set(WORDS)) == len(WORDS) < 2**WORD_BITS
    mission = encode_mission("put the red ball next to a box, then go to the door")
    assert decode_mission(mission) == "put the red ball next to a box , then go to the door"
    assert decode_mission(encode_mission(" ".join(WORDS))) == " ".join(WORDS)  # every word
    with pytest.raises(ValueError, match="unknown words dragon; add them to WORDS"):
        encode_mission("fetch the dragon")
    with pytest.raises(ValueError, match=f"has {MISSION_LENGTH + 1} words; at most {MISSION_LENGTH}"):
        encode_mission("go " * (MISSION_LENGTH + 1))


class Grid(gymnasium.Env):
    """As MiniGrid answers, with five cells to a side; prints at reset. An action turns the agent to a direction.

    Of a grid of 6 x 5 cells: the agent at (2, 3), a key at (4, 1), a ball at (0, 3), lava at (3, 4) and at (2, 0), a wall at (2, 2).
    """

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (5, 5, 3), np.uint8), "direction": spaces.Discrete(4)})
    action_space = spaces.Discrete(7)
    width, carrying = 6, None

    def __init__(self):
        cells = {(4, 1): "key", (0, 3): "ball", (3, 4): "lava", (2, 0): "lava", (2, 2): "wall"}
        places = [(x, y) for y in range(5) for x in range(6)]
        self.grid = types.SimpleNamespace(grid=[types.SimpleNamespace(type=cells[at]) if at in cells else None for at in places])

    def reset(self, seed=None, options=None):
        print("discarded a level")
        self.agent_pos = (2, 3)
        return self._observe(0), {}

    def step(self, action):
        return self._observe(action), 1, True, False, {}

    def get_frame(self, tile_size, agent_pov):
        assert agent_pov
        return np.full((5 * tile_size, 5 * tile_size, 3), 7, np.uint8)

    def _observe(self, direction):
        self.agent_dir, self.dir_vec = direction, np.array([(1, 0), (0, 1), (-1, 0), (0, -1)][direction])
        view = np.zeros((5, 5, 3), np.uint8)
        if direction == 0:
            view[0, 2] = 5, 4, 0  # the key: two columns left of the agent's, two rows ahead
        return {"image": view, "direction": np.int64(direction), "mission": "get to the green goal square"}


def test_the_view_of_a_grid_is_drawn_no_smaller_than_images_are_asked_for(capsys):
    env = View(Grid(), (32, 64))
    first, _ = env.reset(seed=0)
    assert first["image"].shape == (65, 65, 3) and (first["image"] == 7).all()
    assert decode_mission(first["mission"]) == "get to the green goal square"
    assert env.observation_space.contains(first) and capsys.readouterr().out == ""
    obs, reward, ended, cut, _ = env.step(3)
    assert (obs["direction"], reward, ended, cut) == (3, 1.0, True, False)


def state_of(obs: dict) -> dict[str, list[float]]:
    return {key.removeprefix(STATE_PREFIX): value.tolist() for key, value in obs.items() if key.startswith(STATE_PREFIX)}


def test_the_state_of_a_grid_is_told_from_where_the_agent_stands_and_looks():
    grid = Grid()
    env = View(grid, (32, 32))
    state = state_of(env.reset(seed=0)[0])
    nothing = {"goal": [0, 0, 0], "door": [0, 0, 0], "box": [0, 0, 0]}
    key, ball, lava = [2, -2, 1], [-2, 0, 0], [1, 1, 0]
    assert state == {"pose": [2, 3, 1, 0], "motion": [0, 0], "carrying": [0], "key": key, "ball": ball, "lava": lava, **nothing}
    state = state_of(env.step(1)[0])  # it turns to the right and looks down
    key, ball, lava = [-2, -2, 0], [0, 2, 0], [1, -1, 0]
    assert state == {"pose": [2, 3, 0, 1], "motion": [0, 1], "carrying": [0], "key": key, "ball": ball, "lava": lava, **nothing}
    grid.agent_pos, grid.carrying = np.array([2, 4]), object()
    state = state_of(env.step(1)[0])
    assert (state["pose"], state["motion"], state["carrying"]) == ([2, 4, 0, 1], [1, 0], [1])
    assert (state["key"], state["ball"], state["lava"]) == ([-3, -2, 0], [-1, 2, 0], [0, -1, 0])
    assert state_of(env.step(0)[0])["motion"] == [0, -1] and state_of(env.step(3)[0])["motion"] == [0, -1]
    assert state_of(env.step(0)[0])["motion"] == [0, 1]  # from up to the right
    assert state_of(env.reset(seed=1)[0])["motion"] == [0, 0]  # it was not moved by an action


@pytest.mark.parametrize("name", ["MiniGrid-DoorKey-6x6-v0", "BabyAI-GoToRedBallGrey-v0", "MiniGrid-LavaCrossingS9N1-v0"])
def test_the_state_of_an_installed_minigrid_agrees_with_its_own_coordinates_and_actions(name):
    pytest.importorskip("minigrid")
    env = View(gymnasium.make(name, disable_env_checker=True), (32, 32))
    level, rng = env.unwrapped, np.random.default_rng(0)
    env.reset(seed=0)
    for step in range(30):
        level.step_count = 0
        action = int(rng.choice([0, 1, 2, 2, 3]))
        ahead = level.grid.get(*level.front_pos)
        obs, _, ended, *_ = env.step(action)
        state = state_of(obs)
        assert env.observation_space.contains(obs) and state["pose"] == [*level.agent_pos, *level.dir_vec]
        free = ahead is None or ahead.can_overlap()
        assert state["motion"] == [action == 2 and free, {0: -1, 1: 1}.get(action, 0)], step
        assert state["carrying"] == [level.carrying is not None]
        for kind in KINDS:
            places = [
                (index % level.width, index // level.width) for index, cell in enumerate(level.grid.grid) if cell and cell.type == kind
            ]
            if not places:
                assert state[kind] == [0, 0, 0]
                continue
            distance = lambda place: abs(place[0] - level.agent_pos[0]) + abs(place[1] - level.agent_pos[1])
            nearest = [place for place in places if distance(place) == min(map(distance, places))]
            # In MiniGrid's view the agent is at column 3 of row 6, and looks to row 0.
            views = {tuple(level.get_view_coords(*place)): place for place in nearest}
            at = views[3 + state[kind][1], 6 - state[kind][0]]
            assert distance(at) == 0 or state[kind][2] == level.agent_sees(*at)
        if ended:
            env.reset()


class Arm:
    """As a robot's arm of Meta-World answers: succeeds at steps 2, 3 and 5 of 6; its state tells the goal."""

    observation_space, action_space = spaces.Box(0.0, 0.0, (2,), np.float64), spaces.Box(-1.0, 1.0, (4,), np.float32)
    render_mode = "rgb_array"

    def __init__(self):
        self.drawn = 0

    def set_task(self, goal):
        self._goal = goal

    def reset(self):
        self._time = 0
        return np.array([self._goal, 0.0]), {}

    def step(self, action):
        self._time += 1
        info = {"success": float(self._time in (2, 3, 5))}
        return np.array([self._goal, self._time], float), 2.0, False, self._time == 6, info

    def render(self):
        self.drawn += 1
        return np.arange(16 * 32 * 3).astype(np.uint8).reshape(16, 32, 3)

    def close(self):
        pass


def test_success_of_a_robots_arm_is_logged_once_and_ends_nothing():
    arm = Arm()
    env = Drawn(ActionRepeat(MetaWorld(arm, list(range(50))), 2), (16, 32))
    goals = []
    for seed in (3, None, None, 3):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs) and obs["log_success"] == 0
        goals.append(obs["state"][0])
        steps = [env.step(np.zeros(4)) for _ in range(3)]
        assert [obs["log_success"] for obs, *_ in steps] == [1, 0, 0]
        assert [rest[:3] for _, *rest in steps] == [[4.0, False, False], [4.0, False, False], [4.0, False, True]]
    assert goals[0] == goals[3] and len(set(goals)) == 3
    assert arm.drawn == 4 * (1 + 3)  # not between repeats
    assert (obs["image"] == arm.render()[::-1, ::-1]).all()


@pytest.mark.parametrize(
    "package, preset, task, wanted",
    [
        ("dm_control", "dmc_vision", "dmc_walker_walk", {"image", "height", "orientations", "velocity"}),
        ("dm_control", "dmc_proprio", "dmc_cup_catch", {"position", "velocity"}),
        ("crafter", "crafter", "crafter_reward", {"image", "log_achievement_collect_wood"}),
        ("minatar", "small", "minatar_breakout", {"vector"}),
        ("minigrid", "small", "minigrid_DoorKey-5x5-v0", {"image", "direction", "mission", "log_state_pose", "log_state_key"}),
        ("minigrid", "small", "minigrid_BabyAI-BossLevel-v0", {"image", "direction", "mission"}),
        ("popgym", "small", "popgym_AutoencodeEasy", {"0", "1"}),
        ("popgym", "small", "popgym_LabyrinthEscapeEasy", {"vector"}),
        ("metaworld", "dmc_proprio", "metaworld_reach", {"state", "log_success"}),
        ("metaworld", "dmc_vision", "metaworld_drawer-open", {"image", "log_success"}),
    ],
)
def test_an_installed_suite_steps(package, preset, task, wanted):
    pytest.importorskip(package)
    envs = make_envs(tools.load_config([preset], {"task": task}), 2, training=True)
    try:
        first = envs.reset(seed=0)
        assert wanted <= set(first)
        actions = np.stack([envs.act_space.sample() for _ in range(2)])
        for _ in range(3):
            envs.send(actions)
            step = envs.recv()
        assert np.isfinite(step["reward"]).all() and not step["is_first"].any()
        again = envs.reset(seed=0)
        for key in wanted:
            np.testing.assert_array_equal(first[key], again[key])
    finally:
        envs.close()


def test_every_mission_of_an_installed_minigrid_can_be_encoded():
    pytest.importorskip("minigrid")
    for name in [spec for spec in gymnasium.registry if spec.startswith(("MiniGrid-", "BabyAI-")) and "-WFC-" not in spec]:
        env = View(gymnasium.make(name, disable_env_checker=True), (64, 64))
        obs, _ = env.reset(seed=0)
        assert decode_mission(obs["mission"]) == env.unwrapped.mission.replace(",", " ,")


@pytest.mark.parametrize(
    "package, task, nearest",
    [
        (None, "crafter_rewards", "crafter_reward"),
        (None, "memorymaze_9x8", "memorymaze_9x9"),
        (None, "minatar_breakuot", "minatar_breakout"),
        ("minigrid", "minigrid_DoorKey-5x5", "minigrid_DoorKey-5x5-v0"),
        ("popgym", "popgym_RepeatFirtEasy", "popgym_RepeatFirstEasy"),
        ("metaworld", "metaworld_draw-open", "metaworld_drawer-open"),
    ],
)
def test_an_unknown_task_of_a_suite_is_answered_with_the_nearest(package, task, nearest):
    if package:
        pytest.importorskip(package)
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_envs(tools.load_config([], {"task": task}), 1, training=True)


def table_row(suite: str, **cells) -> dict[str, str]:
    return {**dict.fromkeys(suites.COLUMNS, "-"), "suite": suite, **cells}


def test_a_row_of_the_table_of_suites_is_replaced_and_all_else_stays():
    page = f"# Before\n\n{suites.BEGIN}\n{suites.END}\n\nAfter.\n"
    order = ["atari", "crafter", "popgym"]
    for row in (
        table_row("popgym"),
        table_row("atari", date="2020-01-01"),
        table_row("popgym", trains="yes, 3 updates"),
        table_row("atari"),
    ):
        page = suites.with_row(page, row, order)
    assert page.splitlines() == [
        "# Before",
        "",
        suites.BEGIN,
        "| " + " | ".join(suites.COLUMNS) + " |",
        "|" + " --- |" * len(suites.COLUMNS),
        "| atari | - | - | - | - | - | - |",
        "| popgym | - | - | yes, 3 updates | - | - | - |",
        "| minecraft | none: left out | not everywhere | no | no |  |  |",
        "| dmlab | none: left out | not everywhere | no | no |  |  |",
        suites.END,
        "",
        "After.",
    ]
    with pytest.raises(ValueError, match="put both where it belongs"):
        suites.with_row("# Before", table_row("atari"), order)


@pytest.mark.parametrize(
    "change, answer",
    [
        ({}, "yes, 1,200 updates"),
        ({"train/actor_loss": float("nan")}, "no: train/actor_loss is nan"),
        ({"eval/return": None}, "no: eval/return is missing"),
        ({"train/agent_skipped": 0.5}, "no: updates were skipped, as they were not finite"),
        ({"train/agent_skipped": 0.0}, "yes, 1,200 updates"),
    ],
)
def test_a_suite_trains_if_losses_and_an_evaluation_were_logged_and_are_finite(tmp_path, change, answer):
    line = {**{f"train/{loss}": 1.0 for loss in suites.LOSSES}, "eval/return": 0.0, "time/updates": 1200.0, **change}
    line = {name: value for name, value in line.items() if value is not None}
    path = tmp_path / "metrics.jsonl"
    assert suites.trained(path) == "no: nothing logged"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ({"step": 1}, line)))
    assert suites.trained(path) == answer


def test_a_suite_that_cannot_be_installed_gets_its_row_too(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "PAGE", tmp_path / "page.md")
    suites.PAGE.write_text(f"{suites.BEGIN}\n{suites.END}\n")
    (tmp_path / "crafty.txt").write_text("-r dmc.txt\nnumpy==2\n# a comment\ncrafty[all]==1.0\n")
    flags = [
        "--order",
        "crafty",
        "--trial",
        "debug",
        "--code",
        "0",
        "--logdir",
        str(tmp_path),
        "--requirements",
        str(tmp_path / "crafty.txt"),
    ]
    assert suites.main(["crafty", "--installs", "no", *flags]) == 1
    row = suites.PAGE.read_text().splitlines()[3]
    assert row.startswith("| crafty | `debug` | no | no | no | 20") and row.endswith("crafty missing |") and row.count("numpy") == 1
    assert suites.main(["crafty", "--installs", "yes", *flags]) == 1
    assert "| yes | no: nothing logged | no |" in suites.PAGE.read_text()


def test_the_page_of_environments_has_every_suite_and_its_commands_name_presets_and_suites_that_exist():
    page = suites.PAGE.read_text()
    commands = re.findall(r"^    python dreamer.py --configs (.*?) --task (\S+)(.*)$", page, re.M)
    assert {task.partition("_")[0] for _, task, _ in commands} == set(SUITES)
    for names, task, rest in commands:
        _, flags = settings.parse_flags([*rest.split(), "--task", task])
        assert settings.load_config(names.split(), flags).task == task
    for suite in OPTIONAL:
        assert f"    pip install -r requirements/{suite}.txt" in page and (suites.ROOT / "requirements" / f"{suite}.txt").exists()
