"""The world model, and the actor and critic that learn inside it.

Shapes: B batch, T time, H imagination horizon, N = B * T imagined rollouts, A action, E embed, S categoricals,
K classes, F feature.
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
from envs.names import check_observed
from envs.spaces import RESERVED, ActionPart, OneHot
from layers import Style
from networks import State
from optim import AdamOptimizer, Metrics
from scale import ranks
from tools import autocast

GRADIENTS = ("reinforce", "dynamics")  # estimators of the policy gradient
SCALAR_DISTS = ("symlog_disc", "symexp_twohot", "symlog_mse", "mse", "normal")  # for rewards and values


def _check_scalar_dist(name: str, dist: str) -> None:
    if dist not in SCALAR_DISTS:
        raise ValueError(f"{name} is {dist!r}; allowed are {', '.join(SCALAR_DISTS)}")


class Rollout(NamedTuple):
    """Imagined trajectories of a policy.

    Args:
        feat: features, (H, N, F), with gradient only if the policy's gradient comes from the dynamics.
        stats: parameters of the policy at all states but the last, see `ActionHead.stats`, each (H - 1, N, ...).
        action: sampled actions, (H - 1, N, A); continuous ones may exceed [-1, 1], see `distributions.bounded`.
    """

    feat: Tensor
    stats: dict[str, Tensor]
    action: Tensor


class WorldModel(nn.Module):
    """Encoder, latent dynamics, and heads for observation, reward and continue flag.

    Args:
        obs_space: gymnasium Dict of images (H, W, C) uint8 and vectors (n,) float32.
        num_actions: size A of an action vector.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for a setting that is not allowed.
    """

    def __init__(self, obs_space: gymnasium.spaces.Dict, num_actions: int, config):
        super().__init__()
        self._config = config
        observed = {key: space for key, space in obs_space.spaces.items() if key not in RESERVED and not key.startswith("log_")}
        for key in observed:
            check_observed(key)  # recorded episodes may have any names
        shapes = {key: space.shape for key, space in observed.items()}
        self._images = {key for key, shape in shapes.items() if len(shape) == 3}
        onehots = {key: space.classes for key, space in observed.items() if isinstance(space, OneHot)}
        self.encoder = encoders.MultiEncoder(shapes, config.encoder, onehots)
        self.dynamics = make_dynamics(config, num_actions, self.encoder.outdim)
        feat_size = self.dynamics.feat_size
        _check_scalar_dist("reward_head.dist", config.reward_head.dist)
        mlp = dict(units=config.units, style=Style(config.act, config.norm))
        reward, cont = config.reward_head, config.cont_head
        self.heads = nn.ModuleDict(
            {
                "decoder": encoders.MultiDecoder(feat_size, self.dynamics.stoch_size, shapes, config.decoder, onehots),
                "reward": heads.MLP(feat_size, (1,), reward.layers, name="Reward", dist=reward.dist, outscale=reward.outscale, **mlp),
                "cont": heads.MLP(feat_size, (1,), cont.layers, name="Cont", dist="binary", outscale=cont.outscale, **mlp),
            }
        )
        unknown = set(config.grad_heads) - set(self.heads)
        if unknown:
            raise ValueError(f"grad_heads names {', '.join(sorted(unknown))}; allowed are {', '.join(self.heads)}")
        self._loss_scales = {"reward": config.reward_head.loss_scale, "cont": config.cont_head.loss_scale}
        self._loss_scales |= dict.fromkeys(shapes, config.decoder.loss_scale)
        self.to(config.device)
        if config.optimizer == "adam":
            options = dict(lr=config.model_lr, eps=config.opt_eps, clip=config.grad_clip, weight_decay=config.weight_decay)
            self._model_opt = AdamOptimizer("model", self.parameters(), **options)

    def preprocess(self, obs: dict) -> dict[str, Tensor]:
        """Converts a batch of observations to model inputs: float32 on the device, images in [0, 1].

        Args:
            obs: arrays or tensors with any leading dimensions, by key.
        Returns:
            tensors by key, without `replay.steps` and keys that start with `log_`. Reward gets a last dimension of 1.
            From `is_terminal` comes the continue flag `cont` = 1 - is_terminal, with a last dimension of 1 too. The
            stored latents in `replay.context` become a state.
        Raises:
            ValueError: for an image with other numbers than integers from 0 to 255, whatever their dtype.
        """
        data = {}
        for key, value in obs.items():
            if key.startswith("log_") or key == "replay.steps":
                continue
            if key == "replay.context":
                data[key] = self.dynamics.unpack({name: self._to_device(part) for name, part in value.items()})
            elif key in self._images:  # images are copied as bytes, a quarter of their float32 size
                data[key] = self._to_device(_as_bytes(key, torch.as_tensor(value))).float() / 255.0
            else:
                data[key] = self._to_device(value, torch.float32)
        if "reward" in data:
            data["reward"] = data["reward"].unsqueeze(-1)
        if "is_terminal" in data:
            data["cont"] = 1.0 - data["is_terminal"].unsqueeze(-1)
        return data

    def _to_device(self, value, dtype: torch.dtype | None = None) -> Tensor:
        """An array or tensor on the device, in its own dtype unless another is given."""
        device, value = torch.device(self._config.device), torch.as_tensor(value)
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()  # makes the copy to the GPU asynchronous
        return value.to(device, dtype or value.dtype, non_blocking=True)

    def loss(self, data: dict[str, Tensor], sample: bool = True) -> tuple[Tensor, State, Metrics]:
        """The world model's loss: negative ELBO with scaled terms (Hafner et al. 2023, "World Model Learning").

        Args:
            data: a preprocessed batch, (B, T, ...). With `replay.context`, the state before the first step, sequences go on
                from it. Otherwise they start from the initial state.
            sample: whether latents are drawn; False takes the most likely ones.
        Returns:
            mean loss, a scalar; the posterior with gradient, (B, T, ...); metrics, each (B, T) or a scalar. Losses
            among the metrics are without their scales.
        """
        with autocast(self._config):
            return self._loss(data, sample)

    def _loss(self, data: dict[str, Tensor], sample: bool) -> tuple[Tensor, State, Metrics]:
        config = self._config
        post, prior = self.dynamics.observe(self.encoder(data), data["action"], data["is_first"], data.get("replay.context"), sample)
        kl_loss, kl, dyn_loss, rep_loss = self.dynamics.kl_loss(post, prior, config.kl_free, config.dyn_scale, config.rep_scale)
        losses = {}
        feat = self.dynamics.get_feat(post)  # (B, T, F)
        targets = {**data, "cont": config.discount * data["cont"]} if config.cont_head.discounted else data
        for name, head in self.heads.items():
            # Gradient boundary: heads outside of `grad_heads` do not train the latents.
            prediction = head(feat if name in config.grad_heads else feat.detach())
            prediction = prediction if isinstance(prediction, dict) else {name: prediction}
            losses.update({key: -dist.log_prob(targets[key]) for key, dist in prediction.items()})  # each (B, T)
        total = kl_loss
        for key, loss in losses.items():
            assert loss.shape == kl_loss.shape, (key, loss.shape, kl_loss.shape)
            total = total + self._loss_scales.get(key, 1.0) * loss
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
        """Predicted rewards of imagined states.

        They depend on states only: the reward of an action is predicted at the state that it leads to.

        Returns:
            (H, N, 1).
        """
        return self.heads["reward"](rollout.feat).mode

    def discount(self, feat: Tensor) -> Tensor:
        """Discount times predicted continue probability of imagined states: (H, N, F) -> (H, N, 1)."""
        cont = self.heads["cont"](feat).mean
        return cont if self._config.cont_head.discounted else self._config.discount * cont

    def latent_readers(self) -> list[nn.Linear]:
        """All layers whose inputs begin with the latents."""
        return [self.dynamics._img_in_layers.latent_reader, *(layer for head in self.heads.values() for layer in head.input_layers())]

    def update(self, data: dict[str, Tensor]) -> tuple[State, Metrics]:
        """Takes one optimizer step on a preprocessed batch (B, T, ...).

        Returns:
            the posterior without gradient, (B, T, ...), where imagination starts; scalar metrics.
        """
        loss, post, metrics = self.loss(data)
        metrics = {key: value.mean() for key, value in metrics.items()}
        metrics.update(self._model_opt.step(loss))
        # Gradient boundary: actor and critic do not train the world model.
        return networks.detach(post), metrics

    @torch.no_grad()
    def video_pred(self, batch: dict, context: int = 5) -> dict[str, np.ndarray]:
        """Videos of open-loop predictions, next to the ground truth.

        The model observes the first `context` steps and predicts all later ones from the actions only.

        Args:
            batch: arrays (B, T, ...) from replay, with T at least 2.
            context: number of observed steps.
        Returns:
            for every decoded image a video (T, R * H, B * W, C) in [0, 1]. Its R rows are, from the top: ground truth,
            prediction, and error (0.5 where there is none). A model with two levels adds a row: decoded states of which
            only the top level observed the images, while the bottom was drawn from its prior.
        """
        if not self.heads["decoder"].image_keys:
            return {}
        with autocast(self._config):
            data = self.preprocess(batch)
            predictions = [self._decode_images(self._open_loop(data, context))]
            if "top" in self.dynamics.levels:
                state = self.dynamics.observe_top(self.encoder(data), data["action"], data["is_first"], data.get("replay.context"))
                predictions.append(self._decode_images(state))
        videos = {}
        for key in self.heads["decoder"].image_keys:
            truth, (model, *top_alone) = data[key], [prediction[key] for prediction in predictions]
            error = (model - truth + 1.0) / 2.0
            rows = torch.cat([truth, model, error, *top_alone], 2)  # (B, T, R H, W, C)
            videos[key] = rows.permute(1, 2, 0, 3, 4).flatten(2, 3).cpu().numpy()  # (T, R H, B W, C)
        return videos

    def _open_loop(self, data: dict[str, Tensor], context: int) -> State:
        """States (B, T, ...): posteriors of the first `context` steps, then predictions from the actions."""
        context = min(context, data["action"].shape[1] - 1)
        seen = {key: value[:, :context] for key, value in data.items() if key != "replay.context"}
        post, _ = self.dynamics.observe(self.encoder(seen), seen["action"], seen["is_first"], data.get("replay.context"))
        last = {key: value[:, -1] for key, value in post.items()}
        future = self.dynamics.imagine_with_action(data["action"][:, context:], last)
        return {key: torch.cat([post[key], future[key]], 1) for key in post}

    def _decode_images(self, state: State) -> dict[str, Tensor]:
        predictions = self.heads["decoder"](self.dynamics.get_feat(state))
        return {key: predictions[key].mode.clamp(0.0, 1.0) for key in self.heads["decoder"].image_keys}


def _as_bytes(key: str, image: Tensor) -> Tensor:
    """Images of any integer dtype as uint8. Floats are refused, since a dark image in 0..255 and one in 0..1 look alike."""
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool or image.is_floating_point() or image.is_complex():
        raise ValueError(
            f"the image {key!r} has dtype {image.dtype}; it must have integers from 0 to 255, as uint8. If its numbers are between 0 "
            "and 1, multiply them by 255; then round and convert them"
        )
    numbers = image.long()  # unsigned dtypes have no comparison
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) <= 255:
        raise ValueError(f"the image {key!r} has integers from {int(numbers.min())} to {int(numbers.max())}; allowed are 0 to 255")
    return numbers.to(torch.uint8)


def make_dynamics(config, num_actions: int, embed: int) -> networks.RSSM:
    """Builds the latent dynamics, flat or hierarchical.

    Args:
        config: the settings, see configs.yaml.
        num_actions: size A of an action vector.
        embed: size E of an embedding.
    """
    common = dict(
        deter=config.dyn_deter,
        hidden=config.dyn_hidden,
        core=config.dyn_core,
        blocks=config.dyn_blocks,
        rec_depth=config.dyn_rec_depth,
        img_layers=config.dyn_img_layers,
        obs_layers=config.dyn_obs_layers,
        style=Style(config.act, config.norm),
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


def latent_layout(config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of what `RSSM.pack` makes of one step, by key."""
    layout = {"deter": ((config.dyn_deter,), np.dtype(np.float32))}
    for name, (stoch, discrete) in settings.level_sizes(config).items():
        level = networks.Level(stoch, discrete, "" if name == "flat" else f"_{name}")
        layout["stoch" + level.suffix] = ((stoch,), np.dtype(level.code_dtype))
    return layout


