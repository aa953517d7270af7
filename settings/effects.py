"""Finds flags that have no effect because of other settings."""

import re

from settings.levels import CLASSES, COUNTS
from settings.loading import Config


def without_effect(config: Config) -> list[str]:
    """Returns a warning for each reason why flags (`config.given`) have no effect."""
    two, explores = config.hierarchical_mode, config.expl_behavior
    # With `from_checkpoint`, dyn_stoch and dyn_discrete may tell how the categoricals of a flat latent are grouped.
    stoch_unread, discrete_unread = (
        two and config.from_checkpoint is None and all(type(config[name]) is int for name in names) for names in (COUNTS, CLASSES)
    )
    table = [  # names, condition under which they have no effect, reason
        (r"dyn_(stoch|discrete)_(top|bottom)", not two, "hierarchical_mode is false"),
        (r"dyn_stoch", stoch_unread, "dyn_stoch_top and dyn_stoch_bottom are numbers"),
        (r"dyn_discrete", discrete_unread, "dyn_discrete_top and dyn_discrete_bottom are numbers"),
        (r"dyn_(mean_act|std_act|min_std)", two or config.dyn_discrete, "the latent is categorical (dyn_discrete 0 makes it Gaussian)"),
        (r"unimix_ratio", not two and not config.dyn_discrete, "dyn_discrete is 0"),
        (r"dyn_blocks", config.dyn_core == "gru", "dyn_core is gru"),
        (r"decoder\.blocks", config.decoder.cnn == "strided", "decoder.cnn is strided"),
        (r"prefill_policy", not config.prefill, "prefill is 0"),
        (r"critic\.slow_target_.*", not config.critic.slow_target, "critic.slow_target is false"),
        (r"expl_until", explores == "greedy", f"expl_behavior is {explores}"),
        (r"disag_.*|expl_(intr|extr)_scale", explores != "plan2explore", f"expl_behavior is {explores}"),
        (r"eval_(episode_num|envs|sample)|video_pred_log", not config.eval_every, "eval_every is 0"),
        (r"eval_(envs|sample)", config.eval_every and not config.eval_episode_num, "eval_episode_num is 0"),
        (
            r"envs|prefill(_policy)?|pretrain|train_ratio|expl_until|keep_episodes|replay_online",
            config.offline_traindir,
            "offline_traindir is given",
        ),
    ]
    found = [([name for name in sorted(config.given) if re.fullmatch(names, name)], when, why) for names, when, why in table]
    return [f"without effect: {', '.join(names)}, since {why}" for names, when, why in found if when and names]
