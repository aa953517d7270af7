"""DreamerV3 with a flat or a two-level latent. Trains an agent on a task:

    python dreamer.py --configs defaults hdreamer --task atari_pong

--configs names presets of configs.yaml, and every setting in that file is a flag (--seed 1 --encoder.cnn_depth 16); --help
lists them.
"""

import contextlib
import copy
import os
import pathlib
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
from collect import Collector, Finished
from distributions import bounded
from encoders import ConvDecoder, ConvEncoder
from envs import make_envs
from envs.gym import modules_of, register
from envs.spaces import ActionCodec, as_batch, describe_space, space_of
from envs.workers import EnvironmentFailed
from heads import MLP
from layers import choose_library
from models import ImagBehavior, WorldModel
from optim import Metrics, Optimizer
from replay import Replay
from settings.help import help_text
from storage.disk import free_space
from storage.episodes import old_episodes, stored_steps
from tools import autocast
from training import folder, nonfinite, offline, run
from training.run import Run


class Dreamer(nn.Module):
    """The agent: a world model, and a behavior learned inside it.

    Args:
        obs_space: gymnasium Dict of a single environment's observations, images (H, W, C) uint8 and vectors (n,) float32.
        act_space: a single environment's action space.
        config: settings, from `tools.load_config`.
        logger: where an agent may log by itself; this one returns its metrics instead. May be None.
        dataset: iterator of batches that `update` draws from, for example a `Replay`; may be None.
    Attributes:
        obs_space, act_space: as given; what is only logged is left out.
        exploring: whether the exploring behavior (`expl_behavior`) acts in training, or the task's.
        updates: how many there have been.
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
        choose_library()
        self._dataset = dataset
        self.obs_space = gymnasium.spaces.Dict({key: space for key, space in obs_space.spaces.items() if not key.startswith("log_")})
        self.act_space, self.codec = act_space, ActionCodec(act_space)
        self._wm = WorldModel(obs_space, self.codec.size, config)
        self._task_behavior = ImagBehavior(self._wm.dynamics.feat_size, self.codec.size, self.codec.classes, config)
        self._expl_behavior = exploration.make_behavior(self._wm, self.codec, config)
        self.exploring = True
        self.updates = 0
        if config.compile:
            self._compile()

    def _compile(self) -> None:
        """Compiles in place what `act` and `update` call, so that names in checkpoints stay the same."""
        tools.check_compiler(self.device)
        # Actor and critic share a graph, which the first backward must leave whole.
        torch._functorch.config.donated_buffer = False
        self._wm.dynamics.compile_steps()
        for module in self.modules():
            if isinstance(module, (ConvEncoder, ConvDecoder)):
                module.compile()
            elif isinstance(module, MLP):
                module.layers.compile()

    @torch.no_grad()
    def act(self, obs: dict, state: dict | None = None, training: bool = False) -> tuple[np.ndarray, dict]:
        """Acts on a batch of N observations, or on a single one.

        Args:
            obs: arrays (N, ...) by name, of a single observation without N; the array alone where the agent observes one thing.
                `is_first` says where an episode begins (everywhere if there is no state).
            state: what the last call returned; None at the start.
            training: sample actions; otherwise the most likely ones are taken.
        Returns:
            N actions that the environment takes (one, without N, for a single observation), and the state for the next call, with
            the action vector (N, A) under "action".
        Raises:
            ValueError: for observations other than the agent was built for.
        """
        obs, single = as_batch(obs, self._wm.encoder.shapes)
        with autocast(self._config):
            begins = state is None or bool(torch.as_tensor(obs.get("is_first", False)).any())
            actions, state = self._act(self._wm.preprocess(obs), state, training, begins)
        return actions[0] if single else actions, state

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
        """Lets `act` return actions of an environment's space.

        An agent that has learned from recorded episodes alone knows no other discrete actions than those that count from 0, and no
        other continuous ones than those in [-1, 1].

        Raises:
            ValueError: if the agent's action vectors are others.
        """
        codec = ActionCodec(act_space)
        if (codec.size, codec.classes) != (self.codec.size, self.codec.classes):
            raise ValueError(
                f"the agent has learned actions {self.act_space}, and the environment takes {act_space}; give an environment "
                "of the task that it has learned"
            )
        self.act_space, self.codec = act_space, codec

    def update(self, batch: dict | None = None) -> Metrics:
        """One update of world model, actor and critic on a batch of arrays (B, T, ...), drawn from the dataset if none is given.

        Returns:
            scalar tensors by name.
        Raises:
            nonfinite.NonFinite: if losses or gradients have not been finite for many updates; none of those has changed anything.
        """
        if batch is None:
            if self._dataset is None:
                raise ValueError("update() needs a batch, since the agent was built without a dataset")
            batch = next(self._dataset)
        missing = {"action", "reward", "is_first", "is_terminal"} - set(batch)
        if missing:
            raise ValueError(f"a batch needs {', '.join(sorted(missing))} beside the observation; it has {', '.join(sorted(batch))}")
        data = self._wm.preprocess(batch)
        post, metrics = self._wm.update(data)
        metrics.update(self._task_behavior.update(self._wm, post, data["cont"], self.updates))
        if self._explorer:
            metrics.update(self._explorer.update(self._wm, post, data, self.updates))
        self.updates += 1
        if self.updates % nonfinite.LOOK_EVERY == 0:
            nonfinite.check(self, batch)
        return metrics

    @torch.no_grad()
    def model_losses(self, batch: dict) -> Metrics:
        """The world model's losses on a batch of arrays (B, T, ...), without an update; scalar tensors by name."""
        loss, _, metrics = self._wm.loss(self._wm.preprocess(batch))
        return {"model_loss": loss, **{key: value.mean() for key, value in metrics.items()}}

    def video_pred(self, batch: dict) -> dict[str, np.ndarray]:
        """Open-loop predictions of images, see `WorldModel.video_pred`."""
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
        """The exploring behavior, if it is one that learns."""
        return self._expl_behavior if isinstance(self._expl_behavior, exploration.Plan2Explore) else None

    def optimizers(self) -> dict[str, Optimizer]:
        """All optimizers by the names that they have in checkpoints."""
        task, explorer = self._task_behavior, self._explorer
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
        """Every layer whose first inputs are latents."""
        explorer = self._explorer.latent_readers() if self._explorer else []
        return self._wm.latent_readers() + self._task_behavior.latent_readers() + explorer

    def latent_writers(self) -> list[nn.Linear]:
        """Every layer beside the dynamics whose first outputs are latents."""
        return self._explorer.latent_writers() if self._explorer else []

    def checkpoint(self) -> dict:
        """Weights and optimizers, as `load_checkpoint` takes them up, with settings and spaces, from which the agent can be built."""
        return {
            "agent_state_dict": self.state_dict(),
            "config": settings.plain(self._config),
            "spaces": {"observation": describe_space(self.obs_space), "action": describe_space(self.act_space)},
            "optims_state_dict": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
        }

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """Takes up weights: this agent's own, or those of a flat agent, written by this program or by dreamerv3-torch.

        Flat weights are converted so that an agent with two levels computes the same; see `models.flat_sources`.

        Args:
            state_dict: tensors by name, the entry "agent_state_dict" of a checkpoint.
            strict, assign: only what PyTorch has as defaults.
        Raises:
            ValueError: if they do not fit; then nothing has changed.
        """
        if not strict or assign:
            raise ValueError("an agent's weights are loaded whole and copied: leave strict and assign out")
        fitting.load_into(self, state_dict)
        return _IncompatibleKeys([], [])

    def load_checkpoint(self, checkpoint: dict) -> dict[str, str]:
        """Takes up weights as `load_state_dict` does, and the optimizers' moments, which follow them, with the count of updates.

        Args:
            checkpoint: with the entries "agent_state_dict" and "optims_state_dict".
        Returns:
            what was found and what was done with it, texts by topic.
        Raises:
            ValueError: if something does not fit; then nothing has changed.
        """
        entries = checkpoint if isinstance(checkpoint, dict) else {}
        missing = [name for name in sorted(checkpoints.AGENT) if not isinstance(entries.get(name), dict)]
        if missing:
            raise ValueError(
                f"a checkpoint is a dict whose entries {' and '.join(sorted(checkpoints.AGENT))} are dicts; {' and '.join(missing)} is none"
            )
        found = fitting.load_into(self, checkpoint["agent_state_dict"], checkpoint["optims_state_dict"])
        self.updates = fitting.updates_of(self)
        return found


