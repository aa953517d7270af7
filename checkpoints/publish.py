"""Publishes the agent of a run: its weights, without optimizers and episodes, and a card that says what it reaches.

    python -m checkpoints.publish logdir/run NAME

plays 20 episodes with `evaluate.py`, and as many with random actions, and writes the folder pretrained/NAME. From then on
`load_agent("pretrained/NAME")` and `python evaluate.py pretrained/NAME` find it. Flags that are not listed here go to evaluate.py.
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import torch

import checkpoints
import settings
from settings.combinations import GENERATION
from settings.files import sections, show
from storage import arrays, episodes, files

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
EPISODES = 20  # that are played
HERE = ("logdir", "device", "wandb_project")  # settings of a machine, which are not published
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py")
MOMENTS, MOMENTS_BYTES = 256, 300_000  # steps and bytes of the recorded clip, at most


def settings_of(checkpoint: dict, source: str) -> settings.Config:
    """The settings of a checkpoint, without those of a machine.

    Args:
        source: where it comes from, for the message.
    Raises:
        ValueError: if it is of another program, or holds no settings and spaces, so that nobody could build the agent.
    """
    stored = checkpoint.get("config")
    if "version" not in checkpoint or not settings.holds_settings(stored) or "task" not in stored or "spaces" not in checkpoint:
        raise ValueError(
            f"{source} holds no settings and spaces as runs of this program store them, and cannot be published; continue it for one "
            "step with --from_checkpoint, and give the new run"
        )
    config = settings.load_config(stored=stored)
    defaults = settings.load_config(overrides={"task": config.task})
    dict.update(config, {name: defaults[name] for name in HERE})
    return config


def weights_only(checkpoint: dict, config: settings.Config) -> dict:
    """A checkpoint with the weights, settings, spaces and counters of another one, and nothing of its optimizers and random states."""
    return {
        "version": checkpoints.VERSION,
        "weights_only": True,
        "agent_state_dict": checkpoint["agent_state_dict"],
        "optims_state_dict": {},
        "config": settings.plain(config),
        "spaces": checkpoint["spaces"],
        "step": checkpoint["step"],
        "updates": checkpoint["updates"],
        "last_eval": 0,
        "update_credit": 0.0,
        "random_state": {},
    }


def save_compressed(path: pathlib.Path, checkpoint: dict) -> None:
    """Writes a checkpoint as `torch.save` does, with compression, which saves about a tenth; `checkpoints.load` reads it as any other."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with zipfile.ZipFile(content) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for entry in plain.infolist():
            archive.writestr(zipfile.ZipInfo(entry.filename), plain.read(entry), zipfile.ZIP_DEFLATED)


def save_moments(path: pathlib.Path, recorded: pathlib.Path) -> None:
    """Writes the first steps of the longest of the ten newest episodes as an episode file, as many as fit; nothing if there are none.

    Args:
        recorded: a folder of episodes.
    """
    lengths = dict(list(episodes.stored_steps(recorded).items())[-10:])
    if not lengths:
        return
    episode, steps = episodes.load_episode(recorded / max(lengths, key=lengths.get)), MOMENTS
    while True:
        content = io.BytesIO()
        arrays.write(content, {key: value[:steps] for key, value in episode.items() if not key.startswith("log_")})
        if content.tell() <= MOMENTS_BYTES or steps == 1:
            path.write_bytes(content.getvalue())
            return
        steps //= 2


def evaluate(folder: pathlib.Path, count: int, flags: list[str]) -> dict:
    """What `evaluate.py --random` measures for the agent in a folder; see its flag --json.

    Args:
        count: episodes.
        flags: further flags for it.
    Raises:
        CalledProcessError: if it fails. It has printed why.
    """
    script, found = pathlib.Path(__file__).parent.parent / "evaluate.py", folder / "found.json"
    command = [sys.executable, script, folder, "--episodes", str(count), *flags, "--random", "--json", found]
    subprocess.run(command, check=True)
    measured = json.loads(found.read_text())
    found.unlink()
    return measured


def command_of(config: settings.Config) -> str:
    """The command that trains with these settings: the presets that leave the fewest flags, and these flags."""
    presets, flags = [], _flags([], config)
    known = [name for name in sections() if name not in ("defaults", "suites")]
    while True:
        tried = {name: _flags([*presets, name], config) for name in known}
        best = min(tried, key=lambda name: len(tried[name]))
        if len(tried[best]) >= len(flags):
            break
        presets, flags = [*presets, best], tried[best]
    words = itertools.chain.from_iterable([f"--{name}", *map(show, value if type(value) is list else [value])] for name, value in flags)
    return shlex.join(["python", "dreamer.py", "--configs", "defaults", *presets, "--task", config.task, *words])


def _flags(presets: list[str], config: settings.Config) -> list[tuple[str, object]]:
    """Names and values of the settings that presets leave different; more than there are settings if the presets cannot be combined."""
    wanted = settings.flatten(config)
    try:
        given = settings.flatten(settings.load_config(presets, {"task": config.task}))
    except ValueError:
        return [*wanted.items()] * 2
    return [(name, value) for name, value in wanted.items() if name not in HERE and value != given[name]]


