"""Encoders and decoders of image and vector observations.

Shapes: N images, H height, W width, C channels, n length of a vector, F feature; "..." stands for batch and time.
Parameter names and shapes are those of dreamerv3-torch, so that its checkpoints load.
"""

import math
import re

import torch
from torch import Tensor, nn

import distributions as dists
from heads import MLP
from layers import NORM_EPS, LayerNorm, Linear, activation, init_hidden, init_output

VECTOR_DISTS = ("symlog_mse", "mse", "normal", "binary")


def select_keys(shapes: dict[str, tuple[int, ...]], pattern: str, rank: int) -> dict[str, tuple[int, ...]]:
    """Selects observations by key and number of dimensions.

    Args:
        shapes: shape of every observation by key, without batch and time.
        pattern: regular expression that the start of a key must match.
        rank: number of dimensions: 3 for images, 1 for vectors.
    """
    return {key: shape for key, shape in shapes.items() if len(shape) == rank and re.match(pattern, key)}


def image_groups(shapes: dict[str, tuple[int, ...]]) -> dict[tuple[int, int], dict[str, int]]:
    """Groups images by height and width. The images of a group share a network, concatenated along channels.

    Args:
        shapes: (H, W, C) by key.
    Returns:
        {(H, W): {key: C}}.
    """
    groups = {}
    for key, (height, width, channels) in shapes.items():
        groups.setdefault((height, width), {})[key] = channels
    return groups


def conv_stages(size: tuple[int, int], minres: int) -> int:
    """How often an image is halved: as long as both sides are even and stay at least `minres`.

    Args:
        size: (H, W).
        minres: smallest height and width.
    Raises:
        ValueError: if a side is not a multiple of 16, or the image cannot be halved at all.
    """
    if any(side % 16 for side in size):
        raise ValueError(f"an image is {size[0]}x{size[1]}; sides must be multiples of 16 (the setting size resizes images)")
    stages, (height, width) = 0, size
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= minres:
        stages, height, width = stages + 1, height // 2, width // 2
    if not stages:
        raise ValueError(f"an image is {size[0]}x{size[1]}, which cannot be halved down to minres {minres}; use a smaller minres")
    return stages


def _same_padding(kernel_size: int) -> int:
    """The padding with which a convolution of stride 2 halves an image exactly."""
    if kernel_size < 2 or kernel_size % 2:
        raise ValueError(f"kernel_size is {kernel_size}; it must be even, so that a stride of 2 halves the image")
    return (kernel_size - 2) // 2


class ChannelNorm(nn.Module):
    """Layer norm over the channels of images (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 that double the channels at each stage.

    Args:
        size: (H, W) of the images.
        channels: C.
        config: the settings' section `encoder`.
    Attributes:
        outdim: length of the embedding.
    Raises:
        ValueError: for an image size or kernel size that is not supported.
    """

    def __init__(self, size: tuple[int, int], channels: int, config):
        super().__init__()
        stages, kernel = conv_stages(size, config.minres), config.kernel_size
        layers = []
        for stage in range(stages):
            out = config.cnn_depth * 2**stage
            layers.append(nn.Conv2d(channels, out, kernel, 2, _same_padding(kernel), bias=False))
            if config.norm:
                layers.append(ChannelNorm(out))
            layers.append(activation(config.act))
            channels = out
        # Images have channels last; weights in the same layout avoid transposing every activation.
        self.layers = nn.Sequential(*layers).apply(init_hidden).to(memory_format=torch.channels_last)
        self.outdim = channels * (size[0] >> stages) * (size[1] >> stages)

    def forward(self, image: Tensor) -> Tensor:
        """Images (..., H, W, C) in [0, 1] -> (..., outdim)."""
        x = (image - 0.5).flatten(0, -4).permute(0, 3, 1, 2)  # (N, C, H, W), centred at 0
        x = self.layers(x).flatten(1)
        return x.unflatten(0, image.shape[:-3])


class ConvDecoder(nn.Module):
    """Transposed convolutions of stride 2 that mirror `ConvEncoder`.

    Args:
        feat_size: size F of a feature.
        size: (H, W) of the images.
        channels: C.
        config: the settings' section `decoder`.
    Raises:
        ValueError: for an image size or kernel size that is not supported.
    """

    def __init__(self, feat_size: int, size: tuple[int, int], channels: int, config):
        super().__init__()
        stages, kernel = conv_stages(size, config.minres), config.kernel_size
        self._start = (size[0] >> stages, size[1] >> stages, config.cnn_depth * 2 ** (stages - 1))  # (h, w, c)
        self._sigmoid = config.cnn_sigmoid
        self._linear_layer = Linear(feat_size, math.prod(self._start)).apply(init_hidden)
        layers = []
        inp = self._start[-1]
        for stage in reversed(range(1, stages)):
            out = config.cnn_depth * 2 ** (stage - 1)
            layers.append(nn.ConvTranspose2d(inp, out, kernel, 2, _same_padding(kernel), bias=False))
            if config.norm:
                layers.append(ChannelNorm(out))
            layers.append(activation(config.act))
            inp = out
        self.layers = nn.Sequential(*layers).apply(init_hidden)
        self.layers.append(nn.ConvTranspose2d(inp, channels, kernel, 2, _same_padding(kernel)))
        init_output(self.layers[-1], config.outscale)
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feat: Tensor) -> Tensor:
        """Features (..., F) -> images (..., H, W, C), centred at 0.5; in [0, 1] only with `cnn_sigmoid`."""
        x = self._linear_layer(feat).unflatten(-1, self._start).flatten(0, -4)  # (N, h, w, c)
        x = self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = x.unflatten(0, feat.shape[:-1])
        return torch.sigmoid(x) if self._sigmoid else x + 0.5