def lambda_return(reward: Tensor, value: Tensor, discount: Tensor, lambda_: float) -> Tensor:
    """Lambda returns (Hafner et al. 2023, "Critic Learning").

    R_t = r_{t+1} + d_{t+1} ((1 - lambda) v_{t+1} + lambda R_{t+1}), and R_{H-1} = v_{H-1}.

    Args:
        reward, value: (H, N, 1), of the imagined states.
        discount: (H, N, 1), discount times predicted continue probability.
        lambda_: weight of longer returns, from 0 to 1.
    Returns:
        (H - 1, N, 1).
    """
    assert reward.shape == value.shape == discount.shape, (reward.shape, value.shape, discount.shape)
    returns = [value[-1]]
    for t in reversed(range(1, len(value))):
        returns.append(reward[t] + discount[t] * ((1.0 - lambda_) * value[t] + lambda_ * returns[-1]))
    return torch.stack(returns[:0:-1])  # in time order, without the bootstrap value v_{H-1}


def replay_return(reward: Tensor, boot: Tensor, is_last: Tensor, is_terminal: Tensor, discount: float, lambda_: float) -> Tensor:
    """Lambda returns along replayed sequences, bootstrapped with imagined ones (Hafner et al. 2025, "Critic learning").

    R_t = r_{t+1} + d_{t+1} ((1 - c_{t+1}) b_{t+1} + c_{t+1} R_{t+1}), and R_{T-1} = b_{T-1}, where d is `discount`, or 0
    at a terminal step, and c is `lambda_`, or 0 at the last step of an episode.

    Args:
        reward, is_last, is_terminal: (B, T).
        boot: (B, T), imagined returns b of every step.
        discount: discount factor per agent step.
        lambda_: weight of longer returns, from 0 to 1.
    Returns:
        (B, T - 1).
    """
    assert reward.shape == boot.shape == is_last.shape == is_terminal.shape, (reward.shape, boot.shape)
    discount, mix, returns = discount * (1.0 - is_terminal), lambda_ * (1.0 - is_last), [boot[:, -1]]
    for t in reversed(range(1, reward.shape[1])):
        returns.append(reward[:, t] + discount[:, t] * ((1.0 - mix[:, t]) * boot[:, t] + mix[:, t] * returns[-1]))
    return torch.stack(returns[:0:-1], 1)  # in time order, without the bootstrap value


