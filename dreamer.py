"""DreamerV3 with a flat or a two-level latent. Trains an agent on a task:

    python dreamer.py --configs defaults small hdreamer_split --task gym_CartPole-v1 --steps 6000
        learns on a laptop's CPU within minutes
    python dreamer.py --configs defaults hdreamer --task atari_pong
        trains the full-size agent on Atari Pong, which takes a GPU
    python dreamer.py --logdir RUN
        resumes the run in the folder RUN with its own settings
    torchrun --nproc_per_node 2 dreamer.py ...
        trains with two processes, each with its own environments and half of every batch

--configs names presets of configs.yaml. Every setting in that file is a flag, as in --seed 1 --encoder.cnn_depth 16.
--help lists presets and settings.
"""

import contextlib
import copy
import functools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

import checkpoints
import console
import exploration
import settings
import tools
from checkpoints import fitting
from distributions import bounded
from encoders import ConvDecoder, ConvEncoder, PooledDecoder, PooledEncoder
from envs import make_envs
from envs.gym import claim, modules_of
from envs.spaces import ActionCodec, as_batch, describe_space, space_of
from envs.workers import EnvironmentFailed
from heads import MLP
from layers import choose_library
from models import ImagBehavior, WorldModel, latent_layout
from networks import State, detach
from optim import LaPropOptimizer, Metrics, Optimizer
from scale import graph, ranks
from settings.help import help_text
from storage.disk import free_space
from tools import autocast
from training import folder, nonfinite
from training.data import Environments, Recordings
from training.run import Run


