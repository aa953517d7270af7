"""Names of observations and actions, such that episodes and checkpoints can hold them."""

MOST_NAME = 300  # characters of a name in an archive
MOST_KEY = 200  # of the name of an observation or action, which is a part of the names of weights


def is_entry_name(name: str) -> bool:
    """Whether an entry of an archive may have this name: it can be printed, is not too long, and leads out of no folder."""
    return name.isprintable() and len(name) <= MOST_NAME and "\\" not in name and name[:1] != "/" and ".." not in name.split("/")


def check_key(key: str) -> None:
    """Raises ValueError if an observation or a part of an action cannot have this name in episodes and checkpoints."""
    if len(key) > MOST_KEY or not is_entry_name(key):
        raise ValueError(
            f"the key {key!r:.100} cannot name arrays in files: it has a backslash, a leading slash, a character that cannot be printed, "
            f"or more than {MOST_KEY} characters; rename it in a wrapper"
        )