def imagination_weight(start_cont: Tensor, discount: Tensor) -> Tensor:
    """Weight of each imagined state: the discounted probability that the episode reaches it. Without gradient.

    Args:
        start_cont: (N, 1), continue flag or discount of the replayed step.
        discount: (H, N, 1), discount times predicted continue probability.
    Returns:
        (H, N, 1); the first weight is `start_cont`.
    """
    return torch.cat([start_cont[None].to(discount.dtype), discount[1:]]).detach().cumprod(0)


def update_return_range(ema: Tensor, returns: Tensor, decay: float = 0.99) -> Tensor:
    """Updates running percentiles of the returns and computes their range (Hafner et al. 2023, "Actor Learning").

    Args:
        ema: (2,), running 5th and 95th percentiles; updated in place.
        returns: any shape; those of all ranks count.
        decay: of the running average.
    Returns:
        scalar by which advantages are divided: the difference of the percentiles, at least 1.
    """
    # A Python list would force a host-to-device copy and a sync.
    levels = torch.linspace(0.05, 0.95, 2, device=returns.device)
    percentiles = torch.quantile(ranks.gather(returns.float().flatten()), levels)
    # A NaN would stay in the running average forever.
    ema.lerp_(torch.where(percentiles.isfinite(), percentiles, ema), 1.0 - decay)
    return (ema[1] - ema[0]).clamp(min=1.0)


