"""Tensors of the JAX original's DreamerV3 by the names of our agents: weights, gradients, updates and the optimizer's moments.

The original's dense kernels are (in, out), its convolutions (height, width, in, out), its block kernels (block, in, out). Its features are
[deter, latents] and its embeddings [vectors, images]; ours are [latents, deter] and [images, vectors].
"""

import re

import numpy as np
import torch

WORLD, BEHAVIOR = "_wm", "_task_behavior"
DECODER = f"{WORLD}.heads.decoder"
# Layers of the original and ours. {} stands for a number or a key; {n} for the number counted down from 2.
LAYERS = {
    r"enc/cnn(\d)": f"{WORLD}.encoder._cnn.convs.{{}}",
    r"enc/cnn(\d)norm": f"{WORLD}.encoder._cnn.norms.{{}}",
    r"enc/mlp(\d)": f"{WORLD}.encoder._mlp.layers.Encoder_linear{{}}",
    r"enc/mlp(\d)norm": f"{WORLD}.encoder._mlp.layers.Encoder_norm{{}}",
    r"dyn/dynin0": f"{WORLD}.dynamics._cell.deter_layer.0",
    r"dyn/dynin0norm": f"{WORLD}.dynamics._cell.deter_layer.1",
    r"dyn/dynin1": f"{WORLD}.dynamics._img_in_layers.stoch.0",
    r"dyn/dynin1norm": f"{WORLD}.dynamics._img_in_layers.stoch.1",
    r"dyn/dynin2": f"{WORLD}.dynamics._img_in_layers.action.0",
    r"dyn/dynin2norm": f"{WORLD}.dynamics._img_in_layers.action.1",
    r"dyn/dynhid0": f"{WORLD}.dynamics._cell.hidden",
    r"dyn/dynhid0norm": f"{WORLD}.dynamics._cell.hidden_norm",
    r"dyn/dyngru": f"{WORLD}.dynamics._cell.gates",
    r"dyn/prior0": f"{WORLD}.dynamics._img_out_layers.0",
    r"dyn/prior0norm": f"{WORLD}.dynamics._img_out_layers.1",
    r"dyn/prior1": f"{WORLD}.dynamics._img_out_layers.3",
    r"dyn/prior1norm": f"{WORLD}.dynamics._img_out_layers.4",
    r"dyn/priorlogit": f"{WORLD}.dynamics._imgs_stat_layer",
    r"dyn/obs0": f"{WORLD}.dynamics._obs_out_layers.0",
    r"dyn/obs0norm": f"{WORLD}.dynamics._obs_out_layers.1",
    r"dyn/obslogit": f"{WORLD}.dynamics._obs_stat_layer",
    r"dec/mlp/linear(\d)": f"{DECODER}._mlp.layers.Decoder_linear{{}}",
    r"dec/mlp/norm(\d)": f"{DECODER}._mlp.layers.Decoder_norm{{}}",
    r"dec/vec/(\w+)/(?:pred|logits)": f"{DECODER}._mlp.mean_layer.{{}}",
    r"dec/sp0": f"{DECODER}._cnn.deter_layer",
    r"dec/sp1": f"{DECODER}._cnn.stoch_hidden.0",
    r"dec/sp1norm": f"{DECODER}._cnn.stoch_hidden.1",
    r"dec/sp2": f"{DECODER}._cnn.stoch_layer",
    r"dec/spnorm": f"{DECODER}._cnn.norm",
    r"dec/conv(\d)": f"{DECODER}._cnn.convs.{{n}}",
    r"dec/conv(\d)norm": f"{DECODER}._cnn.norms.{{n}}",
    r"dec/imgout": f"{DECODER}._cnn.convs.3",
    r"rew/mlp/linear(\d)": f"{WORLD}.heads.reward.layers.Reward_linear{{}}",
    r"rew/mlp/norm(\d)": f"{WORLD}.heads.reward.layers.Reward_norm{{}}",
    r"rew/head/logits": f"{WORLD}.heads.reward.mean_layer",
    r"con/mlp/linear(\d)": f"{WORLD}.heads.cont.layers.Cont_linear{{}}",
    r"con/mlp/norm(\d)": f"{WORLD}.heads.cont.layers.Cont_norm{{}}",
    r"con/head/logit": f"{WORLD}.heads.cont.mean_layer",
    r"pol/mlp/linear(\d)": f"{BEHAVIOR}.actor.layers.Actor_linear{{}}",
    r"pol/mlp/norm(\d)": f"{BEHAVIOR}.actor.layers.Actor_norm{{}}",
    r"pol/head/action/(?:logits|mean)": f"{BEHAVIOR}.actor.mean_layer",
    r"pol/head/action/stddev": f"{BEHAVIOR}.actor.std_layer",
    r"val/mlp/linear(\d)": f"{BEHAVIOR}.value.layers.Value_linear{{}}",
    r"val/mlp/norm(\d)": f"{BEHAVIOR}.value.layers.Value_norm{{}}",
    r"val/head/logits": f"{BEHAVIOR}.value.mean_layer",
    r"slowval/mlp/linear(\d)": f"{BEHAVIOR}._slow_value.layers.Value_linear{{}}",
    r"slowval/mlp/norm(\d)": f"{BEHAVIOR}._slow_value.layers.Value_norm{{}}",
    r"slowval/head/logits": f"{BEHAVIOR}._slow_value.mean_layer",
}
# Layers that read [deter, latents]; the decoder of vectors reads [latents, deter], as ours.
READS_FEATURES = re.compile(r"(rew|con|pol|val|slowval)/mlp/linear0/kernel")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def our_name(name: str) -> str:
    """The name of our tensor for a parameter of the original."""
    layer, _, leaf = name.rpartition("/")
    for pattern, ours in LAYERS.items():
        if match := re.fullmatch(pattern, layer):
            number = match[1] if match.groups() else ""
            return f"{ours.replace('{n}', str(2 - int(number))) if '{n}' in ours else ours.format(number)}.{LEAVES[leaf]}"
    raise KeyError(f"no layer of ours is {name}")


