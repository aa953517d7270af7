"""Recurrent state-space models (RSSM) of DreamerV3, with one or two levels of latents.

Shapes: B batch, T time, A action, E embed, D deter, S categoricals, K classes, F feature.
Names and shapes of the flat 2023 model's parameters are those of dreamerv3-torch, so that its checkpoints load.
"""

import contextlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists
from layers import BlockGRUCell, BlockGRUInput, GRUCell, GRUInput, HiddenBlock, Linear, Style, linear, weight_gradients_once

State = dict[str, Tensor]


def _tanh5(x: Tensor) -> Tensor:
    return 5.0 * torch.tanh(x / 5.0)


def _abs1(x: Tensor) -> Tensor:
    return torch.abs(x + 1.0)


def _sigmoid2(x: Tensor) -> Tensor:
    return 2.0 * torch.sigmoid(x / 2.0)


# Output functions of Gaussian latents
MEAN_ACTS = {"none": torch.positive, "tanh5": _tanh5}
STD_ACTS = {"softplus": F.softplus, "abs": _abs1, "sigmoid": torch.sigmoid, "sigmoid2": _sigmoid2}


def stack_states(steps: list[State], dim: int) -> State:
    """Stacks states of single steps along a new time dimension.

    Args:
        steps: T states with the same keys.
        dim: position of the time dimension.
    """
    return {key: torch.stack([step[key] for step in steps], dim) for key in steps[0]}


def detach(state: State) -> State:
    """The state without gradient."""
    return {key: value.detach() for key, value in state.items()}


class Level(NamedTuple):
    """One level of latents.

    Args:
        stoch: number S of latents.
        discrete: classes K per latent; 0 for Gaussian latents.
        suffix: ending of the level's keys in a state: "", "_top" or "_bottom".
    """

    stoch: int
    discrete: int
    suffix: str

    @property
    def size(self) -> int:
        """Length of the level's latents as one vector: S * K, or S for Gaussian latents."""
        return self.stoch * max(self.discrete, 1)

    @property
    def code_dtype(self) -> type:
        """The smallest dtype of codes, see `RSSM.pack`."""
        return np.uint8 if self.discrete <= 255 else np.uint16

    @property
    def keys(self) -> list[str]:
        """Keys of the level in a state."""
        return [name + self.suffix for name in (("stoch", "logit") if self.discrete else ("stoch", "mean", "std"))]


def _note_levels(rssm: nn.Module, state_dict: dict, prefix: str, metadata: dict) -> None:
    """Adds the sizes of the latents to the metadata of a state dict.

    Shapes of tensors do not determine them: 32 latents of 32 classes have the same tensors as 64 of 16.
    """
    metadata["levels"] = [[level.stoch, level.discrete] for level in rssm.levels.values()]


