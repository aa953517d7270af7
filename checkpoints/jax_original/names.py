"""Names and layouts of the JAX original's parameters, and ours.

| | the original | here |
|---|---|---|
| dense kernel | (in, out) | (out, in) |
| convolution | (height, width, in, out) | (out, in, height, width) |
| kernel in blocks | (block, in, out) | (block * out, in) |
| inputs of reward, continue, actor and critic | deter, latents | latents, deter |
| embedding | vectors, images | images, vectors |
| convolutions of the decoder | numbered down | numbered up |
| output layers of the only action | with its key | without |
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

WM, BEHAVIOR = "_wm.", "_task_behavior."
ENCODER, DYNAMICS, DECODER = f"{WM}encoder.", f"{WM}dynamics.", f"{WM}heads.decoder."
NUMBER, MOST_LAYERS = "{i}", 100


class Rule(NamedTuple):
    """A layer of the original and ours. Either name may have a number {i}; ours is offset + stride * theirs."""

    theirs: str
    ours: str
    stride: int = 1
    offset: int = 0


def _hidden(theirs: str, ours: str) -> list[Rule]:
    """Linear layers and norms in a `HiddenBlock`, whose third modules are activations."""
    return [Rule(theirs, ours, 3), Rule(f"{theirs}norm", ours, 3, 1)]


def _head(theirs: str, ours: str, name: str) -> list[Rule]:
    """The hidden layers of a head."""
    layers = f"{ours}.layers.{name}"
    return [Rule(f"{theirs}/mlp/linear{NUMBER}", f"{layers}_linear{NUMBER}"), Rule(f"{theirs}/mlp/norm{NUMBER}", f"{layers}_norm{NUMBER}")]


RULES = [
    Rule("enc/cnn{i}", f"{ENCODER}_cnn.convs.{{i}}"),
    Rule("enc/cnn{i}norm", f"{ENCODER}_cnn.norms.{{i}}"),
    Rule("enc/mlp{i}", f"{ENCODER}_mlp.layers.Encoder_linear{{i}}"),
    Rule("enc/mlp{i}norm", f"{ENCODER}_mlp.layers.Encoder_norm{{i}}"),
    Rule("dyn/dynin0", f"{DYNAMICS}_cell.deter_layer.0"),
    Rule("dyn/dynin0norm", f"{DYNAMICS}_cell.deter_layer.1"),
    Rule("dyn/dynin1", f"{DYNAMICS}_img_in_layers.stoch.0"),
    Rule("dyn/dynin1norm", f"{DYNAMICS}_img_in_layers.stoch.1"),
    Rule("dyn/dynin2", f"{DYNAMICS}_img_in_layers.action.0"),
    Rule("dyn/dynin2norm", f"{DYNAMICS}_img_in_layers.action.1"),
    Rule("dyn/dynhid0", f"{DYNAMICS}_cell.hidden"),
    Rule("dyn/dynhid0norm", f"{DYNAMICS}_cell.hidden_norm"),
    Rule("dyn/dyngru", f"{DYNAMICS}_cell.gates"),
    *_hidden("dyn/prior{i}", f"{DYNAMICS}_img_out_layers.{{i}}"),
    Rule("dyn/priorlogit", f"{DYNAMICS}_imgs_stat_layer"),
    *_hidden("dyn/obs{i}", f"{DYNAMICS}_obs_out_layers.{{i}}"),
    Rule("dyn/obslogit", f"{DYNAMICS}_obs_stat_layer"),
    *_head("dec", f"{DECODER}_mlp", "Decoder"),
    Rule("dec/sp0", f"{DECODER}_cnn.deter_layer"),
    Rule("dec/sp1", f"{DECODER}_cnn.stoch_hidden.0"),
    Rule("dec/sp1norm", f"{DECODER}_cnn.stoch_hidden.1"),
    Rule("dec/sp2", f"{DECODER}_cnn.stoch_layer"),
    Rule("dec/spnorm", f"{DECODER}_cnn.norm"),
    *_head("rew", f"{WM}heads.reward", "Reward"),
    Rule("rew/head/logits", f"{WM}heads.reward.mean_layer"),
    *_head("con", f"{WM}heads.cont", "Cont"),
    Rule("con/head/logit", f"{WM}heads.cont.mean_layer"),
    *_head("pol", f"{BEHAVIOR}actor", "Actor"),
    *_head("val", f"{BEHAVIOR}value", "Value"),
    Rule("val/head/logits", f"{BEHAVIOR}value.mean_layer"),
    *_head("slowval", f"{BEHAVIOR}_slow_value", "Value"),
    Rule("slowval/head/logits", f"{BEHAVIOR}_slow_value.mean_layer"),
]
VECTOR_LAYER, ACTION_LAYERS = f"{DECODER}_mlp.mean_layer", {"mean": f"{BEHAVIOR}actor.mean_layer", "stddev": f"{BEHAVIOR}actor.std_layer"}
KINDS = {"vectors": ("pred", "logits"), "actions": ("mean", "logits")}  # how numbers and classes are predicted
# Layers whose first inputs are deter there and latents here. The decoder of vectors reads [latents, deter], as ours.
READS_FEATURES = re.compile(r"(rew|con|pol|val|slowval)/mlp/linear0/kernel")
CONVOLUTION = re.compile(r"(enc/cnn\d+|dec/conv\d+|dec/imgout)/kernel")
TRAINED = re.compile(r"(enc|dyn|dec|rew|con|pol|val)/.+")  # the slow critic is not
# Layers whose kernels have blocks in the original.
IN_BLOCKS = ("dyn/dynhid0", "dyn/dyngru", "dec/sp0")


class Conventions(NamedTuple):
    """How the parameters of an agent are named and laid out in the original.

    Attributes:
        deter: size D of the deterministic state.
        vector_units: entries of an embedding that come from vectors; 0 without vectors.
        stages: convolutions of the image decoder; 0 without images.
        blocks: number of blocks of each layer in `IN_BLOCKS`.
        vectors: how each vector is predicted, by key, see `KINDS`.
        actions: how each action is predicted, by key.
    """

    deter: int
    vector_units: int
    stages: int
    blocks: dict[str, int]
    vectors: dict[str, str]
    actions: dict[str, str]

    def rules(self) -> list[Rule]:
        """The rules for all layers of such an agent."""
        rules, last, alone = list(RULES), self.stages - 1, len(self.actions) == 1
        rules += [Rule(f"dec/vec/{key}/{kind}", f"{VECTOR_LAYER}.{key}") for key, kind in self.vectors.items()]
        for key, kind in self.actions.items():
            outputs = {"logits": ACTION_LAYERS["mean"]} if kind == "logits" else ACTION_LAYERS
            rules += [Rule(f"pol/head/{key}/{output}", layer if alone else f"{layer}.{key}") for output, layer in outputs.items()]
        rules += [
            Rule("dec/imgout", f"{DECODER}_cnn.convs.{last}"),
            Rule("dec/conv{i}", f"{DECODER}_cnn.convs.{{i}}", -1, last - 1),
            Rule("dec/conv{i}norm", f"{DECODER}_cnn.norms.{{i}}", -1, last - 1),
        ]
        return rules

    def names(self) -> dict[str, str]:
        """Our tensor for each parameter that such an agent can have, by the original's name."""
        found = {}
        for rule in self.rules():
            for number in range(MOST_LAYERS if NUMBER in rule.theirs else 1):
                ours = rule.offset + rule.stride * number
                if ours >= 0:
                    layers = rule.theirs.replace(NUMBER, str(number)), rule.ours.replace(NUMBER, str(ours))
                    found |= {f"{layers[0]}/{theirs}": f"{layers[1]}.{leaf}" for theirs, leaf in _leaves(rule).items()}
        return found