def load_agent(path: str | os.PathLike, device: str = "auto") -> Dreamer:
    """The agent of a run, ready to act: `action, state = agent.act(obs, state)`.

    Args:
        path: the folder of a run, or a checkpoint file; nothing else is read.
        device: where it computes, as the setting `device`.
    Raises:
        ValueError: if there is no agent, or one that cannot be built from the file alone.
    """
    return read_agent(path, device)[0]


def read_agent(path: str | os.PathLike, device: str = "auto") -> tuple[Dreamer, dict]:
    """As `load_agent`; and the checkpoint that the agent comes from."""
    file = checkpoints.locate(os.fspath(path))
    checkpoint = checkpoints.load(file, "Give the folder of a run that dreamer.py has trained, or a checkpoint in it")
    stored = checkpoint.get("config")
    if not settings.holds_settings(stored):
        raise ValueError(
            f"{file} holds no settings, so the agent cannot be built from it alone, as with all files of dreamerv3-torch; "
            f"start a run with them: python dreamer.py --configs ... --from_checkpoint {file}"
        )
    config = settings.load_config(overrides={**settings.flatten(stored), "device": device, "compile": False})
    spaces = _spaces(checkpoint, config)
    _check_size(spaces, config, checkpoint["agent_state_dict"])
    agent = Dreamer(*spaces, config)
    agent.load_state_dict(checkpoint["agent_state_dict"])
    agent.exploring, agent.updates = False, int(checkpoint.get("updates", 0))
    return agent, checkpoint


