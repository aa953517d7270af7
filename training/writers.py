"""Where metrics and videos go beside metrics.jsonl, TensorBoard and the console.

A writer of `logs.Logger` has `scalars(step, means)`, `video(name, path, step)` and `close()`; steps count what `curves.unit` says.
"""

import importlib
import pathlib
import re
import secrets
import types

import console
import settings
from pages import curves
from pages.run_page import RunPage


def check(config: settings.Config) -> None:
    """Makes sure that the writers of these settings are installed.

    Raises:
        ValueError: if one is not.
    """
    if config.wandb_project:
        import_wandb(config.wandb_project)


def of_run(config: settings.Config, logdir: pathlib.Path) -> list["Forgiving"]:
    """The writers of a run.

    Raises:
        ValueError: if one cannot begin.
    """
    wandb = [WandB(config.wandb_project, logdir, config)] if config.wandb_project else []
    return [Forgiving(writer) for writer in (RunPage(logdir), *wandb)]


def import_wandb(project: str) -> types.ModuleType:
    """The package of Weights & Biases.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"wandb_project is {project!r}, which needs the package wandb ({error}): pip install -r requirements/wandb.txt, "
            "or leave wandb_project out"
        ) from error


class WandB:
    """Sends metrics and videos to Weights & Biases. A run that is continued in its folder goes on in the same run there.

    Args:
        project: its name there.
        logdir: folder of the run; the id is stored in it.
        config: settings that are shown there.
    Raises:
        ValueError: if no run can be opened there.
    """

    def __init__(self, project: str, logdir: pathlib.Path, config: settings.Config):
        self._wandb = import_wandb(project)
        stored_id = logdir / "wandb_id.txt"
        if not stored_id.exists():
            stored_id.write_text(secrets.token_hex(4) + "\n")
        run_id = stored_id.read_text().strip()
        if not re.fullmatch(r"[\w-]{1,64}", run_id):
            raise ValueError(f"{stored_id} holds {run_id!r:.100}, which is no id of a run; delete it to begin another one")
        try:
            self._run = self._wandb.init(
                project=project,
                id=run_id,
                resume="allow",
                name=logdir.resolve().name,
                dir=str(logdir),
                config=settings.plain(config),
                allow_val_change=True,
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            raise ValueError(
                f"wandb_project is {project!r}, but no run can be opened there ({error}): log in with `wandb login`, set "
                "WANDB_MODE=offline to keep the data here, or leave wandb_project out"
            ) from error
        # Its own counter may never go back, as steps do when a killed run continues from its last checkpoint.
        self._unit = curves.unit(config)
        self._run.define_metric("*", step_metric=self._unit)

    def scalars(self, step: int, means: dict[str, float]) -> None:
        """Sends numbers by name."""
        self._run.log({self._unit: step, **means})

    def video(self, name: str, path: pathlib.Path, step: int) -> None:
        """Sends an animated GIF."""
        self._run.log({self._unit: step, name: self._wandb.Video(str(path), format="gif")})

    def close(self) -> None:
        """Sends the rest."""
        self._run.finish()


class Forgiving:
    """A writer whose failures are told once and end nothing, since what it writes can be had again from the folder of the run.

    Args:
        writer: the one that may fail.
    """

    def __init__(self, writer):
        self._writer, self._warned = writer, False

    def scalars(self, step: int, means: dict[str, float]) -> None:
        self._try(self._writer.scalars, step, means)

    def video(self, name: str, path: pathlib.Path, step: int) -> None:
        self._try(self._writer.video, name, path, step)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, call, *args) -> None:
        try:
            call(*args)
        except Exception as error:  # whatever a network, a disk or a package may fail with
            if not self._warned:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                console.warn(f"{type(self._writer).__name__} failed; training goes on ({reason})")
            self._warned = True
