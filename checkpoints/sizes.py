"""Reads settings from the tensors of a checkpoint: those that decide which tensors an agent has and which shapes they have.

Files of dreamerv3-torch store no settings, so the tensors are the only source.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping

import settings
from checkpoints.dreamerv3_torch import Stored, moments
from checkpoints.dreamerv3_torch import read as read_file
from console import first
from distributions import TwoHot
from encoders import POOLED_DEPTHS

Shapes = dict[str, tuple[int, ...]]  # by the names of the tensors
Rule = Callable[[Shapes], object]  # a setting's value, None if the tensors do not tell it
Levels = list[tuple[int, int]]  # (latents, classes) of every level; 0 classes for Gaussians, 1 where nothing tells

NOTHING, EVERYTHING = "$^", ".*"  # regular expressions that match no observation, and all


def sizes_of(checkpoint: dict) -> dict:
    """Returns the settings that an agent needs to load a checkpoint, by name, as overrides for `tools.load_config`.

    They are read from the tensors. Where tensors do not tell and the checkpoint stores settings, those are used.

    Args:
        checkpoint: of this program or of dreamerv3-torch, with its entry "agent_state_dict".
    Returns:
        for example {"units": 512, "encoder.cnn_depth": 32}. Of a flat latent `dyn_stoch` and `dyn_discrete`, if Adam's moments or the
        stored settings tell them; whether the agent has two levels is the caller's choice.
    Raises:
        ValueError: if this is no checkpoint of an agent.
    """
    if not isinstance(checkpoint, dict) or "agent_state_dict" not in checkpoint:
        raise ValueError("sizes_of needs a whole checkpoint, a dict with the entry 'agent_state_dict', as torch.load returns it")
    stored = read_checkpoint(checkpoint)
    # Which observations are encoded is the presets' choice, as long as there are some.
    told = {name: value for name, value in read(shapes_of(stored.weights)).items() if value != EVERYTHING}
    training = not_in_tensors(stored, IN_COMBINATION) if stored.settings else {}
    return {**latent_settings(latent_sizes(stored, stored.settings)), **told, **not_in_tensors(stored), **training}


def read_checkpoint(checkpoint: dict) -> Stored:
    """Reads weights, optimizers and settings of a checkpoint, see `dreamerv3_torch.read`."""
    own = checkpoint["config"] if settings.holds_settings(checkpoint.get("config")) else {}
    stored = read_file(checkpoint["agent_state_dict"], checkpoint.get("optims_state_dict"), own)
    return stored._replace(origin=str(checkpoint.get("origin", stored.origin)))


# What tensors do not tell, or not always: settings that decide what weights mean, and others.
MEANING = ("reward_head.dist", "critic.dist", "cont_head.discounted", "optimizer")
NOT_IN_TENSORS = (
    *MEANING,
    *("dyn_rec_depth", "encoder.symlog_inputs", "encoder.minres", "decoder.minres", "decoder.cnn_sigmoid", "decoder.vector_dist"),
    # Without images no tensor tells these, and they must go together all the same.
    *(
        "encoder.cnn",
        "encoder.cnn_depth",
        "encoder.kernel_size",
        "decoder.cnn",
        "decoder.kernel_size",
        "decoder.cnn_depth",
        "decoder.blocks",
    ),
)
# Settings that only some optimizers allow, see settings/combinations.py. Weights do not depend on them.
IN_COMBINATION = ("imag_gradient", "agc", "warmup", "replay_context", "critic.replay_scale")


def not_in_tensors(stored: Stored, names: Iterable[str] = NOT_IN_TENSORS) -> dict:
    """Returns those of the named settings that a checkpoint stores. What came later than its version has its default.

    Of a file of dreamerv3-torch, these are the settings in `MEANING` that it always has.
    """
    if stored.settings:
        own = settings.completed(stored.settings)
        return {name: own[name] for name in names if name in own}
    told = read(shapes_of(stored.weights))
    own = {"cont_head.discounted": False, "optimizer": "adam"} | {name: told[name] for name in MEANING if name in told}
    return {name: own[name] for name in names if name in own} if stored.settings is not None else {}


def shapes_of(weights: Mapping) -> Shapes:
    """Returns the shapes of tensors by name. Empty tensors are left out, since they may claim any length."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if tensor.numel()}


