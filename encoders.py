"""Encoders and decoders of image and vector observations.

Shapes: N images, H height, W width, C channels, n length of a vector, F feature; "..." stands for batch and time.
Names and shapes of the 2023 parameters are those of dreamerv3-torch, so that its checkpoints load.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import distributions as dists
from heads import MLP
from layers import BlockLinear, HiddenBlock, Linear, Style

VECTOR_DISTS = ("symlog_mse", "mse", "normal", "binary")
POOLED_DEPTHS = (2, 3, 4, 4)  # channels of each stage of the pooled networks, in units of `cnn_depth`


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
    """A norm over the channels of images (N, C, H, W).

    Args:
        norm: over the last dimension.
    """

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

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
        stages, kernel, style = conv_stages(size, config.minres), config.kernel_size, Style(config.act, config.norm)
        layers = []
        for stage in range(stages):
            out = config.cnn_depth * 2**stage
            layers.append(nn.Conv2d(channels, out, kernel, 2, _same_padding(kernel), bias=style.bias))
            layers += [*map(ChannelNorm, style.norms(out)), style.activation()]
            channels = out
        # Images have channels last; weights in the same layout avoid transposing every activation.
        self.layers = nn.Sequential(*layers).apply(style.init_hidden).to(memory_format=torch.channels_last)
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
        stages, kernel, style = conv_stages(size, config.minres), config.kernel_size, Style(config.act, config.norm)
        self._start = (size[0] >> stages, size[1] >> stages, config.cnn_depth * 2 ** (stages - 1))  # (h, w, c)
        self._sigmoid = config.cnn_sigmoid
        self._linear_layer = Linear(feat_size, math.prod(self._start)).apply(style.init_hidden)
        layers = []
        inp = self._start[-1]
        for stage in reversed(range(1, stages)):
            out = config.cnn_depth * 2 ** (stage - 1)
            layers.append(nn.ConvTranspose2d(inp, out, kernel, 2, _same_padding(kernel), bias=style.bias))
            layers += [*map(ChannelNorm, style.norms(out)), style.activation()]
            inp = out
        self.layers = nn.Sequential(*layers).apply(style.init_hidden)
        self.layers.append(nn.ConvTranspose2d(inp, channels, kernel, 2, _same_padding(kernel)))
        style.init_output(self.layers[-1], config.outscale)
        self.layers.to(memory_format=torch.channels_last)

    def input_layers(self) -> list[nn.Linear]:
        """The layers whose inputs begin with the latents."""
        return [self._linear_layer]

    def forward(self, feat: Tensor) -> Tensor:
        """Features (..., F) -> images (..., H, W, C), centred at 0.5; in [0, 1] only with `cnn_sigmoid`."""
        x = self._linear_layer(feat).unflatten(-1, self._start).flatten(0, -4)  # (N, h, w, c)
        x = self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = x.unflatten(0, feat.shape[:-1])
        return torch.sigmoid(x) if self._sigmoid else x + 0.5


def _odd_padding(kernel_size: int) -> int:
    """The padding with which a convolution of stride 1 keeps an image's size."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; with pooled convolutions it must be odd, so that they keep the image's size")
    return kernel_size // 2


def _pooled_depth(stage: int, cnn_depth: int) -> int:
    return cnn_depth * POOLED_DEPTHS[min(stage, len(POOLED_DEPTHS) - 1)]


class PooledEncoder(nn.Module):
    """Convolutions of stride 1, each followed by 2x2 max pooling, norm and activation, as in DreamerV3 (2025).

    Args, attributes and errors as in `ConvEncoder`.
    """

    def __init__(self, size: tuple[int, int], channels: int, config):
        super().__init__()
        stages, kernel, style = conv_stages(size, config.minres), config.kernel_size, Style(config.act, config.norm)
        self.convs, self.norms, self.act = nn.ModuleList(), nn.ModuleList(), style.activation()
        for stage in range(stages):
            out = _pooled_depth(stage, config.cnn_depth)
            self.convs.append(nn.Conv2d(channels, out, kernel, padding=_odd_padding(kernel)))
            self.norms.append(style.norm_or_identity(out))
            channels = out
        self.convs.apply(style.init_hidden).to(memory_format=torch.channels_last)
        self.outdim = channels * (size[0] >> stages) * (size[1] >> stages)

    def forward(self, image: Tensor) -> Tensor:
        """Images (..., H, W, C) in [0, 1] -> (..., outdim), flattened height, width, channels."""
        x = (image - 0.5).flatten(0, -4)  # (N, H, W, C), centred at 0
        for conv, norm in zip(self.convs, self.norms):
            x = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = self.act(norm(MaxPool.apply(x)))  # (N, H / 2, W / 2, C)
        return x.flatten(1).unflatten(0, image.shape[:-3])


