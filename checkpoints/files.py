"""Checkpoints on disk. A write replaces the old file only when it is complete; reading runs no code from the file."""

import os
import pathlib
import random
import shlex

import numpy as np
import torch

from checkpoints.jax_original import ENTRIES, convert, read_files
from checkpoints.jax_original import locate as locate_in_run
from storage import archives, files

VERSION = 1
LATEST = "latest.pt"  # in the folder of a run
PUBLISHED = "agent.pt"  # in a folder that checkpoints/publish.py has written
SHIPPED = pathlib.Path(__file__).parent.parent / "pretrained"  # folders of published agents, by name
AGENT = frozenset(["agent_state_dict", "optims_state_dict"])  # all that dreamerv3-torch stores
# What a run of this program needs to resume.
RUN = AGENT | {"version", "step", "last_eval", "updates", "update_credit", "random_state"}


def save(path: pathlib.Path, checkpoint: dict) -> None:
    """Writes a dict of tensors and plain containers.

    The new file replaces the one under `path` only when it is complete. The old one stays beside it, see `previous`.

    Raises:
        OSError: if it cannot be written; the existing files then stay as they are.
    """
    with files.replacing(path) as file:
        try:
            torch.save({"version": VERSION, **checkpoint}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # PyTorch reports only a position in the archive
                raise error.__context__ from None
            raise
        file.flush()
        if path.exists():
            files.link(path, previous(path))


def previous(path: pathlib.Path) -> pathlib.Path:
    """The path of the checkpoint that the one under `path` replaced."""
    return path.with_name(f"previous{path.suffix}")


def shipped() -> list[str]:
    """The names of the agents in the program's folder `pretrained`."""
    return sorted(file.parent.name for file in SHIPPED.glob(f"[!.]*/{PUBLISHED}"))


def locate(path: str | os.PathLike) -> pathlib.Path:
    """Finds the checkpoint that a user names.

    Args:
        path: a file; a folder with latest.pt or agent.pt, or of a run of the JAX original, whose newest agent.pkl is taken; or
            pretrained/NAME, which leads to the program's own folder if there is none here.
    Raises:
        ValueError: if there is none.
    """
    path = os.fspath(path)
    found = pathlib.Path(path).expanduser()
    published = found.parts[:1] == (SHIPPED.name,)
    if published and not found.exists():
        found = SHIPPED.parent / found
    if found.is_dir() and path:
        own = found / LATEST
        found = next((found / name for name in (LATEST, PUBLISHED) if (found / name).is_file()), None) or locate_in_run(found) or own
        if found == own and (early := next(own.parent.glob("*.ckpt"), None)):
            raise ValueError(
                f"{early} is of an earlier version of DreamerV3 in JAX; only those of 2025 can be read, which write ckpt/*/agent.pkl"
            )
    if not found.is_file():
        if published:
            raise ValueError(f"there is no agent {path!r}; those in {SHIPPED} are {', '.join(shipped()) or 'none'}")
        raise ValueError(f"there is no checkpoint {str(found)!r}; give a file, or a folder with a latest.pt or with a ckpt/*/agent.pkl")
    return found


def report_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder for pages about an agent: that of its run, and logdir/pretrained/NAME for a published agent, which stays as it is.

    Raises:
        ValueError: as `locate`.
    """
    file, given = locate(path), pathlib.Path(path).expanduser()
    if file.name == PUBLISHED:
        return pathlib.Path("logdir", SHIPPED.name, file.resolve().parent.name)
    return given if given.is_dir() else file.parent


def load(path: str | os.PathLike, way_out: str | None = None) -> dict:
    """Reads a checkpoint of this program, of dreamerv3-torch or of the JAX original onto the CPU, without running code from it.

    Args:
        path: as for `locate`.
        way_out: advice for the error message if the file cannot be read; None for advice to a run that reads its own checkpoint.
    Returns:
        a dict with the entries `RUN`; with the entries `AGENT` and no "version" if another program wrote the file, see also
        `jax_original.convert`.
    Raises:
        ValueError: if the file is damaged, lacks these entries, or has a newer format.
    """
    path = pathlib.Path(path).expanduser()
    path = path if path.name == LATEST else locate(path)  # a folder of this name is no run, but a file that cannot be read
    from_jax = path.suffix == ".pkl"
    try:
        with open(path, "rb"):
            pass
    except OSError as error:  # the content may be fine
        raise ValueError(f"the checkpoint {path} cannot be opened: {error.strerror}. Make it readable, or give another one") from error
    way_out = way_out or _way_back(path)
    try:
        checkpoint = read_files(path) if from_jax else _read_archive(path)
    except archives.Unsafe as error:
        raise ValueError(f"the checkpoint {path} is damaged or no checkpoint at all: {error}. {way_out}") from error
    except Exception as error:  # reading a damaged file may raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the checkpoint {path} cannot be read and is probably damaged ({reason}). {way_out}") from error
    if from_jax:
        try:
            return convert(checkpoint)
        except ValueError as error:
            raise ValueError(f"the checkpoint {path} cannot be taken over: {error}. {way_out}") from error
    entries = set(checkpoint) if isinstance(checkpoint, dict) else set()
    missing = (RUN if "version" in entries else AGENT) - entries
    if missing:
        raise ValueError(f"the checkpoint {path} lacks {', '.join(sorted(missing))}. {way_out}")
    version = checkpoint.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{path} has format version {' '.join(str(version).split()):.50}, this program reads {VERSION}; update hDreamer")
    return {name: value for name, value in checkpoint.items() if name not in ENTRIES}


def _read_archive(path: pathlib.Path):
    """What `torch.save` wrote, if that is safe to read."""
    archives.check_checkpoint(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    archives.check_values(checkpoint)
    return checkpoint


def _way_back(path: pathlib.Path) -> str:
    last_good = previous(path)
    if path != last_good and last_good.exists():
        try:
            before = load(last_good)
            origin = "dreamerv3-torch's"
            if "version" in before:
                origin = f"from frame {int(before['step']):,}, update {int(before['updates']):,}"
            return f"The one before it is {origin}; to resume from there: {shlex.join(['mv', str(last_good), str(path)])}"
        except (ValueError, TypeError, OverflowError, RuntimeError):
            pass  # damaged too
    if path.suffix == ".pkl":
        return "Give another one"
    return f"Move it away to train a new agent from the episodes in {path.parent}, or give another --logdir"


def random_state(replay_rng: np.random.Generator) -> dict:
    """Returns the state of every random number generator, in plain containers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "replay": replay_rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state: dict, replay_rng: np.random.Generator) -> None:
    """Sets every random number generator to a state from `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    replay_rng.bit_generator.state = state["replay"]
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
