"""Encoders and decoders of image and vector observations.

Shapes: B batch, T time, N images, H height, W width, C channels, F feature. Parameter names and shapes are those of
dreamerv3-torch, so that checkpoints carry over.
"""

import math
import re

import torch
from torch import Tensor, nn

import distributions as dists
import lookup
from heads import MLP
from layers import NORM_EPS, LayerNorm, activation, init_hidden, init_output

VECTOR_DISTS = ("symlog_mse", "mse", "normal", "binary")


def select_keys(shapes: dict[str, tuple[int, ...]], pattern: str, rank: int) -> dict[str, tuple[int, ...]]:
    """The observation keys that match a regular expression and whose shapes have this many dimensions."""
    return {key: shape for key, shape in shapes.items() if len(shape) == rank and re.match(pattern, key)}


def image_groups(shapes: dict[str, tuple[int, ...]]) -> dict[tuple[int, int], dict[str, int]]:
    """Images (H, W, C) grouped by size: {(H, W): {key: C}}. Images of one size share a network, as channels."""
    groups = {}
    for key, (height, width, channels) in shapes.items():
        groups.setdefault((height, width), {})[key] = channels
    return groups


def conv_stages(size: tuple[int, int], minres: int) -> int:
    """How often an image (H, W) is halved: while both sides stay whole numbers of at least `minres`."""
    if any(side % 16 for side in size):
        raise ValueError(f"an image is {size[0]}x{size[1]}; sides must be multiples of 16 (the setting size resizes images)")
    stages, (height, width) = 0, size
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= minres:
        stages, height, width = stages + 1, height // 2, width // 2
    if not stages:
        raise ValueError(f"an image is {size[0]}x{size[1]}, which cannot be halved down to minres {minres}; use a smaller minres")
    return stages


def _same_padding(kernel_size: int) -> int:
    if kernel_size < 2 or kernel_size % 2:
        raise ValueError(f"kernel_size is {kernel_size}; it must be even, so that a stride of 2 halves the image")
    return (kernel_size - 2) // 2


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """Stack of stride-2 convolutions with doubling depth; images (..., H, W, C) in [0, 1] -> (..., outdim)."""

    def __init__(self, size: tuple[int, int], channels: int, *, depth: int, kernel_size: int, minres: int, act: str, norm: bool):
        super().__init__()
        stages = conv_stages(size, minres)
        layers = []
        for stage in range(stages):
            out = depth * 2**stage
            layers.append(nn.Conv2d(channels, out, kernel_size, 2, _same_padding(kernel_size), bias=False))
            if norm:
                layers.append(ChannelNorm(out))
            layers.append(activation(act))
            channels = out
        # Images arrive with channels last, so weights in that layout spare a transposition of every activation.
        self.layers = nn.Sequential(*layers).apply(init_hidden).to(memory_format=torch.channels_last)
        self.outdim = channels * (size[0] >> stages) * (size[1] >> stages)

    def forward(self, image: Tensor) -> Tensor:
        x = (image - 0.5).flatten(0, -4).permute(0, 3, 1, 2)  # (N, C, H, W), centred at 0
        x = self.layers(x).flatten(1)
        return x.unflatten(0, image.shape[:-3])


class ConvDecoder(nn.Module):
    """Mirror of `ConvEncoder`: features (..., F) -> images (..., H, W, C), centred at 0.5."""

    def __init__(
        self,
        feat_size: int,
        size: tuple[int, int],
        channels: int,
        *,
        depth: int,
        kernel_size: int,
        minres: int,
        act: str,
        norm: bool,
        cnn_sigmoid: bool,
        outscale: float,
    ):
        super().__init__()
        stages = conv_stages(size, minres)
        self._start = (size[0] >> stages, size[1] >> stages, depth * 2 ** (stages - 1))  # (h, w, c)
        self._sigmoid = cnn_sigmoid
        self._linear_layer = nn.Linear(feat_size, math.prod(self._start)).apply(init_hidden)
        layers = []
        inp = self._start[-1]
        for stage in reversed(range(1, stages)):
            out = depth * 2 ** (stage - 1)
            layers.append(nn.ConvTranspose2d(inp, out, kernel_size, 2, _same_padding(kernel_size), bias=False))
            if norm:
                layers.append(ChannelNorm(out))
            layers.append(activation(act))
            inp = out
        self.layers = nn.Sequential(*layers).apply(init_hidden)
        self.layers.append(nn.ConvTranspose2d(inp, channels, kernel_size, 2, _same_padding(kernel_size)))
        init_output(self.layers[-1], outscale)
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feat: Tensor, ones: lookup.Ones | None = None) -> Tensor:
        x = lookup.linear(feat, self._linear_layer.weight, ones) + self._linear_layer.bias
        x = x.unflatten(-1, self._start).flatten(0, -4)  # (N, h, w, c)
        x = self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = x.unflatten(0, feat.shape[:-1])
        return torch.sigmoid(x) if self._sigmoid else x + 0.5


