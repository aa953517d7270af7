"""DreamerV3 with a flat or a two-level latent. Trains an agent on a task:

    python dreamer.py --configs defaults hdreamer --task atari_pong

--configs names presets of configs.yaml, and every setting in that file is a flag (--seed 1 --encoder.cnn_depth 16); --help
lists them.
"""

import contextlib
import copy
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

import checkpoints
import console
import exploration
import runs
import settings
import tools
import weights
import writers
from collect import Collector, Finished, play_episodes
from encoders import ConvDecoder, ConvEncoder
from envs import make_envs
from envs.spaces import ActionCodec
from heads import MLP
from models import ImagBehavior, Metrics, Optimizer, WorldModel, autocast
from replay import Replay, count_stored_steps


class Dreamer(nn.Module):
    """The agent: a world model, and a behavior learned inside it.

    Args:
        obs_space: gymnasium Dict of a single environment's observations, images (H, W, C) uint8 and vectors (n,) float32.
        act_space: a single environment's action space.
        config: settings, from `tools.load_config`.
        logger: where an agent may log by itself; this one returns its metrics instead. May be None.
        dataset: iterator of batches that `update` draws from, for example a `Replay`; may be None.
    Attributes:
        exploring: whether the exploring behavior (`expl_behavior`) acts in training, or the task's.
        updates: how many there have been.
    """

    def __init__(self, obs_space: gymnasium.spaces.Dict, act_space: gymnasium.Space, config: settings.Config, logger=None,
                 dataset: Iterator[dict] | None = None):
        super().__init__()
        self._config = config = copy.deepcopy(config)
        config.device = self.device = tools.pick_device(config.device)
        self._dataset = dataset
        self.codec = ActionCodec(act_space)
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
        """Acts on a batch of N observations.

        Args:
            obs: arrays (N, ...); `is_first` says where an episode begins (everywhere if there is no state).
            state: what the last call returned; None at the start.
            training: sample actions; otherwise the most likely ones are taken.
        Returns:
            N actions that the environment takes, and the state for the next call, with the action vector (N, A) under "action".
        """
        with autocast(self._config):
            begins = state is None or bool(torch.as_tensor(obs.get("is_first", False)).any())
            return self._act(self._wm.preprocess(obs), state, training, begins)

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
        action = policy.sample() if training else policy.mode
        return self.codec.decode(action.cpu().numpy()), {**latent, "action": action}

    def update(self, batch: dict | None = None) -> Metrics:
        """One update of world model, actor and critic on a batch of arrays (B, T, ...), drawn from the dataset if none is given.

        Returns:
            scalar tensors by name.
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
        return metrics

    def video_pred(self, batch: dict) -> dict[str, np.ndarray]:
        """Open-loop predictions of images, see `WorldModel.video_pred`."""
        return self._wm.video_pred(batch)

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each module."""
        behavior = self._task_behavior
        modules = {"encoder": self._wm.encoder, "dynamics": self._wm.dynamics, **self._wm.heads, "actor": behavior.actor,
                   "critic": behavior.value}
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
        optimizers = {"_wm._model_opt._opt": self._wm._model_opt, "_task_behavior._actor_opt._opt": task._actor_opt,
                      "_task_behavior._value_opt._opt": task._value_opt}
        if explorer:
            optimizers |= {"_expl_behavior._expl_opt._opt": explorer._expl_opt,
                           "_expl_behavior._behavior._actor_opt._opt": explorer._behavior._actor_opt,
                           "_expl_behavior._behavior._value_opt._opt": explorer._behavior._value_opt}
        return optimizers

    def latent_readers(self) -> list[nn.Linear]:
        """Every layer whose first inputs are latents."""
        explorer = self._explorer.latent_readers() if self._explorer else []
        return self._wm.latent_readers() + self._task_behavior.latent_readers() + explorer

    def latent_writers(self) -> list[nn.Linear]:
        """Every layer beside the dynamics whose first outputs are latents."""
        return self._explorer.latent_writers() if self._explorer else []

    def checkpoint(self) -> dict:
        """Weights and optimizers, as `load_checkpoint` takes them up, and settings."""
        return {"agent_state_dict": self.state_dict(), "config": settings.plain(self._config),
                "optims_state_dict": {name: optimizer.state_dict() for name, optimizer in self.optimizers().items()}}

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
        weights.load(self, state_dict)
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
            raise ValueError(f"a checkpoint is a dict whose entries {' and '.join(sorted(checkpoints.AGENT))} are dicts; "
                             f"{' and '.join(missing)} is none")
        found = weights.load(self, checkpoint["agent_state_dict"], checkpoint["optims_state_dict"])
        self.updates = weights.updates_of(self)
        return found