def actor_loss(
    policy, action: Tensor, *, returns: Tensor, baseline: Tensor, weight: Tensor, scale: Tensor, gradient: str, entropy_scale: float
) -> Tensor:
    """The policy's loss over all imagined steps but the last, which has no return.

    Source: Hafner et al. 2023, "Actor Learning".

    Args:
        policy: distribution of actions at each state, (H - 1, N).
        action: sampled actions, (H - 1, N, A).
        returns: lambda returns, (H - 1, N, 1).
        baseline: values, (H - 1, N, 1).
        weight: (H - 1, N, 1), of policy and entropy terms alike.
        scale: scalar by which advantages are divided.
        gradient: "reinforce" uses the gradient of the log-probability, "dynamics" that of the returns through the
            world model.
        entropy_scale: weight of the policy's entropy.
    Returns:
        scalar.
    Raises:
        ValueError: for an unknown `gradient`.
    """
    assert returns.shape == baseline.shape == weight.shape, (returns.shape, baseline.shape, weight.shape)
    advantage = ((returns - baseline) / scale).squeeze(-1)  # (H - 1, N)
    if gradient == "reinforce":
        # Gradient boundary: the action is a constant. A reparametrised one would cancel the mean's gradient.
        objective = policy.log_prob(action.detach()) * advantage.detach()
    elif gradient == "dynamics":
        objective = advantage
    else:
        raise ValueError(f"unknown gradient {gradient!r}; allowed are {', '.join(GRADIENTS)}")
    return -(weight.squeeze(-1) * (objective + entropy_scale * policy.entropy())).mean()