def _check_size(spaces: tuple, config: settings.Config, weights: dict) -> None:
    """Raises ValueError if the settings in a file mean an agent far larger than the weights in it; it would take all memory."""
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
    """Observation and action space; checkpoints of the first versions do not hold them, their environment does."""
    if isinstance(stored := checkpoint.get("spaces"), dict):
        return space_of(stored.get("observation")), space_of(stored.get("action"))
    if modules := modules_of(config.task, config.get("import")):
        raise ValueError(
            f"the checkpoint holds no spaces, and to find them in its environment, {', '.join(sorted(modules))} would be imported, which "
            "the checkpoint names; continue its run for one step, which stores them"
        )
    with contextlib.closing(make_envs(config, 1, training=False)) as envs:
        return envs.obs_space, envs.act_space


class Training(Run):
    """A run that steps environments: its memory, and the loop that acts and updates by turns.

    Args:
        config: settings, from `tools.load_config`.
    """

    def open(self, opened: contextlib.ExitStack) -> None:
        """Builds environments, memory and agent."""
        config = self.config
        self.envs = opened.enter_context(contextlib.closing(make_envs(config, config.envs, training=True)))
        self.eval_envs = self.open_eval_envs(opened)
        self.replay = Replay(
            self.envs.obs_space,
            ActionCodec(self.envs.act_space).size,
            capacity=self._replay_capacity(),
            streams=config.envs,
            batch_size=config.batch_size,
            batch_length=config.batch_length,
            seed=config.seed,
        )
        self.agent = Dreamer(self.envs.obs_space, self.envs.act_space, config, dataset=self.replay)
        self.removed_steps = 0  # agent steps of episodes whose files are gone
        self.removing: dict[str, int] = {}  # files that are removed once a checkpoint names them, and their steps
        self.budget = tools.UpdateBudget(config.train_ratio, config.batch_size * config.batch_length)

    def _replay_capacity(self) -> int:
        """What the run can collect, with a tenth for the first observations of episodes, but no more than `dataset_size`."""
        return min(self.config.dataset_size, int(1.1 * self.config.steps / self.config.action_repeat) + self.config.prefill)

    def about(self) -> list[tuple[str, str]]:
        """Where the data comes from and how it is used, for the summary."""
        config = self.config
        per_update = config.batch_size * config.batch_length / config.train_ratio
        return [
            (
                "environments",
                f"{self.envs.count} to train, {self.eval_envs.count if self.eval_envs else 0} to evaluate; "
                f"{run.describe_spaces(self.envs.obs_space, self.envs.act_space)}",
            ),
            ("replay", f"{self.replay.capacity:,} steps, {self.replay.nbytes:,} bytes"),
            ("updates", f"{config.batch_size} x {config.batch_length} steps, one every {per_update:g} agent steps"),
        ]

    def begin(self, checkpoint: dict | None) -> None:
        """Loads the episodes that belong to what was taken up, and starts the environments."""
        directory = self.logdir / "train_eps"
        if self.origin:
            folder.take_over_episodes(self.origin.parent / "train_eps", directory)
        loaded_steps = self.replay.load(directory)
        on_disk = {path.name: steps for path, steps in stored_steps(directory).items()}
        # A run that was killed may not have come to remove them all.
        self.removed_steps += sum(steps for name, steps in self.removing.items() if name not in on_disk)
        self.step = max(self.step, (sum(on_disk.values()) + self.removed_steps) * self.config.action_repeat)  # frames
        if self.step and not checkpoint:
            console.warn(
                f"there are episodes in {directory}, but no checkpoint: a new agent begins at frame {self.step:,}, "
                f"with {loaded_steps:,} of their steps in memory"
            )
        elif checkpoint:
            console.say(f"Continuing at frame {self.step:,} after {self.agent.updates:,} updates, with {loaded_steps:,} steps in memory.")
        self.missing_steps = self._missing_prefill(loaded_steps)
        seed = tools.train_seed(self.config.seed, self.step)
        self.collector = Collector(self.envs, self.replay, directory, self.disk, seed=seed, training=True)
        self.set_exploring()

    def _missing_prefill(self, loaded_steps: int) -> int:
        """Agent steps to collect before training; none where the memory was filled by an earlier run."""
        filled = len(self.replay) >= min(self.config.prefill, self.replay.capacity)
        return 0 if filled else self.config.prefill - loaded_steps

    @property
    def clock(self) -> int:
        """Frames that have been collected."""
        return self.step

    def rates(self) -> dict[str, int]:
        return {"fps": self.step, **super().rates()}

    def counters(self) -> dict:
        return {**super().counters(), "update_credit": self.budget.credit, "removed_steps": self.removed_steps, "removing": self.removing}

    def save(self) -> bool:
        """Writes the checkpoint, and then removes the files of episodes that `dataset_size` steps have no room for, if that is asked for.

        The checkpoint names them, so that their steps are counted whether or not they are gone when the run goes on.
        """
        directory, changed = self.logdir / "train_eps", self.changed
        old = [] if self.config.keep_episodes else old_episodes(directory, self.config.dataset_size)
        self.removing = {path.name: steps for path, steps in old}
        written = super().save()
        if changed:
            self._remove(old)
        if changed and old and not written:  # now there may be room for it
            written = super().save()
        return written

    def _remove(self, episodes: list[tuple[pathlib.Path, int]]) -> None:
        try:
            for path, steps in episodes:
                path.unlink()
                self.removed_steps += steps
                del self.removing[path.name]
        except OSError as error:
            self.disk.warn("the folder of episodes", self.logdir, error)

    def restore(self, checkpoint: dict) -> None:
        super().restore(checkpoint)
        self.removed_steps = int(checkpoint.get("removed_steps", 0))
        self.removing = {str(name): int(steps) for name, steps in checkpoint.get("removing", {}).items()}
        if not self.origin:
            self.budget.credit = checkpoint["update_credit"]

    def learn(self) -> None:
        """Trains until `steps` frames have been collected, or until it is told to stop."""
        self.prefill()
        self.pretrain()
        self.train()

    def end(self) -> None:
        """Writes and logs the open episodes, cut off."""
        self.log_episodes(self.collector.close_episodes())

    def prefill(self) -> None:
        """Collects the first steps, with random actions unless the agent has been trained before."""
        if self.missing_steps <= 0:
            return
        trained = self.agent.updates > 0  # elsewhere, and its episodes are not here
        policy = self.agent if trained else exploration.Random(self.agent.codec, tools.policy_seed(self.config.seed, self.step))
        with console.Progress("prefill", self.missing_steps, "steps") as progress:
            collected = 0
            while collected < self.missing_steps and self.step < self.config.steps and not self.stop:
                new_steps, finished = self.collector.step(policy)
                collected += new_steps
                self.advance(new_steps, finished)
                progress.update(collected)
        self.collector.restart()  # the agent begins with episodes that it has seen from the start

    def pretrain(self) -> None:
        """Trains on the prefilled memory before the agent first acts."""
        if self.agent.updates >= self.config.pretrain or self.stop:
            return
        with console.Progress("pretrain", self.config.pretrain, "updates", self.agent.updates) as progress:
            while self.agent.updates < self.config.pretrain and not self.stop:
                self.logger.add(self.agent.update(), prefix="train")
                self.log()
                progress.update(self.agent.updates)
                if self.should_save():
                    self.save()

    def train(self) -> None:
        """Acts and updates by turns; updates run while the environments step."""
        if self.stop:
            return
        with console.Progress("train", self.config.steps, "frames", self.step) as progress:
            while self.step < self.config.steps and not self.stop:
                self.collector.send(self.agent)
                for _ in range(self.budget.take()):
                    self.logger.add(self.agent.update(), prefix="train")
                new_steps, finished = self.collector.receive()
                self.budget.add(new_steps)
                self.advance(new_steps, finished)
                progress.update(self.step)
                if finished:
                    progress.note(f"return {finished[-1].sums['return']:.4g}")
                self.evaluate_if_due()
                if self.should_save():
                    self.save()
            if not self.stop:
                self.evaluate_if_due()  # the run may have been stopped in the middle of its last one

    def advance(self, new_steps: int, finished: list[Finished]) -> None:
        """Counts collected steps and logs finished episodes."""
        self.step += new_steps * self.config.action_repeat
        self.set_exploring()
        self.log_episodes(finished)
        self.log()

    def log_episodes(self, finished: list[Finished]) -> None:
        """Logs episodes; those that were cut off apart, since their returns are not those of whole ones."""
        for episode in finished:
            self.logger.add(episode.metrics, prefix="cut_off" if episode.cut else "episode")

    def set_exploring(self) -> None:
        """Lets the exploring behavior act until `expl_until`."""
        self.agent.exploring = self.step < (self.config.expl_until or self.config.steps)