class MultiEncoder(nn.Module):
    """Encodes images and vectors as one embedding.

    Args:
        shapes: shape of every observation by key, without batch and time.
        config: the settings' section `encoder`.
    Attributes:
        outdim: size E of the embedding.
    Raises:
        ValueError: if no observation matches `cnn_keys` or `mlp_keys`.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], config):
        super().__init__()
        self._images = image_groups(select_keys(shapes, config.cnn_keys, 3))
        self._vectors = select_keys(shapes, config.mlp_keys, 1)
        if not self._images and not self._vectors:
            raise ValueError(
                f"no observation is encoded: cnn_keys {config.cnn_keys!r} and mlp_keys {config.mlp_keys!r} match none of {shapes}"
            )
        self.outdim = 0
        for index, (size, channels) in enumerate(self._images.items()):
            cnn = ConvEncoder(size, sum(channels.values()), config)
            self.add_module(_cnn_name(index), cnn)
            self.outdim += cnn.outdim
        if self._vectors:
            self._mlp = MLP(
                sum(shape[0] for shape in self._vectors.values()),
                None,
                config.mlp_layers,
                config.mlp_units,
                name="Encoder",
                act=config.act,
                norm=config.norm,
                symlog_inputs=config.symlog_inputs,
            )
            self.outdim += config.mlp_units

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every encoded observation, by key."""
        images = {key: (*size, count) for size, channels in self._images.items() for key, count in channels.items()}
        return {**images, **self._vectors}

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Images (..., H, W, C) in [0, 1] and vectors (..., n), by key -> embeddings (..., E)."""
        parts = []
        for index, keys in enumerate(self._images.values()):
            image = torch.cat([obs[key] for key in keys], -1) if len(keys) > 1 else obs[next(iter(keys))]
            parts.append(getattr(self, _cnn_name(index))(image))
        if self._vectors:
            parts.append(self._mlp(torch.cat([obs[key] for key in self._vectors], -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class MultiDecoder(nn.Module):
    """Predicts images and vectors from features.

    Args:
        feat_size: size F of a feature.
        shapes: shape of every observation by key, without batch and time.
        config: the settings' section `decoder`.
    Raises:
        ValueError: for an unknown `image_dist` or `vector_dist`.
    """

    def __init__(self, feat_size: int, shapes: dict[str, tuple[int, ...]], config):
        super().__init__()
        self._image_dist = config.image_dist
        self._images = image_groups(select_keys(shapes, config.cnn_keys, 3))
        self._vectors = select_keys(shapes, config.mlp_keys, 1)
        if config.vector_dist not in VECTOR_DISTS:
            raise ValueError(f"decoder.vector_dist is {config.vector_dist!r}; allowed are {', '.join(VECTOR_DISTS)}")
        if config.image_dist not in ("mse", "normal"):
            raise ValueError(f"decoder.image_dist is {config.image_dist!r}; allowed are 'mse' and 'normal'")
        for index, (size, channels) in enumerate(self._images.items()):
            self.add_module(_cnn_name(index), ConvDecoder(feat_size, size, sum(channels.values()), config))
        if self._vectors:
            self._mlp = MLP(
                feat_size,
                self._vectors,
                config.mlp_layers,
                config.mlp_units,
                name="Decoder",
                act=config.act,
                norm=config.norm,
                dist=config.vector_dist,
                outscale=config.outscale,
            )

    def input_layers(self) -> list[nn.Linear]:
        """The layers that read the features."""
        layers = [getattr(self, _cnn_name(index))._linear_layer for index in range(len(self._images))]
        return layers + (self._mlp.input_layers() if self._vectors else [])

    @property
    def image_keys(self) -> list[str]:
        """Keys of the predicted images."""
        return [key for channels in self._images.values() for key in channels]

    def forward(self, feat: Tensor) -> dict:
        """Features (..., F) -> distributions of the observations, by key."""
        predictions = {}
        for index, channels in enumerate(self._images.values()):
            images = getattr(self, _cnn_name(index))(feat).split(list(channels.values()), -1)
            for key, image in zip(channels, images):
                is_mse = self._image_dist == "mse"
                predictions[key] = dists.MSE(image, 3) if is_mse else dists.Normal(image, 1.0, 3)
        if self._vectors:
            predictions.update(self._mlp(feat))
        return predictions


def _cnn_name(index: int) -> str:
    return "_cnn" if index == 0 else f"_cnn{index}"