class Dreamer(nn.Module):
    """The agent: a world model, and an actor and a critic that learn in its imagination.

    Args:
        obs_space: gymnasium Dict of one environment's observations: images (height, width, channels) uint8, vectors
            (n,) float32.
        act_space: the action space of one environment.
        config: settings, from `tools.load_config`.
        logger: unused, may be None; `update` returns the metrics.
        dataset: iterator of batches for `update`, for example a `Replay`; may be None.
    Attributes:
        obs_space: without keys that are only logged.
        act_space: as given.
        exploring: whether the exploration behavior (`expl_behavior`) acts in training instead of the task's policy.
        updates: number of updates so far.
    """

    def __init__(
        self,
        obs_space: gymnasium.spaces.Dict,
        act_space: gymnasium.Space,
        config: settings.Config,
        logger=None,
        dataset: Iterator[dict] | None = None,
    ):
        super().__init__()
        self._config = config = copy.deepcopy(config)
        config.device = self.device = tools.pick_device(config.device)
        self._asked_precision = config.precision
        config.precision, _ = tools.pick_precision(config.precision, self.device, config.dyn_hidden)
        graphed = graph.wanted(config)
        choose_library()
        self._dataset = dataset
        self.obs_space = gymnasium.spaces.Dict({key: space for key, space in obs_space.spaces.items() if not key.startswith("log_")})
        self.act_space, self.codec = act_space, ActionCodec(act_space)
        self._wm = WorldModel(obs_space, self.codec.size, config)
        self._task_behavior = ImagBehavior(self._wm.dynamics.feat_size, self.codec.parts, config)
        self._expl_behavior = exploration.make_behavior(self._wm, self.codec, config)
        self._opt = None
        if config.optimizer == "laprop":
            trained = [*self._wm.parameters(), *self._task_behavior.trained()]
            self._opt = LaPropOptimizer("agent", trained, config, shared=self._wm.dynamics.split_tensors())
        self.exploring = True
        self.updates = 0
        if config.compile:
            self._compile()
        self._graphed = None
        if graphed:
            self._graphed = graph.GraphedUpdate(self._update_on, self.optimizers().values(), graph.Gpu(self.device))

    def _compile(self) -> None:
        """Compiles modules in place, so that parameter names in checkpoints stay the same."""
        tools.check_compiler(self.device)
        # Actor and critic share a graph, so the first backward pass must not free its buffers.
        torch._functorch.config.donated_buffer = False
        self._wm.dynamics.compile_steps()
        for module in self.modules():
            if isinstance(module, (ConvEncoder, ConvDecoder, PooledEncoder, PooledDecoder)):
                module.compile()
            elif isinstance(module, MLP):
                module.layers.compile()

    @torch.no_grad()
    def act(self, obs: dict, state: dict | None = None, training: bool = False) -> tuple[np.ndarray, dict]:
        """Chooses actions for a batch of N observations, or for a single one.

        Latents are drawn from the posterior, as in training. So the same observation may get different actions, unless
        `torch.manual_seed` fixes the draws.

        Args:
            obs: arrays, tensors or lists (N, ...) by name; for a single observation without N. With one observation key,
                the array alone is enough. Images are integers from 0 to 255 of any dtype. `is_first` (N,) marks the first
                observations of episodes. Without a state all are first. Other names are ignored.
            state: what the last call returned; None at the start.
            training: sample actions, instead of taking the most likely ones. Latents are drawn all the same.
        Returns:
            N actions for the environment (one action for a single observation), and the state for the next call. Its
            entry "action" has the action vectors (N, A).
        Raises:
            ValueError: for observations that do not fit `obs_space`, images of floats, NaN, or a state of something else.
        """
        obs, single = as_batch(obs, self._wm.encoder.shapes)
        if state is not None:
            self._check_state(state, len(next(iter(obs.values()))))
        with autocast(self._config):
            begins = state is None or bool(torch.as_tensor(obs.get("is_first", False)).any())
            actions, state = self._act(self._wm.preprocess(obs), state, training, begins)
        return actions[0] if single else actions, state

    def _check_state(self, state: dict, count: int) -> None:
        """Raises ValueError for a state that `act` has not returned for `count` observations."""
        needed = {"action", "deter", *(f"stoch{level.suffix}" for level in self._wm.dynamics.levels.values())}
        if not isinstance(state, dict) or not needed <= state.keys() or state["action"].shape[-1] != self.codec.size:
            raise ValueError("the state is none of this agent; give what its last call of act returned, or None at the start")
        sizes = sorted({len(value) for value in state.values()})
        if sizes != [count]:
            raise ValueError(
                f"the state is of {' or '.join(map(str, sizes))} observations, and the batch has {count}; give the state that act "
                "returned for the same environments, or None at the start"
            )

    def _act(self, data: dict[str, torch.Tensor], state: dict | None, training: bool, begins: bool) -> tuple[np.ndarray, dict]:
        embed = self._wm.encoder(data)  # (N, E)
        if state is None:
            latent, action = None, torch.zeros(len(embed), self.codec.size, device=embed.device)
        else:
            latent, action = {key: value for key, value in state.items() if key != "action"}, state["action"]
        is_first = data.get("is_first", torch.zeros(len(embed), device=embed.device))[:, None] if begins else None
        latent = self._wm.dynamics.filter(embed[:, None], action[:, None], is_first, latent)
        latent = {key: value[:, 0] for key, value in latent.items()}
        explores = training and self.exploring and self._expl_behavior is not None
        behavior = self._expl_behavior if explores else self._task_behavior
        policy = behavior.actor(self._wm.dynamics.get_feat(latent))
        action = bounded(policy.sample() if training else policy.mode)
        return self.codec.decode(action.cpu().numpy()), {**latent, "action": action}

    def act_in(self, act_space: gymnasium.Space) -> None:
        """Lets `act` return actions of another space with the same action vectors.

        An agent that learned from recorded episodes knows only action vectors: it takes discrete actions to count from
        0, and continuous ones to lie in [-1, 1]. The environment has the true first action and bounds.

        Raises:
            ValueError: if the space has other action vectors.
        """
        codec = ActionCodec(act_space)
        if codec.layout != self.codec.layout:
            raise ValueError(
                f"the agent has learned actions {self.act_space}, and the environment takes {act_space}; give an environment "
                "of the task that it has learned"
            )
        self.act_space, self.codec = act_space, codec

    def update(self, batch: dict | None = None) -> Metrics:
        """Updates world model, actor and critic once.

        Args:
            batch: arrays (B, T, ...) by name; None draws a batch from the dataset.
        Returns:
            metrics, scalar tensors by name.
        Raises:
            nonfinite.NonFinite: if losses or gradients of many updates in a row were not finite. Those updates changed
                no weight.
        """
        if batch is None:
            if self._dataset is None:
                raise ValueError("update() needs a batch, since the agent was built without a dataset")
            batch = next(self._dataset)
        missing = {"action", "reward", "is_first", "is_last", "is_terminal"} - set(batch)
        if not self._config.critic.replay_scale:
            missing.discard("is_last")
        if missing:
            raise ValueError(f"a batch needs {', '.join(sorted(missing))} beside the observation; it has {', '.join(sorted(batch))}")
        data = self._wm.preprocess(batch)
        if self._graphed:
            post, metrics = self._graphed(data, self._task_behavior.moves_slow_value(self.updates))
        else:
            post, metrics = self._update_on(data)
        if "replay.steps" in batch and self._dataset is not None:
            self._dataset.write_latents(batch["replay.steps"], self._wm.dynamics.pack(post))
        self.updates += 1
        if self.updates % nonfinite.LOOK_EVERY == 0:
            nonfinite.check(self, batch)
        return metrics

    def _update_on(self, data: dict[str, torch.Tensor]) -> tuple[State, Metrics]:
        """The part of an update that a CUDA graph can replay: it reads no value of a tensor; returns as `_update_apart`."""
        post, metrics = self._update_apart(data) if self._opt is None else self._update_together(data)
        if self._explorer:
            metrics.update(self._explorer.update(self._wm, post, data, self.updates))
        return post, metrics

    def _update_apart(self, data: dict[str, torch.Tensor]) -> tuple[State, Metrics]:
        """Updates the world model, then actor and critic in the updated model (2023).

        Returns:
            the posterior without gradient, (B, T, ...); scalar metrics.
        """
        post, metrics = self._wm.update(data)
        metrics.update(self._task_behavior.update(self._wm, post, data["cont"], self.updates))
        return post, metrics

    def _update_together(self, data: dict[str, torch.Tensor]) -> tuple[State, Metrics]:
        """Updates world model, actor and critic in one step on one loss (2025); returns as `_update_apart`."""
        loss, post, metrics = self.joint_loss(data)
        metrics.update(self._opt.step(loss))
        self._task_behavior.update_slow_value(self.updates)
        return post, metrics

    def joint_loss(self, data: dict[str, torch.Tensor], sample: bool = True) -> tuple[torch.Tensor, State, Metrics]:
        """The loss of world model, actor and critic together, as in DreamerV3 (2025).

        Args:
            data: a preprocessed batch, (B, T, ...).
            sample: whether latents and actions are drawn; False takes the most likely ones.
        Returns:
            scalar; the posterior without gradient, (B, T, ...); scalar metrics.
        """
        behavior, scale = self._task_behavior, self._config.critic.replay_scale
        model_loss, post, metrics = self._wm.loss(data, sample)
        # Gradient boundary: imagination does not train the world model.
        start = detach(post)
        with autocast(self._config):
            losses = behavior.losses(self._wm, start, data["cont"], sample=sample)
            total = model_loss + losses.actor + losses.critic
            metrics |= {"model_loss": model_loss, "actor_loss": losses.actor, "value_loss": losses.critic}
            if scale:
                boot = losses.returns[0].view(data["is_first"].shape)
                metrics["replay_value_loss"] = behavior.replay_loss(self._wm.dynamics.get_feat(post), data, boot)
                total = total + scale * metrics["replay_value_loss"]
        metrics = {key: value.detach().mean() for key, value in metrics.items()}
        return total, start, {**metrics, **losses.metrics}

    def how_updates_run(self) -> str:
        """What makes updates faster than plain PyTorch, for people; empty if nothing does."""
        return ", compiled" if self._config.compile else ", updates in a CUDA graph" if self._graphed else ""

    def stored_latents(self, state: dict) -> dict[str, np.ndarray]:
        """What replay memory stores of a state from `act`, see `RSSM.pack`."""
        return self._wm.dynamics.pack(state)

    @torch.no_grad()
    def model_losses(self, batch: dict) -> Metrics:
        """The world model's losses on a batch of arrays (B, T, ...), as scalar tensors by name. Updates nothing."""
        loss, _, metrics = self._wm.loss(self._wm.preprocess(batch))
        return {"model_loss": loss, **{key: value.mean() for key, value in metrics.items()}}

    def video_pred(self, batch: dict) -> dict[str, np.ndarray]:
        """Videos of open-loop predictions; see `WorldModel.video_pred`."""
        return self._wm.video_pred(batch)

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each module."""
        behavior = self._task_behavior
        modules = {
            "encoder": self._wm.encoder,
            "dynamics": self._wm.dynamics,
            **self._wm.heads,
            "actor": behavior.actor,
            "critic": behavior.value,
        }
        if self._config.critic.slow_target:
            modules["slow critic"] = behavior._slow_value
        if self._explorer:
            modules["explorer"] = self._explorer
        return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()}

    @property
    def _explorer(self) -> exploration.Plan2Explore | None:
        """The exploration behavior, if it is one that learns."""
        return self._expl_behavior if isinstance(self._expl_behavior, exploration.Plan2Explore) else None

    def optimizers(self) -> dict[str, Optimizer]:
        """All optimizers by their names in checkpoints."""
        task, explorer = self._task_behavior, self._explorer
        if self._opt is not None:
            return {"_opt": self._opt, **({"_expl_behavior._opt": explorer._opt} if explorer else {})}
        optimizers = {
            "_wm._model_opt._opt": self._wm._model_opt,
            "_task_behavior._actor_opt._opt": task._actor_opt,
            "_task_behavior._value_opt._opt": task._value_opt,
        }
        if explorer:
            optimizers |= {
                "_expl_behavior._expl_opt._opt": explorer._expl_opt,
                "_expl_behavior._behavior._actor_opt._opt": explorer._behavior._actor_opt,
                "_expl_behavior._behavior._value_opt._opt": explorer._behavior._value_opt,
            }
        return optimizers

    def latent_readers(self) -> list[nn.Linear]:
        """Every layer whose first inputs are the latents."""
        explorer = self._explorer.latent_readers() if self._explorer else []
        return self._wm.latent_readers() + self._task_behavior.latent_readers() + explorer

    def latent_writers(self) -> list[nn.Linear]:
        """Every layer outside the dynamics whose first outputs are latents."""
        return self._explorer.latent_writers() if self._explorer else []

    def checkpoint(self) -> dict:
        """Weights and optimizer states for `load_checkpoint`, with the settings and spaces that rebuild the agent."""
        return {
            "agent_state_dict": self.state_dict(),
            "config": {**settings.plain(self._config), "precision": self._asked_precision},
            "spaces": {"observation": describe_space(self.obs_space), "action": describe_space(self.act_space)},
            "optims_state_dict": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
        }

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """Loads weights of this agent, or of a flat agent of this program or of dreamerv3-torch.

        Flat weights are converted, so that an agent with two levels computes the same; see `models.flat_sources`.

        Args:
            state_dict: tensors by name, the entry "agent_state_dict" of a checkpoint.
            strict, assign: only PyTorch's defaults are allowed.
        Raises:
            ValueError: if they do not fit. Nothing has changed then.
        """
        if not strict or assign:
            raise ValueError("an agent's weights are loaded whole and copied: leave strict and assign out")
        fitting.load_into(self, {"agent_state_dict": state_dict})
        return _IncompatibleKeys([], [])

    def load_checkpoint(self, checkpoint: dict) -> dict[str, str]:
        """Loads weights as `load_state_dict` does, with the optimizers' moments and the number of updates.

        Args:
            checkpoint: with the entries "agent_state_dict" and "optims_state_dict".
        Returns:
            what the checkpoint held and how it was used, as texts by topic.
        Raises:
            ValueError: if something does not fit. Nothing has changed then.
        """
        entries = checkpoint if isinstance(checkpoint, dict) else {}
        missing = [name for name in sorted(checkpoints.AGENT) if not isinstance(entries.get(name), dict)]
        if missing:
            raise ValueError(
                f"a checkpoint is a dict whose entries {' and '.join(sorted(checkpoints.AGENT))} are dicts; {' and '.join(missing)} is none"
            )
        fitting.check_observations(self, checkpoint)
        found = fitting.load_into(self, checkpoint)
        self.updates = fitting.updates_of(self)
        return found


def load_agent(path: str | os.PathLike, device: str = "auto") -> Dreamer:
    """Loads the agent of a run, ready for `action, state = agent.act(obs, state)`.

    Args:
        path: the folder of a run, a checkpoint file, or pretrained/NAME for an agent that comes with the program.
        device: as the setting `device`.
    Raises:
        ValueError: if there is no agent, or if the file alone does not say how to build it.
    """
    return read_agent(path, device)[0]


def read_agent(path: str | os.PathLike, device: str = "auto") -> tuple[Dreamer, dict]:
    """Loads an agent as `load_agent` does; returns it with its checkpoint."""
    file = checkpoints.locate(path)
    checkpoint = checkpoints.load(file, "Give the folder of a run that dreamer.py has trained, or a checkpoint in it")
    stored = checkpoint.get("config")
    if not settings.holds_settings(stored) or "task" not in stored:
        raise ValueError(
            f"{file} holds no settings and task, so the agent cannot be built from it alone, as with all files of dreamerv3-torch; "
            f"start a run with them: python dreamer.py --configs ... --from_checkpoint {file}"
        )
    config = settings.load_config(overrides={"device": device, "compile": False, "cuda_graph": "false"}, stored=stored)
    spaces = _spaces(checkpoint, config)
    _check_size(spaces, config, checkpoint["agent_state_dict"])
    agent = Dreamer(*spaces, config)
    agent.load_state_dict(checkpoint["agent_state_dict"])
    agent.exploring, agent.updates = False, int(checkpoint.get("updates", 0))
    return agent, checkpoint


def _check_size(spaces: tuple, config: settings.Config, weights: dict) -> None:
    """Raises ValueError if the settings in a file describe an agent much larger than its weights."""
    config = copy.deepcopy(config)
    config.device = "meta"
    try:
        with torch.device("meta"):
            agent = Dreamer(*spaces, config)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the settings in the checkpoint mean no agent ({str(error).splitlines()[0]}); it is damaged") from error
    needed = sum(tensor.numel() for tensor in agent.state_dict().values())
    held = sum(tensor.numel() for tensor in weights.values() if torch.is_tensor(tensor)) if isinstance(weights, dict) else 0
    if needed > 2 * held:
        raise ValueError(f"the settings in the checkpoint mean an agent of {needed:,} numbers, and it holds {held:,}; it is damaged")


def _spaces(checkpoint: dict, config: settings.Config) -> tuple:
    """Observation and action space of a checkpoint. The first versions and the JAX original store none; then the environment tells them."""
    if isinstance(stored := checkpoint.get("spaces"), dict):
        return space_of(stored.get("observation")), space_of(stored.get("action"))
    if modules := modules_of(config.task, config.get("import")):
        raise ValueError(
            f"the checkpoint holds no spaces, and to find them in its environment, {', '.join(sorted(modules))} would be imported, which "
            "the checkpoint names; continue its run for one step, which stores them"
        )
    with contextlib.closing(make_envs(config, 1, training=False)) as envs:
        return envs.obs_space, envs.act_space


def start(config: settings.Config, make_env: Callable[[], gymnasium.Env] | None = None) -> Run:
    """Opens a run: its folder, data and agent. A run that the folder holds is resumed.

    Args:
        make_env: as for `main`.
    Raises:
        ValueError: if settings, environment, episodes or checkpoint do not fit. The folder has not changed then.
    """
    with contextlib.ExitStack() as opened:  # closes the lock and the environments if anything fails
        with ranks.all_or_none():
            run = Run(config, opened)
            data = (Recordings if config.offline_traindir else Environments)(run.config, opened, make_env)
            build = functools.partial(Dreamer, data.obs_space, data.act_space)
            run.read_checkpoint(build)
            data.open_replay(latent_layout(run.config) if run.config.replay_context else None)
            agent = build(run.config, dataset=data.replay)
        run.begin(agent, data)
        run.resources = opened.pop_all()  # the run closes them when it ends
    return run


def train(run: Run) -> None:
    """Collects steps and learns from them, until the run has `steps` frames or is stopped."""
    config, agent, collector, budget = run.config, run.agent, run.data.collector, run.data.budget
    prefill(run)
    pretrain(run)
    if run.stop:
        return
    with console.Progress("train", config.steps, "frames", run.step) as progress:
        while run.step < config.steps and not run.stop:
            collector.send(agent)  # environments begin to step
            for _ in budget.due(run.stop):  # update meanwhile
                run.add(agent.update())
            steps, episodes = run.meet(*collector.receive())
            budget.add(steps)
            run.count(steps, episodes)
            progress.update(run.step, episodes)
            run.evaluate_if_due()
            run.save_if_due()
    run.evaluate_if_due(last=True)


def prefill(run: Run) -> None:
    """Collects the first `prefill` steps, with random actions, or with the policy (`prefill_policy`, or of a trained agent)."""
    collector, missing = run.data.collector, run.data.missing_steps
    if missing <= 0:
        return
    trained = run.agent.updates > 0  # in another run, whose episodes are not here
    acts = trained or run.config.prefill_policy == "policy"
    policy = run.agent if acts else exploration.Random(run.agent.codec, tools.policy_seed(run.config.seed, run.step, ranks.rank()))
    collected = 0
    with console.Progress("prefill", missing, "steps") as progress:
        while collected < missing and run.step < run.config.steps and not run.stop:
            steps, episodes = run.meet(*collector.step(policy))
            collected += steps
            run.count(steps, episodes)
            progress.update(collected)
    if run.config.prefill_policy == "random":
        collector.restart()  # the agent must see an episode from its start


def pretrain(run: Run) -> None:
    """Runs the first `pretrain` updates, before the agent acts."""
    agent, updates = run.agent, run.config.pretrain
    if agent.updates >= updates or run.stop:
        return
    with console.Progress("pretrain", updates, "updates", agent.updates) as progress:
        while agent.updates < updates and not run.stop:
            run.add(agent.update())
            run.log_if_due()
            progress.update(agent.updates)
            run.save_if_due()


def train_on_recordings(run: Run) -> None:
    """Learns from recorded episodes, until the run has `steps` updates or is stopped."""
    config, agent = run.config, run.agent
    run.evaluate_if_due()  # the last evaluation may have been interrupted
    with console.Progress("train", config.steps, "updates", agent.updates) as progress:
        while agent.updates < config.steps and not run.stop:
            run.add(agent.update())
            run.log_if_due()
            progress.update(agent.updates)
            run.evaluate_if_due()
            run.save_if_due()
    run.evaluate_if_due(last=True)


def run_to_end(run: Run) -> None:
    """Trains, and saves everything at the end, also after an error."""
    with run:
        (train_on_recordings if run.config.offline_traindir else train)(run)


def main(argv: list[str] | None = None, make_env: Callable[[], gymnasium.Env] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: words of the command line; None takes those of the process.
        make_env: makes an environment of your own. `--task gym_<name>`, with any name, then means it.
    Returns:
        the exit code: 0, 1 if training failed or something could not be saved, 2 for what the user can correct, 130
        after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    with console.tolerant_output(), ranks.joined():
        if not argv:
            print(__doc__)
            return 2
        if "--help" in argv or "-h" in argv:
            print(f"{__doc__}\n{help_text(shutil.get_terminal_size().columns)}")
            return 0
        debug = False
        try:
            with ranks.all_or_none():
                presets, flags = settings.parse_flags(argv)
                debug = str(flags.get("debug", "")).lower() == "true"  # first, since the other settings may be wrong
                config = folder.command_settings(presets, flags)
                debug = config.debug
                if make_env is not None:
                    claim(config, make_env)
                ranks.take_device(config.device)
            run = start(config, make_env)
        except ranks.SaidElsewhere:
            return 2
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if debug:
                raise
            if ranks.is_first() or not isinstance(error, ranks.RankLost):
                print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            if ranks.is_first():
                print("Stopped before the run began.", file=sys.stderr)
            return 130
        try:
            run_to_end(run)
        except (nonfinite.NonFinite, EnvironmentFailed, ranks.RankLost) as error:
            if debug:
                raise
            if ranks.is_first() or not isinstance(error, ranks.RankLost):
                print(f"error: {error}", file=sys.stderr)
            tell_unsaved(run)
            return 1
        except ranks.SaidElsewhere:
            return tell_unsaved(run) or 1
        except KeyboardInterrupt:  # from elsewhere than Ctrl-C, or from an environment that is not waited for after `run.stop`
            console.say(how_to_resume(run, script=make_env is not None))
            return tell_unsaved(run) or (0 if run.stop else 130)
        console.say(how_to_resume(run, script=make_env is not None))
        return tell_unsaved(run)


def tell_unsaved(run: Run) -> int:
    """Says what could not be written, if anything; returns the exit code."""
    if unsaved := run.disk.unsaved():
        print(
            f"error: not everything could be written to {run.logdir}: {unsaved}; {free_space(run.logdir)}. What was "
            "written before stays good",
            file=sys.stderr,
        )
        return 1
    return 0


def how_to_resume(run: Run, script: bool = False) -> str:
    """Where a run ended, and the command that resumes it.

    Args:
        script: whether a script of the user's own started the run, since its environment comes from there.
    """
    config = run.config
    logdir = str(run.logdir)
    flags = ["--logdir", os.path.join(".", logdir) if logdir.startswith("-") else logdir]
    if modules_of(config.task, config.get("import")):  # a folder does not decide what is imported
        flags += ["--task", config.task, *(["--import", config["import"]] if config["import"] else [])]
    if run.clock < config.steps:
        saved = "but not everything could be saved" if run.disk.unsaved() else "everything is saved"
        ended = f"Stopped at {run.unit} {run.clock:,}, {saved}. To resume:"
    else:
        ended = f"Finished at {run.unit} {run.clock:,}. To train for longer:"
        flags += ["--steps", str(2 * config.steps)]
    command = "start the same script with" if script else f"{ranks.launcher() or tools.python_command()} dreamer.py"
    return f"{ended}\n    {command} {shlex.join(flags)}"


if __name__ == "__main__":
    sys.exit(main())