def read(shapes: Shapes) -> dict:
    """Returns every setting that the tensors of an agent tell, by name, except the sizes of the latent (`latent_sizes`)."""
    found = {name: rule(shapes) for name, rule in RULES.items()}
    return {name: value for name, value in found.items() if value is not None}


NAMELESS = "vector"  # the key that `ObservationCodec` gives to a vector without a name
DECODED_VECTOR = re.compile(r"(_wm\.heads\.decoder\._mlp\.mean_layer)\.(.+)\.(weight|bias)")


def vector_keys(names: Iterable[str]) -> set[str]:
    """The keys of decoded vectors."""
    return {match[2] for name in names if (match := DECODED_VECTOR.fullmatch(name))}


def is_nameless(ours: Collection[str], theirs: Collection[str]) -> bool:
    """Whether our only vector has no name in its environment. Then it is the only one of a checkpoint, whatever that is called there.

    Args:
        ours, theirs: keys of the vectors.
    """
    return list(ours) == [NAMELESS] and len(theirs) == 1


def rename_vector(stored: Stored, key: str) -> Stored:
    """Gives the only vector of a checkpoint another key. Tensors keep their order, by which the optimizer's state is numbered."""
    return stored._replace(weights={DECODED_VECTOR.sub(rf"\1.{key}.\3", name): tensor for name, tensor in stored.weights.items()})


# Rules


def _size(pattern: str, dim: int) -> Rule:
    """The length of the first tensor that matches, along `dim`."""

    def rule(shapes: Shapes) -> int | None:
        return next((shape[dim] for name, shape in shapes.items() if re.fullmatch(pattern, name) and len(shape) > dim), None)

    return rule


def _count(pattern: str, inside: str) -> Rule:
    """How many tensors match, if there is one that matches `inside`."""

    def rule(shapes: Shapes) -> int | None:
        return sum(bool(re.fullmatch(pattern, name)) for name in shapes) if _has(shapes, inside) else None

    return rule


def _layers(pattern: str) -> Rule:
    """How many weights of linear layers match, if there are any."""

    def rule(shapes: Shapes) -> int | None:
        return sum(bool(re.fullmatch(pattern, name)) for name, shape in shapes.items() if len(shape) == 2) or None

    return rule


def _blocks(layer: str) -> Rule:
    """The blocks of a block-diagonal layer that reads deter: deter / columns, since all blocks share the columns of the weight."""

    def rule(shapes: Shapes) -> int | None:
        deter, shape = RULES["dyn_deter"](shapes), shapes.get(layer, ())
        return deter // shape[1] if deter and len(shape) == 2 and shape[1] else None

    return rule


def _norm(layer: str, inside: str) -> Rule:
    """Layer norm has a bias and RMS norm has none; `layer` matches norms, if there is a tensor that matches `inside`."""

    def rule(shapes: Shapes) -> str | None:
        kind = "layer" if _has(shapes, rf"{layer}\.bias") else "rms" if _has(shapes, rf"{layer}\.weight") else "none"
        return kind if _has(shapes, inside) else None

    return rule


def _present(pattern: str, yes, no, inside: str) -> Rule:
    """`yes` if a tensor matches, else `no`, if there is one that matches `inside`."""

    def rule(shapes: Shapes):
        return (yes if _has(shapes, pattern) else no) if _has(shapes, inside) else None

    return rule


def _has(shapes: Shapes, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in shapes)


def _scalar_dist(layer: str) -> Rule:
    """Two-hot heads predict bins; symlog_disc stands for both kinds. All others predict one number, which tells no kind."""

    def rule(shapes: Shapes) -> str | None:
        return "symlog_disc" if shapes.get(layer, ())[:1] == (TwoHot.BINS,) else None

    return rule


