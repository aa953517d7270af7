"""A run in its folder: what surrounds training, whatever the run learns from. The loops in dreamer.py use it."""

import contextlib
import copy
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

import checkpoints
import console
import settings
import tools
from checkpoints import fitting, jax_original
from collect import Finished, play_episodes
from pages import curves
from play import camera
from scale import graph, ranks
from storage import files, lock
from storage.disk import Disk
from training import folder, latents, logs, nonfinite, offline, stop, writers
from training.forecast import Forecast


class Run:
    """Counts, logs, evaluates and saves; goes on with what its folder holds of an earlier run.

    `with run:` goes around the training. Within it Ctrl-C and SIGTERM set `stop`. At its end everything is saved, after
    an error what can be saved. Of several processes, see scale/ranks.py, each has its own `Run` of the same folder; the first one
    evaluates, and writes all but episodes and latents.

    Args:
        config: settings, from `tools.load_config`.
        opened: closes the lock of the folder if the run cannot begin.
    Attributes:
        unit: "frame" or "update", what `clock` counts, and with it the settings `steps`, `eval_every` and `log_every`.
        step: frames that were collected for this agent.
        signal: true once Ctrl-C or SIGTERM has asked this process to end.
        stop: true once training is to end; processes agree on it in `meet`.
        resources: closes what the run holds open, when it ends.
    """

    def __init__(self, config: settings.Config, opened: contextlib.ExitStack):
        self.config = config = copy.deepcopy(config)
        self.resources, self._lock = opened, None
        self.unit = curves.unit(config)
        offline.check_settings(config)
        stored = self._find_folder()
        # The checkpoint of another run or program that this one begins with.
        self.origin = None if config.from_checkpoint is None else checkpoints.locate(config.from_checkpoint)
        self._goes_on, self._kept = bool(stored), settings.keep_stored(config, stored)
        self._changes = settings.changes_of_run(stored, config, self.logdir)
        writers.check(config)
        ranks.share(config.batch_size)
        tools.set_seed(config.seed, config.deterministic_run)
        tools.keep_freed_memory()
        tools.allow_tf32()
        self.signal = stop.StopSignal(tells=ranks.is_first())
        self.stop = ranks.Agreed(self.signal)
        self.disk = Disk()
        self.step, self.last_eval, self._saved, self._told = 0, 0, None, None
        self._taken = set()  # names of the settings that come from the checkpoint
        self._forecast = Forecast()
        self._no_film_said = False

    def _find_folder(self) -> dict:
        """Locks the folder, if it exists; returns the settings of the run that is there."""
        config, self.logdir = self.config, None
        if not config.logdir:
            return {}
        self.logdir = pathlib.Path(config.logdir).expanduser()
        config.logdir = str(self.logdir)
        if self.logdir.is_dir() and ranks.is_first():
            self._take_lock()
        return folder.stored_config(self.logdir)

    def _take_lock(self) -> None:
        try:
            self._lock = self.resources.enter_context(contextlib.closing(lock.Lock(self.logdir)))
        except OSError as error:
            raise folder.cannot_write(error) from error

    def read_checkpoint(self, build: Callable[[settings.Config], nn.Module]) -> None:
        """Reads the checkpoint that the agent begins with. A new run gets the sizes of that agent, except those that
        were given.

        After environments are opened: their processes are copies of this one and would keep it in memory.

        Args:
            build: makes an agent from settings.
        Raises:
            ValueError: if the checkpoint cannot be read, or does not fit.
        """
        self._checkpoint = self._find_checkpoint()
        if self._checkpoint:
            with self._naming_source():
                if not self._goes_on:
                    before = settings.flatten(self.config)
                    self._kept = fitting.take_sizes(self.config, self._checkpoint, build)
                    self._taken = {name for name, value in settings.flatten(self.config).items() if value != before[name]}
                fitting.check(fitting.outline(build, self.config), self._checkpoint)  # before an agent of wrong sizes takes memory

    def begin(self, agent, data) -> None:
        """Takes up the agent and all around it from the folder, and makes ready to train.

        Args:
            agent: a new `Dreamer`.
            data: what it learns from, see training/data.py.
        """
        config = self.config
        self.agent, self.data = agent, data
        if agent._graphed:
            self._forecast.untimed = graph.WARM_UP + 1  # plain updates and the capture
        checkpoint, self._checkpoint = self._checkpoint, None
        with ranks.all_or_none():
            found = self._take_up_agent(checkpoint) if checkpoint else {}
        ranks.copy_from_first(agent)
        with ranks.all_or_none():  # now all have read what an earlier run left there
            if ranks.is_first():
                self._open_folder()
        config.logdir = ranks.from_first(config.logdir)
        self.logdir = pathlib.Path(config.logdir)
        with ranks.all_or_none():
            self._check_folder_is_shared()
        console.say(self._summary())
        if self._kept:
            console.say(self._kept)
        with ranks.only_first_warns():
            for text in settings.without_effect(config):
                console.warn(text)
        if self.origin:
            self._report(checkpoint, found)
        if data.eval_envs:
            data.eval_envs.heed(self.signal)
        data.begin(self, checkpoint)
        if ranks.rank():  # the first rank's are those of a single process
            seed = tools.rank_seed(config.seed, self.clock, ranks.rank())
            tools.set_seed(seed, config.deterministic_run)
            data.replay.rng = np.random.default_rng(seed)
        self._latents = latents.LatentFile(data.replay, self.logdir, self.disk)
        if checkpoint and (not self.origin or self._latents.written()):
            with ranks.only_first_warns():
                self._latents.load(config)
        self._set_exploring()
        if self.origin or not checkpoint:
            self.last_eval = self.clock  # evaluations of another run do not count
        self.logger = logs.Silent()
        if ranks.is_first():
            self.logger = logs.Logger(self.logdir, self.unit, writers.of_run(config, self.logdir), self.disk)
        self._should_eval = tools.Every(config.eval_every, self.last_eval)
        self._should_save = tools.Timer(config.checkpoint_every)
        self._should_log = tools.Every(config.log_every, self.clock)
        self._log_timer = tools.Timer(60.0)
        self._speed = tools.Speed(**self._rates())
        if ranks.is_first():
            self._bind_folder()

    def _open_folder(self) -> None:
        """Makes the folder, if it is not there, and locks it."""
        self.logdir = folder.open_logdir(self.config)
        self.config.logdir = str(self.logdir)
        if self._lock is None:
            self._take_lock()
        files.remove_partial(self.logdir)

    def _check_folder_is_shared(self) -> None:
        """Raises ValueError if this process does not see the folder that the first one has opened."""
        self.logdir.mkdir(parents=True, exist_ok=True)
        if ranks.count() > ranks.count_here() and not (self.logdir / lock.NAME).exists():
            raise ValueError(f"{self.logdir} is not the same folder on all machines; give a --logdir on a file system that they share")

    def _bind_folder(self) -> None:
        """Writes the agent of another run, and the settings, which from now on bind whoever continues the run."""
        if self.origin == self.logdir / "latest.pt":
            console.say(f"The file itself is kept as {folder.keep_original(self.origin)}.")
        if self.origin:
            self.save()
        folder.store_config(self.logdir, self.config, self._changes, self.clock)
        if self._changes:
            console.say(console.table("Settings that change from here on", _arrows(self._changes)))

    def _summary(self) -> str:
        """What runs where, and the settings that are not the defaults, for the console."""
        config, counts = self.config, self.agent.parameter_counts()
        device = tools.describe_device(self.agent.device)
        precision, reason = tools.pick_precision(config.precision, self.agent.device, config.dyn_hidden)
        about = console.table(
            "hDreamer",
            [
                ("task", config.task),
                ("run", str(self.logdir)),
                ("device", f"{device}, precision {precision}{reason and f' ({reason})'}{self.agent.how_updates_run()}"),
                *([("processes", f"{ranks.count()}; numbers below are of each, those of a batch of all")] if ranks.count() > 1 else []),
                *self.data.about(),
                ("evaluation", _describe_evaluation(config, self.unit)),
                ("videos", _describe_videos(config, self.agent._wm.heads["decoder"].image_keys)),
                ("latent", _describe_latent(self.agent._wm.dynamics, config)),
                ("parameters", f"{sum(counts.values()):,}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"),
            ],
        )
        return "\n".join([about, *self._chosen_settings()])

    def _chosen_settings(self) -> list[str]:
        """Tables of the settings that presets, or the resumed run, and the user's flags have changed."""
        config, hidden = self.config, {"task", "logdir"}
        arrows = dict(_arrows(settings.changes_from_defaults(self.config)))
        suite, presets = config.task.partition("_")[0], " ".join(config.presets)
        source = f"Suite {suite}, presets {presets}" if presets else "Settings of this run"
        rows = {
            source: [(name, arrow) for name, arrow in arrows.items() if name not in config.given | hidden | self._taken],
            "Your flags": [(name, arrows.get(name, "as by default")) for name in sorted(config.given - hidden)],
        }
        return [console.table(title, found) for title, found in rows.items() if found]

    # While training

    @property
    def clock(self) -> int:
        """How far the run is: frames that have been collected, or updates where it learns from recorded episodes."""
        return self.step if self.unit == "frame" else self.agent.updates

    def add(self, metrics: dict) -> None:
        """Collects the metrics of an update for the next log entry, and lets processes agree on whether to stop.

        After the first updates it prints how long the run will take.
        """
        self.logger.add(metrics, prefix="train")
        frames = self.config.steps - self.step if self.unit == "frame" else 0
        self._forecast.count_update(self.data.updates_left(self.step, self.agent.updates), frames, self.agent.device == "cpu")
        self.meet()

    def meet(self, steps: int = 0, episodes: Sequence[Finished] = ()) -> tuple[int, list[Finished]]:
        """Lets processes agree on whether to stop; returns the steps and episodes of all of them."""
        steps, ended = self.stop.meet(steps, len(episodes))
        return steps, ranks.all_of(list(episodes)) if ended else []

    def count(self, steps: int, episodes: list[Finished]) -> None:
        """Counts agent steps that were collected, logs the episodes that ended, and writes the log if that is due."""
        self.step += steps * self.config.action_repeat
        self._forecast.count_frames(steps * self.config.action_repeat)
        self._set_exploring()
        self._log_episodes(episodes)
        self.log_if_due()

    def _set_exploring(self) -> None:
        """Lets the exploring behavior act until `expl_until`."""
        self.agent.exploring = self.step < (self.config.expl_until or self.config.steps)

    def _log_episodes(self, episodes: list[Finished]) -> None:
        """Logs episodes; those that were cut off apart, since their returns are not those of whole ones."""
        for episode in episodes:
            self.logger.add(episode.metrics, prefix="cut_off" if episode.cut else "episode")

    def log_if_due(self) -> None:
        """Writes metrics every `log_every` units of the clock or 60 seconds."""
        if self._should_log(self.clock) or self._log_timer():
            self._log_timer.restart()
            self.logger.add(self._speed(**self._rates()), prefix="time")
            self._write_metrics()

    def _rates(self) -> dict[str, int]:
        """Counters whose rates are logged."""
        frames = {"fps": self.step} if self.unit == "frame" else {}
        return {**frames, "updates_per_second": self.agent.updates}

    def _write_metrics(self) -> None:
        """Writes what was collected since the last time, if there is something, and how many updates there have been."""
        if self.logger.pending:
            if self._told != (self.clock, self.agent.updates):  # once where several entries have the same step
                self.logger.add({"updates": self.agent.updates}, prefix="time")
                self._told = self.clock, self.agent.updates
            self.logger.write(self.clock)

    def evaluate_if_due(self, last: bool = False) -> None:
        """Evaluates every `eval_every` units of the clock and, at the end of the run (`last`), unless it has just been done; saves."""
        if self.stop:
            return  # after a resume the evaluation is made up for
        at_end = last and self.config.eval_every and self.last_eval < self.clock
        if self._should_eval(self.clock) or at_end:
            if ranks.is_first():
                self._evaluate()
            self.last_eval = ranks.from_first(self.last_eval)
            self.meet()
            self._forecast.pause()
            if self.stop:
                console.say(f"The evaluation at {self.unit} {self.clock:,} was interrupted. It is repeated when the run is resumed.")
            self.save()

    def _evaluate(self) -> None:
        """Measures the agent and draws open-loop predictions."""
        # What comes after training's random numbers does not depend on evaluations, nor on one that is stopped and made up for.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            found = [*self._play(), *(self.agent.model_losses(batch) for batch in self.data.held_out_batches())]
            if self.signal:
                return
            for metrics in found:
                self.logger.add(metrics, prefix="eval")
            self.last_eval = self.clock
            if self.config.video_pred_log:
                rng = np.random.default_rng(tools.video_seed(self.config.seed, self.clock))
                batch = _first_rows(self.data.replay.sample(rng), 6)
                for key, video in self.agent.video_pred(batch).items():
                    self.logger.video(f"openl_{key}", video, self.clock)
        self._write_metrics()

    def _play(self) -> list[dict]:
        """Plays the episodes of an evaluation and films one; returns their metrics and the suite's score, or nothing if it has none."""
        config, envs, seed = self.config, self.data.eval_envs, tools.eval_seed(self.config.seed)
        if not envs:
            return []
        filming = camera.Camera(envs) if config.video_pred_log else None
        exploring, self.agent.exploring = self.agent.exploring, False  # sampled actions are the task's policy's too
        try:
            episodes = play_episodes(self.agent, filming or envs, config.eval_episode_num, seed, self.signal, sample=config.eval_sample)
        finally:
            self.agent.exploring = exploring
        if filming and not self.signal:
            self._log_film(filming)
        return [*(episode.metrics for episode in episodes), envs.scores([episode.sums for episode in episodes])]

    def _log_film(self, filming: camera.Camera) -> None:
        """Writes the film of an episode, or says once why there is none."""
        if filming.frames:
            self.logger.video("episode", filming.film(), self.clock, camera.FPS, filming.caption)
        elif not self._no_film_said:
            console.say(f"no film of evaluations: {self.config.task} {filming.problem}")
            self._no_film_said = True

    # Saving

    def save_if_due(self) -> None:
        """Saves every `checkpoint_every` seconds."""
        if self._should_save():
            self.save()

    def save(self) -> bool:
        """Writes latest.pt, unless nothing has changed since the last time; if that fails, it is due again.

        Then removes episodes that memory has no room for, if that is asked for, and writes the memory's latents if that is due.

        Returns:
            whether it was written.
        """
        if (self.step, self.agent.updates, self.last_eval) == self._saved:
            return False
        episodes = self.data.episodes
        if episodes:
            episodes.mark_old()
        written = self._write_checkpoint()
        if episodes and episodes.remove_old() and not written:  # now there may be room for it
            written = self._write_checkpoint()
        self._latents.save()
        return written

    def _write_checkpoint(self) -> bool:
        if not ranks.is_first():
            return True
        checkpoint = {
            **self.agent.checkpoint(),
            "step": self.step,
            "last_eval": self.last_eval,
            "updates": self.agent.updates,
            **self.data.counters(),
            "random_state": checkpoints.random_state(self.data.replay.next_rng),
            "config": settings.plain(self.config),  # the run's: the device as it was given, not the one that was found
        }
        written = self.disk.attempt("the checkpoint", self.logdir, lambda: checkpoints.save(self.logdir / "latest.pt", checkpoint))
        if written:
            self._saved = (self.step, self.agent.updates, self.last_eval)
        self._should_save.restart()
        return written

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self.signal.__enter__()  # only in the main thread
            failed.pop_all()
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        with contextlib.ExitStack() as ending:
            ending.callback(self.signal.__exit__)
            ending.callback(self.close)
            if error is None:
                self._log_episodes(self.data.end())
                self.save()
                self._latents.save(last=True)
                if ranks.is_first():
                    self._latents.remove_others()
            else:
                self._rescue(error)

    def _rescue(self, error: BaseException) -> None:
        """Saves what can be saved after an error; the checkpoint only if the weights are worth it."""
        try:
            if isinstance(error, nonfinite.NonFinite):
                error.path = nonfinite.write_batch(error.batch, self.logdir, self.agent.updates, self.disk)
            self._log_episodes(self.data.end())
            if not nonfinite.weights_not_finite(self.agent):
                self.save()
                self._latents.save(last=True)
        except Exception as another:  # the first error is the one to be seen
            console.warn(f"not everything could be saved: {another}")

    def close(self) -> None:
        """Ends writers and environments, and releases the folder."""
        with self.resources:
            self._write_metrics()
            self.logger.close()
            self.disk.retry()

    # Going on

    def _find_checkpoint(self) -> dict | None:
        """Reads latest.pt if the folder has one, else `from_checkpoint`; None if there is neither."""
        own = self.logdir / "latest.pt" if self.logdir else None
        if own and own.exists():
            if self.origin:
                console.warn(f"from_checkpoint is not read, since {self.logdir} has a checkpoint of its own")
            self._source, self._way_out, self.origin = own, None, None
        elif self.origin:
            self._source, self._way_out = self.origin, "Give another --from_checkpoint"
        elif own and own.with_name("latest_model.pt").exists():  # a new agent would learn beside the old one's episodes
            raise ValueError(
                f"{self.logdir} has a latest_model.pt, as early versions of dreamerv3-torch wrote it, but no latest.pt; those weights "
                "cannot be read. Move the file away to train a new agent from the episodes there, or give another --logdir"
            )
        else:
            return None
        checkpoint = checkpoints.load(self._source, self._way_out)
        if "version" not in checkpoint:  # another program's
            self.origin = self._source
        return checkpoint

    def _take_up_agent(self, checkpoint: dict) -> dict[str, str]:
        """Loads weights, optimizers and counters; returns what was found, see `Dreamer.load_checkpoint`."""
        with self._naming_source():
            found = self.agent.load_checkpoint(checkpoint)
            self._restore(checkpoint)
        return found

    @contextlib.contextmanager
    def _naming_source(self):
        """Adds to errors which file they are about, and the way out where they do not end with it."""
        try:
            yield
        except ValueError as error:
            way_out = "" if getattr(error, "way_out", False) else f". {self._way_out or 'Give another --logdir'}"
            raise ValueError(f"{self._source}: {error}{way_out}") from error

    def _restore(self, checkpoint: dict) -> None:
        """Sets counters, and random states if the run goes on in its own folder."""
        try:
            self.step = int(checkpoint["step"] if "step" in checkpoint else jax_original.frames(checkpoint, self.config.action_repeat))
            self.agent.updates = int(checkpoint.get("updates", self.agent.updates))
            self.data.restore(checkpoint, goes_on=not self.origin)
            if not self.origin:
                self.last_eval = checkpoint["last_eval"]
                self._saved = (self.step, self.agent.updates, self.last_eval)
                checkpoints.restore_random_state(checkpoint["random_state"], self.data.replay.rng)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"it is incomplete or damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error

    def _report(self, checkpoint: dict, found: dict[str, str]) -> None:
        """Says what was taken over from another run or program, and how its settings differ, if it tells."""
        console.say(console.table("Agent taken over", [("from", str(self.origin)), *found.items()]))
        differing = fitting.changes_of_model(self.agent, checkpoint)
        if differing:
            console.say(console.table("Settings that differ from those it was trained with", _arrows(differing)))
        if jax_original.is_converted(checkpoint) and (flags := jax_original.training_flags(checkpoint, self.config)):
            console.say(f"To train with the settings of the old run: {flags}")


