"""The networks of DreamerV3: recurrent state-space models, encoders, decoders and heads.

Shapes: B batch, T time, A action, E embedding, D deter, S categoricals, K classes, F feature. Parameter names and shapes of the
flat model are those of dreamerv3-torch, so that checkpoints carry over.
"""

import itertools
import math
import re
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists

NORM_EPS = 1e-3
State = dict[str, Tensor]


# Initialisation and small blocks


def init_hidden(module: nn.Module) -> None:
    """Truncated normal with variance 1 / mean(fan in, fan out), for layers inside a network."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        fan_in, fan_out = _fans(module)
        std = math.sqrt(2.0 / (fan_in + fan_out)) / 0.87962566103423978  # a normal cut at two deviations has this deviation
        nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_output(module: nn.Module, scale: float) -> None:
    """Uniform with variance `scale` / mean(fan in, fan out), for layers that end a network; 0 makes the output zero."""
    if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
        fan_in, fan_out = _fans(module)
        limit = math.sqrt(3.0 * scale * 2.0 / (fan_in + fan_out))
        nn.init.uniform_(module.weight, -limit, limit)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fans(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    area = math.prod(module.kernel_size)
    return area * module.in_channels, area * module.out_channels


def activation(name: str) -> nn.Module:
    """An activation module of `torch.nn` by its name, for example SiLU."""
    choice = getattr(nn, name, None)
    if not (isinstance(choice, type) and choice.__module__ == nn.SiLU.__module__):
        raise ValueError(f"unknown activation {name!r}; give the name of one in torch.nn, for example SiLU, ELU or ReLU")
    return choice()


def hidden_block(inp_dim: int, out_dim: int, act: str, norm: bool) -> nn.Sequential:
    """Linear without bias, layer norm, activation."""
    layers = [nn.Linear(inp_dim, out_dim, bias=False)]
    if norm:
        layers.append(nn.LayerNorm(out_dim, eps=NORM_EPS))
    block = nn.Sequential(*layers, activation(act))
    return block.apply(init_hidden)


def _after_linear(block: nn.Sequential, x: Tensor) -> Tensor:
    """Norm and activation of a `hidden_block` whose linear product was formed elsewhere."""
    for layer in itertools.islice(block, 1, None):
        x = layer(x)
    return x


class GRUCell(nn.Module):
    """GRU with layer norm on the stacked gates and an update gate that starts closed (Hafner et al. 2020, appendix)."""

    UPDATE_BIAS = -1.0

    def __init__(self, inp_size: int, size: int, norm: bool = True):
        super().__init__()
        self.layers = nn.Sequential()
        self.layers.add_module("GRU_linear", nn.Linear(inp_size + size, 3 * size, bias=False))
        if norm:
            self.layers.add_module("GRU_norm", nn.LayerNorm(3 * size, eps=NORM_EPS))
        self.layers.apply(init_hidden)

    def forward(self, x: Tensor, deter: Tensor) -> Tensor:
        """(B, hidden), (B, D) -> (B, D)."""
        reset, candidate, update = self.layers(torch.cat([x, deter], -1)).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(deter, candidate, torch.sigmoid(update + self.UPDATE_BIAS))


# Recurrent state-space models


class Level(NamedTuple):
    """Sizes of one group of latents and the ending of its keys in a state ("logit" + suffix)."""

    stoch: int
    discrete: int
    suffix: str

    @property
    def size(self) -> int:
        return self.stoch * max(self.discrete, 1)


class RSSM(nn.Module):
    """Recurrent state-space model with one group of latents, as in DreamerV3.

    A state is a dict with `deter` (B, D), `stoch` (B, S, K) and `logit` (B, S, K). With `discrete=0` the latents are Gaussian:
    `stoch`, `mean` and `std`, each (B, S). A prior returned beside a posterior has no `stoch`, since none is drawn.

    Args:
        stoch: number of latents S.
        deter: size D of the recurrent state.
        hidden: units of the layers around the recurrence.
        rec_depth: how often the recurrent core is applied per step.
        discrete: classes K per latent; 0 for Gaussian latents.
        act, norm: activation name, and whether layers are normalised.
        mean_act, std_act, min_std: output functions of Gaussian latents.
        unimix_ratio: uniform share in every categorical.
        initial: "learned" or "zeros", the first recurrent state.
        num_actions: size A of an action vector.
        embed: size E of an embedding.
    """

    def __init__(self, *, deter: int, hidden: int, num_actions: int, embed: int, rec_depth: int = 1, act: str = "SiLU",
                 norm: bool = True, mean_act: str = "none", std_act: str = "sigmoid2", min_std: float = 0.1,
                 unimix_ratio: float = 0.01, initial: str = "learned", **latent_sizes: int):
        super().__init__()
        if initial not in ("learned", "zeros"):
            raise ValueError(f"initial is {initial!r}; allowed are 'learned' and 'zeros'")
        self._rec_depth = rec_depth
        self._mean_act = mean_act
        self._std_act = std_act
        self._min_std = min_std
        self._unimix_ratio = unimix_ratio
        self.levels = self._make_levels(**latent_sizes)
        self.stoch_size = sum(level.size for level in self.levels.values())
        self.feat_size = self.stoch_size + deter
        self.deter_size = deter
        self._img_in_layers = hidden_block(self.stoch_size + num_actions, hidden, act, norm)
        self._cell = GRUCell(hidden, deter, norm)
        self._img_out_layers = hidden_block(deter, hidden, act, norm)
        self._obs_out_layers = hidden_block(deter + embed, hidden, act, norm)
        self._make_stat_layers(hidden, act)
        if initial == "learned":
            self.W = nn.Parameter(torch.zeros(1, deter))
        else:
            self.register_buffer("W", torch.zeros(1, deter), persistent=False)

    def _make_levels(self, *, stoch: int, discrete: int) -> dict[str, Level]:
        if stoch < 1 or discrete < 0 or discrete == 1:
            raise ValueError(f"the latent has {stoch} variables of {discrete} classes; it needs at least 1 of at least 2 classes, or "
                             "of 0 classes for Gaussians (dyn_stoch, dyn_discrete)")
        return {"flat": Level(stoch, discrete, "")}

    def _make_stat_layers(self, hidden: int, act: str) -> None:
        level = self.levels["flat"]
        size = level.size if level.discrete else 2 * level.stoch
        self._imgs_stat_layer = nn.Linear(hidden, size)
        self._obs_stat_layer = nn.Linear(hidden, size)
        init_output(self._imgs_stat_layer, 1.0)
        init_output(self._obs_stat_layer, 1.0)

    # What differs between one and two levels: how latents follow from the hidden features

    def _prior_stats(self, deter: Tensor, choose: Callable | None, given: State | None = None) -> State:
        """Prior statistics, with latents that `choose` (see `_chooser`) picks, or without where latents are `given`."""
        stats = self._statistics("flat", self._imgs_stat_layer(self._img_out_layers(deter)))
        return stats if given else {**stats, **self._latents("flat", stats, choose)}

    def _posterior_stats(self, deter: Tensor, x: Tensor, choose: Callable) -> State:
        """Posterior statistics and latents from deter (B, D) and the hidden feature x (B, hidden)."""
        stats = self._statistics("flat", self._obs_stat_layer(x))
        return {**stats, **self._latents("flat", stats, choose)}

    # What is shared

    def _statistics(self, name: str, x: Tensor) -> State:
        """Raw network outputs (..., n) as the named statistics of a level."""
        level = self.levels[name]
        if level.discrete:
            return {"logit" + level.suffix: x.unflatten(-1, (level.stoch, level.discrete))}
        mean, std = x.chunk(2, -1)
        return {"mean": self._activate_mean(mean), "std": self._activate_std(std) + self._min_std}

    def _activate_mean(self, mean: Tensor) -> Tensor:
        if self._mean_act == "none":
            return mean
        elif self._mean_act == "tanh5":
            return 5.0 * torch.tanh(mean / 5.0)
        raise ValueError(f"dyn_mean_act is {self._mean_act!r}; allowed are 'none' and 'tanh5'")

    def _activate_std(self, std: Tensor) -> Tensor:
        if self._std_act == "softplus":
            return F.softplus(std)
        elif self._std_act == "abs":
            return torch.abs(std + 1.0)
        elif self._std_act == "sigmoid":
            return torch.sigmoid(std)
        elif self._std_act == "sigmoid2":
            return 2.0 * torch.sigmoid(std / 2.0)
        raise ValueError(f"dyn_std_act is {self._std_act!r}; allowed are 'softplus', 'abs', 'sigmoid' and 'sigmoid2'")

    def _level_dist(self, name: str, state: State):
        level = self.levels[name]
        if level.discrete:
            return dists.OneHot(state["logit" + level.suffix], self._unimix_ratio, event_dims=1)
        return dists.Normal(state["mean"], state["std"])

    def _latents(self, name: str, stats: State, choose: Callable) -> State:
        return {"stoch" + self.levels[name].suffix: choose(name, self._level_dist(name, stats))}

    def _chooser(self, noise: Tensor | None) -> Callable:
        """A function (level name, distribution) -> latents: samples by this noise for all levels (B, sum of S), the most likely
        ones if there is none.
        """
        if noise is None:
            return lambda name, dist: dist.greedy_sample()
        parts = dict(zip(self.levels, noise.split([level.stoch for level in self.levels.values()], -1)))
        return lambda name, dist: dist.sample(parts[name])

    def _noise(self, *batch: int) -> Tensor:
        """One number per latent, (*batch, sum of S): uniform for categoricals, normal for Gaussians."""
        shape = (*batch, sum(level.stoch for level in self.levels.values()))
        draw = torch.rand if all(level.discrete for level in self.levels.values()) else torch.randn
        return draw(shape, device=self.W.device)

    def _advance(self, stoch: Tensor, action_part: Tensor, deter: Tensor) -> Tensor:
        """One step of the recurrence; `action_part` (B, hidden) is the action's share of the input layer's product."""
        weight = self._img_in_layers[0].weight[:, :self.stoch_size]
        x = _after_linear(self._img_in_layers, F.linear(stoch, weight) + action_part)
        for _ in range(self._rec_depth):
            deter = self._cell(x, deter)
        return deter

    def _action_part(self, action: Tensor) -> Tensor:
        layer = self._img_in_layers[0]
        return F.linear(action, layer.weight[:, self.stoch_size:], layer.bias)

    def initial(self, batch_size: int) -> State:
        """The state before the first observation: learned (or zero) deter and the most likely latents of its prior."""
        deter = torch.tanh(self.W)
        state = {"deter": deter, **self._prior_stats(deter, lambda name, dist: dist.mode)}
        return {key: value.expand(batch_size, *value.shape[1:]) for key, value in state.items()}

    def observe(self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None,
                sample: bool = True) -> tuple[State, State]:
        """Filters a sequence.

        Args:
            embed: (B, T, E).
            action: (B, T, A), the action that led to each embedding.
            is_first: (B, T) or (B, T, 1), bool or float; where true the step starts anew from the initial state.
            state: the state before the first step; None starts all sequences anew, whatever their first flag.
            sample: draw latents; False takes the most likely ones.
        Returns:
            posterior and prior, dicts of (B, T, ...).
        """
        batch, time = action.shape[:2]
        is_first = is_first.reshape(batch, time).bool()
        initial = self.initial(batch)
        if state is None:
            state = initial
            is_first = torch.cat([torch.ones_like(is_first[:, :1]), is_first[:, 1:]], 1)
        action = torch.where(is_first.unsqueeze(-1), 0.0, action.float())
        # Products with inputs that are known beforehand are formed once for the whole sequence.
        action_part = self._action_part(action)  # (B, T, hidden)
        obs_out = self._obs_out_layers[0]
        embed_part = F.linear(embed, obs_out.weight[:, self.deter_size:], obs_out.bias)  # (B, T, hidden)
        deter_weight = obs_out.weight[:, :self.deter_size]
        noise = self._noise(batch, time).unbind(1) if sample else [None] * time

        first_stoch, stoch = self.flat_stoch(initial), self.flat_stoch(state)
        deter = state["deter"]
        steps = []
        for t in range(time):
            reset = is_first[:, t, None]
            stoch = torch.where(reset, first_stoch, stoch)
            deter = self._advance(stoch, action_part[:, t], torch.where(reset, initial["deter"], deter))
            x = _after_linear(self._obs_out_layers, F.linear(deter, deter_weight) + embed_part[:, t])
            post = {"deter": deter, **self._posterior_stats(deter, x, self._chooser(noise[t]))}
            stoch = self.flat_stoch(post)
            steps.append(post)
        post = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}
        prior = {"deter": post["deter"], **self._prior_stats(post["deter"], None, given=post)}
        return post, prior

    def obs_step(self, prev_state: State | None, prev_action: Tensor, embed: Tensor, is_first: Tensor,
                 sample: bool = True) -> tuple[State, State]:
        """One step of `observe`: prev_action (B, A), embed (B, E), is_first (B,) or (B, 1) -> states of (B, ...)."""
        post, prior = self.observe(embed[:, None], prev_action[:, None], is_first.reshape(-1, 1), prev_state, sample)
        return {k: v[:, 0] for k, v in post.items()}, {k: v[:, 0] for k, v in prior.items()}

    def img_step(self, prev_state: State, prev_action: Tensor, sample: bool = True) -> State:
        """One step without an observation: states of (B, ...) and actions (B, A) -> the prior's next state."""
        deter = self._advance(self.flat_stoch(prev_state), self._action_part(prev_action), prev_state["deter"])
        choose = self._chooser(self._noise(len(deter)) if sample else None)
        return {"deter": deter, **self._prior_stats(deter, choose)}

    def imagine_with_action(self, action: Tensor, state: State, sample: bool = True) -> State:
        """Open-loop prediction: actions (B, T, A) from states of (B, ...) -> states of (B, T, ...)."""
        steps = []
        for t in range(action.shape[1]):
            state = self.img_step(state, action[:, t], sample)
            steps.append(state)
        return {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}

    def flat_stoch(self, state: State) -> Tensor:
        """The latents of all levels as one vector, (..., stoch_size)."""
        parts = []
        for level in self.levels.values():
            stoch = state["stoch" + level.suffix]
            parts.append(stoch.flatten(-2) if level.discrete else stoch)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def get_feat(self, state: State) -> Tensor:
        """What decoder, heads, actor and critic see: latents and deter, (..., F)."""
        return torch.cat([self.flat_stoch(state), state["deter"]], -1)

    def get_dist(self, state: State, level: str | None = None):
        """Distribution of the latents of one level; of all levels together if none is named (events then as `flat_stoch`)."""
        if level is not None:
            if level not in self.levels:
                raise ValueError(f"there is no latent level {level!r}; this model has {', '.join(self.levels)}")
            return self._level_dist(level, state)
        parts = [self._level_dist(name, state) for name in self.levels]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)

    def entropy(self, state: State) -> Tensor:
        """Entropy of all latents given the rest of the state, in nats, (...)."""
        return self.get_dist(state).entropy()

    def kl_per_level(self, post: State, prior: State) -> dict[str, Tensor]:
        """KL(posterior || prior) of each level by its name, in nats, unclipped, each (...)."""
        return {name: self._level_dist(name, post).kl(self._level_dist(name, prior)) for name in self.levels}

    def kl_loss(self, post: State, prior: State, free: float, dyn_scale: float,
                rep_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Balanced KL with free bits per level (Hafner et al. 2023, eq. 5).

        Returns:
            (loss, value, dyn_loss, rep_loss), each (...) and summed over levels: the weighted sum, the unclipped KL in nats, and
            the clipped KLs that train prior and posterior; each level is clipped by itself below `free` nats.
        """
        value = dyn_loss = rep_loss = 0.0
        for name in self.levels:
            q, p = self._level_dist(name, post), self._level_dist(name, prior)
            kl = q.kl(p.detach())  # trains the posterior
            value = value + kl.detach()
            rep_loss = rep_loss + kl.clamp(min=free)
            dyn_loss = dyn_loss + q.detach().kl(p).clamp(min=free)  # trains the prior
        return dyn_scale * dyn_loss + rep_scale * rep_loss, value, dyn_loss, rep_loss


class HierarchicalRSSM(RSSM):
    """RSSM with two groups of categorical latents: a coarse top and a fine bottom that depends on it.

    With the hidden features x_p of the prior and x_q of the posterior, and c = act(Wc zt), a summary of the top latent:

        top prior, top posterior     Wpt x_p,  Wqt x_q
        bottom prior                 Wpb x_p + Up c
        bottom posterior             (1 + d) * sg(bottom prior) + Wqb x_q + Uq c      (d: one learned weight per logit)

    A state is a dict with `deter` (B, D), `stoch_top`, `logit_top` (B, St, Kt), `stoch_bottom`, `logit_bottom` (B, Sb, Kb).
    Arguments are those of `RSSM`, with `stoch_top`, `stoch_bottom`, `discrete_top`, `discrete_bottom` for `stoch`, `discrete`.
    """

    def _make_levels(self, *, stoch_top: int, stoch_bottom: int, discrete_top: int, discrete_bottom: int) -> dict[str, Level]:
        levels = {"top": Level(stoch_top, discrete_top, "_top"), "bottom": Level(stoch_bottom, discrete_bottom, "_bottom")}
        for name, level in levels.items():
            if level.stoch < 1 or level.discrete < 2:
                raise ValueError(f"the {name} level has {level.stoch} latents of {level.discrete} classes; it needs at least 1 of "
                                 f"at least 2 classes (dyn_stoch_{name}, dyn_discrete_{name})")
        return levels

    def _make_stat_layers(self, hidden: int, act: str) -> None:
        top, bottom = self.levels["top"], self.levels["bottom"]
        self._imgs_stat_layer = nn.ModuleDict({name: nn.Linear(hidden, level.size) for name, level in self.levels.items()})
        self._obs_stat_layer = nn.ModuleDict({name: nn.Linear(hidden, level.size) for name, level in self.levels.items()})
        for layer in (*self._imgs_stat_layer.values(), *self._obs_stat_layer.values()):
            init_output(layer, 1.0)
        self._top_summary = nn.Sequential(nn.Linear(top.size, top.stoch, bias=False), activation(act)).apply(init_hidden)
        # The bottom starts independent of the top and without a residual. The summary must not start at zero as well: of a
        # product of zeros no factor ever learns.
        self._top_to_prior = nn.Linear(top.stoch, bottom.size, bias=False)
        self._top_to_post = nn.Linear(top.stoch, bottom.size, bias=False)
        nn.init.zeros_(self._top_to_prior.weight)
        nn.init.zeros_(self._top_to_post.weight)
        self._prior_weight = nn.Parameter(torch.zeros(bottom.size))

    def _bottom_prior(self, x: Tensor, summary: Tensor) -> Tensor:
        return self._imgs_stat_layer["bottom"](x) + self._top_to_prior(summary)

    def _summarise(self, stoch_top: Tensor) -> Tensor:
        return self._top_summary(stoch_top.flatten(-2))

    def _prior_stats(self, deter: Tensor, choose: Callable | None, given: State | None = None) -> State:
        x = self._img_out_layers(deter)
        top = self._statistics("top", self._imgs_stat_layer["top"](x))
        drawn = given or self._latents("top", top, choose)
        bottom = self._statistics("bottom", self._bottom_prior(x, self._summarise(drawn["stoch_top"])))
        return {**top, **bottom} if given else {**top, **drawn, **bottom, **self._latents("bottom", bottom, choose)}

    def _posterior_stats(self, deter: Tensor, x: Tensor, choose: Callable) -> State:
        top = self._statistics("top", self._obs_stat_layer["top"](x))
        drawn = self._latents("top", top, choose)
        summary = self._summarise(drawn["stoch_top"])
        with torch.no_grad():  # Only the dynamics loss trains the prior; inside the posterior it is a constant.
            prior = self._bottom_prior(self._img_out_layers(deter), summary)
        logit = (1.0 + self._prior_weight) * prior + self._obs_stat_layer["bottom"](x) + self._top_to_post(summary)
        bottom = self._statistics("bottom", logit)
        return {**top, **drawn, **bottom, **self._latents("bottom", bottom, choose)}


# Encoders and decoders


def select_keys(shapes: dict[str, tuple[int, ...]], pattern: str, ranks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The observation keys that match a regular expression and whose shapes have one of the given numbers of dimensions."""
    return {key: shape for key, shape in shapes.items() if len(shape) in ranks and re.match(pattern, key)}


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
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """Stack of stride-2 convolutions with doubling depth; images (..., H, W, C) in [0, 1] -> (..., outdim)."""

    def __init__(self, size: tuple[int, int], channels: int, *, depth: int, kernel_size: int, minres: int, act: str, norm: bool):
        super().__init__()
        stages = conv_stages(size, minres)
        layers = []
        for stage in range(stages):
            out = depth * 2 ** stage
            layers.append(nn.Conv2d(channels, out, kernel_size, 2, _same_padding(kernel_size), bias=False))
            layers += [ChannelNorm(out)] * norm + [activation(act)]
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

    def __init__(self, feat_size: int, size: tuple[int, int], channels: int, *, depth: int, kernel_size: int, minres: int,
                 act: str, norm: bool, cnn_sigmoid: bool, outscale: float):
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
            layers += [ChannelNorm(out)] * norm + [activation(act)]
            inp = out
        self.layers = nn.Sequential(*layers).apply(init_hidden)
        self.layers.append(nn.ConvTranspose2d(inp, channels, kernel_size, 2, _same_padding(kernel_size)))
        init_output(self.layers[-1], outscale)
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, feat: Tensor) -> Tensor:
        x = self._linear_layer(feat).unflatten(-1, self._start).flatten(0, -4)  # (N, h, w, c)
        x = self.layers(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = x.unflatten(0, feat.shape[:-1])
        return torch.sigmoid(x) if self._sigmoid else x + 0.5


class MultiEncoder(nn.Module):
    """Embeds a dict of images (B, T, H, W, C) and vectors (B, T, n) as one vector (B, T, outdim).

    Args:
        shapes: shape of every observation key, without batch and time.
        mlp_keys, cnn_keys: regular expressions that select vectors and images.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], *, mlp_keys: str, cnn_keys: str, act: str, norm: bool, cnn_depth: int,
                 kernel_size: int, minres: int, mlp_layers: int, mlp_units: int, symlog_inputs: bool):
        super().__init__()
        self._images = image_groups(select_keys(shapes, cnn_keys, (3,)))
        self._vectors = select_keys(shapes, mlp_keys, (1,))
        if not self._images and not self._vectors:
            raise ValueError(f"no observation is encoded: cnn_keys {cnn_keys!r} and mlp_keys {mlp_keys!r} match none of "
                             f"{shapes}")
        for index, (size, channels) in enumerate(self._images.items()):
            cnn = ConvEncoder(size, sum(channels.values()), depth=cnn_depth, kernel_size=kernel_size, minres=minres, act=act,
                              norm=norm)
            self.add_module(_cnn_name(index), cnn)
        self.outdim = sum(cnn.outdim for cnn in self.children())
        if self._vectors:
            self._mlp = MLP(sum(shape[0] for shape in self._vectors.values()), None, mlp_layers, mlp_units, name="Encoder", act=act,
                            norm=norm, symlog_inputs=symlog_inputs)
            self.outdim += mlp_units

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        parts = []
        for index, keys in enumerate(self._images.values()):
            image = torch.cat([obs[key] for key in keys], -1) if len(keys) > 1 else obs[next(iter(keys))]
            parts.append(getattr(self, _cnn_name(index))(image))
        if self._vectors:
            parts.append(self._mlp(torch.cat([obs[key] for key in self._vectors], -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class MultiDecoder(nn.Module):
    """Predicts images and vectors from features: (B, T, F) -> {key: distribution}. Arguments as in `MultiEncoder`."""

    def __init__(self, feat_size: int, shapes: dict[str, tuple[int, ...]], *, mlp_keys: str, cnn_keys: str, act: str, norm: bool,
                 cnn_depth: int, kernel_size: int, minres: int, mlp_layers: int, mlp_units: int, cnn_sigmoid: bool, image_dist: str,
                 vector_dist: str, outscale: float):
        super().__init__()
        self._image_dist = image_dist
        self._images = image_groups(select_keys(shapes, cnn_keys, (3,)))
        self._vectors = select_keys(shapes, mlp_keys, (1,))
        if image_dist not in ("mse", "normal"):
            raise ValueError(f"decoder.image_dist is {image_dist!r}; allowed are 'mse' and 'normal'")
        for index, (size, channels) in enumerate(self._images.items()):
            self.add_module(_cnn_name(index), ConvDecoder(
                feat_size, size, sum(channels.values()), depth=cnn_depth, kernel_size=kernel_size, minres=minres, act=act, norm=norm,
                cnn_sigmoid=cnn_sigmoid, outscale=outscale))
        if self._vectors:
            self._mlp = MLP(feat_size, self._vectors, mlp_layers, mlp_units, name="Decoder", act=act, norm=norm, dist=vector_dist,
                            outscale=outscale)

    @property
    def image_keys(self) -> list[str]:
        """Keys of the images that are predicted."""
        return [key for channels in self._images.values() for key in channels]

    def forward(self, feat: Tensor) -> dict:
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


# Heads


class MLP(nn.Module):
    """Hidden blocks followed by an output distribution.

    Args:
        inp_dim: size of the input.
        shape: shape of the event, () for scalars (which come as (..., 1)); a dict of shapes for several outputs; None for none:
            the hidden features themselves are returned.
        name: prefix of the layers' names.
        dist: symlog_disc, symlog_mse, mse, binary, normal or onehot.
        outscale: scale of the output layer's initial weights.
        symlog_inputs: squash inputs with symlog.
    """

    DISTS = ("symlog_disc", "symlog_mse", "mse", "binary", "normal", "onehot")

    def __init__(self, inp_dim: int, shape, layers: int, units: int, *, name: str, act: str = "SiLU", norm: bool = True,
                 dist: str = "mse", outscale: float = 1.0, symlog_inputs: bool = False):
        super().__init__()
        if dist not in self.DISTS:
            raise ValueError(f"a {name.lower()} head cannot use dist {dist!r}; allowed are {', '.join(self.DISTS)}")
        self._dist = dist
        self._shape = shape
        self._symlog_inputs = symlog_inputs
        self.layers = nn.Sequential()
        for index in range(layers):
            self.layers.add_module(f"{name}_linear{index}", nn.Linear(inp_dim, units, bias=False))
            if norm:
                self.layers.add_module(f"{name}_norm{index}", nn.LayerNorm(units, eps=NORM_EPS))
            self.layers.add_module(f"{name}_act{index}", activation(act))
            inp_dim = units
        self.layers.apply(init_hidden)
        if shape is not None:
            self.mean_layer = self._output_layer(inp_dim, outscale)

    def _output_layer(self, inp_dim: int, outscale: float) -> nn.Module:
        if isinstance(self._shape, dict):
            layer = nn.ModuleDict({key: nn.Linear(inp_dim, self._out_size(shape)) for key, shape in self._shape.items()})
        else:
            layer = nn.Linear(inp_dim, self._out_size(self._shape))
        return layer.apply(lambda module: init_output(module, outscale))

    def _out_size(self, shape: tuple[int, ...]) -> int:
        if self._dist == "symlog_disc":
            if math.prod(shape) != 1:
                raise ValueError(f"symlog_disc predicts one number, not the shape {shape}; use symlog_mse")
            return dists.SymlogDisc.BINS
        return math.prod(shape)

    def hidden(self, x: Tensor) -> Tensor:
        """Output of the hidden blocks, (..., units)."""
        return self.layers(dists.symlog(x) if self._symlog_inputs else x)

    def stats(self, x: Tensor) -> Tensor:
        """The parameters of a single output's distribution as a tensor, (..., n)."""
        return self.mean_layer(self.hidden(x))

    def forward(self, x: Tensor):
        """(..., inp_dim) -> a distribution, a dict of them, or hidden features."""
        if self._shape is None:
            return self.hidden(x)
        elif isinstance(self._shape, dict):
            x = self.hidden(x)
            return {key: self.dist(layer(x)) for key, layer in self.mean_layer.items()}
        return self.dist(self.stats(x))

    def dist(self, out: Tensor):
        """The distribution with parameters from `stats`."""
        if self._dist == "symlog_disc":
            return dists.SymlogDisc(out)
        elif self._dist == "symlog_mse":
            return dists.MSE(out, squash=True)
        elif self._dist == "mse":
            return dists.MSE(out)
        elif self._dist == "binary":
            return dists.Bernoulli(out)
        elif self._dist == "normal":
            return dists.Normal(out, 1.0)
        elif self._dist == "onehot":
            return dists.OneHot(out)
        raise ValueError(f"unknown dist {self._dist!r}; allowed are {', '.join(self.DISTS)}")


class ActionHead(MLP):
    """The policy: features (..., F) -> a distribution over action vectors (..., A).

    Args:
        classes: class counts of the discrete parts of an action (concatenated one-hots), or None for continuous actions.
        dist: onehot (discrete) or normal (continuous, samples bounded to [-1, 1]).
        std: "learned", or a fixed standard deviation; learned ones lie between `min_std` and `max_std`.
        unimix_ratio: uniform share in discrete policies.
    """

    DISTS = ("onehot", "normal")

    def __init__(self, inp_dim: int, size: int, layers: int, units: int, *, classes: tuple[int, ...] | None, dist: str, std,
                 min_std: float, max_std: float, unimix_ratio: float, act: str, norm: bool, outscale: float):
        super().__init__(inp_dim, (size,), layers, units, name="Actor", act=act, norm=norm, dist=dist, outscale=outscale)
        if (dist == "onehot") != (classes is not None):
            kind = "continuous" if classes is None else "discrete"
            raise ValueError(f"actor.dist is {dist!r}, but actions are {kind}; use 'auto', "
                             f"'{'normal' if classes is None else 'onehot'}' or another task")
        self._classes = classes
        self._std, self._min_std, self._max_std = std, min_std, max_std
        self._unimix_ratio = unimix_ratio
        if dist == "normal" and std == "learned":
            self.std_layer = self._output_layer(units if layers else inp_dim, outscale)

    def stats(self, feat: Tensor) -> dict[str, Tensor]:
        """The distribution's parameters by name, which can be stacked over time: `logit`, or `mean` and `std`."""
        x = self.hidden(feat)
        mean = self.mean_layer(x)
        if self._dist == "onehot":
            return {"logit": mean}
        if self._std == "learned":
            share = torch.sigmoid(self.std_layer(x).float() + 2.0)
            std = self._min_std + (self._max_std - self._min_std) * share
        else:
            std = torch.full_like(mean, float(self._std))
        return {"mean": torch.tanh(mean.float()), "std": std}

    def dist(self, stats: dict[str, Tensor]):
        """The distribution with parameters from `stats`."""
        if self._dist == "normal":
            return dists.Normal(stats["mean"], stats["std"], bound=1.0)
        parts = [dists.OneHot(logit, self._unimix_ratio) for logit in stats["logit"].split(self._classes, -1)]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)
