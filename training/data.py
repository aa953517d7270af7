"""What a run learns from: `Environments` that it steps, or `Recordings`.

`Run` uses of either: `obs_space`, `act_space`, `replay`, `eval_envs` and `episodes`; `about`, `counters`, `restore`, `begin`, `end` and
`held_out_batches`. `open_replay` comes before, once the sizes of the agent are known: they decide what is stored with a step.
"""

import contextlib
import pathlib
from collections.abc import Callable

import gymnasium

import console
import settings
import tools
from checkpoints import jax_original
from collect import Collector
from envs import EnvBatch, check_alike, make_envs
from envs.spaces import ActionCodec
from replay import Replay
from scale import ranks
from storage import chunks
from storage.disk import Disk
from storage.episodes import old_episodes, stored_steps
from training import folder, latents, offline


def open_eval_envs(
    config: settings.Config, opened: contextlib.ExitStack, make_env: Callable | None, training: EnvBatch | None = None
) -> EnvBatch | None:
    """The environments to evaluate in; None if evaluation plays no episodes.

    Only the first of several processes evaluates. The others make no environments here, or one if they have no other to know its spaces.

    Args:
        make_env: makes an environment, see `make_envs`.
        training: the environments to train in, if there are any.
    Raises:
        ValueError: if the environments cannot be made, or their spaces differ from those for training.
    """
    count = min(config.eval_envs, config.eval_episode_num) if config.eval_every else 0
    if not ranks.is_first():
        count = 0 if training else min(count, 1)
    if not count:
        return None
    envs = opened.enter_context(contextlib.closing(make_envs(config, count, training=False, tried=training, make_env=make_env)))
    if training:
        check_alike(envs, training.obs_space, training.act_space)
    return envs


def describe_spaces(obs_space: gymnasium.spaces.Dict, act_space: gymnasium.Space) -> str:
    """Observations and actions, for the summary."""
    observations = ", ".join(f"{key} {space.shape} {space.dtype}" for key, space in obs_space.spaces.items())
    return f"observations {observations}; actions {act_space}"


def describe_memory(replay: Replay) -> str:
    """Size of the memory, for the summary."""
    return f"{replay.nbytes:,} bytes{f', of which latents {replay.latent_nbytes:,}' if replay.stores_latents else ''}"


class EpisodeFolder:
    """The episodes of a run on disk, and how many steps of it are in files that are gone.

    Args:
        path: the folder.
        keep: whether all files stay. Otherwise files older than the newest `capacity` steps are deleted.
        disk: warns where files cannot be removed.
        removed_steps: in files that are gone.
        removing: files that were about to go when the last checkpoint was written, and their steps.
    """

    def __init__(self, path: pathlib.Path, keep: bool, capacity: int, disk: Disk, removed_steps: int, removing: dict[str, int]):
        self.path, self._keep, self._capacity, self._disk = path, keep, capacity, disk
        self._removed_steps, self._removing = removed_steps, removing

    def counters(self) -> dict:
        """What a checkpoint must know, so that steps count whether or not their files are gone when the run goes on."""
        return {"removed_steps": self._removed_steps, "removing": self._removing}

    def count_steps(self) -> int:
        """Agent steps that the run has collected, as far as the files tell; takes note of files that a killed run has removed."""
        on_disk = stored_steps(self.path)
        gone = {name: steps for name, steps in self._removing.items() if name not in on_disk}
        self._removed_steps += sum(gone.values())
        self._removing = {name: steps for name, steps in self._removing.items() if name in on_disk}
        return sum(on_disk.values()) + self._removed_steps

    def mark_old(self) -> None:
        """Chooses the files that go. The next checkpoint names them, so that a kill during `remove_old` loses no steps.

        They go even if that checkpoint cannot be written, since they may be what fills the disk.
        """
        self._removing = {} if self._keep or not ranks.is_first() else dict(old_episodes(self.path, self._capacity))

    def remove_old(self) -> bool:
        """Removes the files that `mark_old` chose; returns whether there were any."""
        marked = bool(self._removing)
        try:
            for name, steps in list(self._removing.items()):
                (self.path / name).unlink()
                self._removed_steps += steps
                del self._removing[name]
        except OSError as error:
            self._disk.warn("the folder of episodes", self.path.parent, error)
        return marked


