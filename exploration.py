"""Behaviors that explore.

Shapes: B batch, T time, H imagination horizon, N imagined rollouts, M ensemble members, A action, F feature,
n length of a target.
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn

import distributions as dists
from envs.spaces import ActionCodec
from heads import MLP
from layers import Style
from models import ImagBehavior, Rollout, WorldModel
from networks import State
from optim import AdamOptimizer, LaPropOptimizer, Metrics
from scale import ranks
from tools import autocast

BEHAVIORS = ("greedy", "random", "plan2explore")


def make_behavior(world_model: WorldModel, codec: ActionCodec, config):
    """Builds the exploring behavior that the setting `expl_behavior` names.

    Returns:
        an object with a method `actor(feat) -> distribution`; None if the task's policy explores.
    Raises:
        ValueError: for an unknown name.
    """
    if config.expl_behavior == "greedy":
        return None
    elif config.expl_behavior == "random":
        return Uniform(codec)
    elif config.expl_behavior == "plan2explore":
        return Plan2Explore(world_model, codec, config)
    raise ValueError(f"expl_behavior is {config.expl_behavior!r}; allowed are {', '.join(BEHAVIORS)}")


class Random:
    """A policy of uniformly random actions, with the same `act` as the agent.

    Args:
        codec: codec of the environment's actions.
        seed: seed of the actions.
    """

    def __init__(self, codec: ActionCodec, seed: int):
        self._codec = codec
        self._rng = np.random.default_rng(seed)

    def act(self, obs: dict, state: dict | None = None, training: bool = True) -> tuple[np.ndarray | list, dict]:
        """Draws actions for N environments; the returned state only holds the action vectors, (N, A)."""
        vectors = self._codec.random(self._rng, len(obs["is_first"]))
        return self._codec.decode(vectors), {"action": torch.as_tensor(vectors)}


class Uniform:
    """An actor with a uniform distribution over actions, whatever the features.

    Args:
        codec: codec of the environment's actions.
    """

    def __init__(self, codec: ActionCodec):
        self._codec = codec

    def actor(self, feat: Tensor):
        """Features (..., F) -> a distribution over action vectors (..., A), which only samples."""
        parts = []
        for part in self._codec.parts.values():
            if part.classes is None:
                low = feat.new_full((*feat.shape[:-1], part.size), -1.0)
                parts.append(_UniformNumbers(low, -low, validate_args=False))  # a GPU would wait for the validation
            else:
                parts += [dists.OneHot(feat.new_zeros(*feat.shape[:-1], count)) for count in part.classes]
        return dists.Joint(parts)


class _UniformNumbers(torch.distributions.Uniform):
    event_dims = 1  # as `distributions.Joint` needs


class Plan2Explore(nn.Module):
    """Seeks states at which the predictions of an ensemble of one-step models disagree (Sekar et al. 2020).

    It has its own actor and critic, which learn in imagination with the disagreement as reward.

    Args:
        world_model: the world model whose features it uses.
        codec: codec of the environment's actions.
        config: the settings, see configs.yaml.
    Raises:
        ValueError: for an unknown `disag_target`, or a `disag_offset` that `batch_length` does not allow.
    """

    def __init__(self, world_model: WorldModel, codec: ActionCodec, config):
        super().__init__()
        dynamics = world_model.dynamics
        sizes = {
            "embed": world_model.encoder.outdim,
            "stoch": dynamics.stoch_size,
            "deter": dynamics.deter_size,
            "feat": dynamics.feat_size,
            **{f"stoch{level.suffix}": level.size for level in dynamics.levels.values()},
        }
        if config.disag_target not in sizes:
            raise ValueError(f"disag_target is {config.disag_target!r}; allowed are {', '.join(sizes)}")
        if config.disag_offset >= config.batch_length:
            raise ValueError(f"disag_offset is {config.disag_offset}; it must be smaller than batch_length, {config.batch_length}")
        self._config = config
        self._behavior = ImagBehavior(dynamics.feat_size, codec.parts, config)
        inputs = dynamics.feat_size + (codec.size if config.disag_action_cond else 0)
        size = (sizes[config.disag_target],)
        style = Style(config.act, "rms" if config.norm == "rms" else "layer")  # never none, as in dreamerv3-torch
        self._networks = nn.ModuleList(
            MLP(inputs, size, config.disag_layers, config.disag_units, name="NoName", style=style, dist="normal")
            for _ in range(config.disag_models)
        )
        self.to(config.device)
        if config.optimizer == "laprop":
            trained = [*self._networks.parameters(), *self._behavior.trained()]
            self._opt = LaPropOptimizer("explorer", trained, config)
        else:
            options = dict(lr=config.model_lr, eps=config.opt_eps, clip=config.grad_clip, weight_decay=config.weight_decay)
            self._expl_opt = AdamOptimizer("explorer", self._networks.parameters(), **options)

    @property
    def actor(self) -> nn.Module:
        """The exploring policy."""
        return self._behavior.actor

    def latent_readers(self) -> list[nn.Linear]:
        """All layers whose inputs begin with the latents."""
        return self._behavior.latent_readers() + [layer for network in self._networks for layer in network.input_layers()]

    def latent_writers(self) -> list[nn.Linear]:
        """All layers whose outputs begin with the latents: they predict them."""
        if self._config.disag_target not in ("stoch", "feat"):
            return []
        return [network.mean_layer for network in self._networks]

    def update(self, world_model: WorldModel, post: State, data: dict[str, Tensor], updates: int) -> Metrics:
        """Takes one optimizer step of the ensemble, and one of the exploring actor and critic.

        Args:
            world_model: the same as at construction.
            post: posterior states without gradient, (B, T, ...).
            data: the preprocessed batch that they belong to.
            updates: number of previous updates.
        Returns:
            scalar metrics.
        """
        reward_of = functools.partial(self.reward, world_model)
        with autocast(self._config):
            loss = self.ensemble_loss(world_model, post, data)
        step = self._step_apart if self._config.optimizer == "adam" else self._step_together
        metrics, behavior = step(loss, world_model, post, data["cont"], updates, reward_of)
        return {**metrics, **{f"expl_{key}": value for key, value in behavior.items()}}

    def _step_apart(self, loss: Tensor, *behavior) -> tuple[Metrics, Metrics]:
        """One step of the ensemble, then one of actor and critic; `behavior` as in `ImagBehavior.update`."""
        return self._expl_opt.step(loss), self._behavior.update(*behavior)

    def _step_together(
        self, loss: Tensor, world_model: WorldModel, post: State, cont: Tensor, updates: int, reward_of
    ) -> tuple[Metrics, Metrics]:
        """One step of all three. The critic learns in imagination alone: there is no replayed intrinsic reward."""
        with autocast(self._config):
            losses = self._behavior.losses(world_model, post, cont, reward_of)
        metrics = self._opt.step(loss + losses.actor + losses.critic) | {"explorer_loss": loss.detach()}  # the ensemble's alone
        self._behavior.update_slow_value(updates)
        return metrics, {"actor_loss": losses.actor.detach(), "value_loss": losses.critic.detach(), **losses.metrics}

    def ensemble_loss(self, world_model: WorldModel, post: State, data: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood of the target `disag_offset` steps later, averaged over ensemble members and steps.

        Pairs of steps from different episodes are excluded.

        Args:
            world_model, post, data: as in `update`.
        Returns:
            scalar.
        """
        config, offset = self._config, self._config.disag_offset
        feat = world_model.dynamics.get_feat(post)  # (B, T, F)
        inputs = feat[:, :-offset]
        if config.disag_action_cond:  # the action taken at a step is stored with the next step
            inputs = torch.cat([inputs, dists.bounded(data["action"][:, 1 : feat.shape[1] - offset + 1])], -1)
        target = self._target(world_model, post, feat, data)
        # (M, B, T - offset)
        log_probs = torch.stack([network(inputs).log_prob(target[:, offset:]) for network in self._networks])
        episode = data["is_first"].cumsum(1)
        same = (episode[:, offset:] == episode[:, :-offset]).float()
        pairs = same.sum()
        ranks.average_([pairs])  # ranks differ in how many pairs they have, and each pair counts the same
        return -(log_probs.mean(0) * same).sum() / pairs.clamp(min=1.0 / ranks.count())

    def _target(self, world_model: WorldModel, post: State, feat: Tensor, data: dict[str, Tensor]) -> Tensor:
        """The ensemble's target at every step, (B, T, n)."""
        name = self._config.disag_target
        if name == "embed":
            with torch.no_grad():
                return world_model.encoder(data)
        elif name == "stoch":
            return world_model.dynamics.flat_stoch(post)
        elif name == "feat":
            return feat
        return post[name].flatten(2)  # deter, or one level of latents

    def reward(self, world_model: WorldModel, rollout: Rollout) -> Tensor:
        """The exploring reward: the ensemble's standard deviation, averaged over the n numbers of the target.

        With `disag_action_cond` predictions depend on the action too. The reward of a state is then the disagreement
        about this state, predicted from the state and action before it.

        Returns:
            (H, N, 1). No return uses the first reward; with `disag_action_cond` it repeats the second.
        """
        config, inputs = self._config, rollout.feat
        if config.disag_action_cond:
            before = torch.arange(-1, len(inputs) - 1, device=inputs.device).clamp(min=0)
            inputs = torch.cat([rollout.feat[:-1], dists.bounded(rollout.action)], -1).index_select(0, before)
        predictions = torch.stack([network(inputs).mode for network in self._networks])  # (M, H, N, n)
        disagreement = predictions.std(0).mean(-1, keepdim=True)
        reward = config.expl_intr_scale * (disagreement.log() if config.disag_log else disagreement)
        if config.expl_extr_scale:
            reward = reward + config.expl_extr_scale * world_model.reward(rollout)
        return reward
