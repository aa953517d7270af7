"""Checkpoints of the JAX original, as its main script wrote them: they give its answers, flat and with two levels, and learn on."""

import copy
import json

import numpy as np
import pytest
import torch

from jax_cases import (
    CHECKPOINTS,
    FOLDER,
    action_vectors,
    close,
    first_update,
    in_order,
    load,
    make_agent,
    make_batch,
    modes_as_samples,
    observations,
    observed,
    part,
    recorded_spaces,
    state_after,
    stored,
    trained_tensors,
)
from old_files import levels
from test_2025_checkpoints import assert_moved_alike

# Latents and classes of two levels that the files, with 2 categoricals of 4 classes, fit.
LEVELS = {"split": (1, 4, 1, 4), "new bottom": (2, 4, 3, 5), "wider top": (3, 4, 2, 3), "uneven, with new slots": (1, 4, 3, 4)}
KINDS = {"flat": {}, **{name: levels(*sizes) for name, sizes in LEVELS.items()}}
# Largest differences, as shares of an array's largest number, where that follows from predictions of young two-hot heads, whose far bins
# bring noise. The noise is in the recording: computed in float64, our numbers differ from it by as much.
SHARES = {"checkpoint_cartpole": 3e-4, "checkpoint_dummy": 8e-4}
EPSILON = 2 * 1.2e-7  # of float32 numbers near 1, rounded in our program and in the other one
FOLLOWS_FROM_TWOHOT = (
    *("rew/pred", "val/pred", "slowval/pred", "img/rew", "img/val", "img/slowval", "img/ret", "img/adv", "img/loss_", "rep/"),
    *("retnorm/", "loss/policy", "loss/value", "loss/repval", "loss/total"),
)


def share(case: str, name: str) -> float:
    """The largest difference, as a share of an array's largest number."""
    if name == "loss/image" and case == "checkpoint_dummy":
        return 2 * 2e-4  # 12,288 equal terms in one float32 sum
    return SHARES[case] if name.startswith(FOLLOWS_FROM_TWOHOT) and not name.endswith("logits") else 1e-5


def check(case: str, found: dict[str, torch.Tensor], recorded: dict[str, np.ndarray]) -> None:
    for name, value in found.items():
        expected = recorded[name]
        if name.startswith("img/act/") and expected.dtype == np.int32:
            expected = np.eye(value.shape[-1], dtype=np.float32)[expected]
        if name.startswith("img/"):
            expected = expected[:, : value.shape[1]]
        if name.startswith("loss/") and not value.ndim:
            expected = expected.mean()
        if name.endswith(("/logp", "/entropy")) and (logits := f"{name.rpartition('/')[0]}/logits") in recorded:
            # Differences of logits, which are exact to a share of the largest of them.
            np.testing.assert_allclose(value.detach(), expected, rtol=0, atol=2e-5 * np.abs(recorded[logits]).max())
            continue
        close(value.reshape(expected.shape), expected, share(case, name), name)


# Answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_states_and_all_heads_are_the_recorded_ones(case, kind):
    agent, recorded = make_agent(case, **KINDS[kind]), load(case, "answers")
    found = observed(agent, make_batch(agent, case), recorded["stoch"].shape[-2])
    check(case, found, recorded)
    modes = {f"recon/{key}/pred" for key, space in recorded_spaces(case)[0].items() if space["dtype"] == "int32"}
    own = {name for name in recorded if name.startswith(("recon/", "rew/", "val/", "slowval/", "pol/"))} - modes
    assert own <= found.keys()
    for mode in modes:
        logits = found[mode.replace("pred", "logits")].unflatten(-1, (-1, recorded_spaces(case)[0][mode.split("/")[1]]["classes"]))
        np.testing.assert_array_equal(logits.argmax(-1).reshape(recorded[mode].shape), recorded[mode])


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_imagination_and_losses_are_the_recorded_ones(case):
    update, recorded = first_update(case, 0.0), load(case, "answers")
    check(case, update.answers, recorded)
    check(case, update.losses, recorded)
    left_out = {"retnorm/before", "retnorm/batch_percentiles", "retnorm/offset"}
    assert {name for name in recorded if name.startswith(("img/", "rep/", "retnorm/"))} - left_out == update.answers.keys()
    assert {name for name in recorded if name.startswith("loss/")} == update.losses.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_it_acts_as_it_did(case, kind):
    agent, recorded, state = make_agent(case, **KINDS[kind]), load(case, "policy"), None
    files = json.loads((FOLDER / case / "contents.json").read_text())["replay_files_in_order"]
    pieces = [dict(np.load(FOLDER / case / "replay" / name)) for name in files]
    seen = {key: np.concatenate([piece[key] for piece in pieces])[: len(recorded["deter"])] for key in pieces[0]}
    obs, count = observations(case, seen), recorded["stoch"].shape[-2]
    for t in range(len(recorded["deter"])):
        now = {key: value[t : t + 1] for key, value in obs.items() if key in agent.obs_space.spaces or key == "is_first"}
        with modes_as_samples():
            _, state = agent.act(now, state)
        vector = action_vectors(case, {key: value[t] for key, value in part(recorded, "act/").items()})
        close(state["action"][0], vector / np.maximum(1.0, np.abs(vector)))
        close(state["deter"][0], recorded["deter"][t])
        np.testing.assert_array_equal(in_order(agent, state, "stoch", count)[0], recorded["stoch"][t])


# The next update


def without_gradient(case: str) -> set[str]:
    """Parameters whose gradient is rounding noise, since a mode was taken as action."""
    return {f"_task_behavior.actor.mean_layer.act_cont.{leaf}" for leaf in ("weight", "bias")} if case == "checkpoint_dummy" else set()


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_the_next_update_is_the_recorded_one(case):
    update, recorded, params = first_update(case, 0.0), load(case, "answers"), stored(case)["params"]
    grads, moved = (trained_tensors(part(recorded, prefix), params, make_agent(case)) for prefix in ("grad/", "update/"))
    for name in grads.keys() - without_gradient(case):
        # Gradients of two-hot heads are p - target, differences of numbers near 1.
        atol = SHARES[case] * grads[name].abs().max().item() + EPSILON
        np.testing.assert_allclose(update.grads[name], grads[name], rtol=0, atol=atol, err_msg=f"gradient of {name}")
        atol = SHARES[case] * moved[name].abs().max().item() + EPSILON * update.before[name].abs().max().item()
        np.testing.assert_allclose(update.after[name] - update.before[name], moved[name], rtol=0, atol=atol, err_msg=f"update of {name}")
    expected, _ = state_after(case, recorded)
    assert update.after.keys() == expected.keys()
    for name in expected.keys() - without_gradient(case):
        close(update.after[name], expected[name].numpy(), SHARES[case], name)
    np.testing.assert_array_equal(update.written["stepid"], recorded["train/stepid"])
    np.testing.assert_array_equal(update.written["stoch"], recorded["stoch"])
    close(update.written["deter"], recorded["deter"])


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_the_next_update_of_a_split_agent_is_that_of_the_flat_one(case):
    agents, moves = [make_agent(case, **KINDS[kind], kl_free=0.0) for kind in ("flat", "split")], []
    for agent in agents:
        before, batch = copy.deepcopy(agent.state_dict()), make_batch(agent, case)
        del batch["replay.steps"]
        with modes_as_samples():
            agent.update(batch)
        moves.append({name: value - before[name] for name, value in agent.state_dict().items()})
    assert_moved_alike(*agents, *moves)
