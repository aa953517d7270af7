"""Recurrent state-space models of DreamerV3, with one and with two levels of latents.

Shapes: B batch, T time, A action, E embedding, D deter, S categoricals, K classes, F feature. Parameter names and shapes of the
flat model are those of dreamerv3-torch, so that checkpoints carry over.
"""

import contextlib
from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distributions as dists
from layers import GRUCell, HiddenBlock, Linear, activation, init_hidden, init_output, linear, weight_gradients_once

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
    """Sizes of one group of latents, and the ending of its keys in a state ("logit" + suffix)."""

    stoch: int
    discrete: int
    suffix: str

    @property
    def size(self) -> int:
        return self.stoch * max(self.discrete, 1)

    @property
    def keys(self) -> list[str]:
        return [name + self.suffix for name in (("stoch", "logit") if self.discrete else ("stoch", "mean", "std"))]


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
        initial: the state before the first observation: "learned" (deter, with the most likely latents of its prior), or "zeros",
            which all of it is.
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
        self._rec_depth, self._unimix_ratio, self._compiled = rec_depth, unimix_ratio, False
        self._mean_act, self._std_act, self._min_std = mean_act, std_act, min_std
        self.levels = self._make_levels(**latent_sizes)
        self.stoch_size = sum(level.size for level in self.levels.values())
        self.deter_size = deter
        self.feat_size = self.stoch_size + deter
        self._img_in_layers = HiddenBlock(self.stoch_size + num_actions, hidden, act, norm)
        self._cell = GRUCell(hidden, deter, norm)
        self._img_out_layers = HiddenBlock(deter, hidden, act, norm)
        self._obs_out_layers = HiddenBlock(deter + embed, hidden, act, norm)
        self._make_stat_layers(hidden, act)
        self.W = nn.Parameter(torch.zeros(1, deter)) if initial == "learned" else None
        self.register_state_dict_post_hook(_note_levels)

    # What differs between one and two levels: which there are, and their logits.

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
        self._imgs_stat_layer = Linear(hidden, size)
        self._obs_stat_layer = Linear(hidden, size)
        init_output(self._imgs_stat_layer, 1.0)
        init_output(self._obs_stat_layer, 1.0)

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor | None, x_post: Tensor | None = None) -> Tensor:
        """Logits of one level: of the posterior if `x_post` is given, else of the prior.

        Args:
            name: the level.
            above: latents of the level above it (..., S, K), None for the first.
            x_prior, x_post: hidden features (..., hidden) of prior and posterior; a flat posterior needs no prior.
        Returns:
            (..., S * K) logits; of Gaussian latents means and deviations before their activations, (..., 2 * S).
        """
        return self._imgs_stat_layer(x_prior) if x_post is None else self._obs_stat_layer(x_post)

    # What is shared

    def _chain(self, x_prior: Tensor | None, x_post: Tensor | None, noise: dict[str, Tensor] | None, given: State | None = None) -> State:
        """Statistics and latents of all levels, each given the one above: of the posterior if x_post is given, else of the prior.

        Args:
            noise: as in `_draw`.
            given: latents by key that are taken as they are instead of drawn.
        """
        above, state = None, {}
        for name, level in self.levels.items():
            stats, key = self._statistics(name, self.level_logits(name, above, x_prior, x_post)), "stoch" + level.suffix
            above = given[key] if given and key in given else self._draw(name, stats, noise)
            state |= {**stats, key: above}
        return state

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

    def _draw(self, name: str, stats: State, noise: dict[str, Tensor] | None) -> Tensor:
        """Latents of a level: a sample if `noise` has the level, else the most likely ones with a sample's gradient.

        With `noise=None` the most likely ones have the gradient of the log-probabilities, as in dreamerv3-torch's initial state.
        """
        dist = self._level_dist(name, stats)
        if noise is None:
            return dist.mode
        return dist.sample(noise[name]) if name in noise else dist.greedy_sample()

    def _noise(self, sample: bool | Collection[str], *batch: int) -> dict[str, Tensor]:
        """Numbers (*batch, S) for each level that is drawn: all of them, none, or those that are named.

        They are uniform for categoricals and normal for Gaussians.
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

    def _advance(self, stoch: Tensor, deter: Tensor, action: Tensor) -> Tensor:
        """One step of the recurrence: latents (B, stoch_size), deter (B, D) and action (B, A) -> the new deter (B, D)."""
        x = self._img_in_layers(torch.cat([stoch, dists.bounded(action)], -1))  # (B, hidden)
        for _ in range(self._rec_depth):
            deter = self._cell(x, deter)
        return deter

    def _prior_step(self, stoch: Tensor, deter: Tensor, action: Tensor, noise: dict[str, Tensor]) -> State:
        """The state without an observation, from latents and deter before it."""
        deter = self._advance(stoch, deter, action)
        return {"deter": deter, **self._chain(self._img_out_layers(deter), None, noise)}

    def _posterior_step(
        self, stoch: Tensor, deter: Tensor, action: Tensor, embed_share: Tensor, deter_weight: Tensor, noise: dict[str, Tensor]
    ) -> State:
        """The state after an observation, from latents and deter before it.

        Args:
            embed_share: what the embedding adds to the product of the posterior's layer, (B, hidden).
            deter_weight: that layer's weight for deter, (hidden, D).
        """
        deter = self._advance(stoch, deter, action)
        x_post = self._obs_out_layers.after_product(linear(deter, deter_weight) + embed_share)
        with torch.no_grad():  # inside the posterior the prior is a constant: only the dynamics loss trains it
            x_prior = self._img_out_layers(deter) if len(self.levels) > 1 else None
        return {"deter": deter, **self._chain(x_prior, x_post, noise)}

    def compile_steps(self) -> None:
        """Compiles the steps of both recurrences; random numbers are drawn outside, so they stay the same."""
        self._compiled = True
        self._posterior_step = torch.compile(self._posterior_step)
        self._prior_step = torch.compile(self._prior_step)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._cell.layers[0].weight.device

    def initial(self, batch_size: int) -> State:
        """The state before the first observation, see `initial` above; a learned one starts at zero, and is between -1 and 1."""
        deter = torch.zeros(1, self.deter_size, device=self.device) if self.W is None else torch.tanh(self.W)
        state = {"deter": deter, **self._chain(self._img_out_layers(deter), None, noise=None)}
        if self.W is None:
            state = {key: torch.zeros_like(value) for key, value in state.items()}
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
        # The recurrence does not use the prior, so the priors of all steps are one pass, at the latents of the posterior.
        prior = self._chain(self._img_out_layers(post["deter"]), None, noise={}, given=post)
        prior = {key: value for key, value in prior.items() if not key.startswith("stoch")}
        return post, {"deter": post["deter"], **prior}

    def filter(self, embed: Tensor, action: Tensor, is_first: Tensor | None, state: State | None = None, sample: bool = True) -> State:
        """The posterior alone, (B, T, ...), which is all that acting needs.

        Arguments are those of `observe`; is_first may be None if a state is given and no step starts anew.
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
        # The embedding's share of the posterior's layer is one product for all steps.
        deter_weight, embed_weight = self._obs_out_layers[0].weight.split([self.deter_size, embed.shape[-1]], 1)
        embed_share = linear(embed, embed_weight).unbind(1)  # T times (B, hidden)

        stoch, deter, steps = self.flat_stoch(state), state["deter"], []
        with contextlib.nullcontext() if self._compiled else weight_gradients_once():
            for t in range(time):
                if starts is not None:
                    stoch = torch.where(starts[:, t], first_stoch, stoch)
                    deter = torch.where(starts[:, t], initial["deter"], deter)
                drawn = {name: part[:, t] for name, part in noise.items()}
                steps.append(self._posterior_step(stoch, deter, action[:, t], embed_share[t], deter_weight, drawn))
                stoch, deter = self.flat_stoch(steps[-1]), steps[-1]["deter"]
        return stack_states(steps, 1)

    def obs_step(
        self, prev_state: State | None, prev_action: Tensor, embed: Tensor, is_first: Tensor, sample: bool = True
    ) -> tuple[State, State]:
        """One step of `observe`: prev_action (B, A), embed (B, E), is_first (B,) or (B, 1) -> states of (B, ...)."""
        post, prior = self.observe(embed[:, None], prev_action[:, None], is_first.reshape(-1, 1), prev_state, sample)
        return {k: v[:, 0] for k, v in post.items()}, {k: v[:, 0] for k, v in prior.items()}

    def img_step(self, prev_state: State, prev_action: Tensor, sample: bool | Collection[str] = True) -> State:
        """One step without an observation: states of (B, ...) and actions (B, A) -> the prior's next state.

        `sample` draws latents, False takes the most likely ones, names of levels draw these alone.
        """
        noise = self._noise(sample, len(prev_action))
        return self._prior_step(self.flat_stoch(prev_state), prev_state["deter"], prev_action.float(), noise)

    def imagine_with_action(self, action: Tensor, state: State, sample: bool | Collection[str] = True) -> State:
        """Open-loop prediction: actions (B, T, A) from states of (B, ...) -> states of (B, T, ...); `sample` as in `img_step`."""
        steps = []
        for t in range(action.shape[1]):
            state = self.img_step(state, action[:, t], sample)
            steps.append(state)
        return stack_states(steps, 1)

    def _check_levels(self, names: Collection[str]) -> Collection[str]:
        unknown = [names] if isinstance(names, str) else [name for name in names if name not in self.levels]
        if unknown:
            raise ValueError(f"there is no latent level {unknown[0]!r}; give a list of some of {', '.join(self.levels)}")
        return names

    def resample(self, post: State, levels: Collection[str]) -> State:
        """Posterior states whose latents of these levels are drawn from their prior instead, given deter and the level above.

        Raises:
            ValueError: for a level that does not exist.
        """
        noise = self._noise(levels, *post["deter"].shape[:-1])
        kept = {key: post[key] for name, level in self.levels.items() if name not in levels for key in level.keys}
        return {**post, **self._chain(self._img_out_layers(post["deter"]), None, noise, given=kept), **kept}

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
            self._check_levels([level])
            return self._level_dist(level, state)
        parts = [self._level_dist(name, state) for name in self.levels]
        return parts[0] if len(parts) == 1 else dists.Joint(parts)

    def entropy(self, state: State) -> Tensor:
        """Entropy of all latents given the rest of the state, in nats, (...)."""
        return self.get_dist(state).entropy()

    def code_likelihoods(self, post: State, embed: Tensor) -> dict[str, Tensor]:
        """Log-probability of step i's code under step j's posterior, given step i's codes of the levels above: (N, N) for each level.

        Args:
            post, embed: posterior states and embeddings of N steps, (N, ...).
        """
        x_prior = self._img_out_layers(post["deter"])
        x_post = self._obs_out_layers(torch.cat([post["deter"], embed], -1))
        above, found = None, {}
        for name, level in self.levels.items():
            codes, rows = post["stoch" + level.suffix], []
            for i in range(len(codes) if level.discrete else 0):
                if i == 0 or above is not None:  # without a level above, the distributions of all steps j are the same for every i
                    seen = None if above is None else above[i].expand_as(above)
                    dist = self._level_dist(name, self._statistics(name, self.level_logits(name, seen, x_prior, x_post)))
                rows.append(dist.log_prob(codes[i].expand_as(codes)))
            if rows:
                found[name] = torch.stack(rows)
            above = codes
        return found

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
        self._imgs_stat_layer = nn.ModuleDict({name: Linear(hidden, level.size) for name, level in self.levels.items()})
        self._obs_stat_layer = nn.ModuleDict({name: Linear(hidden, level.size) for name, level in self.levels.items()})
        for layer in (*self._imgs_stat_layer.values(), *self._obs_stat_layer.values()):
            init_output(layer, 1.0)
        self._top_summary = nn.Sequential(Linear(top.size, top.stoch, bias=False), activation(act)).apply(init_hidden)
        # With Up = Uq = d = 0 the bottom starts independent of the top, and its posterior as prior + Wqb x_q. Wc must not start at
        # zero too: where every factor of a product is zero, none ever learns.
        self._top_to_prior = Linear(top.stoch, bottom.size, bias=False)
        self._top_to_post = Linear(top.stoch, bottom.size, bias=False)
        nn.init.zeros_(self._top_to_prior.weight)
        nn.init.zeros_(self._top_to_post.weight)
        self._prior_weight = nn.Parameter(torch.zeros(bottom.size))

    def level_logits(self, name: str, above: Tensor | None, x_prior: Tensor, x_post: Tensor | None = None) -> Tensor:
        if name == "top":
            return self._imgs_stat_layer["top"](x_prior) if x_post is None else self._obs_stat_layer["top"](x_post)
        summary = self._top_summary(above.flatten(-2))  # (..., St)
        if x_post is None:
            return self._imgs_stat_layer["bottom"](x_prior) + self._top_to_prior(summary)
        with torch.no_grad():
            prior = self.level_logits("bottom", above.detach(), x_prior)
        return torch.addcmul(self._obs_stat_layer["bottom"](x_post) + self._top_to_post(summary), 1.0 + self._prior_weight, prior)

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
    - `active`: how many categoricals have at least `ACTIVE_NATS` of mutual information with the step within the batch: entropy of the
      average code minus average entropy. The bottom's posterior also follows the top's code.
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