class RSSM(nn.Module):
    """Recurrent state-space model with one level of latents (Hafner et al. 2023, "World Model Learning").

    A state is a dict with `deter` (B, D), `stoch` (B, S, K) and `logit` (B, S, K). With `discrete=0` the latents are
    Gaussian, and a state has `deter`, `stoch`, `mean` and `std`, the last three (B, S). A prior that is returned
    together with a posterior has no `stoch`: no latents are drawn from it.

    Args:
        deter: size D of the recurrent state.
        hidden: units of the layers around the recurrence.
        num_actions: size A of an action vector.
        embed: size E of an embedding.
        core: the recurrent core. "gru": `GRUCell` (2023). "block_gru": `BlockGRUCell` (2025).
        blocks: number of blocks of a "block_gru".
        rec_depth: applications of the recurrent core per step.
        img_layers, obs_layers: hidden layers of prior and posterior.
        style: how layers are built.
        mean_act, std_act: output functions of Gaussian latents, keys of `MEAN_ACTS` and `STD_ACTS`.
        min_std: smallest standard deviation of Gaussian latents.
        unimix_ratio: weight of the uniform distribution in every categorical.
        initial: the initial state. "learned": a learned deter with the most likely latents of its prior. "zeros": deter
            and latents are zero.
        stoch: number S of latents.
        discrete: classes K per latent; 0 for Gaussian latents.
    Attributes:
        levels: the levels of latents by name, from top to bottom; the flat model has one level, "flat".
        stoch_size: length of all latents as one vector.
        deter_size: D.
        feat_size: size F of a feature, `stoch_size` + D.
    Raises:
        ValueError: for an unknown `core`, `initial`, `mean_act` or `std_act`, or for too few latents or classes.
    """

    def __init__(
        self,
        *,
        deter: int,
        hidden: int,
        num_actions: int,
        embed: int,
        core: str = "gru",
        blocks: int = 8,
        rec_depth: int = 1,
        img_layers: int = 1,
        obs_layers: int = 1,
        style: Style = Style(),
        mean_act: str = "none",
        std_act: str = "sigmoid2",
        min_std: float = 0.1,
        unimix_ratio: float = 0.01,
        initial: str = "learned",
        **latent_sizes: int,
    ):
        super().__init__()
        if initial not in ("learned", "zeros"):
            raise ValueError(f"initial is {initial!r}; allowed are 'learned' and 'zeros'")
        if mean_act not in MEAN_ACTS:
            raise ValueError(f"dyn_mean_act is {mean_act!r}; allowed are {', '.join(MEAN_ACTS)}")
        if std_act not in STD_ACTS:
            raise ValueError(f"dyn_std_act is {std_act!r}; allowed are {', '.join(STD_ACTS)}")
        self._rec_depth, self._unimix_ratio, self._compiled = rec_depth, unimix_ratio, False
        self._mean_act, self._std_act, self._min_std = mean_act, std_act, min_std
        self.levels = self._make_levels(**latent_sizes)
        self.stoch_size = sum(level.size for level in self.levels.values())
        self.deter_size = deter
        self.feat_size = self.stoch_size + deter
        if core == "gru":
            self._img_in_layers = GRUInput(self.stoch_size, num_actions, hidden, style)
            self._cell = GRUCell(self._img_in_layers.out_size, deter, style)
        elif core == "block_gru":
            self._img_in_layers = BlockGRUInput(self.stoch_size, num_actions, hidden, style)
            self._cell = BlockGRUCell(self._img_in_layers.out_size, deter, hidden, blocks, style)
        else:
            raise ValueError(f"dyn_core is {core!r}; allowed are 'gru' and 'block_gru'")
        self._img_out_layers = HiddenBlock(deter, hidden, style, img_layers)
        self._obs_out_layers = HiddenBlock(deter + embed, hidden, style, obs_layers)
        self._make_stat_layers(hidden, style)
        self.W = nn.Parameter(torch.zeros(1, deter)) if initial == "learned" else None
        self.register_state_dict_post_hook(_note_levels)

    # Overridden by HierarchicalRSSM

    def _make_levels(self, *, stoch: int, discrete: int) -> dict[str, Level]:
        if stoch < 1 or discrete < 0 or discrete == 1:
            raise ValueError(
                f"the latent has {stoch} variables of {discrete} classes; it needs at least 1 of at least 2 classes, or "
                "of 0 classes for Gaussians (dyn_stoch, dyn_discrete)"
            )
        return {"flat": Level(stoch, discrete, "")}

    def _make_stat_layers(self, hidden: int, style: Style) -> None:
        level = self.levels["flat"]
        size = level.size if level.discrete else 2 * level.stoch
        self._imgs_stat_layer = Linear(hidden, size)
        self._obs_stat_layer = Linear(hidden, size)
        style.init_output(self._imgs_stat_layer, 1.0)
        style.init_output(self._obs_stat_layer, 1.0)

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor | None, x_post: Tensor | None = None) -> Tensor:
        """Computes the logits of one level: of its posterior if `x_post` is given, else of its prior.

        Args:
            name: the level.
            above: latents of the level above, (..., S, K); None for the first level.
            x_prior: hidden features of the prior, (..., hidden); None is allowed for the flat posterior.
            x_post: hidden features of the posterior, (..., hidden).
        Returns:
            (..., S * K). For Gaussian latents (..., 2 * S): means and deviations before their output functions.
        """
        return self._imgs_stat_layer(x_prior) if x_post is None else self._obs_stat_layer(x_post)

    def split_tensors(self) -> list[list[nn.Parameter]]:
        """Lists of parameters that are one tensor in the flat model. Adaptive gradient clipping treats them as one."""
        return []

    # Shared with HierarchicalRSSM

    def _chain(self, x_prior: Tensor | None, x_post: Tensor | None, noise: dict[str, Tensor] | None, given: State | None = None) -> State:
        """Computes statistics and latents of all levels from top to bottom, each given the level above.

        Args:
            x_prior: hidden features of the prior, (..., hidden).
            x_post: hidden features of the posterior, (..., hidden); None computes the prior.
            noise: see `_draw`.
            given: latents by key that are used instead of drawn ones.
        Returns:
            a state without `deter`.
        """
        above, state = None, {}
        for name, level in self.levels.items():
            stats, key = self._statistics(name, self.level_logits(name, above, x_prior, x_post)), "stoch" + level.suffix
            above = given[key] if given and key in given else self._draw(name, stats, noise)
            state |= {**stats, key: above}
        return state

    def _statistics(self, name: str, x: Tensor) -> State:
        """Splits raw outputs (..., n) of a level into its named statistics."""
        level = self.levels[name]
        if level.discrete:
            return {"logit" + level.suffix: x.unflatten(-1, (level.stoch, level.discrete))}
        mean, std = x.chunk(2, -1)
        return {"mean": MEAN_ACTS[self._mean_act](mean), "std": STD_ACTS[self._std_act](std) + self._min_std}

    def _level_dist(self, name: str, state: State):
        level = self.levels[name]
        if level.discrete:
            return dists.OneHot(state["logit" + level.suffix], self._unimix_ratio, event_dims=2)
        return dists.Normal(state["mean"], state["std"])

    def _draw(self, name: str, stats: State, noise: dict[str, Tensor] | None) -> Tensor:
        """Draws the latents of a level.

        Args:
            name: the level.
            stats: its statistics.
            noise: random numbers (..., S) by level. A level without an entry gets its most likely latents with the
                gradient of a sample. If None, all levels get their most likely latents with the gradient of the
                log-probabilities, as in dreamerv3-torch's initial state.
        """
        dist = self._level_dist(name, stats)
        if noise is None:
            return dist.mode
        return dist.sample(noise[name]) if name in noise else dist.greedy_sample()

    def _noise(self, sample: bool | Collection[str], *batch: int) -> dict[str, Tensor]:
        """Draws random numbers for the levels that are sampled: uniform for categoricals, normal for Gaussians.

        Args:
            sample: True for all levels, False for none, or the names of levels.
            batch: leading dimensions.
        Returns:
            (*batch, S) by level.
        """
        if not isinstance(sample, Collection):
            sample = self.levels if sample else ()
        if not sample:
            return {}
        names = self._check_levels(sample)
        sizes = [level.stoch for level in self.levels.values()]
        draw = torch.rand if all(level.discrete for level in self.levels.values()) else torch.randn
        parts = draw((*batch, sum(sizes)), device=self.device).split(sizes, -1)
        return {name: part for name, part in zip(self.levels, parts) if name in names}

    def _prepare(self, action: Tensor) -> Tensor:
        """What the recurrence reads of actions, (..., A) -> (..., n)."""
        return self._img_in_layers.prepare(dists.bounded(action))

    def _advance(self, stoch: Tensor, deter: Tensor, action: Tensor) -> Tensor:
        """Takes one step of the recurrence.

        Args:
            stoch: latents of the previous step as one vector, (B, stoch_size).
            deter: (B, D) of the previous step.
            action: from `_prepare`, the action that led to this step, (B, n).
        Returns:
            deter of this step, (B, D).
        """
        x = self._img_in_layers(stoch, action)
        for _ in range(self._rec_depth):
            deter = self._cell(x, deter)
        return deter

    def _prior_step(self, stoch: Tensor, deter: Tensor, action: Tensor, noise: dict[str, Tensor], given: State | None = None) -> State:
        """The next state without an observation; arguments as in `_advance` and `_chain`."""
        deter = self._advance(stoch, deter, action)
        return {"deter": deter, **self._chain(self._img_out_layers(deter), None, noise, given)}

    def _posterior_step(
        self, stoch: Tensor, deter: Tensor, action: Tensor, embed_share: Tensor, deter_weight: Tensor, noise: dict[str, Tensor]
    ) -> State:
        """The next state with an observation; other arguments as in `_advance` and `_draw`.

        Args:
            embed_share: product of the posterior's first hidden layer with the embedding, plus its bias, (B, hidden).
            deter_weight: columns of that layer's weight for deter, (hidden, D).
        """
        deter = self._advance(stoch, deter, action)
        x_post = self._obs_out_layers.after_product(linear(deter, deter_weight) + embed_share)
        # Gradient boundary: inside the posterior the prior is a constant; only the dynamics loss trains it.
        with torch.no_grad():
            x_prior = self._img_out_layers(deter) if len(self.levels) > 1 else None
        return {"deter": deter, **self._chain(x_prior, x_post, noise)}

    def compile_steps(self) -> None:
        """Compiles the step of the posterior and that of the prior.

        Random numbers are drawn outside of both, so compilation does not change them.
        """
        self._compiled = True
        self._posterior_step = torch.compile(self._posterior_step)
        self._prior_step = torch.compile(self._prior_step)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def initial(self, batch_size: int) -> State:
        """The state before the first observation, as chosen by the argument `initial` of the class.

        A learned deter is tanh(W), where W starts at zero.

        Returns:
            a state of (batch_size, ...).
        """
        if self.W is None:
            sizes = {"deter": (self.deter_size,)}
            for level in self.levels.values():
                sizes |= dict.fromkeys(level.keys, (level.stoch, level.discrete) if level.discrete else (level.stoch,))
            return {key: torch.zeros(batch_size, *size, device=self.device) for key, size in sizes.items()}
        deter = torch.tanh(self.W)
        state = {"deter": deter, **self._chain(self._img_out_layers(deter), None, noise=None)}
        return {key: value.expand(batch_size, *value.shape[1:]) for key, value in state.items()}

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None, sample: bool = True
    ) -> tuple[State, State]:
        """Computes posteriors and priors of a sequence of observations.

        Args:
            embed: (B, T, E).
            action: (B, T, A); each action led to the observation of the same step.
            is_first: (B, T) or (B, T, 1), bool or float; where true, the recurrence restarts from the initial state.
            state: the state before the first step, (B, ...); None starts all sequences from the initial state.
            sample: whether latents are drawn; False takes the most likely ones.
        Returns:
            posterior and prior, states of (B, T, ...). With two levels, the prior's `logit_bottom` is p(zb | h, zt) at
            the posterior's zt.
        """
        post = self.filter(embed, action, is_first, state, sample)
        # The recurrence does not depend on the prior, so one pass computes the priors of all steps.
        prior = self._chain(self._img_out_layers(post["deter"]), None, noise={}, given=post)
        prior = {key: value for key, value in prior.items() if not key.startswith("stoch")}
        return post, {"deter": post["deter"], **prior}

    def filter(self, embed: Tensor, action: Tensor, is_first: Tensor | None, state: State | None = None, sample: bool = True) -> State:
        """Computes posteriors only, which is all that acting needs.

        Args:
            is_first: as in `observe`; None if no step is the first of an episode. Other arguments as in `observe`.
        Returns:
            posterior, a state of (B, T, ...).
        """
        batch, time = action.shape[:2]
        action, starts = action.float(), None
        if state is None or is_first is not None:
            initial = self.initial(batch)
            starts = torch.zeros_like(action[..., :1], dtype=torch.bool) if is_first is None else is_first.reshape(batch, time, 1).bool()
            if state is None:
                state = initial
                starts = torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)
            action = torch.where(starts, 0.0, action)
            first_stoch = self.flat_stoch(initial)
        noise = self._noise(sample, batch, time)
        # The embedding does not depend on the recurrence, so its part of the posterior's layer is one product.
        layer = self._obs_out_layers[0]
        deter_weight, embed_weight = layer.weight.split([self.deter_size, embed.shape[-1]], 1)
        embed_share = linear(embed, embed_weight, layer.bias).unbind(1)  # T times (B, hidden)
        actions = self._prepare(action).unbind(1)

        stoch, deter, steps = self.flat_stoch(state), state["deter"], []
        with contextlib.nullcontext() if self._compiled else weight_gradients_once():
            for t in range(time):
                if starts is not None:
                    stoch = torch.where(starts[:, t], first_stoch, stoch)
                    deter = torch.where(starts[:, t], initial["deter"], deter)
                drawn = {name: part[:, t] for name, part in noise.items()}
                steps.append(self._posterior_step(stoch, deter, actions[t], embed_share[t], deter_weight, drawn))
                stoch, deter = self.flat_stoch(steps[-1]), steps[-1]["deter"]
        return stack_states(steps, 1)

    def obs_step(
        self, prev_state: State | None, prev_action: Tensor, embed: Tensor, is_first: Tensor, sample: bool = True
    ) -> tuple[State, State]:
        """One step of `observe`.

        Args:
            prev_state: the previous state, (B, ...); None for the initial state.
            prev_action: (B, A).
            embed: (B, E).
            is_first: (B,) or (B, 1).
            sample: as in `observe`.
        Returns:
            posterior and prior, states of (B, ...).
        """
        post, prior = self.observe(embed[:, None], prev_action[:, None], is_first.reshape(-1, 1), prev_state, sample)
        return {k: v[:, 0] for k, v in post.items()}, {k: v[:, 0] for k, v in prior.items()}

    def img_step(self, prev_state: State, prev_action: Tensor, sample: bool | Collection[str] = True, given: State | None = None) -> State:
        """One step without an observation: the next state from the prior.

        Args:
            prev_state: the previous state, (B, ...).
            prev_action: (B, A).
            sample: True draws latents, False takes the most likely ones. A collection of level names draws only those.
            given: latents by key that are used instead of drawn ones.
        Returns:
            a state of (B, ...).
        """
        noise = self._noise(sample, len(prev_action))
        return self._prior_step(self.flat_stoch(prev_state), prev_state["deter"], self._prepare(prev_action.float()), noise, given)

    def imagine_with_action(self, action: Tensor, state: State, sample: bool | Collection[str] = True) -> State:
        """Open-loop prediction from given actions.

        Args:
            action: (B, T, A).
            state: the state before the first action, (B, ...).
            sample: as in `img_step`.
        Returns:
            states of (B, T, ...).
        """
        steps = []
        for t in range(action.shape[1]):
            state = self.img_step(state, action[:, t], sample)
            steps.append(state)
        return stack_states(steps, 1)

    def prior(self, deter: Tensor, sample: bool | Collection[str] = True, given: State | None = None) -> State:
        """The states with latents and statistics of the prior at these deter (..., D); `sample` and `given` as in `img_step`."""
        noise = self._noise(sample, *deter.shape[:-1])
        return {"deter": deter, **self._chain(self._img_out_layers(deter), None, noise, given)}

    def _check_levels(self, names: Collection[str]) -> Collection[str]:
        unknown = [names] if isinstance(names, str) else [name for name in names if name not in self.levels]
        if unknown:
            raise ValueError(f"there is no latent level {unknown[0]!r}; allowed are lists of {', '.join(self.levels)}")
        return names

    def resample(self, post: State, levels: Collection[str]) -> State:
        """Replaces latents of a posterior by samples from the prior, given deter and the level above.

        Args:
            post: posterior states, with any leading dimensions.
            levels: names of the levels to resample; their statistics become the prior's too.
        Returns:
            states like `post`.
        Raises:
            ValueError: for an unknown level.
        """
        kept = {key: post[key] for name, level in self.levels.items() if name not in levels for key in level.keys}
        return {**post, **self.prior(post["deter"], levels, given=kept), **kept}

    @torch.no_grad()
    def pack(self, state: State) -> dict[str, np.ndarray]:
        """The part of a state that the recurrence reads, in the form that replay memory stores.

        Args:
            state: with categorical latents, (...).
        Returns:
            `deter` (..., D) float32, and the codes (..., S) of every level: 1 + class index, or 0 for zero latents.
        """
        packed = {"deter": state["deter"].float().cpu().numpy()}
        for level in self.levels.values():
            largest, index = state["stoch" + level.suffix].max(-1)
            code = torch.where(largest > 0.0, index + 1, 0)
            packed["stoch" + level.suffix] = code.cpu().numpy().astype(level.code_dtype)
        return packed

    def unpack(self, packed: dict[str, np.ndarray]) -> State:
        """The state (...) without statistics whose `pack` is `packed`."""
        state = {"deter": torch.as_tensor(packed["deter"], device=self.device)}
        for level in self.levels.values():
            code = torch.as_tensor(packed["stoch" + level.suffix]).to(self.device, torch.int64)
            state["stoch" + level.suffix] = F.one_hot(code, level.discrete + 1)[..., 1:].float()
        return state

    def flat_stoch(self, state: State) -> Tensor:
        """The latents of all levels as one vector, (..., stoch_size)."""
        parts = []
        for level in self.levels.values():
            stoch = state["stoch" + level.suffix]
            parts.append(stoch.flatten(-2) if level.discrete else stoch)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def get_feat(self, state: State) -> Tensor:
        """The feature that decoder, heads, actor and critic read: all latents, then deter, (..., F)."""
        return torch.cat([self.flat_stoch(state), state["deter"]], -1)

    def get_dist(self, state: State, level: str | None = None):
        """The distribution of the latents.

        Args:
            state: a state with statistics.
            level: name of a level; None for all levels together, whose events are then vectors like `flat_stoch`.
        Raises:
            ValueError: for an unknown level.
        """
        if level is not None:
            self._check_levels([level])
            return self._level_dist(level, state)
        parts = [self._level_dist(name, state) for name in self.levels]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)

    def entropy(self, state: State) -> Tensor:
        """Sum of the entropies of all levels, each given the level above, in nats, (...)."""
        return self.get_dist(state).entropy()

    def code_likelihoods(self, post: State, embed: Tensor) -> dict[str, Tensor]:
        """Log-probability of every step's code under every other step's posterior.

        A code is the drawn latents of one level. Gaussian levels are skipped.

        Args:
            post: posterior states of N steps, (N, ...).
            embed: their embeddings, (N, E).
        Returns:
            (N, N) by level. Entry (i, j) is the log-probability of step i's code under step j's posterior, given step
            i's code of the level above.
        """
        x_prior = self._img_out_layers(post["deter"])
        x_post = self._obs_out_layers(torch.cat([post["deter"], embed], -1))
        above, found = None, {}
        for name, level in self.levels.items():
            codes, rows = post["stoch" + level.suffix], []
            for i in range(len(codes) if level.discrete else 0):
                if i == 0 or above is not None:  # without a level above, the distributions are the same for every i
                    seen = None if above is None else above[i].expand_as(above)
                    dist = self._level_dist(name, self._statistics(name, self.level_logits(name, seen, x_prior, x_post)))
                rows.append(dist.log_prob(codes[i].expand_as(codes)))
            if rows:
                found[name] = torch.stack(rows)
            above = codes
        return found

    def kl_per_level(self, post: State, prior: State) -> dict[str, Tensor]:
        """Unclipped KL(posterior || prior) by level, in nats, each (...)."""
        return {name: self._level_dist(name, post).kl(self._level_dist(name, prior)) for name in self.levels}

    def kl_loss(self, post: State, prior: State, free: float, dyn_scale: float, rep_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Balanced KL with free nats (Hafner et al. 2023, "World Model Learning"), summed over levels.

        Args:
            post, prior: as from `observe`.
            free: free nats of each level; a KL below them has no gradient.
            dyn_scale: weight of the dynamics loss, which trains the prior.
            rep_scale: weight of the representation loss, which trains the posterior.
        Returns:
            (loss, value, dyn_loss, rep_loss), each (...): the weighted sum of the two losses, the unclipped KL in
            nats, the dynamics loss and the representation loss.
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
    """RSSM with two levels of categorical latents: a coarse top zt, and a fine bottom zb that depends on it.

    x_p and x_q are the hidden features of prior and posterior, and c = act(Wc zt) is a summary of the top latents.
    The logits are:

        top prior          Wpt x_p
        top posterior      Wqt x_q
        bottom prior       Wpb x_p + Up c
        bottom posterior   (1 + d) * sg(bottom prior) + Wqb x_q + Uq c      (d: one learned weight per logit)

    sg stops gradients. Wpt and Wpb are `_imgs_stat_layer`, Wqt and Wqb `_obs_stat_layer`, Wc is `_top_summary`, Up and
    Uq are `_top_to_prior` and `_top_to_post`, and d is `_prior_weight`.

    A state is a dict with `deter` (B, D), `stoch_top` and `logit_top` (B, St, Kt), `stoch_bottom` and `logit_bottom`
    (B, Sb, Kb).

    Args:
        stoch_top, stoch_bottom: numbers of latents St and Sb.
        discrete_top, discrete_bottom: classes per latent Kt and Kb.
        others: as in `RSSM`.
    Raises:
        ValueError: for too few latents or classes.
    """

    def _make_levels(self, *, stoch_top: int, stoch_bottom: int, discrete_top: int, discrete_bottom: int) -> dict[str, Level]:
        levels = {"top": Level(stoch_top, discrete_top, "_top"), "bottom": Level(stoch_bottom, discrete_bottom, "_bottom")}
        for name, level in levels.items():
            if level.stoch < 1 or level.discrete < 2:
                raise ValueError(
                    f"the {name} level has {level.stoch} latents of {level.discrete} classes; it needs at least 1 of "
                    f"at least 2 classes (dyn_stoch_{name}, dyn_discrete_{name})"
                )
        return levels

    def _make_stat_layers(self, hidden: int, style: Style) -> None:
        top, bottom = self.levels["top"], self.levels["bottom"]
        self._imgs_stat_layer = nn.ModuleDict({name: Linear(hidden, level.size) for name, level in self.levels.items()})
        self._obs_stat_layer = nn.ModuleDict({name: Linear(hidden, level.size) for name, level in self.levels.items()})
        for layer in (*self._imgs_stat_layer.values(), *self._obs_stat_layer.values()):
            style.init_output(layer, 1.0)
        self._top_summary = nn.Sequential(Linear(top.size, top.stoch, bias=False), style.activation()).apply(style.init_hidden)
        # With Up = Uq = d = 0 the bottom is independent of the top at first, and its posterior is prior + Wqb x_q.
        # Wc must not be zero too: if both factors of Up c are zero, both get zero gradients and never learn.
        self._top_to_prior = Linear(top.stoch, bottom.size, bias=False)
        self._top_to_post = Linear(top.stoch, bottom.size, bias=False)
        nn.init.zeros_(self._top_to_prior.weight)
        nn.init.zeros_(self._top_to_post.weight)
        self._prior_weight = nn.Parameter(torch.zeros(bottom.size))

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor, x_post: Tensor | None = None) -> Tensor:
        """As in `RSSM`; the formulas are in the docstring of the class."""
        if name == "top":
            return self._imgs_stat_layer["top"](x_prior) if x_post is None else self._obs_stat_layer["top"](x_post)
        summary = self._top_summary(above.flatten(-2))  # (..., St)
        if x_post is None:
            return self._imgs_stat_layer["bottom"](x_prior) + self._top_to_prior(summary)
        with torch.no_grad():
            prior = self.level_logits("bottom", above.detach(), x_prior)
        return torch.addcmul(self._obs_stat_layer["bottom"](x_post) + self._top_to_post(summary), 1.0 + self._prior_weight, prior)

    def split_tensors(self) -> list[list[nn.Parameter]]:
        """As in `RSSM`."""
        layers = (self._imgs_stat_layer, self._obs_stat_layer)
        return [[getattr(level, part) for level in layer.values()] for layer in layers for part in ("weight", "bias")]

    def observe_top(self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None) -> State:
        """`observe` with an observation of the top level only: the bottom is drawn from its prior, given the top.

        Args:
            embed: (B, T, E).
            action: (B, T, A).
            is_first: (B, T).
            state: the state before the first step, (B, ...); None for the initial state.
        Returns:
            states of (B, T, ...).
        """
        steps = []
        for t in range(action.shape[1]):
            post = self.filter(embed[:, t : t + 1], action[:, t : t + 1], is_first[:, t : t + 1], state)
            state = self.resample({key: value[:, 0] for key, value in post.items()}, ["bottom"])
            steps.append(state)
        return stack_states(steps, 1)