class Training:
    """A run: environments, replay memory, agent and logger, and the loop that connects them.

    Building it takes up what the logdir holds of an earlier run.

    Args:
        config: settings, from `tools.load_config`.
    """

    def __init__(self, config: settings.Config):
        self.config = config = copy.deepcopy(config)
        changes = []
        if config.logdir:
            self.logdir = pathlib.Path(config.logdir).expanduser()
            config.logdir = str(self.logdir)
            changes = settings.changes_of_run(runs.stored_config(self.logdir), config, self.logdir)
        # The checkpoint of another run or program that this one begins with.
        self.origin = None if config.from_checkpoint is None else checkpoints.locate(config.from_checkpoint)
        writers.check(config)
        tools.set_seed(config.seed, config.deterministic_run)
        tools.keep_freed_memory()
        tools.allow_tf32()
        self.stop = tools.StopSignal()
        with contextlib.ExitStack() as opened:  # closes the environments if anything after them fails
            self.envs = opened.enter_context(contextlib.closing(make_envs(config, config.envs, training=True)))
            eval_envs = min(config.eval_envs, config.eval_episode_num) if config.eval_every else 0
            self.eval_envs = make_envs(config, eval_envs, training=False) if eval_envs else None
            if self.eval_envs:
                opened.enter_context(contextlib.closing(self.eval_envs))
            self._build(changes)
            self._opened = opened.pop_all()

    def _build(self, changes: list[tuple[str, str, str]]) -> None:
        """Everything around the environments, with what the logdir holds; its settings change by `changes`."""
        config = self.config
        self.replay = Replay(
            self.envs.obs_space, ActionCodec(self.envs.act_space).size, capacity=self._replay_capacity(), streams=config.envs,
            batch_size=config.batch_size, batch_length=config.batch_length, seed=config.seed)
        self.agent = Dreamer(self.envs.obs_space, self.envs.act_space, config, dataset=self.replay)
        self.budget = tools.UpdateBudget(config.train_ratio, config.batch_size * config.batch_length)
        self.step, self.last_eval, self.saved = 0, 0, None
        checkpoint, found = self.take_up_agent()
        self.logdir = runs.open_logdir(config)
        config.logdir = str(self.logdir)
        console.say(self.summary())
        if self.origin:
            self._report(checkpoint, found)
        self.missing_steps = self._missing_prefill(self.resume(checkpoint))
        self.logger = tools.Logger(self.logdir, writers.of_run(config, self.logdir))
        self.collector = Collector(self.envs, self.replay, self.logdir / "train_eps", seed=train_seed(config.seed, self.step),
                                   training=True)
        self.should_eval = tools.Every(config.eval_every, self.last_eval)
        self.should_save = tools.Timer(config.checkpoint_every)
        self.should_log = tools.Every(config.log_every, self.step)
        self.log_timer = tools.Timer(60.0)
        self.speed = tools.Speed(fps=self.step, updates_per_second=self.agent.updates)
        self.set_exploring()
        if self.origin == self.logdir / "latest.pt":
            console.say(f"The file itself is kept as {runs.keep_original(self.origin)}.")
        if self.origin:
            self.save()
        # Last, since from now on these settings bind whoever continues the run.
        runs.store_config(self.logdir, config, changes, self.step)
        if changes:
            console.say(console.table("Settings that change from here on", _arrows(changes)))

    def summary(self) -> str:
        """What runs where, and the settings that are not the defaults, for the console."""
        config, counts = self.config, self.agent.parameter_counts()
        device = tools.describe_device(self.agent.device)
        spaces = ", ".join(f"{key} {space.shape} {space.dtype}" for key, space in self.envs.obs_space.spaces.items())
        levels = " + ".join(f"{level.stoch} x {level.discrete} {name}" if level.discrete else f"{level.stoch} Gaussians"
                            for name, level in self.agent._wm.dynamics.levels.items())
        per_update = config.batch_size * config.batch_length / config.train_ratio
        about = console.table("hDreamer", [
            ("task", config.task),
            ("run", str(self.logdir)),
            ("device", f"{device}, precision {config.precision}{', compiled' if config.compile else ''}"),
            ("environments", f"{self.envs.count} to train, {self.eval_envs.count if self.eval_envs else 0} to evaluate; "
                             f"observations {spaces}; actions {self.envs.act_space}"),
            ("replay", f"{self.replay.capacity:,} steps, {self.replay.nbytes:,} bytes"),
            ("updates", f"{config.batch_size} x {config.batch_length} steps, one every {per_update:g} agent steps"),
            ("latent", levels),
            ("parameters", f"{sum(counts.values()):,}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"),
        ])
        differing = [change for change in settings.changes_from_defaults(config) if change[0] not in ("task", "logdir")]
        return about + ("\n" + console.table("Settings that differ from the defaults", _arrows(differing)) if differing else "")

    def _replay_capacity(self) -> int:
        """What the run can collect, with a tenth for the first observations of episodes, but no more than `dataset_size`."""
        return min(self.config.dataset_size, int(1.1 * self.config.steps / self.config.action_repeat) + self.config.prefill)

    def _missing_prefill(self, stored_steps: int) -> int:
        """Agent steps to collect before training; none where the memory was filled by an earlier run."""
        filled = len(self.replay) >= min(self.config.prefill, self.replay.capacity)
        return 0 if filled else self.config.prefill - stored_steps

    def run(self) -> None:
        """Trains until `steps` frames have been collected, or until it is told to stop; saves everything at the end."""
        with self.stop, contextlib.closing(self):
            self.prefill()
            self.pretrain()
            self.train()
            self.collector.close_episodes()
            self.save()

    def prefill(self) -> None:
        """Collects the first steps, with random actions unless the agent has been trained before."""
        if self.missing_steps <= 0:
            return
        trained = self.agent.updates > 0  # elsewhere, and its episodes are not here
        policy = self.agent if trained else exploration.Random(self.agent.codec, policy_seed(self.config.seed, self.step))
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
        for episode in finished:
            self.logger.add(episode.metrics, prefix="episode")
        self.log()

    def set_exploring(self) -> None:
        """Lets the exploring behavior act until `expl_until`."""
        self.agent.exploring = self.step < (self.config.expl_until or self.config.steps)

    def log(self) -> None:
        """Writes metrics every `log_every` frames or 60 seconds."""
        if self.should_log(self.step) or self.log_timer():
            self.log_timer.restart()
            self.logger.add({**self.speed(fps=self.step, updates_per_second=self.agent.updates), "updates": self.agent.updates},
                            prefix="time")
            self.logger.write(self.step)

    def evaluate_if_due(self) -> None:
        """Evaluates every `eval_every` frames, and saves."""
        if self.should_eval(self.step):
            self.evaluate()
            self.save()

    def evaluate(self) -> None:
        """Plays evaluation episodes, unless there are none to play, and draws open-loop predictions."""
        if self.eval_envs:
            episodes = play_episodes(self.agent, self.eval_envs, self.config.eval_episode_num, eval_seed(self.config.seed), self.stop)
            if self.stop:
                return  # after a resume the evaluation is made up for
            for episode in episodes:
                self.logger.add(episode.metrics, prefix="eval")
        self.last_eval = self.step
        if self.config.video_pred_log:
            batch = {key: value[:6] for key, value in self.replay.sample().items()}
            for key, video in self.agent.video_pred(batch).items():
                self.logger.video(f"openl_{key}", video, self.step)
        self.logger.write(self.step)

    def save(self) -> None:
        """Writes latest.pt, unless nothing has changed since the last time."""
        if (self.step, self.agent.updates) == self.saved:
            return
        self.saved = (self.step, self.agent.updates)
        checkpoints.save(self.logdir / "latest.pt", {
            **self.agent.checkpoint(),
            "step": self.step,
            "last_eval": self.last_eval,
            "updates": self.agent.updates,
            "update_credit": self.budget.credit,
            "random_state": checkpoints.random_state(self.replay.rng),
            "config": settings.plain(self.config),  # the run's: the device as it was given, not the one that was found
        })
        self.should_save.restart()

    def take_up_agent(self) -> tuple[dict | None, dict[str, str]]:
        """Loads weights and optimizers: from latest.pt if the logdir has one, else from `from_checkpoint`.

        Returns:
            the checkpoint, None if there is none; and what was found in it, see `Dreamer.load_checkpoint`.
        """
        own = self.logdir / "latest.pt" if self.config.logdir else None
        if own and own.exists():
            if self.origin:
                console.warn(f"from_checkpoint is not read, since {self.logdir} has a checkpoint of its own")
            self.origin, path, way_out = None, own, None
        elif self.origin:
            path, way_out = self.origin, "Give another --from_checkpoint"
        else:
            return None, {}
        checkpoint = checkpoints.load(path, way_out)
        if "version" not in checkpoint:
            self.origin = path
        try:
            found = self.agent.load_checkpoint(checkpoint)
            self._restore(checkpoint)
        except ValueError as error:
            raise ValueError(f"{path}: {error}. {way_out or 'Or give another --logdir'}") from error
        return checkpoint, found

    def _restore(self, checkpoint: dict) -> None:
        """Sets counters, and random states if the run goes on in its own folder."""
        try:
            self.step = self.last_eval = int(checkpoint.get("step", 0))
            self.agent.updates = int(checkpoint.get("updates", self.agent.updates))
            if not self.origin:
                self.last_eval, self.budget.credit = checkpoint["last_eval"], checkpoint["update_credit"]
                self.saved = (self.step, self.agent.updates)
                checkpoints.restore_random_state(checkpoint["random_state"], self.replay.rng)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"it is incomplete or damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error

    def resume(self, checkpoint: dict | None) -> int:
        """Loads the episodes that belong to what was taken up; returns the agent steps in memory."""
        directory = self.logdir / "train_eps"
        if self.origin:
            runs.take_over_episodes(self.origin.parent / "train_eps", directory)
        stored_steps = self.replay.load(directory)
        self.step = max(self.step, count_stored_steps(directory) * self.config.action_repeat)  # frames
        if self.origin or not checkpoint:
            self.last_eval = self.step  # evaluations of another run do not count
        if self.step or checkpoint:
            console.say(f"Continuing at frame {self.step:,} after {self.agent.updates:,} updates, with {stored_steps:,} steps in "
                        "memory.")
        return stored_steps

    def _report(self, checkpoint: dict, found: dict[str, str]) -> None:
        """Says what was taken over from another run or program, and how its settings differ, if it tells."""
        console.say(console.table("Agent taken over", [("from", str(self.origin)), *found.items()]))
        differing = settings.changes_of_model(checkpoint.get("config"), self.config)
        if differing:
            console.say(console.table("Settings that differ from those it was trained with", _arrows(differing)))

    def close(self) -> None:
        """Ends writers and environments."""
        self.logger.write(self.step)
        self.logger.close()
        self._opened.close()


