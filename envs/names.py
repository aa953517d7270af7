"""Names of observations and actions, such that episodes, checkpoints, networks and logs can hold them."""

import sys

MOST_NAME = 300  # characters of a name in an archive
MOST_KEY = 200  # of the name of an observation or action, which is a part of the names of weights
# What the agent logs as train/<name>_loss. The loss of an observation of the same name would replace it, or be replaced.
LOSSES = ("model", "actor", "value", "agent", "replay_value", "dyn", "rep", "explorer", "expl_actor", "expl_value")


def is_entry_name(name: str) -> bool:
    """Whether an entry of an archive may have this name: it can be printed, is not too long, and leads out of no folder."""
    return name.isprintable() and len(name) <= MOST_NAME and "\\" not in name and name[:1] != "/" and ".." not in name.split("/")


def check_key(key: str) -> None:
    """Raises ValueError if an observation or a part of an action cannot have this name in episodes, checkpoints and networks."""
    if len(key) > MOST_KEY or not is_entry_name(key):
        raise ValueError(
            f"the key {key!r:.100} cannot name arrays in files: it has a backslash, a leading slash, a character that cannot be printed, "
            f"or more than {MOST_KEY} characters; rename it in a wrapper"
        )
    torch = sys.modules.get("torch")  # workers do not load it, and their names have been checked before
    if torch and hasattr(torch.nn.ModuleDict(), key):  # of an instance: `training` is no attribute of the class
        raise ValueError(f"the observation or action {key!r} has a name that PyTorch's modules use themselves; rename it in a wrapper")


def check_observed(key: str) -> None:
    """Raises ValueError if an observation that the agent learns from cannot have this name."""
    if key in LOSSES:
        raise ValueError(f"the observation key {key!r} is the name of a loss of the agent, train/{key}_loss; rename it in a wrapper")
    check_key(key)