def _first_rows(batch: dict, count: int) -> dict:
    """The first sequences of a batch."""
    return {key: _first_rows(value, count) if isinstance(value, dict) else value[:count] for key, value in batch.items()}


def _arrows(changes: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(name, f"{old} -> {new}") for name, old, new in changes]


def _describe_evaluation(config: settings.Config, unit: str) -> str:
    """When the run evaluates, or why it does not."""
    if not config.eval_every:
        return "none, since eval_every is 0"
    when = f"every {config.eval_every:,} {unit}s"
    if config.eval_every >= config.steps:
        when = f"at the end (eval_every is {config.eval_every:,})"
    return f"{config.eval_episode_num} episodes {when}" if config.eval_episode_num else f"no episodes, since eval_episode_num is 0; {when}"


def _describe_videos(config: settings.Config, images: list[str]) -> str:
    """Which videos come with evaluations, or why there are none."""
    if not config.eval_every or not config.video_pred_log:
        return f"none, since {'video_pred_log is false' if config.eval_every else 'eval_every is 0'}"
    predictions = f"open-loop predictions of {', '.join(images)}" if images else "no open-loop predictions, since no image is decoded"
    return f"{predictions}{'; one evaluation episode' if config.eval_episode_num else ''}"


def _describe_latent(dynamics, config: settings.Config) -> str:
    """Sizes of the levels; of two levels also their capacity together, and that of the flat latent."""
    levels = dynamics.levels
    if len(levels) == 1:
        (level,) = levels.values()
        return f"{level.stoch} x {level.discrete} flat" if level.discrete else f"{level.stoch} Gaussians"
    sizes = " + ".join(f"{level.stoch} x {level.discrete} {name}" for name, level in levels.items())
    flat = config.dyn_stoch * config.dyn_discrete
    return f"{sizes}: {dynamics.stoch_size:,} entries; a flat latent here has {config.dyn_stoch} x {config.dyn_discrete}, {flat:,} entries"
