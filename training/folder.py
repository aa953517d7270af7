"""The folder of a run: where it is, which settings it keeps, what it takes over from another one."""

import contextlib
import datetime
import filecmp
import itertools
import pathlib
import shlex

import checkpoints
import console
import settings
from checkpoints import jax_original
from envs.gym import check_modules, modules_of
from settings.combinations import GENERATION
from storage import files
from storage.episodes import names_in


def new_logdir(task: str) -> pathlib.Path:
    """A new folder logdir/<date>-<task>, with a number behind it if another run has just taken that name."""
    parent = pathlib.Path("logdir")
    parent.mkdir(exist_ok=True)
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{files.file_name(task)}"
    for number in itertools.count(1):
        logdir = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            logdir.mkdir()
            return logdir


def open_logdir(config: settings.Config) -> pathlib.Path:
    """The folder of the settings, made if it is not there, or a new one if they name none.

    Raises:
        ValueError: if it cannot be written.
    """
    try:
        logdir = pathlib.Path(config.logdir) if config.logdir else new_logdir(config.task)
        logdir.mkdir(parents=True, exist_ok=True)
        probe = logdir / ".writable"
        try:
            probe.write_bytes(bytes(4096))  # a full disk still takes empty files
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(error) from error
    return logdir


def cannot_write(error: OSError) -> ValueError:
    return ValueError(f"cannot write into the folder of the run: {error}; give another one with --logdir")


def keep_original(path: pathlib.Path) -> pathlib.Path:
    """Gives a checkpoint of dreamerv3-torch a second name beside it, under which it stays; returns that."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}.dreamerv3-torch{'' if number == 1 else f'-{number}'}{path.suffix}")
        if not kept.exists():
            files.link(path, kept)
            return kept
        if filecmp.cmp(path, kept, shallow=False):
            return kept


def take_over_episodes(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Links the episodes of another run into a folder."""
    names = names_in(source)
    with console.Progress("take over", len(names), "episodes", brief=True) as progress:
        for number, name in enumerate(names, start=1):
            directory.mkdir(parents=True, exist_ok=True)
            files.link(source / name, directory / name)
            progress.update(number)


def command_settings(presets: list[str], flags: dict) -> settings.Config:
    """Settings of a command line. Without presets, the settings of the run in `logdir` are the base, and flags apply on top.

    Raises:
        ValueError: if there are neither presets, a task nor stored settings, or if stored settings name a module to import.
    """
    logdir = flags.get("logdir")
    if logdir == "":
        raise ValueError("--logdir is empty; give a folder, or leave it out for a new one")
    if presets or not isinstance(logdir, str):
        return settings.load_config(presets, flags)
    logdir = pathlib.Path(logdir).expanduser()
    if logdir.is_file():
        raise ValueError(f"{logdir} is a file; give the folder of a run, or --from_checkpoint {logdir} with presets and a task")
    stored = stored_settings(logdir)
    if stored:
        _check(stored, logdir)
    task = flags.get("task", stored.get("task"))
    if task is None and (logdir / checkpoints.PUBLISHED).exists():
        raise ValueError(
            f"{logdir} is a published agent and no run; begin one with it: --configs ... --task ... --from_checkpoint {logdir}"
        )
    if task is None:
        raise ValueError(
            f"{logdir} holds no run with settings. To resume a run, give its folder; to start one here, or to take over one of "
            "dreamerv3-torch, say what it learns: --configs defaults hdreamer --task atari_pong"
        )
    if stored and task != stored["task"]:
        raise ValueError(f"{logdir} holds a run of task {stored['task']}, and --task is {task}; leave --task out, or give another --logdir")
    if (logdir / "latest.pt").exists():
        stored.pop("from_checkpoint", None)  # only a new run reads it
    config = settings.load_config(overrides=flags, stored=stored)
    check_modules(config, modules_of(str(flags.get("task", "")), flags.get("import")))
    return config


def _check(stored: dict, logdir: pathlib.Path) -> None:
    """Raises ValueError, with the name of the folder, if its stored settings are not valid."""
    try:
        if not isinstance(stored.get("task"), str):
            raise ValueError("it names no task")
        settings.load_config(stored=stored)
    except ValueError as error:
        raise ValueError(f"the settings of the run in {logdir} are damaged: {error}; repair or delete its config.yaml") from error


def stored_settings(logdir: pathlib.Path) -> dict:
    """The settings that a folder or the checkpoint in it stores; empty if there are none.

    Raises:
        ValueError: for a run of the JAX original, which is never continued in its own folder.
    """
    if not (logdir / "latest.pt").exists() and jax_original.locate(logdir):
        command = f"--configs defaults {GENERATION} --task ... --from_checkpoint {shlex.quote(str(logdir))}"
        raise ValueError(f"{logdir} holds a run of DreamerV3 in JAX; begin a new run with it, in another folder: {command}")
    if (logdir / "config.yaml").exists():
        return settings.read_yaml(logdir / "config.yaml")
    stored = checkpoints.load(logdir / "latest.pt").get("config") if (logdir / "latest.pt").exists() else None
    return stored if settings.holds_settings(stored) else {}


def stored_config(logdir: pathlib.Path) -> dict:
    """The settings of the run in this folder; empty if it holds neither weights nor episodes."""
    begun = (logdir / "latest.pt").exists() or any(logdir.glob("train_eps/*.npz")) or jax_original.locate(logdir)
    return stored_settings(logdir) if begun else {}


def store_config(logdir: pathlib.Path, config: settings.Config, changes: list[tuple[str, str, str]], step: int) -> None:
    """Writes config.yaml, and what differs from the one before into config_changes.jsonl."""
    now = datetime.datetime.now().isoformat(timespec="seconds")
    for name, before, after in changes:
        with open(logdir / "config_changes.jsonl", "a") as file:
            file.write(files.json_text({"time": now, "step": step, "setting": name, "from": before, "to": after}) + "\n")
    with files.replacing(logdir / "config.yaml") as file:
        settings.write_yaml(config, file)