STATISTICS = ("kl", "prior_entropy", "post_entropy", "perplexity", "active", "delta")
ACTIVE_NATS = 0.01  # mutual information above which a categorical counts as active


@torch.no_grad()
def level_statistics(dynamics: RSSM, post: State, prior: State) -> dict[str, Tensor]:
    """Statistics of every level, averaged over the batch (B, T), with names such as `kl_top`; information in nats.

    - `kl`: unclipped KL(posterior || prior), summed over categoricals.
    - `prior_entropy`, `post_entropy`: entropy, summed over categoricals.
    - `perplexity`: exp of the entropy of the batch's average code, averaged over categoricals; between 1 and K.
    - `active`: number of categoricals whose mutual information with the step is above `ACTIVE_NATS`. The mutual
      information is the entropy of the batch's average code minus the average entropy of a code. The bottom's posterior
      also depends on the sampled top, so its value includes the top's noise.
    - `delta`: root mean square of posterior logits minus prior logits, without each categorical's mean; in the bottom
      level the residual.

    Gaussian levels only have the first three.

    Returns:
        scalars by name.
    """
    kls = dynamics.kl_per_level(post, prior)
    metrics = {}
    for name, level in dynamics.levels.items():
        q, p = dynamics.get_dist(post, name), dynamics.get_dist(prior, name)
        metrics.update(
            {f"kl_{name}": kls[name].mean(), f"prior_entropy_{name}": p.entropy().mean(), f"post_entropy_{name}": q.entropy().mean()}
        )
        if level.discrete:
            average = q.probs.flatten(0, -3).mean(0)  # (S, K)
            code_entropy = torch.special.entr(average).sum(-1)  # (S,)
            entropy = torch.special.entr(q.probs).sum(-1).flatten(0, -2).mean(0)  # (S,)
            delta = (post["logit" + level.suffix] - prior["logit" + level.suffix]).float()
            delta = delta - delta.mean(-1, keepdim=True)  # softmax ignores a constant
            metrics.update(
                {
                    f"perplexity_{name}": code_entropy.exp().mean(),
                    f"active_{name}": (code_entropy - entropy > ACTIVE_NATS).sum().float(),
                    f"delta_{name}": delta.square().mean().sqrt(),
                }
            )
    return metrics