class Environments:
    """Environments to train in, and the memory of what came back.

    Args:
        config: settings.
        opened: closes the environments.
        make_env: makes an environment, see `make_envs`.
    Attributes:
        replay: the replay memory; there is none before `open_replay`.
        collector: steps the environments; there is none before `begin`.
        budget: how many updates are due.
        missing_steps: agent steps that all processes are to collect before training.
    """

    def __init__(self, config: settings.Config, opened: contextlib.ExitStack, make_env: Callable | None = None):
        self._config = config
        self.envs = opened.enter_context(contextlib.closing(make_envs(config, config.envs, training=True, make_env=make_env)))
        self.eval_envs = open_eval_envs(config, opened, make_env, self.envs)
        self.obs_space, self.act_space = self.envs.obs_space, self.envs.act_space
        self.budget = tools.UpdateBudget(config.train_ratio, config.batch_size * config.batch_length)
        self.episodes: EpisodeFolder | None = None
        self._removed: tuple[int, dict[str, int]] = (0, {})

    def open_replay(self, latents: dict | None) -> None:
        """Allocates the replay memory.

        Args:
            latents: shape and dtype of the latents that are stored with every step, by key; None to store none.
        Raises:
            ValueError: if there is not enough memory.
        """
        config = self._config
        # What the run can collect, with a tenth for the first observations of episodes, but no more than dataset_size.
        capacity = min(config.dataset_size, int(1.1 * config.steps / config.action_repeat) + config.prefill)
        self.replay = Replay(
            self.obs_space,
            ActionCodec(self.act_space).size,
            capacity=capacity // ranks.count(),
            streams=config.envs,
            batch_size=ranks.share(config.batch_size),
            batch_length=config.batch_length,
            seed=config.seed,
            online=config.replay_online,
            latents=latents,
            sharers=ranks.count_here(),
        )

    def about(self) -> list[tuple[str, str]]:
        """Where the data comes from and how it is used, for the summary."""
        config, count = self._config, self.eval_envs.count if self.eval_envs else 0
        per_update = config.batch_size * config.batch_length / config.train_ratio
        spaces = describe_spaces(self.obs_space, self.act_space)
        return [
            ("environments", f"{self.envs.count} to train, {count} to evaluate; {spaces}"),
            ("replay", f"{self.replay.capacity:,} steps, {describe_memory(self.replay)}"),
            ("updates", f"{config.batch_size} x {config.batch_length} steps, one every {per_update:g} agent steps"),
        ]

    def updates_left(self, frame: int, updates: int) -> float:
        """Updates until the end of a run at this frame, after so many updates."""
        config = self._config
        steps = (config.steps - max(frame, config.prefill * config.action_repeat)) / config.action_repeat
        return max(0, config.pretrain - updates) + self.budget.updates_for(max(0.0, steps))

    def counters(self) -> dict:
        """What a checkpoint must know of it."""
        return {"update_credit": self.budget.credit, **self.episodes.counters()}

    def restore(self, checkpoint: dict, goes_on: bool) -> None:
        """Takes up what `counters` left in a checkpoint; `goes_on`: of this run, not of another one.

        Raises:
            Exception: nearly anything, for a damaged one; then nothing has been written.
        """
        self._removed = (
            int(checkpoint.get("removed_steps", 0)),
            {str(name): int(steps) for name, steps in checkpoint.get("removing", {}).items()},
        )
        self.budget.credit = float(checkpoint["update_credit"]) if goes_on else 0.0

    def begin(self, run, checkpoint: dict | None) -> None:
        """Loads the episodes on disk, sets the run's step by them, and starts the environments.

        Args:
            run: whose agent has been taken up from the checkpoint, if there is one.
        """
        config, directory = self._config, run.logdir / "train_eps"
        self.envs.heed(run.signal)
        if run.origin and ranks.is_first():
            self._take_over_episodes(run, checkpoint, directory)
        self.episodes = EpisodeFolder(directory, config.keep_episodes, config.dataset_size, run.disk, *self._removed)
        run.step = ranks.from_first(max(run.step, self.episodes.count_steps() * config.action_repeat))  # frames
        loaded = self.replay.load(directory, ranks.rank(), ranks.count())
        (loaded_steps,) = ranks.total(loaded)
        if checkpoint:
            updates = f"{run.agent.updates:,} updates"
            console.say(f"Resuming at frame {run.step:,} after {updates}, with {loaded_steps:,} steps in memory.")
        elif run.step and ranks.is_first():
            console.warn(
                f"there are episodes in {directory}, but no checkpoint: a new agent begins at frame {run.step:,}, "
                f"with {loaded_steps:,} of their steps in memory"
            )
        share = -(-config.prefill // ranks.count())  # rounded up
        filled = len(self.replay) >= min(share, self.replay.capacity)  # by an earlier run
        self.missing_steps = ranks.count() * max(ranks.all_of([0 if filled else share - loaded]))
        seed = tools.train_seed(config.seed, run.step, ranks.rank())
        self.collector = Collector(self.envs, self.replay, directory, run.disk, seed=seed, training=True)

    def _take_over_episodes(self, run, checkpoint: dict, directory: pathlib.Path) -> None:
        """Takes over the episodes beside the checkpoint of another run, unless they are of another task; of the JAX original also
        the latents.

        Args:
            directory: for the episodes.
        """
        converted = jax_original.is_converted(checkpoint)
        source = jax_original.run_folder(run.origin) / "replay" if converted else run.origin.parent / "train_eps"
        stored, steps = checkpoint.get("config"), 0
        task = stored.get("task", self._config.task) if settings.holds_settings(stored) else self._config.task
        if task != self._config.task:
            console.warn(f"the episodes in {source} are of the task {task}, so the run begins without them")
        elif converted and not source.is_dir():
            console.warn(f"there is no folder {source}, so the run begins without episodes")
        elif converted:
            steps = self._read_chunks(source, checkpoint, directory)
        else:
            folder.take_over_episodes(source, directory)
            return
        # Steps of the old run that are in no file. Without them a killed run would count too few frames.
        self._removed = max(0, run.step // self._config.action_repeat - steps), {}

    def _read_chunks(self, source: pathlib.Path, checkpoint: dict, directory: pathlib.Path) -> int:
        """Converts the replay chunks of the JAX original; returns the agent steps in them."""
        if any(directory.glob("*.npz")):
            console.warn(f"there are episodes in {directory}, of a start that did not end; they are used too")
        parts = ActionCodec(self.act_space).parts
        vectors = [key for key, space in self.obs_space.spaces.items() if len(space.shape) == 1 and not key.startswith("log_")]
        taken = chunks.take_over(
            source,
            directory,
            self.obs_space,
            parts,
            renamed=jax_original.renamed(checkpoint, vectors, parts),
            latents=self.replay.latent_layout or None,
            latent=(checkpoint["config"]["dyn_stoch"], checkpoint["config"]["dyn_discrete"]),
            latents_path=directory.parent / latents.FILE,
            capacity=ranks.count() * self.replay.capacity,
        )
        told = f"{taken.episodes:,} episodes, {taken.steps:,} steps"
        told += f", {taken.latents:,} of their observations with latents" if self.replay.stores_latents else ""
        told += f"; {taken.skipped:,} chunks cannot be used" if taken.skipped else ""
        console.say(f"Taken over from {source}: {told}.")
        return taken.steps

    def end(self) -> list:
        """Writes the open episodes, cut off, and returns them."""
        return self.collector.close_episodes()

    def held_out_batches(self) -> list[dict]:
        """None: the model is measured on recorded episodes alone."""
        return []


class Recordings:
    """Recorded episodes; environments are stepped in evaluations alone.

    If the run evaluates, observations and actions are those of the environment. Otherwise they follow from the episodes, and no
    environment is needed.

    Args:
        config: settings.
        opened: closes the environments.
        make_env: makes an environment, see `make_envs`.
    """

    episodes = None  # the run writes none

    def __init__(self, config: settings.Config, opened: contextlib.ExitStack, make_env: Callable | None = None):
        self._config = config
        try:
            self.eval_envs = open_eval_envs(config, opened, make_env)
        except ValueError as error:
            raise ValueError(f"{error}. To learn from recorded episodes without an environment: --eval_episode_num 0") from error
        wanted = (self.eval_envs.obs_space, self.eval_envs.act_space) if self.eval_envs else None
        self.recording = offline.survey("offline_traindir", config.offline_traindir, wanted, config.task, config)
        self.obs_space, self.act_space = self.recording.obs_space, self.recording.act_space
        self.held_out = None
        if config.offline_evaldir and ranks.is_first():
            wanted = self.obs_space, self.act_space
            self.held_out = offline.survey("offline_evaldir", config.offline_evaldir, wanted, config.offline_traindir, config)
            self._held_out_memory = offline.fill(self.held_out, config)

    def open_replay(self, latents: dict | None) -> None:
        """Allocates a memory for the episodes. Held-out ones have no latents: their sequences start from the initial state.

        Args:
            latents: as in `Environments.open_replay`.
        Raises:
            ValueError: if there is not enough memory.
        """
        self._part = offline.part(self.recording, ranks.rank(), ranks.count())
        self.replay = offline.memory_for(self._part, self._config, latents, ranks.count())

    def about(self) -> list[tuple[str, str]]:
        """Where the data comes from and how it is used, for the summary."""
        config, count = self._config, self.eval_envs.count if self.eval_envs else "none"
        held_out = [("held out", str(self.held_out))] if self.held_out else []
        steps = sum(self.recording.lengths.values())
        return [
            ("recorded", f"{self.recording}; {describe_spaces(self.obs_space, self.act_space)}"),
            *held_out,
            ("environments", f"none to train, {count} to evaluate"),
            ("replay", f"{ranks.total(self.replay.capacity)[0]:,} of {steps:,} steps, {describe_memory(self.replay)}"),
            ("updates", f"{config.batch_size} x {config.batch_length} steps, {config.steps:,} updates"),
        ]

    def updates_left(self, frame: int, updates: int) -> float:
        """Updates until the end of a run after so many of them."""
        return self._config.steps - updates

    def counters(self) -> dict:
        """What a checkpoint must know of it."""
        return {"update_credit": 0.0}

    def restore(self, checkpoint: dict, goes_on: bool) -> None:
        """Nothing: `counters` leaves nothing that is read again."""

    def begin(self, run, checkpoint: dict | None) -> None:
        """Loads the episodes, and says where the run goes on."""
        offline.load(self.replay, self._part, self._config)
        if checkpoint:
            console.say(f"Resuming at update {run.clock:,}.")

    def end(self) -> list:
        """No episodes are open."""
        return []

    def held_out_batches(self) -> list[dict]:
        """Batches of the held-out episodes, the same at every call; none if there are no such episodes."""
        return offline.held_out_batches(self._held_out_memory) if self.held_out else []
