"""What happens when losses or gradients are not finite: single updates are skipped, see `optim.Optimizer`; too many end the run."""

import io
import pathlib

import numpy as np
from torch import nn

from scale import ranks
from storage import arrays
from storage.disk import Disk

LIMIT = 10  # updates in a row that an optimizer may skip
LOOK_EVERY = 10  # updates between two looks: on a GPU each look waits for it


class NonFinite(ArithmeticError):
    """Losses or gradients have not been finite for too long.

    Args:
        message: what is not finite, for people.
        batch: the arrays of the last update, by name.
    Attributes:
        path: where the batch is kept, or waits for the disk; None before.
    """

    def __init__(self, message: str, batch: dict[str, np.ndarray]):
        super().__init__(message)
        self.batch, self.path = batch, None

    def __str__(self) -> str:
        kept = f" The last batch is kept in {self.path}." if self.path and self.path.exists() else ""
        return f"{super().__str__()} Skipped updates have not changed what is trained.{kept}"


def check(agent: nn.Module, batch: dict[str, np.ndarray]) -> None:
    """Looks at the agent's optimizers.

    Args:
        batch: of the update that has just been.
    Raises:
        NonFinite: if one of them has skipped LIMIT updates in a row.
        SaidElsewhere: of several processes, in all but the first one whose batch is not finite.
    """
    skipped = {name: int(optimizer.skipped_in_a_row) for name, optimizer in agent.optimizers().items()}
    stuck = {name: count for name, count in skipped.items() if count >= LIMIT}
    if stuck:
        sound = all(np.isfinite(np.asarray(value, np.float32)).all() for value in _flat(batch).values())
        guilty = ranks.all_of([] if sound else [ranks.rank()])
        if ranks.rank() != min(guilty, default=0):
            raise ranks.SaidElsewhere
        where = _list(stuck, "updates in a row")
        raise NonFinite(f"loss or gradient was not finite in the optimizer {where}. {_findings(agent, batch)}", batch)


def _findings(agent: nn.Module, batch: dict[str, np.ndarray]) -> str:
    """Which inputs, losses and weights are not finite; if no input is, their ranges."""
    values = {key: np.asarray(value, np.float32) for key, value in _flat(batch).items() if key != "replay.steps"}
    inputs = {key: int((~np.isfinite(value)).sum()) for key, value in values.items()}
    inputs = {key: count for key, count in inputs.items() if count}
    losses = [name for name, value in agent.model_losses(batch).items() if not value.isfinite()]
    weights = weights_not_finite(agent)
    ranges = ", ".join(f"{key} {value.min():.4g} to {value.max():.4g}" for key, value in values.items())
    return " ".join([
        f"Inputs with NaN or infinity: {_list(inputs, 'entries')}." if inputs else f"All inputs are finite: {ranges}.",
        f"The world model's losses that are not finite: {', '.join(losses)}." if losses else "The world model's losses are finite.",
        f"Weights that are not finite: {', '.join(weights[:5])}." if weights else "All weights are finite.",
    ])  # fmt: skip


def weights_not_finite(agent: nn.Module) -> list[str]:
    """Names of the agent's tensors with NaN or infinity; an agent that has any is not worth being saved."""
    return [name for name, value in agent.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]


def write_batch(batch: dict[str, np.ndarray], logdir: pathlib.Path, updates: int, disk: Disk) -> pathlib.Path:
    """Keeps a batch for inspection; returns where."""
    path, content = logdir / f"nonfinite_{updates}.npz", io.BytesIO()
    arrays.write(content, _flat(batch))
    disk.write("the last batch", path, content.getvalue())
    return path


def _flat(batch: dict) -> dict[str, np.ndarray]:
    """The arrays of a batch, with the stored latents that it starts from as "context_deter" and so on."""
    context = {f"context_{key}": value for key, value in batch.get("replay.context", {}).items()}
    return {**{key: value for key, value in batch.items() if key != "replay.context"}, **context}


def _list(counts: dict[str, int], unit: str) -> str:
    return ", ".join(f"{name} ({count} {unit})" for name, count in counts.items())
