"""A run: its folder, and what all runs do there whatever they learn from: evaluation, logs, checkpoints, resume."""

import contextlib
import copy
import pathlib

import gymnasium
import numpy as np
import torch

import checkpoints
import console
import settings
import tools
from collect import play_episodes
from envs import EnvBatch, make_envs
from pages import curves
from storage import files
from storage.disk import Disk
from storage.lock import Lock
from training import folder, logs, nonfinite, offline, stop, writers


class Run:
    """A run in its folder. A subclass says what the agent learns from and for how long: `open`, `about`, `begin`, `learn`, `clock`.

    Building it takes up what the logdir holds of an earlier run.

    Args:
        config: settings, from `tools.load_config`.
    Attributes:
        unit: "frame" or "update", what `clock` counts, and with it the settings `steps`, `eval_every` and `log_every`.
        step: frames that were collected for this agent.
    """

    def __init__(self, config: settings.Config):
        self.config = config = copy.deepcopy(config)
        self.unit = curves.unit(config)
        offline.check_settings(config)
        with contextlib.ExitStack() as opened:  # closes lock and environments if anything after them fails
            changes = self._settle_in(opened)
            self.open(opened)
            self._take_up(changes, opened)
            self._opened = opened.pop_all()

    def _settle_in(self, opened: contextlib.ExitStack) -> list[tuple[str, str, str]]:
        """Locks the folder, if it exists, and sets up this process; returns the settings that change in the run that is there."""
        config, changes, self.lock = self.config, [], None
        if config.logdir:
            self.logdir = pathlib.Path(config.logdir).expanduser()
            config.logdir = str(self.logdir)
            if self.logdir.is_dir():
                self._lock(opened)
            stored = folder.stored_config(self.logdir)
            if note := settings.keep_stored(config, stored):
                console.say(note)
            changes = settings.changes_of_run(stored, config, self.logdir)
        for text in settings.without_effect(config):
            console.warn(text)
        # The checkpoint of another run or program that this one begins with.
        self.origin = None if config.from_checkpoint is None else checkpoints.locate(config.from_checkpoint)
        writers.check(config)
        tools.set_seed(config.seed, config.deterministic_run)
        tools.keep_freed_memory()
        tools.allow_tf32()
        self.stop = stop.StopSignal()
        return changes

    def _lock(self, opened: contextlib.ExitStack) -> None:
        try:
            self.lock = opened.enter_context(contextlib.closing(Lock(self.logdir)))
        except OSError as error:
            raise folder.cannot_write(error) from error

    def open(self, opened: contextlib.ExitStack) -> None:
        """Makes `agent`, `replay` and `eval_envs`; `opened` closes what must be closed. Nothing is written yet."""
        raise NotImplementedError

    def about(self) -> list[tuple[str, str]]:
        """Rows of the summary: where the data comes from, and how it is used."""
        raise NotImplementedError

    def begin(self, checkpoint: dict | None) -> None:
        """Makes ready to learn, after weights and counters have been taken up from a checkpoint, if there is one."""
        raise NotImplementedError

    def learn(self) -> None:
        """Trains until `clock` is at `steps`, or until `stop` is true."""
        raise NotImplementedError

    @property
    def clock(self) -> int:
        """How far the run is."""
        raise NotImplementedError

    def open_eval_envs(self, opened: contextlib.ExitStack) -> EnvBatch | None:
        """The environments to evaluate in; None if evaluation plays no episodes."""
        config = self.config
        count = min(config.eval_envs, config.eval_episode_num) if config.eval_every else 0
        return opened.enter_context(contextlib.closing(make_envs(config, count, training=False))) if count else None

    def _take_up(self, changes: list[tuple[str, str, str]], opened: contextlib.ExitStack) -> None:
        """Everything around the agent, with what the logdir holds; its settings change by `changes`."""
        config = self.config
        self.step, self.last_eval, self.saved = 0, 0, None
        self.disk = Disk()
        checkpoint, found = self.take_up_agent()
        self.logdir = folder.open_logdir(config)
        config.logdir = str(self.logdir)
        if self.lock is None:
            self._lock(opened)
        files.remove_partial(self.logdir)
        console.say(self.summary())
        if self.origin:
            self._report(checkpoint, found)
        self.begin(checkpoint)
        if self.origin or not checkpoint:
            self.last_eval = self.clock  # evaluations of another run do not count
        self.logger = logs.Logger(self.logdir, self.unit, writers.of_run(config, self.logdir), self.disk)
        self.should_eval = tools.Every(config.eval_every, self.last_eval)
        self.should_save = tools.Timer(config.checkpoint_every)
        self.should_log = tools.Every(config.log_every, self.clock)
        self.log_timer = tools.Timer(60.0)
        self.speed = tools.Speed(**self.rates())
        if self.origin == self.logdir / "latest.pt":
            console.say(f"The file itself is kept as {folder.keep_original(self.origin)}.")
        if self.origin:
            self.save()
        # Last, since from now on these settings bind whoever continues the run.
        folder.store_config(self.logdir, config, changes, self.clock)
        if changes:
            console.say(console.table("Settings that change from here on", _arrows(changes)))

    def summary(self) -> str:
        """What runs where, and the settings that are not the defaults, for the console."""
        config, counts = self.config, self.agent.parameter_counts()
        device = tools.describe_device(self.agent.device)
        levels = " + ".join(
            f"{level.stoch} x {level.discrete} {name}" if level.discrete else f"{level.stoch} Gaussians"
            for name, level in self.agent._wm.dynamics.levels.items()
        )
        about = console.table(
            "hDreamer",
            [
                ("task", config.task),
                ("run", str(self.logdir)),
                ("device", f"{device}, precision {config.precision}{', compiled' if config.compile else ''}"),
                *self.about(),
                ("latent", levels),
                ("parameters", f"{sum(counts.values()):,}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"),
            ],
        )
        differing = [change for change in settings.changes_from_defaults(config) if change[0] not in ("task", "logdir")]
        return about + ("\n" + console.table("Settings that differ from the defaults", _arrows(differing)) if differing else "")

    def run(self) -> None:
        """Trains until the end, or until it is told to stop; saves everything then, and what can be saved if something fails."""
        with self.stop, contextlib.closing(self):
            try:
                self.learn()
            except BaseException as error:
                self.rescue(error)
                raise
            self.end()
            self.save()

    def end(self) -> None:
        """Finishes what is open when learning has ended."""

    def rescue(self, error: BaseException) -> None:
        """Saves what can be saved after an error; the checkpoint only if the weights are worth it."""
        try:
            if isinstance(error, nonfinite.NonFinite):
                error.path = nonfinite.write_batch(error.batch, self.logdir, self.agent.updates, self.disk)
            self.end()
            if not nonfinite.weights_not_finite(self.agent):
                self.save()
        except Exception as another:  # the first error is the one to be seen
            console.warn(f"not everything could be saved: {another}")

    def rates(self) -> dict[str, int]:
        """Counters whose rates are logged."""
        return {"updates_per_second": self.agent.updates}

    def log(self) -> None:
        """Writes metrics every `log_every` units of the clock or 60 seconds."""
        if self.should_log(self.clock) or self.log_timer():
            self.log_timer.restart()
            self.logger.add(self.speed(**self.rates()), prefix="time")
            self._write_metrics()

    def _write_metrics(self) -> None:
        """Writes what was collected since the last time, if there is something, and how many updates there have been."""
        if self.logger.pending:
            self.logger.add({"updates": self.agent.updates}, prefix="time")
            self.logger.write(self.clock)

    def evaluate_if_due(self) -> None:
        """Evaluates every `eval_every` units of the clock, and saves."""
        if self.should_eval(self.clock):
            self.evaluate()
            self.save()

    def evaluate(self) -> None:
        """Measures the agent and draws open-loop predictions."""
        # What comes after training's random numbers does not depend on evaluations, nor on one that is stopped and made up for.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            found = self.measure()
            if self.stop:
                return  # after a resume the evaluation is made up for
            for metrics in found:
                self.logger.add(metrics, prefix="eval")
            self.last_eval = self.clock
            if self.config.video_pred_log:
                rng = np.random.default_rng(tools.video_seed(self.config.seed, self.clock))
                batch = {key: value[:6] for key, value in self.replay.sample(rng).items()}
                for key, video in self.agent.video_pred(batch).items():
                    self.logger.video(f"openl_{key}", video, self.clock)
        self._write_metrics()

    def measure(self) -> list[dict]:
        """What an evaluation finds: metrics of every episode, and the suite's score; nothing if there are none to play."""
        if not self.eval_envs:
            return []
        config, seed = self.config, tools.eval_seed(self.config.seed)
        exploring, self.agent.exploring = self.agent.exploring, False  # sampled actions are the task's policy's too
        try:
            episodes = play_episodes(self.agent, self.eval_envs, config.eval_episode_num, seed, self.stop, sample=config.eval_sample)
        finally:
            self.agent.exploring = exploring
        return [*(episode.metrics for episode in episodes), self.eval_envs.scores([episode.sums for episode in episodes])]

    def save(self) -> bool:
        """Writes latest.pt, unless nothing has changed since the last time; if that fails, it is due again.

        Returns:
            whether it was written.
        """
        if not self.changed:
            return False
        checkpoint = {
            **self.agent.checkpoint(),
            **self.counters(),
            "random_state": checkpoints.random_state(self.replay.next_rng),
            "config": settings.plain(self.config),  # the run's: the device as it was given, not the one that was found
        }
        written = self.disk.attempt("the checkpoint", self.logdir, lambda: checkpoints.save(self.logdir / "latest.pt", checkpoint))
        if written:
            self.saved = (self.step, self.agent.updates)
        self.should_save.restart()
        return written

    @property
    def changed(self) -> bool:
        """Whether there is something to save since the last checkpoint."""
        return (self.step, self.agent.updates) != self.saved

    def counters(self) -> dict:
        """How far the run is, for its checkpoint."""
        return {"step": self.step, "last_eval": self.last_eval, "updates": self.agent.updates, "update_credit": 0.0}

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
        elif own and own.with_name("latest_model.pt").exists():  # a new agent would learn beside the old one's episodes
            raise ValueError(
                f"{self.logdir} has a latest_model.pt, as early versions of dreamerv3-torch wrote it, but no latest.pt; those weights "
                "cannot be read. Move the file away to train a new agent from the episodes there, or give another --logdir"
            )
        else:
            return None, {}
        checkpoint = checkpoints.load(path, way_out)
        if "version" not in checkpoint:
            self.origin = path
        try:
            found = self.agent.load_checkpoint(checkpoint)
            self._restore(checkpoint)
        except ValueError as error:
            differing = settings.changes_of_model(checkpoint.get("config"), self.config, latent=True)
            told = "; ".join(f"{name} {old}, here {new}" for name, old, new in differing)
            trained_with = f"It was trained with {told}. " if told else ""
            raise ValueError(f"{path}: {error}. {trained_with}{way_out or 'Or give another --logdir'}") from error
        return checkpoint, found

    def _restore(self, checkpoint: dict) -> None:
        try:
            self.restore(checkpoint)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"it is incomplete or damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error

    def restore(self, checkpoint: dict) -> None:
        """Sets counters, and random states if the run goes on in its own folder."""
        self.step = int(checkpoint.get("step", 0))
        self.agent.updates = int(checkpoint.get("updates", self.agent.updates))
        if not self.origin:
            self.last_eval = checkpoint["last_eval"]
            self.saved = (self.step, self.agent.updates)
            checkpoints.restore_random_state(checkpoint["random_state"], self.replay.rng)

    def _report(self, checkpoint: dict, found: dict[str, str]) -> None:
        """Says what was taken over from another run or program, and how its settings differ, if it tells."""
        console.say(console.table("Agent taken over", [("from", str(self.origin)), *found.items()]))
        differing = settings.changes_of_model(checkpoint.get("config"), self.config)
        if differing:
            console.say(console.table("Settings that differ from those it was trained with", _arrows(differing)))

    def close(self) -> None:
        """Ends writers and environments."""
        self._write_metrics()
        self.logger.close()
        self.disk.retry()
        self._opened.close()


def _arrows(changes: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(name, f"{old} -> {new}") for name, old, new in changes]


def describe_spaces(obs_space: gymnasium.spaces.Dict, act_space: gymnasium.Space) -> str:
    """What is observed and done, for the summary."""
    observations = ", ".join(f"{key} {space.shape} {space.dtype}" for key, space in obs_space.spaces.items())
    return f"observations {observations}; actions {act_space}"