class MultiEncoder(nn.Module):
    """Embeds a dict of images (..., H, W, C) and vectors (..., n) as one vector (..., outdim).

    Args:
        shapes: shape of every observation key, without batch and time.
        mlp_keys, cnn_keys: regular expressions that select vectors and images.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        *,
        mlp_keys: str,
        cnn_keys: str,
        act: str,
        norm: bool,
        cnn_depth: int,
        kernel_size: int,
        minres: int,
        mlp_layers: int,
        mlp_units: int,
        symlog_inputs: bool,
    ):
        super().__init__()
        self._images = image_groups(select_keys(shapes, cnn_keys, 3))
        self._vectors = select_keys(shapes, mlp_keys, 1)
        if not self._images and not self._vectors:
            raise ValueError(f"no observation is encoded: cnn_keys {cnn_keys!r} and mlp_keys {mlp_keys!r} match none of {shapes}")
        self.outdim = 0
        for index, (size, channels) in enumerate(self._images.items()):
            cnn = ConvEncoder(size, sum(channels.values()), depth=cnn_depth, kernel_size=kernel_size, minres=minres, act=act, norm=norm)
            self.add_module(_cnn_name(index), cnn)
            self.outdim += cnn.outdim
        if self._vectors:
            self._mlp = MLP(
                sum(shape[0] for shape in self._vectors.values()),
                None,
                mlp_layers,
                mlp_units,
                name="Encoder",
                act=act,
                norm=norm,
                symlog_inputs=symlog_inputs,
            )
            self.outdim += mlp_units

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every observation that is encoded, by key."""
        images = {key: (*size, count) for size, channels in self._images.items() for key, count in channels.items()}
        return {**images, **self._vectors}

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Images (..., H, W, C) in [0, 1] and vectors (..., n) by key -> (..., outdim)."""
        parts = []
        for index, keys in enumerate(self._images.values()):
            image = torch.cat([obs[key] for key in keys], -1) if len(keys) > 1 else obs[next(iter(keys))]
            parts.append(getattr(self, _cnn_name(index))(image))
        if self._vectors:
            parts.append(self._mlp(torch.cat([obs[key] for key in self._vectors], -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class MultiDecoder(nn.Module):
    """Predicts images and vectors from features: (..., F) -> {key: distribution}. Arguments as in `MultiEncoder`.

    `ones` says where features have the ones of their latents, see `RSSM.ones`.
    """

    def __init__(
        self,
        feat_size: int,
        shapes: dict[str, tuple[int, ...]],
        *,
        mlp_keys: str,
        cnn_keys: str,
        act: str,
        norm: bool,
        cnn_depth: int,
        kernel_size: int,
        minres: int,
        mlp_layers: int,
        mlp_units: int,
        cnn_sigmoid: bool,
        image_dist: str,
        vector_dist: str,
        outscale: float,
    ):
        super().__init__()
        self._image_dist = image_dist
        self._images = image_groups(select_keys(shapes, cnn_keys, 3))
        self._vectors = select_keys(shapes, mlp_keys, 1)
        if vector_dist not in VECTOR_DISTS:
            raise ValueError(f"decoder.vector_dist is {vector_dist!r}; allowed are {', '.join(VECTOR_DISTS)}")
        if image_dist not in ("mse", "normal"):
            raise ValueError(f"decoder.image_dist is {image_dist!r}; allowed are 'mse' and 'normal'")
        for index, (size, channels) in enumerate(self._images.items()):
            self.add_module(
                _cnn_name(index),
                ConvDecoder(
                    feat_size,
                    size,
                    sum(channels.values()),
                    depth=cnn_depth,
                    kernel_size=kernel_size,
                    minres=minres,
                    act=act,
                    norm=norm,
                    cnn_sigmoid=cnn_sigmoid,
                    outscale=outscale,
                ),
            )
        if self._vectors:
            self._mlp = MLP(
                feat_size, self._vectors, mlp_layers, mlp_units, name="Decoder", act=act, norm=norm, dist=vector_dist, outscale=outscale
            )

    def input_layers(self) -> list[nn.Linear]:
        """The layers that read the features."""
        layers = [getattr(self, _cnn_name(index))._linear_layer for index in range(len(self._images))]
        return layers + (self._mlp.input_layers() if self._vectors else [])

    @property
    def image_keys(self) -> list[str]:
        """Keys of the images that are predicted."""
        return [key for channels in self._images.values() for key in channels]

    def forward(self, feat: Tensor, ones: lookup.Ones | None = None) -> dict:
        predictions = {}
        for index, channels in enumerate(self._images.values()):
            images = getattr(self, _cnn_name(index))(feat, ones).split(list(channels.values()), -1)
            for key, image in zip(channels, images):
                is_mse = self._image_dist == "mse"
                predictions[key] = dists.MSE(image, 3) if is_mse else dists.Normal(image, 1.0, 3)
        if self._vectors:
            predictions.update(self._mlp(feat, ones))
        return predictions


def _cnn_name(index: int) -> str:
    return "_cnn" if index == 0 else f"_cnn{index}"