class OfflineTraining(Run):
    """A run that learns from recorded episodes; environments are stepped in evaluations alone.

    If it evaluates, observations and actions are those of the environment. Otherwise they follow from the episodes, and no
    environment is needed.

    Args:
        config: settings, from `tools.load_config`.
    """

    def open(self, opened: contextlib.ExitStack) -> None:
        """Reads the episodes, builds memory, agent and the environments to evaluate in."""
        config = self.config
        try:
            self.eval_envs = self.open_eval_envs(opened)
        except ValueError as error:
            raise ValueError(f"{error}. To learn from recorded episodes without an environment: --eval_episode_num 0") from error
        wanted = (self.eval_envs.obs_space, self.eval_envs.act_space) if self.eval_envs else None
        self.recording = recording = offline.survey("offline_traindir", config.offline_traindir, wanted, config.task, config)
        self.replay = offline.fill(recording, config)
        self.held_out = None
        if config.offline_evaldir:
            wanted = recording.obs_space, recording.act_space
            self.held_out = offline.survey("offline_evaldir", config.offline_evaldir, wanted, config.offline_traindir, config)
            self.held_out_memory = offline.fill(self.held_out, config)
        self.agent = Dreamer(recording.obs_space, recording.act_space, config, dataset=self.replay)

    def about(self) -> list[tuple[str, str]]:
        """Where the data comes from and how it is used, for the summary."""
        config, recording = self.config, self.recording
        held_out = [("held out", str(self.held_out))] if self.held_out else []
        return [
            ("recorded", f"{recording}; {run.describe_spaces(recording.obs_space, recording.act_space)}"),
            *held_out,
            ("environments", f"none to train, {self.eval_envs.count if self.eval_envs else 'none'} to evaluate"),
            ("replay", f"{len(self.replay):,} of {sum(recording.lengths.values()):,} steps, {self.replay.nbytes:,} bytes"),
            ("updates", f"{config.batch_size} x {config.batch_length} steps, {config.steps:,} updates"),
        ]

    def begin(self, checkpoint: dict | None) -> None:
        """Says where it goes on."""
        if checkpoint:
            console.say(f"Continuing at update {self.clock:,}.")

    @property
    def clock(self) -> int:
        """Updates there have been."""
        return self.agent.updates

    def learn(self) -> None:
        """Trains until there have been `steps` updates, or until it is told to stop."""
        self.evaluate_if_due()  # the run may have been stopped in the middle of its last one
        with console.Progress("train", self.config.steps, "updates", self.clock) as progress:
            while self.clock < self.config.steps and not self.stop:
                self.logger.add(self.agent.update(), prefix="train")
                self.log()
                progress.update(self.clock)
                self.evaluate_if_due()
                if self.should_save():
                    self.save()

    def measure(self) -> list[dict]:
        """Metrics of episodes, if any are played, and the world model's losses on held-out ones, if there are any."""
        batches = offline.held_out_batches(self.held_out_memory) if self.held_out else []
        return super().measure() + [self.agent.model_losses(batch) for batch in batches]


