"""Encoders, decoders and heads for many observation spaces."""

import numpy as np
import pytest
import torch

import distributions as dists
import encoders
import heads
import layers
import tools
from envs.spaces import ActionPart

SMALL = dict(cnn_depth=2, mlp_layers=1, mlp_units=8)


GENERATIONS = {"2023": ["defaults"], "2025": ["dreamerv3_2025"]}
both_generations = pytest.mark.parametrize("presets", GENERATIONS.values(), ids=GENERATIONS)


def section(name: str, presets=("defaults",), **changes):
    """A section of the settings with changes."""
    config = tools.load_config(presets)[name]
    for key, value in changes.items():
        config[key] = value
    return config


def make_encoder(shapes: dict, presets=("defaults",), **changes) -> encoders.MultiEncoder:
    return encoders.MultiEncoder(shapes, section("encoder", presets, **{**SMALL, **changes}))


def make_decoder(shapes: dict, presets=("defaults",), **changes) -> encoders.MultiDecoder:
    """On features of 21, of which 5 are latents."""
    return encoders.MultiDecoder(21, 5, shapes, section("decoder", presets, **{**SMALL, **changes}))


def random_obs(shapes: dict) -> dict:
    return {key: torch.rand(2, 3, *shape) for key, shape in shapes.items()}


@both_generations
@pytest.mark.parametrize(
    "shapes",
    [
        {"image": (64, 64, 3)},
        {"image": (64, 64, 1)},
        {"image": (96, 96, 3)},
        {"image": (16, 16, 3)},
        {"image": (48, 80, 1)},
        {"image": (144, 112, 3)},
        {"a": (64, 64, 3), "b": (64, 64, 1)},
        {"a": (64, 64, 3), "b": (32, 32, 1), "c": (32, 32, 3)},
        {"vector": (5,)},
        {"position": (3,), "velocity": (1,)},
        {"image": (32, 32, 3), "vector": (5,), "other": (2,)},
    ],
)
def test_any_set_of_images_and_vectors_is_encoded_and_predicted(shapes, presets):
    encoder = make_encoder(shapes, presets)
    decoder = make_decoder(shapes, presets)
    obs = random_obs(shapes)
    assert encoder(obs).shape == (2, 3, encoder.outdim)
    predictions = decoder(torch.randn(2, 3, 21))
    assert set(predictions) == set(shapes)
    for key, dist in predictions.items():
        assert dist.mode.shape == obs[key].shape
        assert dist.log_prob(obs[key]).shape == (2, 3)
    assert set(decoder.image_keys) == {key for key, shape in shapes.items() if len(shape) == 3}


@both_generations
@pytest.mark.parametrize("shapes", [{"a": (64, 64, 3), "b": (32, 32, 1), "v": (4,)}, {"a": (32, 32, 3), "b": (32, 32, 1)}])
def test_every_key_influences_the_embedding_and_is_told_apart(shapes, presets):
    encoder = make_encoder(shapes, presets)
    obs = random_obs(shapes)
    for key in shapes:
        changed = encoder({**obs, key: obs[key].flip(1) * 0.5})
        assert not torch.allclose(changed, encoder(obs))


