"""What dreamerv3-torch calls its settings, in this or an older version, and values that were booleans."""

import sys

# What dreamerv3-torch called differently, in this or an older version.
RENAMED = {
    "stickey": "sticky",
    "step": "steps",
    "value.layers": "critic.layers",
    "value_layers": "critic.layers",
    "value_lr": "critic.lr",
    "value_grad_clip": "critic.grad_clip",
    "slow_value_target": "critic.slow_target",
    "actor_layers": "actor.layers",
    "actor_lr": "actor.lr",
    "actor_grad_clip": "actor.grad_clip",
    "slow_target_update": "critic.slow_target_update",
    "slow_target_fraction": "critic.slow_target_fraction",
    "actor_dist": "actor.dist",
    "actor_min_std": "actor.min_std",
    "actor_max_std": "actor.max_std",
    "actor_entropy": "actor.entropy",
    "reward_layers": "reward_head.layers",
    "reward_scale": "reward_head.loss_scale",
    "cont_layers": "cont_head.layers",
    "cont_scale": "cont_head.loss_scale",
}
# What it has and this program does not need.
IGNORED = {
    "parallel": "several environments always run in parallel",
    "resize": "Atari frames are resized by ALE",
    "imag_gradient_mix": "the policy follows one gradient, see imag_gradient",
    "eval_state_mean": "evaluation samples latents",
    "actor.temp": "no action distribution has a temperature",
    "opt": "the setting optimizer names it",
    "reset_every": "the latent state is reset where an episode begins",
    "traindir": "episodes are kept in the run's folder",
    "evaldir": "evaluation episodes are not kept",
    "num_actions": "it follows from the environment",
    "break_speed": "Minecraft has no adapter here",
}

# Settings that were booleans in earlier versions, and in dreamerv3-torch, or may be given as one; by the last part of the name.
BOOLEANS = {
    "norm": {"true": "layer", "false": "none"},
    "symlog_inputs": {"true": "all", "false": "none"},
    "cuda_graph": {"true": "true", "false": "false"},
}


def current_value(name: str, value):
    """The word that stands for an earlier boolean here; every other value as it is."""
    return BOOLEANS.get(name.rpartition(".")[2], {}).get(str(value).strip().lower(), value)


def current_names(flat: dict) -> dict:
    """Settings by the names that they have here; what has no counterpart is left out, with a note."""
    current = {}
    for key, value in flat.items():
        if key in IGNORED:
            note(f"{key} is ignored: {IGNORED[key]}")
        elif key == "precision" and str(value) == "16":
            note("precision 16 is bf16 here, which has float32's range and needs no scaling of gradients")
            current[key] = "bf16"
        elif key in RENAMED:
            note(f"{key} is called {RENAMED[key]} here")
            current[RENAMED[key]] = value
        else:
            current[key] = value
    return current


def note(text: str) -> None:
    """Prints a note to stderr."""
    print(f"note: {text}", file=sys.stderr)