class MaxPool(torch.autograd.Function):
    """The largest value of each 2x2 square: (N, H, W, C) -> (N, H / 2, W / 2, C).

    Equal largest values share the gradient equally. Flat images have many of them, and PyTorch's max pooling gives the
    whole gradient to one.
    """

    CHUNK = 2**19  # numbers that the backward pass treats at a time on a CPU, so that they stay in its cache

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, ::2], x[:, 1::2])  # (N, H / 2, W, C)
        y = torch.maximum(rows[:, :, ::2], rows[:, :, 1::2])
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        result = torch.empty_like(x)
        # A GPU and the compiler take all images at once: many small steps cost them time.
        in_parts = x.device.type == "cpu" and not torch.compiler.is_compiling()
        images = max(1, MaxPool.CHUNK // x[0].numel()) if in_parts else len(x)
        for part, largest, share, out in zip(*(tensor.split(images) for tensor in (x, y, grad, result))):
            is_largest = [(corner == largest).to(share.dtype) for corner in _corners(part)]
            share = share / (is_largest[0] + is_largest[1] + is_largest[2] + is_largest[3])
            for corner, flag in zip(_corners(out), is_largest):
                torch.mul(share, flag, out=corner)
        return result


def _corners(x: Tensor) -> list[Tensor]:
    """The four pixels of every 2x2 square, as views: (N, H, W, C) -> four (N, H / 2, W / 2, C)."""
    return [x[:, row::2, column::2] for row in range(2) for column in range(2)]


class Upsample(nn.Conv2d):
    """Doubles height and width by repeating pixels, and convolves with an odd kernel: (N, H, W, C) -> (N, 2 H, 2 W, out).

    Each of the four pixels that replace one pixel sees at most (k + 1) / 2 different pixels in each direction. So the
    result is computed from the small image, with a smaller kernel for each of the four: 2.8 times fewer products for
    k = 5.
    """

    def __init__(self, channels: int, out: int, kernel: int):
        super().__init__(channels, out, kernel, padding=_odd_padding(kernel))
        small = 2 * ((kernel // 2 + 1) // 2) + 1  # size of the smaller kernels, 3 for k = 5
        taps = torch.zeros(2, small, kernel)  # which taps of the kernel fall on the same pixel, for even and odd rows
        for parity in range(2):
            for tap in range(kernel):
                taps[parity, (parity + tap - kernel // 2) // 2 + small // 2, tap] = 1.0
        self.register_buffer("_taps", taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, 2 H, 2 W, out)."""
        with torch.autocast(x.device.type, enabled=False):  # the convolution rounds the sums once
            kernels = torch.einsum("ayk,bxl,oikl->aboiyx", self._taps, self._taps, self.weight).flatten(0, 2)  # (4 out, C, ...)
        y = F.conv2d(x.permute(0, 3, 1, 2), kernels, self.bias.repeat(4), padding=kernels.shape[-1] // 2)
        y = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, self.out_channels))  # (N, H, W, 2, 2, out)
        return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class PooledDecoder(nn.Module):
    """Upsampling convolutions that mirror `PooledEncoder`, from deter and latents apart, as in DreamerV3 (2025).

    Args, errors as in `ConvDecoder`, and:
        stoch_size: length of the latents as one vector, with which a feature begins.
    """

    def __init__(self, feat_size: int, stoch_size: int, size: tuple[int, int], channels: int, config):
        super().__init__()
        stages, kernel, style = conv_stages(size, config.minres), config.kernel_size, Style(config.act, config.norm)
        depths = [_pooled_depth(stage, config.cnn_depth) for stage in range(stages)]
        depths[-1] = config.cnn_depth * POOLED_DEPTHS[-1]  # also for small images: blocks divide it
        self._split, self._sigmoid = (stoch_size, feat_size - stoch_size), config.cnn_sigmoid
        self._start = (size[0] >> stages, size[1] >> stages, depths[-1])  # (h, w, c)
        if depths[-1] % config.blocks:
            raise ValueError(f"decoder.blocks is {config.blocks}; it must divide the {depths[-1]} channels that the decoder starts with")
        self.deter_layer = BlockLinear(feat_size - stoch_size, math.prod(self._start), config.blocks)
        self.stoch_hidden = HiddenBlock(stoch_size, 2 * config.mlp_units, style)
        self.stoch_layer = Linear(2 * config.mlp_units, math.prod(self._start))
        self.norm, self.act = style.norm_or_identity(depths[-1]), style.activation()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for inp, out in zip(depths[::-1], depths[-2::-1]):
            self.convs.append(Upsample(inp, out, kernel))
            self.norms.append(style.norm_or_identity(out))
        self.apply(style.init_hidden)
        self.convs.append(Upsample(depths[0], channels, kernel))
        style.init_output(self.convs[-1], config.outscale)
        self.convs.to(memory_format=torch.channels_last)

    def input_layers(self) -> list[nn.Linear]:
        """The layers whose inputs begin with the latents."""
        return [self.stoch_hidden[0]]

    def forward(self, feat: Tensor) -> Tensor:
        """Features (..., F) -> images (..., H, W, C), as from `ConvDecoder`."""
        stoch, deter = feat.flatten(0, -2).split(self._split, -1)
        height, width, depth = self._start
        blocks = self.deter_layer.blocks
        x = self.deter_layer(deter).unflatten(-1, (blocks, height, width, depth // blocks))
        x = x.permute(0, 2, 3, 1, 4).flatten(-2)  # (N, h, w, c)
        x = x + self.stoch_layer(self.stoch_hidden(stoch)).unflatten(-1, self._start)
        x = self.act(self.norm(x))
        for conv, norm in zip(self.convs, self.norms):  # all but the last
            x = self.act(norm(conv(x)))
        x = self.convs[-1](x).unflatten(0, feat.shape[:-1])  # (..., H, W, C)
        return torch.sigmoid(x) if self._sigmoid else x + 0.5


def make_image_encoder(size: tuple[int, int], channels: int, config) -> nn.Module:
    """Builds the encoder that `config.cnn` names; arguments and errors as in `ConvEncoder`."""
    if config.cnn == "strided":
        return ConvEncoder(size, channels, config)
    elif config.cnn == "pooled":
        return PooledEncoder(size, channels, config)
    raise ValueError(f"encoder.cnn is {config.cnn!r}; allowed are 'strided' and 'pooled'")


def make_image_decoder(feat_size: int, stoch_size: int, size: tuple[int, int], channels: int, config) -> nn.Module:
    """Builds the decoder that `config.cnn` names; arguments and errors as in `PooledDecoder`."""
    if config.cnn == "strided":
        return ConvDecoder(feat_size, size, channels, config)
    elif config.cnn == "pooled":
        return PooledDecoder(feat_size, stoch_size, size, channels, config)
    raise ValueError(f"decoder.cnn is {config.cnn!r}; allowed are 'strided' and 'pooled'")


class MultiEncoder(nn.Module):
    """Encodes images and vectors as one embedding.

    Args:
        shapes: shape of every observation by key, without batch and time.
        config: the settings' section `encoder`.
        onehots: class counts of the observations that are concatenated one-hots, by key.
    Attributes:
        outdim: size E of the embedding.
    Raises:
        ValueError: if no observation matches `cnn_keys` or `mlp_keys`, or for an unknown `symlog_inputs`.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], config, onehots: dict[str, tuple[int, ...]] | None = None):
        super().__init__()
        self._images = image_groups(select_keys(shapes, config.cnn_keys, 3))
        self._vectors = select_keys(shapes, config.mlp_keys, 1)
        if not self._images and not self._vectors:
            raise ValueError(
                f"no observation is encoded: cnn_keys {config.cnn_keys!r} and mlp_keys {config.mlp_keys!r} match none of {shapes}"
            )
        self._squashed = _squashed_keys(self._vectors, config.symlog_inputs, onehots or {})
        self.outdim = 0
        for index, (size, channels) in enumerate(self._images.items()):
            cnn = make_image_encoder(size, sum(channels.values()), config)
            self.add_module(_cnn_name(index), cnn)
            self.outdim += cnn.outdim
        if self._vectors:
            inputs, style = sum(shape[0] for shape in self._vectors.values()), Style(config.act, config.norm)
            self._mlp = MLP(inputs, None, config.mlp_layers, config.mlp_units, name="Encoder", style=style)
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
            vectors = [dists.symlog(obs[key]) if key in self._squashed else obs[key] for key in self._vectors]
            parts.append(self._mlp(torch.cat(vectors, -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _squashed_keys(vectors: dict, symlog_inputs: str, onehots: dict) -> set[str]:
    """The vectors that symlog is applied to."""
    if symlog_inputs == "all":
        return set(vectors)
    elif symlog_inputs == "numbers":
        return set(vectors) - set(onehots)
    elif symlog_inputs == "none":
        return set()
    raise ValueError(f"encoder.symlog_inputs is {symlog_inputs!r}; allowed are all, numbers and none")


class VectorDecoder(MLP):
    """Predicts vectors from features, one output layer per key.

    Args:
        feat_size: size F of a feature.
        shapes: (n,) by key.
        config: the settings' section `decoder`.
        onehots: class counts of the vectors that are concatenated one-hots. `vector_dist` "auto" predicts them as
            categoricals, and all others with "symlog_mse".
    """

    def __init__(self, feat_size: int, shapes: dict[str, tuple[int, ...]], config, onehots: dict[str, tuple[int, ...]]):
        auto = config.vector_dist == "auto"
        super().__init__(
            feat_size,
            shapes,
            config.mlp_layers,
            config.mlp_units,
            name="Decoder",
            style=Style(config.act, config.norm),
            dist="symlog_mse" if auto else config.vector_dist,
            outscale=config.outscale,
        )
        self._onehots = onehots if auto else {}

    def forward(self, feat: Tensor) -> dict:
        """Features (..., F) -> distributions by key."""
        x, predictions = self.hidden(feat), {}
        for key, layer in self.mean_layer.items():
            out = layer(x)
            predictions[key] = dists.onehots(out, self._onehots[key]) if key in self._onehots else self.dist(out)
        return predictions


class MultiDecoder(nn.Module):
    """Predicts images and vectors from features.

    Args:
        feat_size: size F of a feature.
        stoch_size: length of the latents as one vector, with which a feature begins.
        shapes: shape of every observation by key, without batch and time.
        config: the settings' section `decoder`.
        onehots: as in `VectorDecoder`.
    Raises:
        ValueError: for an unknown `image_dist` or `vector_dist`.
    """

    def __init__(
        self, feat_size: int, stoch_size: int, shapes: dict[str, tuple[int, ...]], config, onehots: dict[str, tuple[int, ...]] | None = None
    ):
        super().__init__()
        self._image_dist = config.image_dist
        self._images = image_groups(select_keys(shapes, config.cnn_keys, 3))
        self._vectors = select_keys(shapes, config.mlp_keys, 1)
        if config.vector_dist not in ("auto", *VECTOR_DISTS):
            raise ValueError(f"decoder.vector_dist is {config.vector_dist!r}; allowed are auto, {', '.join(VECTOR_DISTS)}")
        if config.image_dist not in ("mse", "normal"):
            raise ValueError(f"decoder.image_dist is {config.image_dist!r}; allowed are 'mse' and 'normal'")
        for index, (size, channels) in enumerate(self._images.items()):
            self.add_module(_cnn_name(index), make_image_decoder(feat_size, stoch_size, size, sum(channels.values()), config))
        if self._vectors:
            self._mlp = VectorDecoder(feat_size, self._vectors, config, onehots or {})

    def input_layers(self) -> list[nn.Linear]:
        """The layers whose inputs begin with the latents."""
        layers = [layer for index in range(len(self._images)) for layer in getattr(self, _cnn_name(index)).input_layers()]
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