def test_images_at_64_have_the_reference_layers():
    encoder = encoders.ConvEncoder((64, 64), 3, section("encoder"))
    shapes = [tuple(layer.weight.shape) for layer in encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    assert shapes == [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert encoder.outdim == 4096
    decoder = encoders.ConvDecoder(1536, (64, 64), 3, section("decoder"))
    shapes = [tuple(layer.weight.shape) for layer in decoder.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert shapes == [(256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4), (32, 3, 4, 4)]
    assert decoder._linear_layer.weight.shape == (4096, 1536)


def test_pooled_images_at_64_have_the_layers_of_2025():
    encoder = encoders.PooledEncoder((64, 64), 3, section("encoder", ["dreamerv3_2025"]))
    assert [tuple(layer.weight.shape[:2]) for layer in encoder.convs] == [(32, 3), (48, 32), (64, 48), (64, 64)]
    assert encoder.outdim == 1024 and all(layer.kernel_size == (5, 5) for layer in encoder.convs)
    decoder = encoders.PooledDecoder(512 + 2048, 512, (64, 64), 3, section("decoder", ["dreamerv3_2025"]))
    assert [tuple(layer.weight.shape[:2]) for layer in decoder.convs] == [(64, 64), (48, 64), (32, 48), (3, 32)]
    assert decoder.deter_layer.weight.shape == (1024, 256) and decoder.stoch_hidden[0].weight.shape == (512, 512)


def test_a_pooled_embedding_is_flattened_height_width_channels():
    encoder = encoders.PooledEncoder((32, 64), 1, section("encoder", ["dreamerv3_2025"], cnn_depth=2))
    image = torch.rand(1, 32, 64, 1)
    corner = image.clone()
    corner[:, -1, -1] += 1.0  # reaches the last column of each of the last rows alone
    places = (encoder(image) != encoder(corner)).view(4, 8, 8).any(-1)
    assert places[-1, -1] and not places[:2].any() and not places[:, :4].any()


def test_pooled_decoders_read_the_latents_and_every_block_of_deter():
    decoder = encoders.PooledDecoder(5 + 16, 5, (64, 64), 3, section("decoder", ["dreamerv3_2025"], cnn_depth=2, mlp_units=8))
    feat = torch.randn(1, 21, requires_grad=True)
    assert decoder(feat).min() > 0.0 and decoder(feat).max() < 1.0
    (grad,) = torch.autograd.grad(decoder(feat).square().sum(), feat)
    assert grad.all()
    assert [layer.in_features for layer in decoder.input_layers()] == [5]


@pytest.mark.parametrize("symlog_inputs, squashed", [("all", "ab"), ("numbers", "a"), ("none", "")])
def test_symlog_is_applied_to_the_vectors_that_the_setting_names(symlog_inputs, squashed):
    shapes = {"a": (2,), "b": (3,)}
    encoder = encoders.MultiEncoder(shapes, section("encoder", symlog_inputs=symlog_inputs, **SMALL), {"b": (3,)})
    read = []
    encoder._mlp.forward = lambda x: read.append(x) or x
    obs = {"a": torch.randn(4, 2) * 9, "b": torch.eye(3)[torch.randint(3, (4,))]}
    encoder(obs)
    expected = [dists.symlog(obs[key]) if key in squashed else obs[key] for key in shapes]
    torch.testing.assert_close(read[0], torch.cat(expected, -1))


def test_discrete_observations_are_predicted_as_categoricals_where_vectors_follow_their_kind():
    shapes, obs = {"a": (2,), "b": (3,), "c": (7,)}, {"a": torch.randn(4, 2), "b": torch.eye(3)[torch.tensor([0, 2, 1, 1])]}
    obs["c"] = torch.cat([torch.eye(3), torch.eye(4)[:3]], -1)[torch.tensor([0, 1, 2, 0])]
    config = section("decoder", ["dreamerv3_2025"], **SMALL)
    decoder = encoders.MultiDecoder(21, 5, shapes, config, {"b": (3,), "c": (3, 4)})
    feat = torch.randn(4, 21)
    found, x = decoder(feat), decoder._mlp.hidden(feat)
    log_probs = decoder._mlp.mean_layer["b"](x).log_softmax(-1)
    torch.testing.assert_close(found["b"].log_prob(obs["b"]), (log_probs * obs["b"]).sum(-1))
    logits = decoder._mlp.mean_layer["c"](x).split((3, 4), -1)
    expected = sum((part.log_softmax(-1) * onehot).sum(-1) for part, onehot in zip(logits, obs["c"].split((3, 4), -1)))
    torch.testing.assert_close(found["c"].log_prob(obs["c"]), expected)
    assert type(found["a"]) is dists.MSE and found["a"].squash
    config.vector_dist = "mse"
    assert type(encoders.MultiDecoder(21, 5, shapes, config, {"b": (3,)})(feat)["b"]) is dists.MSE


def test_keys_are_selected_by_regular_expression():
    shapes = {"image": (64, 64, 3), "depth": (64, 64, 1), "position": (3,)}
    encoder = make_encoder(shapes, cnn_keys="image", mlp_keys="$^")
    obs = random_obs(shapes)
    torch.testing.assert_close(encoder(obs), encoder({"image": obs["image"]}))


@pytest.mark.parametrize(
    "shapes, changes, words",
    [
        ({"image": (60, 64, 3)}, {}, "multiples of 16"),
        ({"image": (64, 64, 3)}, {"minres": 64}, "minres"),
        ({"image": (64, 64, 3)}, {"kernel_size": 3}, "kernel_size"),
        ({"image": (64, 64, 3)}, {"cnn_keys": "$^"}, "cnn_keys"),
        ({"image": (64, 64, 3)}, {"act": "Linear2"}, "activation"),
        ({"image": (64, 64, 3)}, {"norm": "batch"}, "layer, rms, none"),
        ({"image": (64, 64, 3)}, {"cnn": "dense"}, "'strided' and 'pooled'"),
        ({"image": (64, 64, 3)}, {"cnn": "pooled"}, "must be odd"),
        ({"vector": (3,)}, {"symlog_inputs": "some"}, "all, numbers and none"),
    ],
)
def test_impossible_encoders_are_refused(shapes, changes, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(shapes, **changes)


@pytest.mark.parametrize(
    "dist, kind, event",
    [
        ("symlog_disc", dists.TwoHot, (1,)),
        ("symexp_twohot", dists.TwoHot, (1,)),
        ("symlog_mse", dists.MSE, (3,)),
        ("mse", dists.MSE, (3,)),
        ("binary", dists.Bernoulli, (3,)),
        ("normal", dists.Normal, (3,)),
    ],
)
def test_heads_give_the_distribution_that_is_asked_for(dist, kind, event):
    head = heads.MLP(6, event, 2, 8, name="Head", dist=dist)
    out = head(torch.randn(4, 5, 6))
    assert type(out) is kind and out.mode.shape == (4, 5, *event)


def action_head(size: int, classes: tuple[int, ...] | None, **changes) -> heads.ActionHead:
    """A small policy on features of 6."""
    parts = {"action": ActionPart(size, classes)}
    return heads.ActionHead(6, parts, section("actor", layers=1, **changes), units=8, style=layers.Style())


@pytest.mark.parametrize("dist", ["auto", "onehot"])
def test_discrete_actions_have_a_onehot_distribution(dist):
    head = action_head(3, (3,), dist=dist)
    out = head(torch.randn(4, 5, 6))
    assert type(out) is dists.OneHot and out.mode.shape == (4, 5, 3)


@pytest.mark.parametrize("dist", ["auto", "normal"])
def test_continuous_actions_have_a_gaussian_whose_samples_are_not_bounded(dist):
    out = action_head(2, None, dist=dist, std="3.0")(torch.randn(4, 5, 6))
    assert type(out) is dists.Normal and out.mode.shape == (4, 5, 2)
    assert out.sample().abs().max() > 1.0 and out.mode.abs().max() <= 1.0


def test_observation_keys_that_cannot_name_a_layer_are_refused():
    with pytest.raises(ValueError, match="values"):
        make_decoder({"values": (3,)})


def test_heads_refuse_what_they_cannot_predict():
    with pytest.raises(ValueError, match="dist is 'onehot' in a head named Head"):  # of actions alone
        heads.MLP(6, (3,), 2, 8, name="Head", dist="onehot")
    with pytest.raises(ValueError, match="symlog_mse"):
        heads.MLP(6, (1,), 2, 8, name="Head", dist="huber")
    with pytest.raises(ValueError, match="one number"):
        heads.MLP(6, (3,), 2, 8, name="Head", dist="symlog_disc")
    with pytest.raises(ValueError, match="actions are discrete"):
        action_head(3, (3,), dist="normal")
    with pytest.raises(ValueError, match="actions are continuous"):
        action_head(3, None, dist="onehot")


@pytest.mark.parametrize("std", ["learned", "0.3"])
def test_continuous_policies_keep_their_deviation_in_bounds(std):
    head = action_head(2, None, std=std, outscale=100.0)
    stats = head.stats(torch.randn(1000, 6))
    low, high = (0.1, 1.0) if std == "learned" else (0.3, 0.3)
    assert stats["std"].min() >= low - 1e-6 and stats["std"].max() <= high + 1e-6
    assert stats["mean"].abs().max() <= 1.0


def test_a_policy_over_several_discrete_parts_draws_one_class_of_each():
    head = action_head(7, (2, 5))
    sample = head(torch.randn(100, 6)).sample()
    np.testing.assert_allclose(sample[:, :2].sum(-1).detach(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(sample[:, 2:].sum(-1).detach(), 1.0, rtol=1e-5)


def test_initial_weights_have_the_intended_spread():
    style = layers.Style()
    hidden = torch.nn.Linear(900, 300).apply(style.init_hidden)
    assert hidden.weight.std().item() == pytest.approx((1 / 600) ** 0.5, rel=0.01) and not hidden.bias.any()
    output = torch.nn.Linear(900, 300)
    style.init_output(output, 1.0)
    assert output.weight.abs().max().item() == pytest.approx((3 / 600) ** 0.5, rel=0.01)
    style.init_output(output, 0.0)
    assert not output.weight.any()