def critic_loss(value_dist, target: Tensor, slow_target: Tensor | None) -> Tensor:
    """Negative log-likelihood of the returns, plus that of the slow critic's values as a regulariser.

    Source: Hafner et al. 2023, "Critic Learning".

    Args:
        value_dist: the critic's distribution at (H - 1, N) states.
        target: returns, (H - 1, N, 1), used without gradient.
        slow_target: values of the slow critic, (H - 1, N, 1), used without gradient; None without a slow critic.
    Returns:
        (H - 1, N), without imagination weights.
    """
    loss = -value_dist.log_prob(target.detach())
    if slow_target is not None:
        loss = loss - value_dist.log_prob(slow_target.detach())
    return loss


class BehaviorLosses(NamedTuple):
    """What `ImagBehavior.losses` returns.

    Args:
        actor, critic: scalars.
        returns: lambda returns of imagined states, (H - 1, N, 1), without gradient.
        metrics: scalars by name.
    """

    actor: Tensor
    critic: Tensor
    returns: Tensor
    metrics: Metrics


class ImagBehavior(nn.Module):
    """Actor and critic, trained on imagined rollouts (Hafner et al. 2023, "Actor Critic Learning").

    Args:
        feat_size: size F of a feature.
        action_parts: the parts of an action vector by key, see `ActionCodec.parts`.
        config: the settings, see configs.yaml.
    Attributes:
        gradient: "reinforce" or "dynamics", see `actor_loss`.
    Raises:
        ValueError: for a setting that is not allowed.
    """

    def __init__(self, feat_size: int, action_parts: dict[str, ActionPart], config):
        super().__init__()
        self._config = config
        self.gradient = config.imag_gradient
        if self.gradient == "auto":
            continuous = all(part.classes is None for part in action_parts.values())
            self.gradient = "dynamics" if continuous else "reinforce"
        if self.gradient not in GRADIENTS:
            raise ValueError(f"imag_gradient is {self.gradient!r}; allowed are auto, {', '.join(GRADIENTS)}")
        if self.gradient == "dynamics" and config.optimizer == "laprop":
            raise ValueError("with optimizer laprop all actions are learned by REINFORCE; set imag_gradient to reinforce")
        if config.imag_horizon < 2:
            raise ValueError(f"imag_horizon is {config.imag_horizon}; it counts the replayed state too and must be at least 2")
        _check_scalar_dist("critic.dist", config.critic.dist)
        actor, critic = config.actor, config.critic
        layers = dict(units=config.units, style=Style(config.act, config.norm))
        self.actor = heads.ActionHead(feat_size, action_parts, actor, **layers)
        self.value = heads.MLP(feat_size, (1,), critic.layers, name="Value", dist=critic.dist, outscale=critic.outscale, **layers)
        if critic.slow_target:
            self._slow_value = copy.deepcopy(self.value).requires_grad_(False)
        self.register_buffer("ema_vals", torch.zeros(2))
        self.to(config.device)
        if config.optimizer == "adam":
            self._actor_opt, self._value_opt = (
                AdamOptimizer(name, net.parameters(), lr=part.lr, eps=part.eps, clip=part.grad_clip, weight_decay=config.weight_decay)
                for name, net, part in (("actor", self.actor, actor), ("value", self.value, critic))
            )

    def imagine(self, dynamics: networks.RSSM, start: State, horizon: int, sample: bool = True) -> Rollout:
        """Rolls out the policy in the world model.

        Args:
            dynamics: the world model's dynamics.
            start: replayed states, (N, ...), with sampled latents.
            horizon: number of states H, including the replayed one.
            sample: whether actions and latents are drawn; False takes the most likely ones.
        """
        state, feats, stats, actions = start, [dynamics.get_feat(start)], [], []
        for _ in range(horizon - 1):
            # Gradient boundary between policy and world model: the policy's input is a constant, its action is not.
            stats.append(self.actor.stats(feats[-1].detach()))
            policy = self.actor.dist(stats[-1])
            # REINFORCE needs no gradient through the world model.
            with torch.set_grad_enabled(self.gradient == "dynamics"):
                actions.append(policy.sample() if sample else policy.mode)
                state = dynamics.img_step(state, actions[-1], sample)
                feats.append(dynamics.get_feat(state))
        return Rollout(torch.stack(feats), networks.stack_states(stats, 0), torch.stack(actions))

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the losses train."""
        return [*self.actor.parameters(), *self.value.parameters()]

    def latent_readers(self) -> list[nn.Linear]:
        """All layers whose inputs begin with the latents."""
        readers = [self.actor, self.value] + ([self._slow_value] if self._config.critic.slow_target else [])
        return [layer for reader in readers for layer in reader.input_layers()]

    def update(
        self, world_model: WorldModel, start: State, start_cont: Tensor, updates: int, reward_of: Callable[[Rollout], Tensor] | None = None
    ) -> Metrics:
        """Takes one step of the actor's and one of the critic's Adam.

        Args:
            world_model: where the policy is rolled out.
            start: posterior states without gradient, (B, T, ...).
            start_cont: their continue flags, (B, T, 1).
            updates: number of previous updates.
            reward_of: computes rewards (H, N, 1) of a rollout; None for `WorldModel.reward`.
        Returns:
            scalar metrics.
        """
        self.update_slow_value(updates)
        with autocast(self._config):
            losses = self.losses(world_model, start, start_cont, reward_of)
        actor = self._actor_opt.step(losses.actor, retain_graph=self.gradient == "dynamics")
        return {**losses.metrics, **actor, **self._value_opt.step(losses.critic)}

    def losses(
        self,
        world_model: WorldModel,
        start: State,
        start_cont: Tensor,
        reward_of: Callable[[Rollout], Tensor] | None = None,
        sample: bool = True,
    ) -> BehaviorLosses:
        """Losses of actor and critic on one imagined rollout.

        Both losses share one forward pass of the critic. With `gradient="dynamics"` each loss also has gradients for
        the other's parameters, so each optimizer must compute gradients of its own parameters only.

        Args:
            world_model, start, start_cont, reward_of: as in `update`.
            sample: as in `imagine`.
        """
        config = self._config
        start = {key: value.flatten(0, 1) for key, value in start.items()}  # (N, ...)
        feat, stats, action = rollout = self.imagine(world_model.dynamics, start, config.imag_horizon, sample)
        value_stats = self.value.stats(feat)
        with torch.set_grad_enabled(self.gradient == "dynamics"):
            reward = (reward_of or world_model.reward)(rollout)  # (H, N, 1)
            discount = world_model.discount(feat)
            value = self.value.dist(value_stats).mode  # (H, N, 1)
        returns = lambda_return(reward, value, discount, config.discount_lambda)  # (H - 1, N, 1)
        # With a discounted continue head also the first weight is predicted.
        first = discount[0] if config.cont_head.discounted else start_cont.flatten(0, 1)
        weight = imagination_weight(first, discount)[:-1]
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
        value_loss = weight.squeeze(-1) * critic_loss(self.value.dist(value_stats[:-1]), returns, self._slow(feat[:-1]))
        with torch.no_grad():
            metrics = dict(
                return_scale=scale,
                imag_return=returns.mean(),
                imag_reward=reward.mean(),
                imag_value=value.mean(),
                actor_entropy=policy.entropy().mean(),
            )
        return BehaviorLosses(policy_loss, value_loss.mean(), returns.detach(), metrics)

    def replay_loss(self, feat: Tensor, data: dict[str, Tensor], boot: Tensor) -> Tensor:
        """The critic's loss on replayed states (Hafner et al. 2025, "Critic learning").

        It also trains the world model, through the features.

        Args:
            feat: features of the posterior, (B, T, F), with gradient.
            data: the preprocessed batch that they belong to.
            boot: imagined returns of every step, (B, T).
        Returns:
            scalar.
        """
        flags = [data[key] for key in ("is_last", "is_terminal")]
        returns = replay_return(data["reward"].squeeze(-1), boot, *flags, self._config.discount, self._config.discount_lambda)
        before_last = feat[:, :-1]  # the last step has no return
        loss = critic_loss(self.value(before_last), returns.unsqueeze(-1), self._slow(before_last))  # (B, T - 1)
        return ((1.0 - data["is_last"][:, :-1]) * loss).mean()

    @torch.no_grad()
    def _slow(self, feat: Tensor) -> Tensor | None:
        """Values of the slow critic, (..., F) -> (..., 1); None without one."""
        return self._slow_value(feat).mode if self._config.critic.slow_target else None

    def moves_slow_value(self, updates: int) -> bool:
        """Whether the update after this many moves the slow critic: one of `slow_target_update` does."""
        return self._config.critic.slow_target and updates % self._config.critic.slow_target_update == 0

    @torch.no_grad()  # otherwise the slow critic's graph would grow with every update
    def update_slow_value(self, updates: int) -> None:
        """Moves the slow critic towards the critic, if it is its turn."""
        if self.moves_slow_value(updates):
            fraction = self._config.critic.slow_target_fraction
            torch._foreach_lerp_(list(self._slow_value.parameters()), list(self.value.parameters()), fraction)


# Loading a flat checkpoint into a model with two levels
#
# The flat latent's S categoricals of K classes fill the slots of top and bottom, in this order; slots beyond S are new.
# So the flat latent's S * K entries come first in the new latent. The loaded model computes the same function as the
# flat one: the top posterior is direct like the flat posterior, the bottom posterior becomes direct with d = -1 and
# Up = Uq = 0, and layers that read latents have zero weights for new slots.


class Source(NamedTuple):
    """Where a tensor comes from in a flat checkpoint.

    Without `index` the tensor is copied.

    Args:
        name: the stored tensor.
        dim: dimension that `index` refers to.
        index: entry i along `dim` is entry index[i] of the stored tensor; -1 marks a new entry.
        size: length of the stored tensor along `dim`.
    """

    name: str
    dim: int = 0
    index: Tensor | None = None
    size: int = 0

    @property
    def kind(self) -> str:
        """Whether the tensor is "copied", "split" (a part of the stored tensor) or "widened" (with new entries)."""
        if self.index is None:
            return "copied"
        return "widened" if (self.index < 0).any() else "split"

    def stored_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape that the stored tensor must have if this agent's tensor has `shape`."""
        return tuple(shape) if self.index is None else (*shape[: self.dim], self.size, *shape[self.dim + 1 :])

    def take(self, stored: Tensor, new: Tensor | float) -> Tensor:
        """Builds this agent's tensor.

        Args:
            stored: the stored tensor.
            new: values of new entries, of the shape of the result or a number.
        """
        if self.index is None:
            return stored
        is_new = (self.index < 0).view([-1 if dim == self.dim else 1 for dim in range(stored.ndim)])
        return torch.where(is_new, new, stored.index_select(self.dim, self.index.clamp(min=0)))