def _arrows(changes: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(name, f"{old} -> {new}") for name, old, new in changes]


def train_seed(seed: int, step: int) -> int:
    """Seed of the training environments that start at this frame, so that a continued run meets new episodes."""
    return _derived_seed(seed, 0, step)


def eval_seed(seed: int) -> int:
    """Seed of the evaluation environments: other than in training, and the same at every evaluation."""
    return _derived_seed(seed, 1)


def policy_seed(seed: int, step: int) -> int:
    """Seed of the random actions from this frame on. Environments have generators of the same kind, so theirs must differ."""
    return _derived_seed(seed, 2, step)


def _derived_seed(*keys: int) -> int:
    # Environments add their index and want 31 bits.
    return int(np.random.SeedSequence(keys).generate_state(1)[0] >> 2)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    with console.tolerant_output():
        if "--help" in argv or "-h" in argv:
            print(f"{__doc__}\n{settings.help_text(shutil.get_terminal_size().columns)}")
            return 0
        debug = False
        try:
            presets, flags = settings.parse_flags(argv)
            debug = str(flags.get("debug", "")).lower() == "true"  # before all else, since the other settings may be wrong
            config = settings.load_config(presets, flags)
            debug = config.debug
            training = Training(config)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if debug:
                raise
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Stopped before the run began.", file=sys.stderr)
            return 130
        training.run()
        console.say(how_to_continue(training, presets, flags))
        return 0


def how_to_continue(training: Training, presets: list[str], flags: dict) -> str:
    """Where a run ended, and the command that continues it."""
    flags = {**flags, "logdir": str(training.logdir)}
    flags.pop("from_checkpoint", None)  # the folder has all of it now
    if training.step < training.config.steps:
        ended = f"Stopped at frame {training.step:,}, everything is saved. To continue:"
    else:
        ended = f"Finished at frame {training.step:,}. To train on, with more steps:"
        flags["steps"] = str(2 * training.config.steps)
    words = ["python", "dreamer.py", "--configs", *presets]
    for name, value in flags.items():
        words += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return f"{ended}\n    {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