def card_of(name: str, checkpoint: dict, measured: dict, *, flags: list[str], note: str, licence: str) -> dict:
    """All facts about a published agent, as plain values.

    Args:
        name: of the agent.
        checkpoint: from `weights_only`.
        measured: by `evaluate`.
        flags: that it was given.
        note: how this agent was chosen, or whatever else a reader must know.
        licence: of the weights.
    """
    config = settings.load_config(stored=checkpoint["config"])
    count = len(measured["episodes"])
    levels = settings.level_sizes(config) if config.hierarchical_mode else {"flat": (config.dyn_stoch, config.dyn_discrete)}
    return {
        "name": name,
        "task": config.task,
        "command": command_of(config),
        "frames": int(checkpoint["step"]),
        "steps": config.steps,
        "updates": int(checkpoint["updates"]),
        "seed": config.seed,
        "generation": 2025 if config.optimizer == "laprop" else 2023,
        "latent": " + ".join(f"{stoch} x {classes} ({level})" for level, (stoch, classes) in levels.items()),
        "parameters": measured["parameters"],
        "evaluation": {
            "command": shlex.join(["python", "evaluate.py", f"pretrained/{name}", "--episodes", str(count), *flags, "--random"]),
            "episodes": count,
            **{key: measured[key] for key in ("seed", "sample", "summary", "scores", "random")},
        },
        "versions": {package: version for package in PACKAGES if (version := _version(package))},
        "note": note,
        "licence": licence,
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def returns_of(card: dict) -> tuple[str, str]:
    """The mean return of the agent and of random actions with their 95% intervals, as text."""
    rows = (card["evaluation"]["summary"]["return"], card["evaluation"]["random"]["return"])
    return tuple(f"{row['mean']:.4g}" + ("" if row["low"] is None else f" ({row['low']:.4g} to {row['high']:.4g})") for row in rows)


def facts_of(card: dict) -> dict[str, str]:
    """The facts of a card as text by title."""
    played, (agent, random) = card["evaluation"], returns_of(card)
    how = f"{played['episodes']} episodes, seed {played['seed']}, {'sampled' if played['sample'] else 'most likely'} actions"
    stopped = f" of {card['steps']:,}" if 0 < card["frames"] < card["steps"] else ""
    preset = f" (preset `{GENERATION}`)" if card["generation"] == 2025 else ""
    return {
        "task": f"`{card['task']}`",
        "mean return (95% interval)": f"{agent}; {how}",
        "random actions": f"{random}; as many episodes",
        "trained for": f"{card['frames']:,}{stopped} frames, {card['updates']:,} updates, seed {card['seed']}",
        "agent": f"DreamerV3 of {card['generation']}{preset}, latent {card['latent']}, {card['parameters']:,} parameters",
        "measured with": ", ".join(f"{package} {version}" for package, version in card["versions"].items()),
        "licence": card["licence"],
    }


def page(card: dict) -> str:
    """The card as Markdown."""
    name, table = f"pretrained/{card['name']}", "\n".join(f"| {title} | {text} |" for title, text in facts_of(card).items())
    return f"""# {name}

| | |
|---|---|
{table}

The interval resamples these episodes: it says nothing about other seeds of training. {card["note"]}

    {card["evaluation"]["command"]}

```python
from dreamer import load_agent

agent = load_agent("{name}")
```

`agent.pt` has the weights, settings and spaces, `moments.npz`, if it is there, the first steps of an episode of the
training. There are no optimizer moments and no other episodes. The agent was trained with

    {card["command"]}

The same command with `--from_checkpoint {name}` and a larger `--steps` begins a new run with it.
"""


def row(card: dict) -> str:
    """The card as a row of the table in docs/pretrained.md."""
    agent, random = returns_of(card)
    linked, how = f"[`pretrained/{card['name']}`](../pretrained/{card['name']}/README.md)", card["evaluation"]
    actions = "sampled" if how["sample"] else "most likely"
    return f"| {linked} | `{card['task']}` | {agent} | {random} | {actions} | {card['frames']:,} | {card['parameters']:,} |"


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which takes the place of `folder` only when everything in it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(run: str, name: str, *, count: int, flags: list[str], overwrite: bool, note: str, licence: str) -> pathlib.Path:
    """Writes the folder of a published agent; returns it.

    Args:
        run: folder of a run, or a checkpoint file.
        name: of the agent.
        count: episodes that are played.
        flags: for evaluate.py.
        overwrite: whether an agent of this name is replaced.
        note, licence: as for `card_of`.
    Raises:
        ValueError: for a name that cannot be one or is taken, and for a run without an agent. Nothing is written then.
    """
    folder = checkpoints.SHIPPED / name
    if not NAME.fullmatch(name):
        raise ValueError(f"the name is {name!r}; it must be a word of letters, digits, _ and -, such as cartpole, and no path")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists; give another name, or --overwrite to replace it")
    if count < 1:
        raise ValueError(f"--episodes is {count}; a card needs at least one, and 5 for an interval")
    file = checkpoints.locate(run)
    checkpoint = checkpoints.load(file, "Give the folder of a run, or a checkpoint in it")
    published = weights_only(checkpoint, settings_of(checkpoint, run))
    with new_folder(folder) as partial:
        save_compressed(partial / checkpoints.PUBLISHED, published)
        save_moments(partial / "moments.npz", file.parent / "train_eps")
        card = card_of(name, published, evaluate(partial, count, flags), flags=flags, note=note, licence=licence)
        (partial / "card.json").write_text(files.json_text(card, indent=1) + "\n")
        (partial / "README.md").write_text(page(card))
    return folder


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m checkpoints.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint in it")
    parser.add_argument("name", metavar="NAME", help="of the agent: the folder pretrained/NAME is written")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="episodes that are played (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the agent of this name")
    parser.add_argument("--note", default="", metavar="TEXT", help="sentences for the card, such as how this run was chosen")
    parser.add_argument("--licence", default="MIT", help="of the weights, for the card (default: %(default)s)")
    options, flags = parser.parse_known_args(argv)
    try:
        folder = publish(
            options.run,
            options.name,
            count=options.episodes,
            flags=flags,
            overwrite=options.overwrite,
            note=options.note,
            licence=options.licence,
        )
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # it has printed why
        return error.returncode
    except KeyboardInterrupt:
        return 130
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"Wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}; {size:,} bytes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
