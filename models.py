"""The world model and the actor-critic that learns inside it.

Shapes: B batch, T time, H imagination horizon, N = B * T imagined rollouts, A action, F feature.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

import encoders
import heads
import networks
import settings
from envs.spaces import RESERVED
from networks import State
from optim import Metrics, Optimizer
from tools import autocast

GRADIENTS = ("reinforce", "dynamics")  # what a policy may follow
SCALAR_DISTS = ("symlog_disc", "symlog_mse", "mse", "normal")  # for rewards and values


def _check_scalar_dist(name: str, dist: str) -> None:
    if dist not in SCALAR_DISTS:
        raise ValueError(f"{name} is {dist!r}; allowed are {', '.join(SCALAR_DISTS)}")


class Rollout(NamedTuple):
    """What a policy imagined.

    Attributes:
        feat: features (H, N, F), with a graph only if the policy's gradient comes from the dynamics.
        stats: the policy's parameters in all states but the last, as from `ActionHead.stats`, each (H - 1, N, ...).
        action: what it chose there, (H - 1, N, A); continuous actions may leave [-1, 1], see `distributions.bounded`.
    """

    feat: Tensor
    stats: dict[str, Tensor]
    action: Tensor


class WorldModel(nn.Module):
    """Encoder, latent dynamics and the heads that predict observation, reward and continuation.

    Args:
        obs_space: gymnasium Dict of images (H, W, C) uint8 and vectors (n,) float32.
        num_actions: size A of an action vector.
        config: settings, see configs.yaml.
    """

    def __init__(self, obs_space: gymnasium.spaces.Dict, num_actions: int, config):
        super().__init__()
        self._config = config
        shapes = {key: space.shape for key, space in obs_space.spaces.items() if key not in RESERVED and not key.startswith("log_")}
        self.encoder = encoders.MultiEncoder(shapes, config.encoder)
        self.dynamics = make_dynamics(config, num_actions, self.encoder.outdim)
        feat_size = self.dynamics.feat_size
        _check_scalar_dist("reward_head.dist", config.reward_head.dist)
        mlp = dict(units=config.units, act=config.act, norm=config.norm)
        reward, cont = config.reward_head, config.cont_head
        self.heads = nn.ModuleDict(
            {
                "decoder": encoders.MultiDecoder(feat_size, shapes, config.decoder),
                "reward": heads.MLP(feat_size, (1,), reward.layers, name="Reward", dist=reward.dist, outscale=reward.outscale, **mlp),
                "cont": heads.MLP(feat_size, (1,), cont.layers, name="Cont", dist="binary", outscale=cont.outscale, **mlp),
            }
        )
        unknown = set(config.grad_heads) - set(self.heads)
        if unknown:
            raise ValueError(f"grad_heads names {', '.join(sorted(unknown))}; allowed are {', '.join(self.heads)}")
        self._loss_scales = {"reward": config.reward_head.loss_scale, "cont": config.cont_head.loss_scale}
        self.to(config.device)
        self._model_opt = Optimizer(
            "model", self.parameters(), lr=config.model_lr, eps=config.opt_eps, clip=config.grad_clip, weight_decay=config.weight_decay
        )

    def preprocess(self, obs: dict) -> dict[str, Tensor]:
        """A batch of observations (arrays or tensors) as model inputs on the device.

        All become float32, images in [0, 1]; reward and the continue flag `cont` = 1 - is_terminal get a trailing dimension of 1.
        """
        data = {}
        device = torch.device(self._config.device)
        for key, value in obs.items():
            if key.startswith("log_"):
                continue
            value = torch.as_tensor(value)
            if device.type == "cuda" and value.device.type == "cpu":
                value = value.pin_memory()  # the copy to the GPU waits for nothing
            if value.dtype == torch.uint8:  # images travel to the device as bytes
                data[key] = value.to(device, non_blocking=True).float() / 255.0
            else:
                data[key] = value.to(device, torch.float32, non_blocking=True)
        if "reward" in data:
            data["reward"] = data["reward"].unsqueeze(-1)
        if "is_terminal" in data:
            data["cont"] = 1.0 - data["is_terminal"].unsqueeze(-1)
        return data

    def loss(self, data: dict[str, Tensor], sample: bool = True) -> tuple[Tensor, State, Metrics]:
        """The world model's loss on preprocessed (B, T, ...) data.

        Returns:
            the mean loss; the posterior, detached, (B, T, ...); metrics, per step (B, T) or scalar, losses without their scales.
        """
        with autocast(self._config):
            return self._loss(data, sample)

    def _loss(self, data: dict[str, Tensor], sample: bool) -> tuple[Tensor, State, Metrics]:
        config = self._config
        post, prior = self.dynamics.observe(self.encoder(data), data["action"], data["is_first"], sample=sample)
        kl_loss, kl, dyn_loss, rep_loss = self.dynamics.kl_loss(post, prior, config.kl_free, config.dyn_scale, config.rep_scale)
        losses = {}
        feat = self.dynamics.get_feat(post)  # (B, T, F)
        for name, head in self.heads.items():
            prediction = head(feat if name in config.grad_heads else feat.detach())
            prediction = prediction if isinstance(prediction, dict) else {name: prediction}
            losses.update({key: -dist.log_prob(data[key]) for key, dist in prediction.items()})  # each (B, T)
        total = kl_loss
        for key, loss in losses.items():
            assert loss.shape == kl_loss.shape, (key, loss.shape, kl_loss.shape)
            total = total + self._loss_scales.get(key, 1.0) * loss
        post = {key: value.detach() for key, value in post.items()}
        metrics = {f"{key}_loss": loss.detach() for key, loss in losses.items()}
        metrics.update(kl=kl, dyn_loss=dyn_loss.detach(), rep_loss=rep_loss.detach())
        with torch.no_grad():
            metrics.update(self._latent_metrics(post, prior))
        return total.mean(), post, metrics

    def _latent_metrics(self, post: State, prior: State) -> Metrics:
        metrics = {}
        if self._config.debug_hierarchical:
            metrics = networks.level_statistics(self.dynamics, post, prior)
        elif len(self.dynamics.levels) > 1:
            metrics = {f"kl_{name}": kl for name, kl in self.dynamics.kl_per_level(post, prior).items()}
        return {**metrics, "prior_entropy": self.dynamics.entropy(prior), "post_entropy": self.dynamics.entropy(post)}

    def reward(self, rollout: Rollout) -> Tensor:
        """Predicted rewards (H, N, 1) of imagined states, whatever is done there."""
        return self.heads["reward"](rollout.feat).mode

    def latent_readers(self) -> list[nn.Linear]:
        """Every layer whose first inputs are latents."""
        return [self.dynamics._img_in_layers[0], *(layer for head in self.heads.values() for layer in head.input_layers())]

    def update(self, data: dict[str, Tensor]) -> tuple[State, Metrics]:
        """One optimizer step; returns the posterior that imagination starts from, and scalar metrics."""
        loss, post, metrics = self.loss(data)
        metrics = {key: value.mean() for key, value in metrics.items()}
        metrics.update(self._model_opt.step(loss))
        return post, metrics

    @torch.no_grad()
    def video_pred(self, batch: dict, context: int = 5) -> dict[str, np.ndarray]:
        """Open-loop predictions: `context` steps are observed, the rest is predicted from the actions alone.

        Args:
            batch: arrays (B, T, ...) as they come from replay, T at least 2.
        Returns:
            for every decoded image a video (T, R H, B W, C) in [0, 1] with R rows, from above: truth, prediction, error (0.5: none),
            and with two levels a reconstruction of which only the top level saw the images, while the bottom came from its prior.
        """
        if not self.heads["decoder"].image_keys:
            return {}
        with autocast(self._config):
            data = self.preprocess(batch)
            predictions = [self._decode_images(self._open_loop(data, context))]
            if "top" in self.dynamics.levels:
                state = self.dynamics.observe_top(self.encoder(data), data["action"], data["is_first"])
                predictions.append(self._decode_images(state))
        videos = {}
        for key in self.heads["decoder"].image_keys:
            truth, (model, *top_alone) = data[key], [prediction[key] for prediction in predictions]
            error = (model - truth + 1.0) / 2.0
            rows = torch.cat([truth, model, error, *top_alone], 2)  # (B, T, R H, W, C)
            videos[key] = rows.permute(1, 2, 0, 3, 4).flatten(2, 3).cpu().numpy()  # (T, R H, B W, C)
        return videos

    def _open_loop(self, data: dict[str, Tensor], context: int) -> State:
        """States (B, T, ...): posterior for the first `context` steps, from the actions alone after them."""
        context = min(context, data["action"].shape[1] - 1)
        seen = {key: value[:, :context] for key, value in data.items()}
        post, _ = self.dynamics.observe(self.encoder(seen), seen["action"], seen["is_first"])
        last = {key: value[:, -1] for key, value in post.items()}
        future = self.dynamics.imagine_with_action(data["action"][:, context:], last)
        return {key: torch.cat([post[key], future[key]], 1) for key in post}

    def _decode_images(self, state: State) -> dict[str, Tensor]:
        predictions = self.heads["decoder"](self.dynamics.get_feat(state))
        return {key: predictions[key].mode.clamp(0.0, 1.0) for key in self.heads["decoder"].image_keys}


def make_dynamics(config, num_actions: int, embed: int) -> networks.RSSM:
    """The latent dynamics that the settings ask for, flat or hierarchical."""
    common = dict(
        deter=config.dyn_deter,
        hidden=config.dyn_hidden,
        rec_depth=config.dyn_rec_depth,
        act=config.act,
        norm=config.norm,
        unimix_ratio=config.unimix_ratio,
        initial=config.initial,
        num_actions=num_actions,
        embed=embed,
    )
    sizes = settings.level_sizes(config)
    if config.hierarchical_mode:
        (top, top_classes), (bottom, bottom_classes) = sizes["top"], sizes["bottom"]
        return networks.HierarchicalRSSM(
            stoch_top=top, discrete_top=top_classes, stoch_bottom=bottom, discrete_bottom=bottom_classes, **common
        )
    stoch, discrete = sizes["flat"]
    return networks.RSSM(
        stoch=stoch, discrete=discrete, mean_act=config.dyn_mean_act, std_act=config.dyn_std_act, min_std=config.dyn_min_std, **common
    )


def lambda_return(reward: Tensor, value: Tensor, discount: Tensor, lambda_: float) -> Tensor:
    """Exponentially weighted n-step returns (Hafner et al. 2023).

    Args:
        reward, value, discount: (H, N, 1) at the imagined states; index t is what state t yields, predicts and keeps.
    Returns:
        (H - 1, N, 1): R_t = r_{t+1} + d_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1}), with R_{H-1} = v_{H-1}.
    """
    assert reward.shape == value.shape == discount.shape, (reward.shape, value.shape, discount.shape)
    returns = [value[-1]]
    for t in reversed(range(1, len(value))):
        returns.append(reward[t] + discount[t] * ((1.0 - lambda_) * value[t] + lambda_ * returns[-1]))
    return torch.stack(returns[:0:-1])  # in the order of time, without the bootstrap value


def imagination_weight(start_cont: Tensor, discount: Tensor) -> Tensor:
    """How much each imagined state counts: the probability that the episode goes on to it, discounted, without gradient.

    Args:
        start_cont: (N, 1), 1 where the replayed step was not terminal.
        discount: (H, N, 1), discount times predicted continuation.
    Returns:
        (H, N, 1), starting with start_cont.
    """
    return torch.cat([start_cont[None].to(discount.dtype), discount[1:]]).detach().cumprod(0)


def update_return_range(ema: Tensor, returns: Tensor, decay: float = 0.99) -> Tensor:
    """Tracks the 5th and 95th percentile of returns and gives the scale to divide advantages by, at least 1.

    Args:
        ema: (2,) running percentiles, moved in place.
        returns: returns of any shape.
    Source: Hafner et al. 2023, "Actor learning".
    """
    levels = torch.linspace(0.05, 0.95, 2, device=returns.device)  # a Python list would force a copy to the GPU and a sync
    percentiles = torch.quantile(returns.detach().float().flatten(), levels)
    ema.lerp_(torch.where(percentiles.isfinite(), percentiles, ema), 1.0 - decay)  # a NaN would never leave the average
    return (ema[1] - ema[0]).clamp(min=1.0)


def actor_loss(
    policy, action: Tensor, *, returns: Tensor, baseline: Tensor, weight: Tensor, scale: Tensor, gradient: str, entropy_scale: float
) -> Tensor:
    """Policy loss over imagined steps, without the last (which has no return).

    Args:
        policy: the distribution of actions at each state, (H - 1, N).
        action: (H - 1, N, A), what the policy drew.
        returns, baseline, weight: (H - 1, N, 1); the weight discounts policy and entropy terms alike.
        scale: of the returns, a constant.
        gradient: "reinforce" follows the log-probability, "dynamics" the gradient of the returns through the world model.
    """
    assert returns.shape == baseline.shape == weight.shape, (returns.shape, baseline.shape, weight.shape)
    advantage = ((returns - baseline) / scale).squeeze(-1)  # (H - 1, N)
    if gradient == "reinforce":
        # A reparametrised action would cancel the mean's gradient, so the action is a constant here.
        objective = policy.log_prob(action.detach()) * advantage.detach()
    elif gradient == "dynamics":
        objective = advantage
    else:
        raise ValueError(f"unknown gradient {gradient!r}; allowed are {', '.join(GRADIENTS)}")
    return -(weight.squeeze(-1) * (objective + entropy_scale * policy.entropy())).mean()


def critic_loss(value_dist, target: Tensor, slow_target: Tensor | None) -> Tensor:
    """Negative log-likelihood of the returns and of the slow critic's prediction, per imagined step.

    Args:
        value_dist: the critic's distribution at (H - 1, N) states.
        target, slow_target: (H - 1, N, 1), constants; None to leave the slow critic out.
    Returns:
        (H - 1, N), unweighted.
    """
    loss = -value_dist.log_prob(target.detach())
    if slow_target is not None:
        loss = loss - value_dist.log_prob(slow_target.detach())
    return loss


class ImagBehavior(nn.Module):
    """Actor and critic, trained on rollouts that the world model imagines.

    Args:
        feat_size: size F of the world model's features.
        num_actions: size A of an action vector.
        action_classes: class counts of the discrete parts of an action, or None for continuous actions.
        config: settings, see configs.yaml.
    """

    def __init__(self, feat_size: int, num_actions: int, action_classes: tuple[int, ...] | None, config):
        super().__init__()
        self._config = config
        discrete = action_classes is not None
        self.gradient = config.imag_gradient
        if self.gradient == "auto":
            self.gradient = "reinforce" if discrete else "dynamics"
        if self.gradient not in GRADIENTS:
            raise ValueError(f"imag_gradient is {self.gradient!r}; allowed are auto, {', '.join(GRADIENTS)}")
        if config.imag_horizon < 2:
            raise ValueError(f"imag_horizon is {config.imag_horizon}; it counts the replayed state too and must be at least 2")
        _check_scalar_dist("critic.dist", config.critic.dist)
        actor, critic = config.actor, config.critic
        layers = dict(units=config.units, act=config.act, norm=config.norm)
        self.actor = heads.ActionHead(feat_size, num_actions, action_classes, actor, **layers)
        self.value = heads.MLP(feat_size, (1,), critic.layers, name="Value", dist=critic.dist, outscale=critic.outscale, **layers)
        if critic.slow_target:
            self._slow_value = copy.deepcopy(self.value).requires_grad_(False)
        self.register_buffer("ema_vals", torch.zeros(2))
        self.to(config.device)
        self._actor_opt = Optimizer(
            "actor", self.actor.parameters(), lr=actor.lr, eps=actor.eps, clip=actor.grad_clip, weight_decay=config.weight_decay
        )
        self._value_opt = Optimizer(
            "value", self.value.parameters(), lr=critic.lr, eps=critic.eps, clip=critic.grad_clip, weight_decay=config.weight_decay
        )

    def imagine(self, dynamics: networks.RSSM, start: State, horizon: int, sample: bool = True) -> Rollout:
        """Rolls the policy out inside the world model.

        Args:
            start: states of (N, ...), the replayed ones; their latents must be samples, not averages.
            horizon: number of states H, the replayed one included.
        """
        state, feats, stats, actions = start, [dynamics.get_feat(start)], [], []
        for _ in range(horizon - 1):
            # Boundary between policy and world model: the policy's gradient flows through its action, not through its input.
            stats.append(self.actor.stats(feats[-1].detach()))
            policy = self.actor.dist(stats[-1])
            with torch.set_grad_enabled(self.gradient == "dynamics"):
                actions.append(policy.sample() if sample else policy.mode)
                state = dynamics.img_step(state, actions[-1], sample)
                feats.append(dynamics.get_feat(state))
        return Rollout(torch.stack(feats), networks.stack_states(stats, 0), torch.stack(actions))

    def latent_readers(self) -> list[nn.Linear]:
        """Every layer whose first inputs are latents."""
        readers = [self.actor, self.value] + ([self._slow_value] if self._config.critic.slow_target else [])
        return [layer for reader in readers for layer in reader.input_layers()]

    def update(
        self, world_model: WorldModel, start: State, start_cont: Tensor, updates: int, reward_of: Callable[[Rollout], Tensor] | None = None
    ) -> Metrics:
        """One optimizer step of actor and critic.

        Args:
            start: posterior states (B, T, ...), constants.
            start_cont: continue flags of these steps, (B, T, 1).
            updates: how many there have been.
            reward_of: rewards (H, N, 1) of a rollout; None for the world model's.
        """
        self._update_slow_value(updates)
        with autocast(self._config):
            policy_loss, value_loss, metrics = self.losses(world_model, start, start_cont, reward_of)
        metrics.update(self._actor_opt.step(policy_loss, retain_graph=self.gradient == "dynamics"))
        metrics.update(self._value_opt.step(value_loss))
        return metrics

    def losses(
        self, world_model: WorldModel, start: State, start_cont: Tensor, reward_of: Callable[[Rollout], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Losses of actor and critic on one imagined rollout, and metrics; arguments as in `update`.

        The critic runs once for both losses: the actor's differentiates its input, the critic's its weights. So each optimizer must form
        gradients for its own parameters alone.
        """
        config = self._config
        start = {key: value.flatten(0, 1) for key, value in start.items()}  # (N, ...)
        feat, stats, action = rollout = self.imagine(world_model.dynamics, start, config.imag_horizon)
        value_stats = self.value.stats(feat)
        with torch.set_grad_enabled(self.gradient == "dynamics"):
            reward = (reward_of or world_model.reward)(rollout)  # (H, N, 1)
            discount = config.discount * world_model.heads["cont"](feat).mean
            value = self.value.dist(value_stats).mode  # (H, N, 1)
        returns = lambda_return(reward, value, discount, config.discount_lambda)  # (H - 1, N, 1)
        weight = imagination_weight(start_cont.flatten(0, 1), discount)[:-1]
        scale = update_return_range(self.ema_vals, returns) if config.reward_EMA else torch.ones((), device=feat.device)
        policy = self.actor.dist(stats)
        policy_loss = actor_loss(
            policy,
            action,
            returns=returns,
            baseline=value[:-1],
            weight=weight,
            scale=scale,
            gradient=self.gradient,
            entropy_scale=config.actor.entropy,
        )
        with torch.no_grad():
            slow = self._slow_value(feat.detach()[:-1]).mode if config.critic.slow_target else None
        value_loss = (weight.squeeze(-1) * critic_loss(self.value.dist(value_stats[:-1]), returns, slow)).mean()
        with torch.no_grad():
            metrics = dict(
                return_scale=scale,
                imag_return=returns.mean(),
                imag_reward=reward.mean(),
                imag_value=value.mean(),
                actor_entropy=policy.entropy().mean(),
            )
        return policy_loss, value_loss, metrics

    @torch.no_grad()  # with gradients the graph would grow with every update
    def _update_slow_value(self, updates: int) -> None:
        config = self._config.critic
        if config.slow_target and updates % config.slow_target_update == 0:
            torch._foreach_lerp_(list(self._slow_value.parameters()), list(self.value.parameters()), config.slow_target_fraction)


