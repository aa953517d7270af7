"""Recurrent state-space models of DreamerV3, with one and with two levels of latents.

Shapes: B batch, T time, A action, E embedding, D deter, S categoricals, K classes, F feature. Parameter names and shapes of the
flat model are those of dreamerv3-torch, so that checkpoints carry over.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists
import lookup
from layers import GRUCell, HiddenBlock, activation, init_hidden, init_output
from recurrence import StepProducts

State = dict[str, Tensor]


def _tanh5(x: Tensor) -> Tensor:
    return 5.0 * torch.tanh(x / 5.0)


def _abs1(x: Tensor) -> Tensor:
    return torch.abs(x + 1.0)


def _sigmoid2(x: Tensor) -> Tensor:
    return 2.0 * torch.sigmoid(x / 2.0)


MEAN_ACTS = {"none": torch.positive, "tanh5": _tanh5}  # of Gaussian latents
STD_ACTS = {"softplus": F.softplus, "abs": _abs1, "sigmoid": torch.sigmoid, "sigmoid2": _sigmoid2}


def stack_states(steps: list[State], dim: int) -> State:
    """Joins the dicts of single steps to one dict with a time dimension."""
    return {key: torch.stack([step[key] for step in steps], dim) for key in steps[0]}


class Level(NamedTuple):
    """Sizes of one group of latents and the ending of its keys in a state ("logit" + suffix)."""

    stoch: int
    discrete: int
    suffix: str

    @property
    def size(self) -> int:
        return self.stoch * max(self.discrete, 1)


def _note_levels(rssm: nn.Module, state_dict: dict, prefix: str, metadata: dict) -> None:
    """Adds the sizes of the latents to a state dict's metadata, since 32 of 32 and 64 of 16 have the same tensors."""
    metadata["levels"] = [[level.stoch, level.discrete] for level in rssm.levels.values()]


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

    def __init__(
        self,
        *,
        deter: int,
        hidden: int,
        num_actions: int,
        embed: int,
        rec_depth: int = 1,
        act: str = "SiLU",
        norm: bool = True,
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
        self._rec_depth = rec_depth
        self._mean_act = mean_act
        self._std_act = std_act
        self._min_std = min_std
        self._unimix_ratio = unimix_ratio
        self._looks_up = True
        self.levels = self._make_levels(**latent_sizes)
        self.stoch_size = sum(level.size for level in self.levels.values())
        self.feat_size = self.stoch_size + deter
        self.deter_size = deter
        self._img_in_layers = HiddenBlock(self.stoch_size, num_actions, hidden, act, norm)
        self._cell = GRUCell(hidden, deter, norm)
        self._img_out_layers = HiddenBlock(deter, 0, hidden, act, norm)
        self._obs_out_layers = HiddenBlock(deter, embed, hidden, act, norm)
        self._make_stat_layers(hidden, act)
        if initial == "learned":
            self.W = nn.Parameter(torch.zeros(1, deter))
        else:
            self.register_buffer("W", torch.zeros(1, deter), persistent=False)
        self.register_state_dict_post_hook(_note_levels)

    def _make_levels(self, *, stoch: int, discrete: int) -> dict[str, Level]:
        if stoch < 1 or discrete < 0 or discrete == 1:
            raise ValueError(
                f"the latent has {stoch} variables of {discrete} classes; it needs at least 1 of at least 2 classes, or "
                "of 0 classes for Gaussians (dyn_stoch, dyn_discrete)"
            )
        return {"flat": Level(stoch, discrete, "")}

    def _make_stat_layers(self, hidden: int, act: str) -> None:
        level = self.levels["flat"]
        size = level.size if level.discrete else 2 * level.stoch
        self._imgs_stat_layer = nn.Linear(hidden, size)
        self._obs_stat_layer = nn.Linear(hidden, size)
        init_output(self._imgs_stat_layer, 1.0)
        init_output(self._obs_stat_layer, 1.0)

    # What differs between one and two levels: how latents follow from the hidden features. `draw` is a function
    # (level name, statistics) -> latents, `product` one (name, input) -> linear product, see `_products`.

    def _prior_stats(self, deter: Tensor, draw: Callable) -> State:
        """Prior statistics and latents from deter (..., D)."""
        stats = self._statistics("flat", self._imgs_stat_layer(self._img_out_layers(deter)))
        return {**stats, "stoch": draw("flat", stats)}

    def _posterior_stats(self, deter: Tensor, x: Tensor, draw: Callable, product: Callable) -> State:
        """Posterior statistics and latents from deter (B, D) and the hidden feature x (B, hidden)."""
        stats = self._statistics("flat", product("stats", x))
        return {**stats, "stoch": draw("flat", stats)}

    def _stat_layers(self) -> dict[str, nn.Linear]:
        """The layers of `_posterior_stats`, by the names of their products."""
        return {"stats": self._obs_stat_layer}

    # What is shared

    def _statistics(self, name: str, x: Tensor) -> State:
        """Raw network outputs (..., n) as the named statistics of a level."""
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

    def _sampler(self, noise: Tensor | None, drawn: Collection[str] | None = None) -> Callable:
        """Draws samples, with `noise` (B, sum of S) for the latents of all levels; without it, the most likely latents.

        If `drawn` names levels, only these are samples.
        """
        if noise is None:
            return self._greedy
        parts = dict(zip(self.levels, noise.split([level.stoch for level in self.levels.values()], -1)))

        def draw(name: str, stats: State) -> Tensor:
            return self._level_dist(name, stats).sample(parts[name]) if drawn is None or name in drawn else self._greedy(name, stats)

        return draw

    def _greedy(self, name: str, stats: State) -> Tensor:
        """Draws the most likely latents, with the gradient that a sample has."""
        return self._level_dist(name, stats).greedy_sample()

    def _mode(self, name: str, stats: State) -> Tensor:
        """Draws the most likely latents, with the gradient of the log-probabilities."""
        return self._level_dist(name, stats).mode

    def _noise(self, *batch: int) -> Tensor:
        """One number per latent, (*batch, sum of S): uniform for categoricals, normal for Gaussians."""
        shape = (*batch, sum(level.stoch for level in self.levels.values()))
        draw = torch.rand if all(level.discrete for level in self.levels.values()) else torch.randn
        return draw(shape, device=self.W.device)

    def _advance(self, x: Tensor, deter: Tensor, product: Callable) -> Tensor:
        """One step of the recurrence, (B, D) -> (B, D), from the product x of `_img_in_layers`, (B, hidden)."""
        x = self._img_in_layers.finish(x)
        for depth in range(self._rec_depth):
            deter = self._cell.finish(product(f"cell{depth}", torch.cat([x, deter], -1)), deter)
        return deter

    def _posterior_step(self, stoch: Tensor, deter: Tensor, products: dict, noise: Tensor | None) -> tuple[State, dict]:
        """The state after an observation, from latents and deter before it, and what the `products` of the step were formed of."""
        inputs = {}

        def product(name: str, x: Tensor) -> Tensor:
            if name in inputs:
                raise ValueError(f"the product {name!r} is formed twice in a step, but its gradient only once; add a layer to _stat_layers")
            inputs[name] = x
            share, weight = products[name]
            return torch.addmm(share, x, weight)

        deter = self._advance(product("img_in", stoch), deter, product)
        x = self._obs_out_layers.finish(product("obs_out", deter))
        return {"deter": deter, **self._posterior_stats(deter, x, self._sampler(noise), product)}, inputs

    def _products(self, embed: Tensor, action: Tensor) -> StepProducts:
        """The products of `_posterior_step`; (B, T, E) embeddings and (B, T, A) actions have shares (T, B, hidden) in them."""
        cells, stats = [f"cell{depth}" for depth in range(self._rec_depth)], self._stat_layers()
        none = torch.zeros((), device=embed.device)
        weights = {
            "img_in": self._img_in_layers.step_weight,
            **dict.fromkeys(cells, self._cell.weight),
            "obs_out": self._obs_out_layers.step_weight,
            **{name: layer.weight for name, layer in stats.items()},
        }
        shares = {
            "img_in": self._img_in_layers.share(action.transpose(0, 1)),
            **dict.fromkeys(cells, none),
            "obs_out": self._obs_out_layers.share(embed.transpose(0, 1)),
            **{name: none if layer.bias is None else layer.bias for name, layer in stats.items()},
        }
        return StepProducts(weights, shares, action.shape[1], len(action))

    def _prior_step(
        self,
        stoch: Tensor,
        deter: Tensor,
        action_share: Tensor,
        noise: Tensor | None,
        ones: lookup.Ones | None = None,
        drawn: Collection[str] | None = None,
    ) -> State:
        """The state without an observation, from latents and deter before it."""
        x = lookup.linear(stoch, self._img_in_layers.step_weight, ones) + action_share
        deter = self._advance(x, deter, lambda _, x: F.linear(x, self._cell.weight))
        return {"deter": deter, **self._prior_stats(deter, self._sampler(noise, drawn))}

    def compile_steps(self) -> None:
        """Compiles the steps of both recurrences; random numbers are drawn outside, so they stay the same."""
        self._looks_up = False
        self._posterior_step = torch.compile(self._posterior_step)
        self._prior_step = torch.compile(self._prior_step)

    def initial(self, batch_size: int) -> State:
        """The state before the first observation: learned (or zero) deter and the most likely latents of its prior."""
        deter = torch.tanh(self.W)
        state = {"deter": deter, **self._prior_stats(deter, self._mode)}
        return {key: value.expand(batch_size, *value.shape[1:]) for key, value in state.items()}

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None, sample: bool = True
    ) -> tuple[State, State]:
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
        post = self.filter(embed, action, is_first, state, sample)
        # No step needs the prior of the one before, so all are formed at once, at the latents of the posterior.
        prior = self._prior_stats(post["deter"], lambda name, _: post["stoch" + self.levels[name].suffix])
        prior = {key: value for key, value in prior.items() if not key.startswith("stoch")}
        return post, {"deter": post["deter"], **prior}

    def filter(self, embed: Tensor, action: Tensor, is_first: Tensor | None, state: State | None = None, sample: bool = True) -> State:
        """The posterior alone, (B, T, ...), which is all that acting needs.

        Arguments are those of `observe`; is_first may be None if a state is given and no step starts anew.
        """
        batch, time = action.shape[:2]
        action = action.float()
        restart = None  # T times (B, 1): where the initial state takes the place of the one before
        if state is None or is_first is not None:
            initial = self.initial(batch)
            starts = torch.zeros_like(action[..., 0], dtype=torch.bool) if is_first is None else is_first.reshape(batch, time).bool()
            if state is None:
                state = initial
                starts = torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)
            action = torch.where(starts.unsqueeze(-1), 0.0, action)
            restart = starts.unsqueeze(-1).unbind(1)
            first_stoch = self.flat_stoch(initial)
        products = self._products(embed, action)
        noise = self._noise(batch, time).unbind(1) if sample else [None] * time

        stoch, deter = self.flat_stoch(state), state["deter"]
        steps = []
        for t in range(time):
            if restart:
                stoch = torch.where(restart[t], first_stoch, stoch)
                deter = torch.where(restart[t], initial["deter"], deter)
            step, inputs = self._posterior_step(stoch, deter, products.at(t), noise[t])
            products.record(inputs)
            steps.append(step)
            stoch, deter = self.flat_stoch(step), step["deter"]
        return stack_states(steps, 1)

    def obs_step(
        self, prev_state: State | None, prev_action: Tensor, embed: Tensor, is_first: Tensor, sample: bool = True
    ) -> tuple[State, State]:
        """One step of `observe`: prev_action (B, A), embed (B, E), is_first (B,) or (B, 1) -> states of (B, ...)."""
        post, prior = self.observe(embed[:, None], prev_action[:, None], is_first.reshape(-1, 1), prev_state, sample)
        return {k: v[:, 0] for k, v in post.items()}, {k: v[:, 0] for k, v in prior.items()}

    def img_step(
        self, prev_state: State, prev_action: Tensor, sample: bool | Collection[str] = True, ones: lookup.Ones | None = None
    ) -> State:
        """One step without an observation: states of (B, ...) and actions (B, A) -> the prior's next state.

        `sample` draws latents, False takes the most likely ones, names of levels draw these alone. `ones`, from
        `ones(prev_state)`, spares products where the latents are samples.
        """
        action_share = self._img_in_layers.share(prev_action)
        noise = self._noise(len(action_share)) if sample else None
        drawn = None if isinstance(sample, bool) else sample
        if drawn is not None:
            self._check_levels(drawn)
        return self._prior_step(self.flat_stoch(prev_state), prev_state["deter"], action_share, noise, ones, drawn)

    def imagine_with_action(self, action: Tensor, state: State, sample: bool | Collection[str] = True) -> State:
        """Open-loop prediction: actions (B, T, A) from states of (B, ...) -> states of (B, T, ...); `sample` as in `img_step`."""
        steps = []
        for t in range(action.shape[1]):
            state = self.img_step(state, action[:, t], sample)
            steps.append(state)
        return stack_states(steps, 1)

    def _check_levels(self, names: Collection[str]) -> None:
        unknown = [names] if isinstance(names, str) else [name for name in names if name not in self.levels]
        if unknown:
            raise ValueError(f"there is no latent level {unknown[0]!r}; give a list of some of {', '.join(self.levels)}")

    def resample(self, post: State, levels: Collection[str]) -> State:
        """Posterior states whose latents of these levels are drawn from their prior instead, given deter and the level above.

        Raises:
            ValueError: for a level that does not exist.
        """
        self._check_levels(levels)
        state = dict(post)

        def draw(name: str, stats: State) -> Tensor:
            if name in levels:
                state.update({**stats, "stoch" + self.levels[name].suffix: self._level_dist(name, stats).sample()})
            return state["stoch" + self.levels[name].suffix]

        self._prior_stats(post["deter"], draw)
        return state

    def flat_stoch(self, state: State) -> Tensor:
        """The latents of all levels as one vector, (..., stoch_size)."""
        parts = []
        for level in self.levels.values():
            stoch = state["stoch" + level.suffix]
            parts.append(stoch.flatten(-2) if level.discrete else stoch)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def ones(self, state: State) -> lookup.Ones | None:
        """Where the ones of `flat_stoch` are, for a state whose latents are samples; None if they are Gaussian.

        None too where plain products are taken: on a GPU, which multiplies faster than it looks up, and in compiled steps.
        """
        if not self._looks_up or state["deter"].device.type != "cpu" or not all(level.discrete for level in self.levels.values()):
            return None
        parts, start = [], 0
        for level in self.levels.values():
            # A sum and no product of matrices, which autocast would form in bfloat16, where only integers up to 256 are exact.
            classes = (state["stoch" + level.suffix].detach() * torch.arange(level.discrete)).sum(-1)  # (..., S)
            classes = classes.long().clamp_(0, level.discrete - 1)  # of NaN, which becomes the least integer, and goes on in logits alone
            parts.append(classes + torch.arange(start, start + level.size, level.discrete))
            start += level.size
        return lookup.Ones(parts[0] if len(parts) == 1 else torch.cat(parts, -1), self.stoch_size)

    def get_feat(self, state: State) -> Tensor:
        """What decoder, heads, actor and critic see: latents and deter, (..., F)."""
        return torch.cat([self.flat_stoch(state), state["deter"]], -1)

    def get_dist(self, state: State, level: str | None = None):
        """Distribution of the latents of one level; of all levels together if none is named (events then as `flat_stoch`)."""
        if level is not None:
            self._check_levels([level])
            return self._level_dist(level, state)
        parts = [self._level_dist(name, state) for name in self.levels]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)

    def entropy(self, state: State) -> Tensor:
        """Entropy of all latents given the rest of the state, in nats, (...)."""
        return self.get_dist(state).entropy()

    def code_likelihoods(self, name: str, post: State) -> Tensor:
        """ln q(code of step i | step j, codes of the levels above of step i), (N, N), from posterior states of N steps."""
        level = self.levels[name]
        return post["stoch" + level.suffix].flatten(1) @ self._level_dist(name, post).log_probs.flatten(1).T

    def kl_per_level(self, post: State, prior: State) -> dict[str, Tensor]:
        """KL(posterior || prior) of each level by its name, in nats, unclipped, each (...)."""
        return {name: self._level_dist(name, post).kl(self._level_dist(name, prior)) for name in self.levels}

    def kl_loss(self, post: State, prior: State, free: float, dyn_scale: float, rep_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Balanced KL with free bits per level (Hafner et al. 2023).

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

        top prior          Wpt x_p
        top posterior      Wqt x_q
        bottom prior       Wpb x_p + Up c
        bottom posterior   (1 + d) * sg(bottom prior) + Wqb x_q + Uq c      (d: one learned weight per logit)

    Wp and Wq are `_imgs_stat_layer` and `_obs_stat_layer` (one for each level), Wc is `_top_summary`, Up and Uq are
    `_top_to_prior` and `_top_to_post`, and d is `_prior_weight`.

    A state is a dict with `deter` (B, D), `stoch_top`, `logit_top` (B, St, Kt), `stoch_bottom`, `logit_bottom` (B, Sb, Kb).
    Arguments are those of `RSSM`, with `stoch_top`, `stoch_bottom`, `discrete_top`, `discrete_bottom` for `stoch`, `discrete`.
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

    def _make_stat_layers(self, hidden: int, act: str) -> None:
        top, bottom = self.levels["top"], self.levels["bottom"]
        self._imgs_stat_layer = nn.ModuleDict({name: nn.Linear(hidden, level.size) for name, level in self.levels.items()})
        self._obs_stat_layer = nn.ModuleDict({name: nn.Linear(hidden, level.size) for name, level in self.levels.items()})
        for layer in (*self._imgs_stat_layer.values(), *self._obs_stat_layer.values()):
            init_output(layer, 1.0)
        self._top_summary = nn.Sequential(nn.Linear(top.size, top.stoch, bias=False), activation(act)).apply(init_hidden)
        # With Up = Uq = d = 0 the bottom starts independent of the top, and its posterior as prior + Wqb x_q. Wc must not start at
        # zero too: where every factor of a product is zero, none ever learns.
        self._top_to_prior = nn.Linear(top.stoch, bottom.size, bias=False)
        self._top_to_post = nn.Linear(top.stoch, bottom.size, bias=False)
        nn.init.zeros_(self._top_to_prior.weight)
        nn.init.zeros_(self._top_to_post.weight)
        self._prior_weight = nn.Parameter(torch.zeros(bottom.size))

    def _bottom_prior(self, x: Tensor, summary: Tensor) -> Tensor:
        """Logits (..., Sb * Kb) from the hidden feature of the prior (..., hidden) and the top's summary (..., St)."""
        return self._imgs_stat_layer["bottom"](x) + self._top_to_prior(summary)

    @torch.no_grad()  # Only the dynamics loss trains the prior; inside the posterior it is a constant.
    def _prior_in_posterior(self, deter: Tensor, summary: Tensor) -> Tensor:
        """Logits of the bottom prior that the posterior's residual is added to."""
        return self._bottom_prior(self._img_out_layers(deter), summary)

    def _summarise(self, stoch_top: Tensor) -> Tensor:
        """(..., St, Kt) -> (..., St)."""
        return self._top_summary(stoch_top.flatten(-2))

    def _prior_stats(self, deter: Tensor, draw: Callable) -> State:
        x = self._img_out_layers(deter)
        top = self._statistics("top", self._imgs_stat_layer["top"](x))
        top["stoch_top"] = draw("top", top)
        bottom = self._statistics("bottom", self._bottom_prior(x, self._summarise(top["stoch_top"])))
        bottom["stoch_bottom"] = draw("bottom", bottom)
        return {**top, **bottom}

    def _posterior_stats(self, deter: Tensor, x: Tensor, draw: Callable, product: Callable) -> State:
        top = self._statistics("top", product("top", x))
        top["stoch_top"] = draw("top", top)
        summary = self._top_summary[1](product("summary", top["stoch_top"].flatten(-2)))
        prior = self._prior_in_posterior(deter, summary)
        logit = torch.addcmul(product("bottom", x) + product("top_to_post", summary), 1.0 + self._prior_weight, prior)
        bottom = self._statistics("bottom", logit)
        bottom["stoch_bottom"] = draw("bottom", bottom)
        return {**top, **bottom}

    def code_likelihoods(self, name: str, post: State) -> Tensor:
        if name == "top":
            return super().code_likelihoods(name, post)
        summary, rows = self._summarise(post["stoch_top"]), []
        for code, own in zip(post["stoch_bottom"], summary):
            # The bottom posterior of every step, had its top been that of this one: its logits are linear in the summary.
            change = own - summary
            logit = post["logit_bottom"].flatten(-2) + (1.0 + self._prior_weight) * self._top_to_prior(change) + self._top_to_post(change)
            log_probs = self._level_dist(name, self._statistics(name, logit)).log_probs
            rows.append((code * log_probs).sum((-2, -1)))
        return torch.stack(rows)

    def _stat_layers(self) -> dict[str, nn.Linear]:
        return {
            "top": self._obs_stat_layer["top"],
            "summary": self._top_summary[0],
            "bottom": self._obs_stat_layer["bottom"],
            "top_to_post": self._top_to_post,
        }

    def observe_top(self, embed: Tensor, action: Tensor, is_first: Tensor) -> State:
        """Filters as `observe` does, but only the top level sees: the bottom is drawn from its prior, given the top.

        (B, T, E), (B, T, A), (B, T) -> states of (B, T, ...).
        """
        state, steps = None, []
        for t in range(action.shape[1]):
            post = self.filter(embed[:, t : t + 1], action[:, t : t + 1], is_first[:, t : t + 1], state)
            state = self.resample({key: value[:, 0] for key, value in post.items()}, ["bottom"])
            steps.append(state)
        return stack_states(steps, 1)


STATISTICS = ("kl", "prior_entropy", "post_entropy", "perplexity", "active", "delta")
ACTIVE_NATS = 0.01  # information from which a categorical counts as active


@torch.no_grad()
def level_statistics(dynamics: RSSM, post: State, prior: State) -> dict[str, Tensor]:
    """Statistics of every level under names such as `kl_top`, means over the batch (B, T), information in nats.

    - `kl`: unclipped KL(posterior || prior), summed over categoricals.
    - `prior_entropy`, `post_entropy`: entropy, summed over categoricals.
    - `perplexity`: exp of the entropy of the code averaged over the batch, mean over categoricals: between 1 and K.
    - `active`: categoricals whose code tells at least `ACTIVE_NATS` about its posterior: entropy of the average code minus average
      entropy, which is the mutual information within the batch. The bottom's posterior also follows the top's code.
    - `delta`: root mean square of what the observation adds to the prior's logits (in the bottom level the residual).

    Gaussian levels have only the first three.
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
            delta = delta - delta.mean(-1, keepdim=True)  # a constant over the classes changes nothing
            metrics.update(
                {
                    f"perplexity_{name}": code_entropy.exp().mean(),
                    f"active_{name}": (code_entropy - entropy > ACTIVE_NATS).sum().float(),
                    f"delta_{name}": delta.square().mean().sqrt(),
                }
            )
    return metrics
