"""The 2025 generation gives the JAX original's answers: states, heads, imagination, losses, gradients, updates, acting; and its sizes."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

import models
import tools
from checkpoints import fitting
from dreamer import Dreamer
from jax_cases import (
    CASES,
    FOLDER,
    GRADIENTS,
    VALUES,
    VARIANTS,
    Update,
    action_vectors,
    close,
    first_update,
    load,
    make_agent,
    make_batch,
    modes_as_samples,
    new_agent,
    observations,
    observed,
    part,
    second_update,
    state_after,
    trained_tensors,
)

# Values


def check(found: dict[str, torch.Tensor], recorded: dict[str, np.ndarray], share: float = VALUES) -> None:
    """Checks values by name. Where the original went on for a step, as with actions, its further steps are left out."""
    for name, value in found.items():
        expected = recorded[name]
        if name.startswith("img/act/") and expected.dtype == np.int32:
            expected = np.eye(value.shape[-1], dtype=np.float32)[expected]
        if name.startswith("img/"):
            assert value.shape[1] in (expected.shape[1], expected.shape[1] - 1)
            expected = expected[:, : value.shape[1]]
        close(value.reshape(expected.shape) if value.shape[-1:] == (1,) else value, expected, share, name)


@pytest.mark.parametrize("case", CASES)
def test_states_and_all_heads_on_a_batch_are_the_recorded_ones(case):
    agent = make_agent(case)
    recorded = load(case, "answers")
    found = observed(agent, make_batch(agent, case), recorded["stoch"].shape[-2])
    check(found, recorded)
    own = {name for name in recorded if name.startswith(("recon/", "rew/", "val/", "slowval/", "pol/"))}
    assert own <= found.keys(), own - found.keys()


@pytest.mark.parametrize("case", CASES)
def test_what_the_model_is_fed_is_what_was_recorded(case):
    recorded, agent = load(case, "answers"), make_agent(case)
    batch = make_batch(agent, case)
    np.testing.assert_array_equal(batch["is_first"], recorded["train/is_first"])
    np.testing.assert_array_equal(batch["action"], action_vectors(case, part(recorded, "train/prevact/")))
    context = agent._wm.preprocess(batch)["replay.context"]
    np.testing.assert_array_equal(context["deter"], recorded["train/context_deter"])
    np.testing.assert_array_equal(context["stoch"], recorded["train/context_stoch"])


@pytest.mark.parametrize("case, shift", VARIANTS)
def test_imagination_returns_and_advantages_are_the_recorded_ones(case, shift):
    recorded = load(case, "answers_offset" if shift else "answers")
    found = first_update(case, shift).answers
    check(found, recorded)
    left_out = {"retnorm/before", "retnorm/batch_percentiles", "retnorm/offset"}
    own = {name for name in recorded if name.startswith(("img/", "rep/", "retnorm/"))} - left_out
    assert own == found.keys()


@pytest.mark.parametrize("case, shift", VARIANTS)
def test_every_loss_term_is_the_recorded_one(case, shift):
    check_losses(first_update(case, shift).losses, load(case, "answers_offset" if shift else "answers"))


def check_losses(found: dict[str, torch.Tensor], recorded: dict[str, np.ndarray]) -> None:
    terms = {name: value for name, value in recorded.items() if name.startswith("loss/") and name != "loss/total"}
    scales = {"loss/rep": 0.1, "loss/repval": 0.3}
    # The original sums all pixels of a batch in one float32 chain. The sum of its terms is more exact than its total.
    terms["loss/total"] = np.array(sum(scales.get(name, 1.0) * value.astype(np.float64).mean() for name, value in terms.items()))
    assert found.keys() == terms.keys()
    for name, value in found.items():
        close(value, terms[name] if value.ndim else terms[name].mean(), name=name)


# Gradients and updates


def untrained(case: str, shift: float) -> set[str]:
    """Parameters whose gradient is rounding noise: a mode as action gives the mean of a continuous policy none."""
    is_mode = case == "proprio_continuous" and shift == 0.0
    return {f"_task_behavior.actor.mean_layer.{leaf}" for leaf in ("weight", "bias")} if is_mode else set()


@pytest.mark.parametrize("case, shift", VARIANTS)
def test_the_gradient_of_every_parameter_is_the_recorded_one(case, shift):
    check_gradients(first_update(case, shift).grads, load(case, "answers_offset" if shift else "answers"), "grad/", case, shift)


@pytest.mark.parametrize("case", CASES)
def test_the_clipped_gradient_of_every_parameter_is_the_recorded_one(case):
    update = first_update(case, 0.0)
    check_gradients(update.clipped, load(case, "answers"), "grad_clipped/", case, 0.0)
    changed = [name for name, grad in update.grads.items() if not torch.equal(grad, update.clipped[name])]
    assert 0 < len(changed) < len(update.grads)


def check_gradients(found: dict[str, torch.Tensor], recorded: dict[str, np.ndarray], prefix: str, case: str, shift: float) -> None:
    expected = trained_tensors(part(recorded, prefix), load(case, "params"), make_agent(case))
    assert found.keys() == expected.keys()
    for name in found.keys() - untrained(case, shift):
        close(found[name], expected[name].numpy(), GRADIENTS, name)


@pytest.mark.parametrize("case, shift", VARIANTS)
def test_the_update_of_every_parameter_is_the_recorded_one(case, shift):
    recorded, update = load(case, "answers_offset" if shift else "answers"), first_update(case, shift)
    for name, expected in trained_tensors(part(recorded, "update/"), load(case, "params"), make_agent(case)).items():
        before, after = update.before[name], update.after[name]
        rounding = 1.2e-7 * before.abs().max().item()  # of the difference of two float32 weights
        atol = GRADIENTS * expected.abs().max().item() + rounding
        np.testing.assert_allclose(after - before, expected, rtol=0, atol=atol, err_msg=name)


def check_state(update: Update, recorded: dict[str, np.ndarray], case: str) -> None:
    """Weights, slow critic and return percentiles after an update."""
    expected, _ = state_after(case, recorded)
    assert update.after.keys() == expected.keys()
    for name, value in update.after.items():
        close(value, expected[name].numpy(), VALUES, name)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_state_after_an_update_is_the_recorded_one(case):
    recorded, update = load(case, "answers"), first_update(case, 0.0)
    check_state(update, recorded, case)
    _, expected = state_after(case, recorded)
    assert update.moments.keys() == expected.keys()
    for name, slots in expected.items():
        assert update.moments[name]["step"] == slots["step"] == 21
        for key in ("exp_avg", "exp_avg_sq"):
            close(update.moments[name][key], slots[key].numpy(), GRADIENTS, f"{key} of {name}")


@pytest.mark.parametrize("case", CASES)
def test_a_second_update_goes_on_from_the_first(case):
    recorded, update = load(case, "answers2"), second_update(case)
    check_losses(update.losses, recorded)
    check({name: update.answers[name] for name in ("img/ret", "img/weight", "retnorm/after")}, recorded)
    check_state(update, recorded, case)
    check_written(update, recorded)


@pytest.mark.parametrize("case", CASES)
def test_new_latents_are_written_back_to_their_steps(case):
    recorded = load(case, "answers")
    check_written(first_update(case, 0.0), recorded)
    np.testing.assert_array_equal(recorded["carry_out/deter"], recorded["replay_update/dyn/deter"][:, -1])


def check_written(update: Update, recorded: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(update.written["stepid"], recorded["replay_update/stepid"])
    np.testing.assert_array_equal(update.written["stoch"], recorded["replay_update/dyn/stoch"])
    close(update.written["deter"], recorded["replay_update/dyn/deter"])


# Acting and open loop


@pytest.mark.parametrize("case", CASES)
def test_actions_and_states_are_the_recorded_ones_across_the_reset_of_one_environment(case):
    recorded, agent, state = load(case, "policy"), make_agent(case), None
    obs = observations(case, part(recorded, "obs/"))
    for t in range(len(recorded["act"])):
        with modes_as_samples():
            actions, state = agent.act(
                {key: value[t] for key, value in obs.items() if key in agent.obs_space.spaces or key == "is_first"}, state
            )
        np.testing.assert_array_equal(state["stoch"], recorded["stoch"][t])
        close(state["deter"], recorded["deter"][t])
        close(np.asarray(actions, recorded["act"].dtype), recorded["act"][t])
        close(state["action"], action_vectors(case, {"action": recorded["act"][t]}))


@pytest.mark.parametrize("case", CASES)
def test_open_loop_predictions_are_the_recorded_ones(case):
    recorded, agent = load(case, "answers"), make_agent(case)
    with modes_as_samples(), torch.no_grad():
        states = agent._wm._open_loop(agent._wm.preprocess(make_batch(agent, case)), context=4)
    for key in ("deter", "stoch", "logit"):
        close(states[key][:, 4:], recorded[f"openloop/{key}"], name=key)


# Two levels


@pytest.mark.parametrize("case", CASES)
def test_flat_weights_in_two_levels_give_the_recorded_states_and_heads(case):
    flat, recorded = make_agent(case), load(case, "answers")
    agent = new_agent(case, hierarchical_mode=True, dyn_stoch_top="1/2", dyn_stoch_bottom="1/2")
    entries = flat._wm.dynamics.stoch_size
    weights = models.convert_weights(models.flat_sources(agent, entries), flat.state_dict(), models.quiet_latents(agent, entries))
    torch.nn.Module.load_state_dict(agent, weights)
    data = flat._wm.preprocess(make_batch(flat, case))
    stoch = data["replay.context"].pop("stoch").chunk(2, -2)
    data["replay.context"] |= {"stoch_top": stoch[0], "stoch_bottom": stoch[1]}
    wm = agent._wm
    with modes_as_samples(), torch.no_grad():
        post, prior = wm.dynamics.observe(wm.encoder(data), data["action"], data["is_first"], data["replay.context"])
        feat = wm.dynamics.get_feat(post)
        value, predictions = agent._task_behavior.value(feat).mode, wm.heads["decoder"](feat)
    close(post["deter"], recorded["deter"])
    for name, state in (("post_logit", post), ("prior_logit", prior)):
        close(torch.cat([state["logit_top"], state["logit_bottom"]], -2), recorded[name], name=name)
    close(value.squeeze(-1), recorded["val/pred"])
    check({f"recon/{key}/pred": dist.loc for key, dist in predictions.items()}, recorded)


# Parameter counts

COUNTS = json.loads((FOLDER / "counts.json").read_text())
MODULES = {
    "enc": "encoder",
    "dyn": "dynamics",
    "dec": "decoder",
    "rew": "reward",
    "con": "cont",
    "pol": "actor",
    "val": "critic",
    "slowval": "slow critic",
}
TASKS = {
    "atari_like": (spaces.Dict({"image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}), spaces.Discrete(6)),
    "dmc_walker_like": (
        spaces.Dict({key: spaces.Box(-np.inf, np.inf, (size,)) for key, size in dict(height=1, orientations=14, velocity=9).items()}),
        spaces.Box(-1, 1, (6,)),
    ),
}


def outline(task: str, size: str | None) -> Dreamer:
    """An agent of a size preset without memory for its weights."""
    config = tools.load_config(["defaults", "dreamerv3_2025", *([size] if size else [])], {"task": "gym_X-v0"})
    return fitting.outline(lambda config: Dreamer(*TASKS[task], config), config)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", COUNTS["atari_like"])
def test_every_size_has_exactly_the_originals_number_of_parameters_in_every_module(task, size):
    expected, agent = COUNTS[task][size], outline(task, size)
    counts = agent.parameter_counts()
    assert {theirs: counts[ours] for theirs, ours in MODULES.items()} == {theirs: expected[theirs] for theirs in MODULES}
    assert sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad) == expected["trainable_total"]


def test_the_smallest_walker_has_640_867_parameters_and_the_bare_preset_the_sizes_of_size12m():
    assert sum(parameter.numel() for parameter in outline("dmc_walker_like", "size1m").parameters() if parameter.requires_grad) == 640_867
    assert outline("atari_like", None).parameter_counts() == outline("atari_like", "size12m").parameter_counts()


@pytest.mark.parametrize("task", TASKS)
def test_every_tensor_of_the_smallest_size_has_the_originals_shape(task):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in COUNTS[task]["size1m"]["param_shapes"].items()}
    trained_tensors(arrays, arrays, outline(task, "size1m"))  # checks names and shapes