# Checkpoints of a flat model in one with two levels
#
# The flat latent's S categoricals of K classes fill the slots [top, bottom] in order, so its S * K entries are the first ones of
# the new latent, and only what follows them is new. Then the loaded model computes what the flat one does: the top posterior is
# direct as the flat one is, the bottom posterior is with d = -1 and Up = Uq = 0, and nothing reads the new slots yet.


class Source(NamedTuple):
    """Where a tensor comes from in a checkpoint.

    Along `dim`, entry i is entry index[i] of the stored tensor `name`, which has `size` entries; -1 marks a new one. Without an index
    the tensor is copied.
    """

    name: str
    dim: int = 0
    index: Tensor | None = None
    size: int = 0

    @property
    def kind(self) -> str:
        """What happens to the tensor: copied, split (a part of it) or widened (with new entries)."""
        if self.index is None:
            return "copied"
        return "widened" if (self.index < 0).any() else "split"

    def stored_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape that the stored tensor must have, if the one here has this shape."""
        return tuple(shape) if self.index is None else (*shape[: self.dim], self.size, *shape[self.dim + 1 :])

    def take(self, stored: Tensor, new: Tensor | float) -> Tensor:
        """The tensor here, from the stored one and from `new` where that has no entry."""
        if self.index is None:
            return stored
        is_new = (self.index < 0).view([-1 if dim == self.dim else 1 for dim in range(stored.ndim)])
        return torch.where(is_new, new, stored.index_select(self.dim, self.index.clamp(min=0)))


def flat_sources(agent: nn.Module, entries: int) -> dict[str, Source | None]:
    """The source of every tensor of an agent with two levels in a flat checkpoint, None for those that are new.

    Args:
        entries: S * K, the entries of the flat latent.

    | here | there |
    |---|---|
    | `_imgs_stat_layer.<level>`, `_obs_stat_layer.<level>` (Wpt, Wqt, Wpb, Wqb) | the level's rows of the same without a level |
    | `_top_summary`, `_top_to_prior`, `_top_to_post`, `_prior_weight` (Wc, Up, Uq, d) | new |
    | weights that read latents: recurrence, decoder, reward, continue, actor, critics, ensemble | the same; columns of new slots |
    | weights and biases that predict latents: ensemble | the same; rows of new slots |
    | all others | the same |
    """
    dynamics = agent._wm.dynamics
    names = {module: name for name, module in agent.named_modules()}
    sources = {name: Source(name) for name in agent.state_dict()}
    added = dynamics.stoch_size - entries

    def widened(name: str, dim: int, size: int) -> Source:
        """A tensor with latents first along `dim`, and with the new ones behind those that are filled."""
        index = torch.cat([torch.arange(entries), torch.full((added,), -1), torch.arange(entries, size - added)])
        return Source(name, dim, index, size - added) if added else Source(name)

    for layer in agent.latent_readers():
        name = f"{names[layer]}.weight"
        sources[name] = widened(name, 1, layer.in_features)
    for layer in agent.latent_writers():
        for name in (f"{names[layer]}.weight", f"{names[layer]}.bias"):
            sources[name] = widened(name, 0, layer.out_features)
    start = 0
    for level_name, level in dynamics.levels.items():
        rows = torch.arange(start, start + level.size)
        rows = None if level.size == entries and start == 0 else torch.where(rows < entries, rows, -1)
        for layer in ("_imgs_stat_layer", "_obs_stat_layer"):
            for part in ("weight", "bias"):
                flat = Source(f"_wm.dynamics.{layer}.{part}", 0, rows, entries)
                sources[f"_wm.dynamics.{layer}.{level_name}.{part}"] = flat if start < entries else None
        start += level.size
    for name in sources:
        if name.startswith(("_wm.dynamics._top_", "_wm.dynamics._prior_weight")):
            sources[name] = None
    return sources


def quiet_latents(agent: nn.Module, entries: int) -> dict[str, Tensor]:
    """What a flat checkpoint lacks of an agent's latents, by name: as on a new model, with posterior weights scaled by 0.1.

    So the KL of the new slots stays below the free nats. The bottom's posterior is its prior plus a delta, so a small delta is enough;
    a new slot of the top has no such base, so there prior and posterior are both nearly uniform.
    """
    config = copy.deepcopy(agent._config)
    config.dyn_deter = 1  # the recurrence is not used
    dynamics = make_dynamics(config, num_actions=1, embed=1)
    with torch.no_grad():
        for layer in (dynamics._imgs_stat_layer["top"], dynamics._obs_stat_layer["top"], dynamics._obs_stat_layer["bottom"]):
            layer.weight.mul_(0.1)
        dynamics._prior_weight[: max(0, entries - dynamics.levels["top"].size)] = -1.0
    kinds = ("_imgs_stat_layer", "_obs_stat_layer", "_top_", "_prior_weight")
    return {f"_wm.dynamics.{name}": tensor for name, tensor in dynamics.state_dict().items() if name.startswith(kinds)}


def convert_weights(sources: dict[str, Source | None], flat: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an agent with two levels; entries that are neither in `flat` nor in `new` are zero."""
    return {name: new[name] if source is None else source.take(flat[source.name], new.get(name, 0.0)) for name, source in sources.items()}


def convert_moments(sources: dict[str, Source | None], flat: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Adam's moments of an agent with two levels, by parameter name; wholly new parameters have none.

    New entries of a parameter start with the mean of its others' second moment: from zero, their first steps would be far too long.
    """
    moments = {}
    for name, source in sources.items():
        if source is not None and source.name in flat:
            slots = flat[source.name]
            filled = None if source.index is None else source.index[source.index >= 0]
            square = slots["exp_avg_sq"] if filled is None else slots["exp_avg_sq"].index_select(source.dim, filled)
            moments[name] = {
                "step": slots["step"],
                "exp_avg": source.take(slots["exp_avg"], 0.0),
                "exp_avg_sq": source.take(slots["exp_avg_sq"], square.mean()),
            }
    return moments