def main(argv: list[str] | None = None, make_env: Callable[[], gymnasium.Env] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if something could not be saved, or 2 for what the user can put right.

    Args:
        make_env: makes an environment of your own, which `--task gym_<name>` then stands for, whatever the name.
    """
    argv = sys.argv[1:] if argv is None else argv
    with console.tolerant_output():
        if "--help" in argv or "-h" in argv:
            print(f"{__doc__}\n{help_text(shutil.get_terminal_size().columns)}")
            return 0
        debug = False
        try:
            presets, flags = settings.parse_flags(argv)
            debug = str(flags.get("debug", "")).lower() == "true"  # before all else, since the other settings may be wrong
            config = settings.load_config(presets, flags)
            debug = config.debug
            if make_env:
                register(config.task, make_env)
            training = (OfflineTraining if config.offline_traindir else Training)(config)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if debug:
                raise
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Stopped before the run began.", file=sys.stderr)
            return 130
        try:
            training.run()
        except (nonfinite.NonFinite, EnvironmentFailed) as error:
            if debug:
                raise
            print(f"error: {error}", file=sys.stderr)
            tell_unsaved(training)
            return 1
        console.say(how_to_continue(training, presets, flags))
        return tell_unsaved(training)


def tell_unsaved(training: Run) -> int:
    """Says what could not be written until the end, if anything; returns the exit code."""
    if unsaved := training.disk.unsaved():
        print(
            f"error: not everything could be written to {training.logdir}: {unsaved}; {free_space(training.logdir)}. What was "
            "written before stays good",
            file=sys.stderr,
        )
        return 1
    return 0


def how_to_continue(training: Run, presets: list[str], flags: dict) -> str:
    """Where a run ended, and the command that continues it."""
    flags = {**flags, "logdir": str(training.logdir)}
    flags.pop("from_checkpoint", None)  # the folder has all of it now
    if training.clock < training.config.steps:
        saved = "but not everything could be saved" if training.disk.unsaved() else "everything is saved"
        ended = f"Stopped at {training.unit} {training.clock:,}, {saved}. To continue:"
    else:
        ended = f"Finished at {training.unit} {training.clock:,}. To train on, with more steps:"
        flags["steps"] = str(2 * training.config.steps)
    words = ["python", "dreamer.py", "--configs", *presets]
    for name, value in flags.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return f"{ended}\n    {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