def flat_sources(agent: nn.Module, entries: int) -> dict[str, Source | None]:
    """Maps every tensor of an agent with two levels to its source in a flat checkpoint; None for tensors that are new.

    Args:
        agent: the agent with two levels.
        entries: S * K, length of the flat latent.

    | tensor of the agent | source |
    |---|---|
    | `_imgs_stat_layer.<level>`, `_obs_stat_layer.<level>` (Wpt, Wqt, Wpb, Wqb) | the level's rows of the flat layer |
    | `_top_summary`, `_top_to_prior`, `_top_to_post`, `_prior_weight` (Wc, Up, Uq, d) | new |
    | weights that read latents (recurrence, heads, actor, critics, ensemble) | same name; new slots' columns are new |
    | weights and biases that predict latents (ensemble) | same name; new slots' rows are new |
    | all others | same name |
    """
    dynamics = agent._wm.dynamics
    names = {module: name for name, module in agent.named_modules()}
    sources = {name: Source(name) for name in agent.state_dict()}
    added = dynamics.stoch_size - entries

    def widened(name: str, dim: int, size: int) -> Source:
        """Source of a tensor whose entries along `dim` begin with the latents; new slots follow the filled ones."""
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
    """Initial values of the latents' tensors that a flat checkpoint lacks, with posterior weights scaled by 0.1.

    With these weights the KL of the new slots stays below the free nats. The bottom's posterior is its prior plus a
    residual, so a small residual is enough. The top's posterior is direct, so its prior is scaled by 0.1 too: both are
    nearly uniform. d is -1 for bottom slots that the flat latent fills.

    Args:
        agent: the agent with two levels.
        entries: S * K, length of the flat latent.
    Returns:
        tensors by name.
    """
    config = copy.deepcopy(agent._config)
    config.dyn_deter = config.dyn_blocks = 1  # the recurrence is not used, so keep it small
    dynamics = make_dynamics(config, num_actions=1, embed=1)
    with torch.no_grad():
        for layer in (dynamics._imgs_stat_layer["top"], dynamics._obs_stat_layer["top"], dynamics._obs_stat_layer["bottom"]):
            layer.weight.mul_(0.1)
        dynamics._prior_weight[: max(0, entries - dynamics.levels["top"].size)] = -1.0
    kinds = ("_imgs_stat_layer", "_obs_stat_layer", "_top_", "_prior_weight")
    return {f"_wm.dynamics.{name}": tensor for name, tensor in dynamics.state_dict().items() if name.startswith(kinds)}


def convert_weights(sources: dict[str, Source | None], flat: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Builds the weights of an agent with two levels from a flat checkpoint.

    Args:
        sources: from `flat_sources`.
        flat: tensors of the flat checkpoint, by name.
        new: values of new tensors and entries, by name; entries in neither are zero.
    """
    return {name: new[name] if source is None else source.take(flat[source.name], new.get(name, 0.0)) for name, source in sources.items()}


def convert_moments(sources: dict[str, Source | None], flat: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Builds the moments of an agent with two levels from those of a flat checkpoint, by parameter name.

    New parameters have no moments. New entries of a parameter get first moment 0, and the mean of the parameter's other
    second moments: with second moment 0 their first steps would be far too large.

    Args:
        sources: from `flat_sources`.
        flat: `step`, `exp_avg` and `exp_avg_sq` by parameter name.
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
