"""Checkpoints on disk: written at once or not at all, read without running code."""

import pathlib
import random
import shlex

import numpy as np
import torch

from storage import archives, files

VERSION = 1
AGENT = frozenset(["agent_state_dict", "optims_state_dict"])  # all that dreamerv3-torch stores
# What a run of this program needs to go on.
RUN = AGENT | {"version", "step", "last_eval", "updates", "update_credit", "random_state"}


def save(path: pathlib.Path, checkpoint: dict) -> None:
    """Writes a dict of tensors and plain containers.

    The file under `path` is replaced only when the new one is complete, and what it held is kept beside it, see `previous`.

    Raises:
        OSError: if it cannot be written; then the files that were there stay.
    """
    with files.replacing(path) as file:
        try:
            torch.save({"version": VERSION, **checkpoint}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # which PyTorch hides behind a position in its archive
                raise error.__context__ from None
            raise
        file.flush()
        if path.exists():
            files.link(path, previous(path))


def previous(path: pathlib.Path) -> pathlib.Path:
    """Where the checkpoint before the one under `path` is kept."""
    return path.with_name(f"previous{path.suffix}")


def locate(path: str) -> pathlib.Path:
    """The checkpoint that a user names: a file, or a folder with a latest.pt.

    Raises:
        ValueError: if there is none.
    """
    found = pathlib.Path(path).expanduser()
    found = found / "latest.pt" if found.is_dir() and path else found
    if not found.is_file():
        raise ValueError(f"there is no checkpoint {str(found)!r}; give a file, or a folder with a latest.pt")
    return found


def load(path: pathlib.Path, way_out: str | None = None) -> dict:
    """Reads a checkpoint of this program or of dreamerv3-torch onto the CPU; nothing in it can run code.

    Args:
        way_out: what to do if it cannot be read, for the error; None for what helps a run whose own checkpoint it is.
    Returns:
        a dict with the entries `RUN`, or without a "version" and with the entries `AGENT` alone, if dreamerv3-torch wrote it.
    Raises:
        ValueError: for a damaged file, one without these entries, or one of a newer format.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:  # says nothing about what is in it
        raise ValueError(f"the checkpoint {path} cannot be opened: {error.strerror}. Make it readable, or give another one") from error
    way_out = way_out or _way_back(path)
    try:
        archives.check_checkpoint(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        archives.check_values(checkpoint)
    except archives.Unsafe as error:
        raise ValueError(f"the checkpoint {path} is damaged or no checkpoint at all: {error}. {way_out}") from error
    except Exception as error:  # a damaged file makes its readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the checkpoint {path} cannot be read and is probably damaged ({reason}). {way_out}") from error
    entries = set(checkpoint) if isinstance(checkpoint, dict) else set()
    missing = (RUN if "version" in entries else AGENT) - entries
    if missing:
        raise ValueError(f"the checkpoint {path} lacks {', '.join(sorted(missing))}. {way_out}")
    version = checkpoint.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise ValueError(f"{path} has format version {' '.join(str(version).split()):.50}, this program reads {VERSION}; update hDreamer")
    return checkpoint


def _way_back(path: pathlib.Path) -> str:
    last_good = previous(path)
    if path != last_good and last_good.exists():
        try:
            before = load(last_good)
            origin = "dreamerv3-torch's"
            if "version" in before:
                origin = f"from frame {int(before['step']):,}, update {int(before['updates']):,}"
            return f"The one before it is {origin}; to go on from there: {shlex.join(['mv', str(last_good), str(path)])}"
        except (ValueError, TypeError, OverflowError, RuntimeError):
            pass  # damaged too
    return f"Move it away to train anew from the episodes in {path.parent}, or give another --logdir"


def random_state(replay_rng: np.random.Generator) -> dict:
    """The state of every random number generator, in plain containers."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "replay": replay_rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state: dict, replay_rng: np.random.Generator) -> None:
    """Sets every random number generator as `random_state` found it."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    replay_rng.bit_generator.state = state["replay"]
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
