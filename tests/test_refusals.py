"""Checkpoints that are refused: with one message, and with the agent as it was."""

import copy
import functools
import pickle
import random

import pytest
import torch

import checkpoints
from dreamer import Dreamer
from old_files import KINDS, Payload, batch, checkpoint, levels, make_agent, same

pytestmark = pytest.mark.slow


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path):
    file = tmp_path / "latest.pt"
    torch.save({**checkpoint("atari"), "agent_state_dict": Payload(tmp_path / "attacked")}, file)
    with pytest.raises(ValueError, match="more than tensors"):
        checkpoints.load(file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
    file.write_bytes(pickle.dumps(Payload(tmp_path / "attacked")))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(file)
    assert not (tmp_path / "attacked").exists()
    torch.save(Payload(tmp_path / "own"), tmp_path / "own.pt")
    torch.load(tmp_path / "own.pt", weights_only=False)
    assert (tmp_path / "own").exists()  # it would have run


def damage(edit) -> dict:
    """A checkpoint in which `edit(weights, optimizers)` has changed something."""
    stored = copy.deepcopy(checkpoint("atari"))
    edit(stored["agent_state_dict"], stored["optims_state_dict"])
    return stored


def _nan(weights, optimizers):
    weights["_wm.dynamics._cell.layers.GRU_linear.weight"][3, 3] = torch.nan


def _infinite_moment(weights, optimizers):
    optimizers["_task_behavior._actor_opt._opt"]["state"][2]["exp_avg_sq"][0] = torch.inf


def _missing(weights, optimizers):
    for name in [name for name in weights if name.endswith("_cell.layers.GRU_norm.bias")]:
        del weights[name]
    optimizers.clear()


def _extra(weights, optimizers):
    weights["_wm.heads.colour.weight"] = torch.zeros(3)


def _other_optimizer(weights, optimizers):
    for slots in optimizers["_wm._model_opt._opt"]["state"].values():
        slots["momentum_buffer"] = slots.pop("exp_avg")


def _fewer_moments(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["param_groups"][0]["params"].pop()


def _no_actor_optimizer(weights, optimizers):
    del optimizers["_task_behavior._actor_opt._opt"]


def _too_large_for_float32(weights, optimizers):
    weights["_wm.dynamics.W"] = torch.full((1, 24), 1e300, dtype=torch.float64)


def _endless_step(weights, optimizers):
    optimizers["_task_behavior._value_opt._opt"]["state"][3]["step"] = torch.tensor(1e300, dtype=torch.float64)


def _negative_step(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["state"][3]["step"] = torch.tensor(-5.0)


def _negative_square(weights, optimizers):
    optimizers["_wm._model_opt._opt"]["state"][3]["exp_avg_sq"][0] = -1e-9


@pytest.mark.parametrize(
    "edit, words",
    [
        (_nan, ["GRU_linear.weight", "not finite"]),
        (_infinite_moment, ["exp_avg_sq of _task_behavior.actor", "not finite"]),
        (_extra, ["_wm.heads.colour.weight is unknown"]),
        (_other_optimizer, ["_wm._model_opt._opt is not Adam", "load the weights alone"]),
        (_fewer_moments, ["57 parameters", "58"]),
        (_no_actor_optimizer, ["_task_behavior._actor_opt._opt"]),
        (_too_large_for_float32, ["_wm.dynamics.W", "not finite"]),
        (_endless_step, ["step of _task_behavior.value", "not finite"]),
        (_negative_step, ["negative step"]),
        (_negative_square, ["negative exp_avg_sq"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_refused_and_leaves_the_agent_as_it_was(edit, words, kind):
    assert_refused(make_agent("atari", **KINDS[kind]), damage(edit), words)


def assert_refused(agent: Dreamer, stored: dict, words: list[str]) -> None:
    agent.update(batch("atari"))
    before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    with pytest.raises(ValueError) as error:
        agent.load_checkpoint(stored)
    assert all(word in str(error.value) for word in words), error.value
    assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))


JUNK = [
    None,
    3,
    "x",
    [],
    {},
    torch.tensor(3),
    torch.tensor(-5.0),
    torch.tensor(torch.nan),
    torch.zeros(0),
    torch.zeros(5, 5).bool(),
    torch.zeros(3, 3, dtype=torch.complex64),
    torch.zeros(2, 2).to_sparse(),
    torch.zeros(2, 2, device="meta"),
    torch.zeros(4, dtype=torch.float8_e5m2),
]


def entries(tree, path: tuple = ()):
    """The paths of all entries of nested dicts."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from entries(value, (*path, key))


@pytest.mark.parametrize("kind", ["flat", "widened"])
def test_whatever_is_wrong_with_a_checkpoint_there_is_one_line_and_nothing_has_changed(kind):
    agent, rng, refused = make_agent("proprio", **KINDS[kind]), random.Random(0), 0
    agent.update(batch("proprio"))
    paths = list(entries(checkpoint("proprio")))
    for _ in range(100):
        stored = checkpoint("proprio")
        *folders, key = rng.choice(paths)
        place = functools.reduce(lambda tree, name: tree[name], folders, stored)
        change = rng.choice(["delete", "replace", "cut", "add"])
        if change == "delete":
            del place[key]
        elif change == "add":
            place[rng.choice(["more", 7, "_wm._orig_mod.x", "_expl_behavior._networks.9.a"])] = rng.choice(JUNK)
        else:
            cut = change == "cut" and torch.is_tensor(place[key]) and place[key].numel()
            place[key] = place[key].flatten()[:-1] if cut else rng.choice(JUNK)
        before = copy.deepcopy((dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
        try:
            agent.load_checkpoint(stored)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            assert same(before, (dict(agent.state_dict()), agent.checkpoint()["optims_state_dict"]))
    assert 50 < refused < 100


@pytest.mark.parametrize("stored", [None, [], {}, {"agent_state_dict": {}, "optims_state_dict": None}], ids=str)
def test_what_is_no_checkpoint_is_refused(stored):
    with pytest.raises(ValueError, match="agent_state_dict and optims_state_dict are dicts"):
        make_agent("atari").load_checkpoint(stored)


def test_sizes_in_the_metadata_that_are_nonsense_are_not_believed():
    for levels_noted in ([[float("inf"), 4]], [[-1, 4]], [], "x", [[1]], torch.zeros(2), None):
        stored = checkpoint("atari")["agent_state_dict"]
        stored._metadata["_wm.dynamics"]["levels"] = levels_noted
        make_agent("atari").load_state_dict(stored)


def test_tensors_that_carry_gradients_are_taken_as_numbers():
    stored, agent = checkpoint("proprio"), make_agent("proprio")
    for slots in stored["optims_state_dict"]["_wm._model_opt._opt"]["state"].values():
        slots["exp_avg"].requires_grad_()
    for tensor in stored["agent_state_dict"].values():
        tensor.requires_grad_()
    agent.load_checkpoint(stored)
    agent.update(batch("proprio"))
    copy.deepcopy(agent.checkpoint())


def test_missing_tensors_are_named():
    with pytest.raises(ValueError, match="_wm.dynamics._cell.layers.GRU_norm.bias is missing"):
        make_agent("atari").load_state_dict(damage(_missing)["agent_state_dict"])
    with pytest.raises(ValueError, match="no agent of hDreamer or dreamerv3-torch: .*_img_in_layers.0.weight.* It has weight, bias"):
        make_agent("atari").load_state_dict(torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="no tensors"):
        make_agent("atari").load_state_dict({})
    with pytest.raises(ValueError, match="'agent_state_dict'"):
        make_agent("atari").load_state_dict(checkpoint("atari"))
    with pytest.raises(ValueError, match="of type list"):
        make_agent("atari").load_state_dict([1])
    with pytest.raises(ValueError, match="step"):
        make_agent("atari").load_state_dict({**checkpoint("atari")["agent_state_dict"], "step": 3})


@pytest.mark.parametrize("kind", KINDS)
def test_other_actions_and_observations_are_named(kind):
    assert_refused(make_agent("atari", **KINDS[kind]), checkpoint("crafter"), ["its actions have 17 entries, this task's 5"])
    assert_refused(make_agent("atari", **KINDS[kind]), checkpoint("dmc"), ["actions"])
    assert_refused(make_agent("atari", **KINDS[kind], **{"encoder.cnn_depth": 3}), checkpoint("atari"), ["encoder"])
    agent = make_agent("proprio", **KINDS[kind])
    with pytest.raises(ValueError, match="observations are not this task's|actions"):
        agent.load_checkpoint(checkpoint("dmc"))


def test_two_levels_load_into_the_same_two_alone():
    agent = make_agent("atari", **levels(3, 4, 3, 4))
    agent.update(batch("atari"))
    stored = agent.checkpoint()
    words = ["3 categoricals of 4 classes + 3 categoricals of 4 classes", "--dyn_stoch_top 3", "--dyn_stoch_bottom 3"]
    assert_refused(make_agent("atari"), stored, words)
    assert_refused(make_agent("atari", **levels(2, 4, 4, 4)), stored, words)
    plain = {**stored, "agent_state_dict": dict(stored["agent_state_dict"])}  # without the sizes that this program notes
    assert_refused(make_agent("atari", **levels(2, 4, 4, 4)), plain, words)
    assert_refused(make_agent("atari", **levels(3, 4, 4, 3)), plain, words)  # the same shapes; Adam's moments tell


def test_gaussian_and_categorical_latents_do_not_fit_each_other():
    gaussian, categorical = checkpoint("gaussian"), checkpoint("dmc")
    with pytest.raises(ValueError, match="6 Gaussians.*two levels need.*--hierarchical_mode false --dyn_stoch 6 --dyn_discrete 0"):
        make_agent("dmc", **KINDS["split"]).load_checkpoint(gaussian)
    with pytest.raises(ValueError, match="6 Gaussians.*dyn_discrete 0"):
        make_agent("dmc").load_checkpoint(gaussian)
    with pytest.raises(ValueError, match="6 categoricals of 4 classes.*dyn_discrete 4"):
        make_agent("gaussian").load_checkpoint(categorical)


@pytest.mark.parametrize("sizes", [{"dyn_stoch": 8, "dyn_discrete": 3}, {"dyn_stoch": 3, "dyn_discrete": 8}, levels(4, 3, 4, 3)])
def test_another_grouping_of_as_many_entries_is_seen_from_adams_moments(sizes):
    # The shapes are the same, so without the moments nothing would tell.
    with pytest.raises(ValueError, match="6 categoricals of 4 classes"):
        make_agent("atari", **sizes).load_checkpoint(checkpoint("atari"))


def test_a_grouping_that_nothing_tells_is_assumed_with_a_warning(capsys):
    make_agent("atari", dyn_stoch=32, dyn_discrete=32, **levels(3, 4, 3, 4)).load_state_dict(checkpoint("atari")["agent_state_dict"])
    assert "taken for 6 categoricals of 4 classes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="24 entries"):
        make_agent("atari", dyn_stoch=32, dyn_discrete=32, **levels(3, 5, 3, 5)).load_state_dict(checkpoint("atari")["agent_state_dict"])
    assert capsys.readouterr().err == ""


def test_a_plan2explore_file_loads_into_an_agent_that_does_not_explore_so_and_not_the_other_way_round():
    report = make_agent("plan2explore", expl_behavior="greedy").load_checkpoint(checkpoint("plan2explore"))
    assert "35 tensors of Plan2Explore" in report["ignored"]
    with pytest.raises(ValueError, match="it has no explorer, and expl_behavior is plan2explore here"):
        make_agent("plan2explore").load_checkpoint(checkpoint("atari"))
