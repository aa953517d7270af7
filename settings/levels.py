"""Sizes of the latent's levels, which may be relative to those of the flat latent."""

import math
import re
from collections.abc import Mapping

COUNTS = ("dyn_stoch_top", "dyn_stoch_bottom")
CLASSES = ("dyn_discrete_top", "dyn_discrete_bottom")
SIZES = ("dyn_stoch", "dyn_discrete", *COUNTS, *CLASSES)
RELATIVE = {  # what they may be, for errors
    **dict.fromkeys(COUNTS, "a number, such as 16, or a share of dyn_stoch, such as 1/2"),
    **dict.fromkeys(CLASSES, "a number, such as 16, or null, which stands for dyn_discrete"),
}
SHARE = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*")


def read_share(value) -> str | None:
    """A share of dyn_stoch as it is stored, such as 1/2; None for every other value."""
    match = SHARE.fullmatch(value) if isinstance(value, str) else None
    times, parts = map(int, match.groups()) if match else (0, 0)
    return f"{times}/{parts}" if times and parts else None


def level_sizes(config: Mapping) -> dict[str, tuple[int, int]]:
    """Sizes of every level of the latent, with shares and null resolved.

    Args:
        config: settings, those of a stored run too.
    Returns:
        (latents, classes) by level: {"flat": (32, 32)}, or {"top": (16, 32), "bottom": (16, 32)} with `hierarchical_mode`.
    Raises:
        ValueError: if a share of `dyn_stoch` is no whole number, or if a stored value is no size.
    """
    suffixes = {"top": "_top", "bottom": "_bottom"} if config.get("hierarchical_mode") else {"flat": ""}
    return {level: (_latents(config, f"dyn_stoch{suffix}"), _classes(config, suffix)) for level, suffix in suffixes.items()}


def _latents(config: Mapping, name: str) -> int:
    share = read_share(config.get(name))
    if not share:
        return _number(config, name)
    times, parts = map(int, share.split("/"))
    latents, rest = divmod(times * _number(config, "dyn_stoch"), parts)
    if rest:
        raise ValueError(
            f"setting {name!r} is {share} of dyn_stoch {config['dyn_stoch']}, which is no whole number; give {name} as a number, "
            f"such as {max(1, latents)}, or a dyn_stoch that is a multiple of {parts // math.gcd(times, parts)}"
        )
    return latents


def _classes(config: Mapping, suffix: str) -> int:
    relative = suffix and config.get(f"dyn_discrete{suffix}") is None
    return _number(config, "dyn_discrete" if relative else f"dyn_discrete{suffix}")


def _number(config: Mapping, name: str) -> int:
    if type(config.get(name)) is not int:
        raise ValueError(f"setting {name!r} is {config.get(name)!r}; it must be {RELATIVE.get(name, 'a number, such as 16')}")
    return config[name]