def conventions_of(params: Mapping[str, np.ndarray]) -> Conventions:
    """Reads the conventions off the original's parameters.

    Raises:
        ValueError: if they are not those of an agent.
    """
    shapes = {name: array.shape for name, array in params.items() if array.ndim and array.size}
    missing = [name for name in ("dyn/dynin0/kernel", "dyn/dynin1/kernel", "dyn/dyngru/kernel") if len(shapes.get(name, ())) < 2]
    if missing:
        raise ValueError(f"it lacks the parameter {missing[0]}, which every agent has, or that is no matrix")
    units = [shape[-1] for name, shape in shapes.items() if re.fullmatch(r"enc/mlp\d+/bias", name)]
    return Conventions(
        deter=shapes["dyn/dynin0/kernel"][0],
        vector_units=units[-1] if units else 0,
        stages=sum(bool(re.fullmatch(r"dec/(conv\d+|imgout)/bias", name)) for name in shapes),
        blocks={layer: shapes[f"{layer}/kernel"][0] for layer in IN_BLOCKS if f"{layer}/kernel" in shapes},
        vectors=_predicted(shapes, "dec/vec", KINDS["vectors"]),
        actions=_predicted(shapes, "pol/head", KINDS["actions"]),
    )


def _predicted(names: Iterable[str], prefix: str, kinds: tuple[str, ...]) -> dict[str, str]:
    """How each observation or action is predicted, by key."""
    matches = [re.fullmatch(rf"{prefix}/(.+)/({'|'.join(kinds)})/bias", name) for name in names]
    return {match[1]: match[2] for match in matches if match}