def conv_stacks(shapes: Shapes, net: str) -> list[list[tuple[int, int]]]:
    """Returns the channels that the convolutions in encoder or decoder read and write, by stack, in order.

    Images of one size share a stack.
    """
    stacks = []
    for index in itertools.count():
        prefix = rf"{net}\._cnn{index or ''}\.(layers|convs)\.(\d+)\.weight"
        matches = {re.fullmatch(prefix, name): shape for name, shape in shapes.items() if len(shape) == 4 and all(shape)}
        # Weights are (written, read, ...), those of transposed convolutions, which are the strided decoder's, (read, written, ...).
        layers = {int(m[2]): shape[:2] if net == DECODER and m[1] == "layers" else shape[1::-1] for m, shape in matches.items() if m}
        if not layers:
            return stacks
        stacks.append([channels for _, channels in sorted(layers.items())])
    return stacks


def _first_depth(net: str) -> Rule:
    """`cnn_depth`: the channels of the largest image within a network, in units of the stage if it is pooled."""

    def rule(shapes: Shapes) -> int | None:
        stacks = conv_stacks(shapes, net)
        if not stacks:
            return None
        depth = stacks[0][-1][0] if net == DECODER else stacks[0][0][1]
        return depth // POOLED_DEPTHS[0] if RULES[f"{net.split('.')[-1]}.cnn"](shapes) == "pooled" else depth

    return rule