def _swapped(kernel: np.ndarray, first: int) -> np.ndarray:
    """The inputs of a dense kernel with its first ones behind the others."""
    return np.concatenate([kernel[first:], kernel[:first]])


def our_layout(name: str, array: np.ndarray, agent) -> torch.Tensor:
    """A parameter of the original, or its gradient, in the layout of ours."""
    if READS_FEATURES.fullmatch(name):
        array = _swapped(array, agent._wm.dynamics.deter_size)
    elif name == "dyn/obs0/kernel":
        deter, tokens = np.split(array, [agent._wm.dynamics.deter_size])
        has_vectors = any(len(shape) == 1 for shape in agent._wm.encoder.shapes.values())
        array = np.concatenate([deter, _swapped(tokens, agent._config.encoder.mlp_units if has_vectors else 0)])
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 3:  # (block, in, out) -> (block out, in)
        array = array.transpose(0, 2, 1).reshape(-1, array.shape[1])
    elif array.ndim == 2:
        array = array.T
    return torch.as_tensor(np.ascontiguousarray(array))


def our_tensors(arrays: dict[str, np.ndarray], agent) -> dict[str, torch.Tensor]:
    """Converts parameters of the original, or as many arrays in their layout: gradients, updates, moments.

    Returns:
        tensors by the names of our parameters.
    """
    tensors = {our_name(name): our_layout(name, array, agent) for name, array in arrays.items()}
    assert len(tensors) == len(arrays), "two of the original's parameters have the same name here"
    return tensors


def _check(tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Checks that names and shapes are all those of the agent, and no others."""
    here, there = ({name: tuple(tensor.shape) for name, tensor in side.items()} for side in (own, tensors))
    assert here == there, {name: (here.get(name), there.get(name)) for name in here.keys() | there if here.get(name) != there.get(name)}
    return tensors


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with a prefix, without it."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def parameter_names(params: dict[str, np.ndarray]) -> list[str]:
    """Names of the original's trained parameters in its whole state; the slow critic is not trained."""
    return [name for name in params if not name.startswith(("opt/", "retnorm/", "slowval"))]


def agent_state(params: dict[str, np.ndarray], agent) -> dict[str, torch.Tensor]:
    """`agent.state_dict()` with the weights in the original's whole state."""
    weights = {name: array for name, array in params.items() if not name.startswith(("opt/", "retnorm/", "slowval_count/"))}
    percentiles = torch.tensor([float(params["retnorm/lo/value"]), float(params["retnorm/hi/value"])])
    return _check({**our_tensors(weights, agent), f"{BEHAVIOR}.ema_vals": percentiles}, agent.state_dict())


def trained_tensors(arrays: dict[str, np.ndarray], agent) -> dict[str, torch.Tensor]:
    """Gradients or updates of all trained parameters, by our names."""
    own = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}
    return _check(our_tensors(arrays, agent), own)


def moments(params: dict[str, np.ndarray], agent) -> dict[str, dict[str, torch.Tensor]]:
    """`step`, `exp_avg` (momentum) and `exp_avg_sq` of every trained parameter, by our names.

    The original writes parameters in its optimizer's names in lower case and without underscores.
    """
    full = {name.lower().replace("_", ""): name for name in parameter_names(params)}
    counts = {int(params[f"opt/state/{name}"]) for name in ("1/0", "2/0", "3/count")} | {int(params["opt/step/value"])}
    assert len(counts) == 1, counts
    square, momentum = (
        trained_tensors({full[name]: array for name, array in part(params, f"opt/state/{index}/1/").items()}, agent) for index in (1, 2)
    )
    step = torch.tensor(float(counts.pop()))
    return {name: {"step": step, "exp_avg": momentum[name], "exp_avg_sq": square[name]} for name in square}
