"""Refuses orders of presets and combinations of settings that have no meaning."""

import re
from collections.abc import Iterable, Iterator, Mapping

from settings.files import flatten, sections

GENERATION = "dreamerv3_2025"
OF_2023 = ("small", "crafter", "minecraft")  # presets whose network sizes are made for the defaults
SIZE = re.compile(r"size\d+m")
ONLY_ADAM = ("grad_clip", "actor.lr", "actor.eps", "actor.grad_clip", "critic.lr", "critic.eps", "critic.grad_clip")


def size_preset(values: Mapping[str, object]) -> str | None:
    """The preset of `dreamerv3_2025` whose sizes are these values, by name with dots; those that are not among them do not count."""
    for preset, section in sections().items():
        named = {name: size for name, size in flatten(section).items() if name != "dataset_size"} if SIZE.fullmatch(preset) else {}
        if named and all(values.get(name, size) == size for name, size in named.items()):
            return preset
    return None


def check_presets(presets: Iterable[str]) -> None:
    """Checks the order of presets that set sizes.

    Raises:
        ValueError: for a size preset without `dreamerv3_2025` before it, which would overwrite its sizes, and for sizes of 2023 with it.
    """
    before = set()
    for name in presets:
        if SIZE.fullmatch(name) and GENERATION not in before:
            raise ValueError(
                f"preset {name!r} has sizes for {GENERATION!r} and must stand after it: --configs defaults {GENERATION} {name}"
            )
        if name in OF_2023 and GENERATION in before:
            way_out = "use size1m" if name == "small" else f"give {name} before it"
            raise ValueError(f"preset {name!r} has sizes of 2023's networks and cannot follow {GENERATION!r}; {way_out}")
        if name == GENERATION and "debug" in before:
            raise ValueError(f"preset {name!r} overrides the sizes of 'debug'; give debug after it")
        if name == GENERATION and "small" in before:
            raise ValueError(f"preset 'small' belongs to 2023's networks, not to {GENERATION!r}; use size1m after it instead")
        before.add(name)


def check_combinations(config) -> None:
    """Checks settings against each other.

    Args:
        config: a `Config`.
    Raises:
        ValueError: for the first combination that has no meaning, by name, with the way out.
    """
    for wrong in _wrong(config):
        raise ValueError(wrong)


def _wrong(config) -> Iterator[str]:
    """Yields a message for each combination of settings that has no meaning."""
    yield from (_wrong_with_laprop if config.optimizer == "laprop" else _wrong_with_adam)(config)
    if config.replay_context and not config.hierarchical_mode and not config.dyn_discrete:
        yield "replay_context 1 stores classes of latents, and dyn_discrete 0 has none; use --replay_context 0 or another dyn_discrete"
    if config.dyn_core == "block_gru" and (config.dyn_blocks < 1 or config.dyn_deter % config.dyn_blocks):
        yield f"dyn_blocks {config.dyn_blocks} does not divide dyn_deter {config.dyn_deter}; give a dyn_blocks that does"
    for name in ("encoder", "decoder"):
        net = config[name]
        odd = net.cnn == "pooled"
        if net.kernel_size % 2 != odd:
            way_out = f"use --{name}.kernel_size {5 if odd else 4}"
            yield f"{name}.kernel_size {net.kernel_size} is not {'odd' if odd else 'even'}, as {name}.cnn {net.cnn} needs it; {way_out}"
    blocks, channels = config.decoder.blocks, 4 * config.decoder.cnn_depth
    if config.decoder.cnn == "pooled" and (blocks < 1 or config.dyn_deter % blocks or channels % blocks):
        yield (
            f"decoder.blocks {blocks} does not divide both dyn_deter {config.dyn_deter} and 4 * decoder.cnn_depth, {channels}; "
            "give a decoder.blocks that does"
        )


def _wrong_with_adam(config) -> Iterator[str]:
    # The replay loss sends one gradient to critic and world model, which have an Adam each. With stored latents only 2025 is defined.
    for name, value in (("critic.replay_scale", config.critic.replay_scale), ("replay_context", config.replay_context)):
        if value:
            yield f"{name} {value} needs optimizer laprop, and it is adam; use --{name} 0 or --optimizer laprop"
    for name in ("agc", "warmup"):
        if config[name]:
            yield f"{name} {config[name]} is a setting of optimizer laprop, and it is adam; use --{name} 0 or --optimizer laprop"


def _wrong_with_laprop(config) -> Iterator[str]:
    unused = [name for name in ONLY_ADAM if config.was_given(name)]
    if unused:
        yield (
            f"{', '.join(unused)}: unused with optimizer laprop, which updates everything with model_lr and opt_eps and clips with agc; "
            f"leave {'it' if len(unused) == 1 else 'them'} out"
        )
    if config.imag_gradient == "dynamics":
        yield "imag_gradient dynamics needs optimizer adam, and it is laprop; use --imag_gradient reinforce"