def _smallest_areas(shapes: Shapes, net: str) -> list[int]:
    """Returns the number of pixels of each stack's smallest image; an empty list if the tensors do not tell."""
    stacks = conv_stacks(shapes, net)
    if net == DECODER:
        nets = [f"_wm.heads.decoder._cnn{index or ''}" for index in range(len(stacks))]
        weights = [shapes.get(f"{cnn}._linear_layer.weight") or shapes.get(f"{cnn}.deter_layer.weight") for cnn in nets]
        rows = [shape[0] if shape else 0 for shape in weights]
        return [count // stack[0][0] for count, stack in zip(rows, stacks)]
    embed = shapes.get("_wm.dynamics._obs_out_layers.0.weight", (0, 0))[-1]
    pixels = embed - (RULES["dyn_deter"](shapes) or 0) - (RULES["encoder.mlp_units"](shapes) or 0)
    if len(stacks) == 1:
        return [pixels // stacks[0][-1][1]]
    areas = _smallest_areas(shapes, DECODER)  # with several stacks the embedding tells only their sum
    other = conv_stacks(shapes, DECODER)
    halvings = [2 * (len(theirs) - len(own)) for theirs, own in zip(other, stacks)]
    return [area << more if more >= 0 else area >> -more for area, more in zip(areas, halvings)] if len(other) == len(stacks) else []


def _decoder_units(shapes: Shapes) -> int | None:
    """The units of layers for vectors; the pooled decoder of images has a layer of twice as many."""
    doubled = _size(rf"{DECODER}\._cnn\d*\.stoch_hidden\.0\.weight", 0)(shapes)
    return _size(rf"{DECODER}\._mlp\.layers\.Decoder_linear0\.weight", 0)(shapes) or (doubled and doubled // 2)


def _minres(net: str) -> Rule:
    """The smallest side of an image within a network. The tensors tell only areas; of an area the factors nearest to each other count."""

    def rule(shapes: Shapes) -> int | None:
        areas = _smallest_areas(shapes, net)
        if not areas or min(areas) < 1:
            return None
        return min(next(side for side in range(math.isqrt(area), 0, -1) if area % side == 0) for area in areas)

    return rule


def _image_size(shapes: Shapes) -> list[int] | None:
    """[H, W] of the images, if all have one size and are square."""
    for net in (ENCODER, DECODER):
        stacks, areas = conv_stacks(shapes, net), _smallest_areas(shapes, net)
        if len(stacks) == len(areas) == 1 and areas[0] > 0 and len(stacks[0]) < 32:
            side = math.isqrt(areas[0])
            return 2 * [side << len(stacks[0])] if side * side == areas[0] else None
    return None


def _grayscale(shapes: Shapes) -> bool | None:
    stacks = conv_stacks(shapes, ENCODER)
    return {1: True, 3: False}.get(stacks[0][0][0]) if len(stacks) == 1 else None


def _ensemble_layers(shapes: Shapes) -> int | None:
    models = RULES["disag_models"](shapes)
    return _count(r"_expl_behavior\._networks\.\d+\.layers\.NoName_linear\d+\.weight", ".*")(shapes) // models if models else None


def _ensemble_target(shapes: Shapes) -> str | None:
    """What the ensemble predicts: the target whose size is the number of outputs."""
    outputs = _size(ENSEMBLE_OUTPUT, 0)(shapes)
    entries, deter = latent_entries(shapes), RULES["dyn_deter"](shapes)
    embed = shapes.get("_wm.dynamics._obs_out_layers.0.weight", (0, 0))[-1]
    if outputs is None or entries is None or deter is None:
        return None
    numbers = {"stoch": entries, "deter": deter, "feat": entries + deter, "embed": embed - deter}
    for level in ("top", "bottom"):
        numbers[f"stoch_{level}"] = shapes.get(f"_wm.dynamics._obs_stat_layer.{level}.weight", (None,))[0]
    return next((target for target, count in numbers.items() if count == outputs), None)


def _ensemble_action(shapes: Shapes) -> bool | None:
    inputs = _size(r"_expl_behavior\._networks\.0\.layers\.NoName_linear0\.weight", 1)(shapes)
    entries, deter = latent_entries(shapes), RULES["dyn_deter"](shapes)
    return None if inputs is None or entries is None or deter is None else inputs > entries + deter


def latent_entries(shapes: Shapes) -> int | None:
    """The size of the latents of all levels together."""
    if latents := shapes.get(f"{DYNAMICS}_img_in_layers.stoch.0.weight"):
        return latents[-1]
    inputs, actions = shapes.get(f"{DYNAMICS}_img_in_layers.0.weight"), _action_entries(shapes)
    return inputs[-1] - actions if inputs and actions else None


def _action_entries(shapes: Shapes) -> int:
    """The length of an action vector. A Dict of actions has an output layer of the policy for each part. 0 without a policy."""
    return sum(shape[0] for name, shape in shapes.items() if re.fullmatch(ACTION_LAYERS, name) and len(shape) == 2)


ENCODER, DECODER, DYNAMICS = r"_wm\.encoder", r"_wm\.heads\.decoder", "_wm.dynamics."
ACTIONS = "_task_behavior.actor.mean_layer.weight"
ACTION_LAYERS = r"_task_behavior\.actor\.mean_layer\.(.+\.)?weight"
ENSEMBLE_OUTPUT = r"_expl_behavior\._networks\.\d+\.mean_layer\.weight"
RECURRENCE = r"_wm\.dynamics\._img_out_layers\.0\.weight"  # (hidden, D)
HEADS = r"(_wm\.heads\.(reward|cont)|_task_behavior\.(actor|value))\.layers\.(Reward|Cont|Actor|Value)_linear0\.weight"
FIRST_NORM = r"(_cnn\d*\.(layers\.1\.norm|norms\.0|norm)|_mlp\.layers\.(Encoder|Decoder)_norm0)"
# In a strided decoder neither a single convolution nor an output layer is normalised.
NORMALISED = r"_wm\.heads\.decoder\.(_cnn\d*\.(layers\.[23]|deter_layer)|_mlp\.layers\.Decoder_linear0)\.weight"

# Every setting but the sizes of the latent, in the order of configs.yaml.
RULES: dict[str, Rule] = {
    "size": _image_size,
    "grayscale": _grayscale,
    "dyn_deter": _size(RECURRENCE, 1),
    "dyn_hidden": _size(RECURRENCE, 0),
    "dyn_core": _present(r"_wm\.dynamics\._cell\.gates\.weight", "block_gru", "gru", inside=RECURRENCE),
    "dyn_blocks": _blocks("_wm.dynamics._cell.gates.weight"),
    "dyn_img_layers": _layers(r"_wm\.dynamics\._img_out_layers\.\d+\.weight"),
    "dyn_obs_layers": _layers(r"_wm\.dynamics\._obs_out_layers\.\d+\.weight"),
    "initial": _present(r"_wm\.dynamics\.W", "learned", "zeros", inside=RECURRENCE),
    "units": _size(HEADS, 0),
    "norm": _norm(r"_wm\.dynamics\._img_out_layers\.1", inside=RECURRENCE),
    "encoder.mlp_keys": _present(rf"{ENCODER}\._mlp\..*", EVERYTHING, NOTHING, inside=rf"{ENCODER}\..*"),
    "encoder.cnn_keys": _present(rf"{ENCODER}\._cnn\..*", EVERYTHING, NOTHING, inside=rf"{ENCODER}\..*"),
    "encoder.norm": _norm(rf"{ENCODER}\.{FIRST_NORM}", inside=rf"{ENCODER}\..*"),
    "encoder.cnn": _present(rf"{ENCODER}\._cnn\.convs\..*", "pooled", "strided", inside=rf"{ENCODER}\._cnn\..*"),
    "encoder.cnn_depth": _first_depth(ENCODER),
    "encoder.kernel_size": _size(rf"{ENCODER}\._cnn\.(layers|convs)\.0\.weight", 2),
    "encoder.minres": _minres(ENCODER),
    "encoder.mlp_layers": _count(rf"{ENCODER}\._mlp\.layers\.Encoder_linear\d+\.weight", inside=rf"{ENCODER}\._mlp\..*"),
    "encoder.mlp_units": _size(rf"{ENCODER}\._mlp\.layers\.Encoder_linear0\.weight", 0),
    "decoder.mlp_keys": _present(rf"{DECODER}\._mlp\..*", EVERYTHING, NOTHING, inside=RECURRENCE),
    "decoder.cnn_keys": _present(rf"{DECODER}\._cnn\..*", EVERYTHING, NOTHING, inside=RECURRENCE),
    "decoder.norm": _norm(rf"{DECODER}\.{FIRST_NORM}", inside=NORMALISED),
    "decoder.cnn": _present(rf"{DECODER}\._cnn\.convs\..*", "pooled", "strided", inside=rf"{DECODER}\._cnn\..*"),
    "decoder.blocks": _blocks("_wm.heads.decoder._cnn.deter_layer.weight"),
    "decoder.cnn_depth": _first_depth(DECODER),
    "decoder.kernel_size": _size(rf"{DECODER}\._cnn\.(layers|convs)\.0\.weight", 2),
    "decoder.minres": _minres(DECODER),
    "decoder.mlp_layers": _count(rf"{DECODER}\._mlp\.layers\.Decoder_linear\d+\.weight", inside=rf"{DECODER}\._mlp\..*"),
    "decoder.mlp_units": _decoder_units,
    "reward_head.layers": _count(r"_wm\.heads\.reward\.layers\.Reward_linear\d+\.weight", inside=r"_wm\.heads\.reward\.mean_layer\.weight"),
    "reward_head.dist": _scalar_dist("_wm.heads.reward.mean_layer.weight"),
    "cont_head.layers": _count(r"_wm\.heads\.cont\.layers\.Cont_linear\d+\.weight", inside=r"_wm\.heads\.cont\.mean_layer\.weight"),
    "actor.layers": _count(r"_task_behavior\.actor\.layers\.Actor_linear\d+\.weight", inside=ACTION_LAYERS),
    "actor.std": _present(r"_task_behavior\.actor\.std_layer\..*", "learned", None, inside=".*"),
    "critic.layers": _count(r"_task_behavior\.value\.layers\.Value_linear\d+\.weight", inside=r"_task_behavior\.value\.mean_layer\.weight"),
    "critic.dist": _scalar_dist("_task_behavior.value.mean_layer.weight"),
    "critic.slow_target": _present(r"_task_behavior\._slow_value\..*", True, False, inside=r"_task_behavior\.value\..*"),
    "disag_target": _ensemble_target,
    "disag_action_cond": _ensemble_action,
    "disag_models": _count(ENSEMBLE_OUTPUT, inside=ENSEMBLE_OUTPUT),
    "disag_layers": _ensemble_layers,
    "disag_units": _size(r"_expl_behavior\._networks\.0\.layers\.NoName_linear0\.weight", 0),
}


# The latent


def latent_settings(levels: Levels) -> dict:
    """Returns the settings of an agent with these levels; none for a flat latent whose classes are unknown."""
    if len(levels) == 2:
        (top, top_classes), (bottom, bottom_classes) = levels
        return {
            "hierarchical_mode": True,
            "dyn_stoch_top": top,
            "dyn_discrete_top": top_classes,
            "dyn_stoch_bottom": bottom,
            "dyn_discrete_bottom": bottom_classes,
        }
    ((latents, classes),) = levels
    return {} if classes == 1 else {"dyn_stoch": latents, "dyn_discrete": classes}


def latent_sizes(stored: Stored, *configs: Mapping) -> Levels:
    """Returns (latents, classes) of every level in a checkpoint; 0 classes for Gaussian latents, 1 if nothing tells the classes.

    The tensors tell only the product of the two. Classes come from the metadata of the file, else from Adam's moments, else from the
    first of `configs` whose sizes have these products.

    Raises:
        ValueError: if the tensors are not those of an agent.
    """
    products = _level_entries(stored.weights)
    if len(products) == 1 and products[0] == 2 * latent_entries(shapes_of(stored.weights)):  # means and deviations
        return [(products[0] // 2, 0)]

    def fits(levels: Levels) -> bool:
        return [latents * classes for latents, classes in levels] == products and all(classes > 1 for _, classes in levels)

    if stored.levels and fits(stored.levels):
        return stored.levels
    known = next((levels for config in configs if fits(levels := _sizes_in(config, len(products)))), None)
    if len(products) == 2:
        latents = stored.weights[f"{DYNAMICS}_top_summary.0.weight"].shape[0]
        classes = _classes_from_moments(stored, f"{DYNAMICS}_obs_stat_layer.bottom.weight")
        classes = classes or (known[1][1] if known else 1)
        return [(latents, products[0] // latents), (products[1] // classes, classes)]
    classes = _classes_from_moments(stored, f"{DYNAMICS}_obs_stat_layer.weight")
    return [(products[0] // classes, classes)] if classes else known or [(products[0], 1)]


def _sizes_in(config: Mapping, count: int) -> Levels:
    """The sizes that settings give to one or two levels; an empty list if they are not valid."""
    try:
        return list(settings.level_sizes({**config, "hierarchical_mode": count == 2}).values())
    except ValueError:
        return []


def _level_entries(weights: dict) -> list[int]:
    """Returns the size of the statistics of each level. Checks that there are a recurrence and an actor.

    Raises:
        ValueError: if the tensors are not those of an agent.
    """
    shapes = shapes_of(weights)
    reader = "stoch.0" if f"{DYNAMICS}_cell.gates.weight" in weights else "0"
    needed, actions = [f"{DYNAMICS}_img_in_layers.{reader}.weight", f"{DYNAMICS}_obs_stat_layer.weight"], _action_entries(shapes)
    two_levels = f"{DYNAMICS}_top_summary.0.weight" in weights
    if two_levels:
        needed = [f"{DYNAMICS}_top_summary.0.weight", f"{DYNAMICS}_top_to_prior.weight"]
    missing = [name for name in needed if name not in weights or weights[name].ndim != 2 or not weights[name].numel()]
    missing += [] if actions or two_levels else [ACTIONS]
    if missing:
        raise ValueError(
            f"this holds no agent of hDreamer or dreamerv3-torch: {first(missing)} is missing. It has "
            f"{first(list(weights)) or 'no tensors'}"
        )
    if two_levels:
        return [weights[needed[0]].shape[1], weights[needed[1]].shape[0]]
    latents, statistics = latent_entries(shapes), weights[needed[1]].shape[0]
    if latents < 1 or statistics not in (latents, 2 * latents):
        raise ValueError(f"this is damaged: its recurrence reads {latents} latent entries, and its posterior predicts {statistics}")
    return [statistics]


def _classes_from_moments(stored: Stored, name: str) -> int | None:
    """Returns the number of classes K of a latent, from Adam's first moment of its posterior's weights; None if that does not tell.

    Adding a constant to the K logits of a categorical does not change the softmax. So their gradients add up to zero, and so do the
    running means of the gradients. LaProp's are means of scaled gradients, which do not.
    """
    try:
        by_name = moments("_wm._model_opt._opt", stored) if stored.optimizers else {}
    except ValueError:  # refused later
        return None
    if name not in by_name:
        return None
    moment = by_name[name]["exp_avg"].double()
    entries = len(moment)
    for classes in range(2, entries + 1):
        if entries % classes == 0:
            rest = moment.unflatten(0, (-1, classes)).sum(1).abs().sum()
            if rest < 0.01 * moment.abs().sum():  # rounding errors; other groupings leave a tenth and more
                return classes
    return None