class Translation:
    """Translates parameters of the original to ours and back.

    Args:
        conventions: of the agent.
    """

    def __init__(self, conventions: Conventions):
        self._conventions = conventions
        self._ours = conventions.names()
        self._theirs = {ours: theirs for theirs, ours in self._ours.items()}

    def our_name(self, name: str) -> str | None:
        """The name of our tensor for a parameter of the original; None if there is none."""
        return self._ours.get(name)

    def their_name(self, name: str) -> str | None:
        """The name of the original's parameter for a tensor of ours; None if there is none."""
        return self._theirs.get(name)

    def to_ours(self, name: str, array: np.ndarray) -> np.ndarray:
        """A parameter of the original, or its gradient or moment, in our layout.

        Args:
            name: of the original's parameter.
        Raises:
            ValueError: if it has another number of dimensions than such a parameter.
        """
        rank = 4 if CONVOLUTION.fullmatch(name) else 3 if self._blocks(name) else 2 if name.endswith("/kernel") else 1
        if array.ndim != rank or not array.size:
            raise ValueError(f"its parameter {name} has the shape {array.shape}; it must have {rank} dimension{'s' if rank > 1 else ''}")
        if rank == 4:
            return array.transpose(3, 2, 0, 1)
        elif rank == 3:  # (block, in, out) -> (block * out, in)
            return array.transpose(0, 2, 1).reshape(-1, array.shape[1])
        elif rank == 2:
            start, count = self._moved_inputs(name)
            return np.concatenate([array[:start], array[start + count :], array[start : start + count]]).T
        return array

    def to_theirs(self, name: str, array: np.ndarray) -> np.ndarray:
        """A tensor of ours, or its moment, in the original's layout; the inverse of `to_ours`.

        Args:
            name: of the original's parameter.
        """
        if array.ndim == 4:
            return array.transpose(2, 3, 1, 0)
        elif array.ndim == 2 and self._blocks(name):
            return array.reshape(self._blocks(name), -1, array.shape[1]).transpose(0, 2, 1)
        elif array.ndim == 2:
            start, count = self._moved_inputs(name)
            end = len(array.T) - count
            return np.concatenate([array.T[:start], array.T[end:], array.T[start:end]])
        return array

    def _blocks(self, name: str) -> int:
        """The number of blocks of a kernel; 0 if it is not in blocks."""
        layer, _, leaf = name.rpartition("/")
        return self._conventions.blocks.get(layer, 0) if leaf == "kernel" else 0

    def _moved_inputs(self, name: str) -> tuple[int, int]:
        """The inputs of a dense kernel that stand behind all others here: the first of them in the original, and how many."""
        deter = self._conventions.deter
        if READS_FEATURES.fullmatch(name):
            return 0, deter
        return (deter, self._conventions.vector_units) if name == "dyn/obs0/kernel" else (0, 0)


def _leaves(rule: Rule) -> dict[str, str]:
    """The parameters of a layer of the original, and their names here."""
    is_norm = re.search(r"norm(\{i\})?$", rule.theirs)
    return {"scale": "weight"} if is_norm else {"kernel": "weight", "bias": "bias"}
