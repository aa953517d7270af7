"""Metrics and videos for TensorBoard."""

import io
import itertools
import os
import pathlib
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from storage.disk import Disk

KIND = "TensorBoard's events"


class EventFile:
    """A file of events in the folder of a run.

    TensorBoard's own writer hands them to a thread, which ends for good with the first one that cannot be written; here they go the
    way of the run's other files.

    Args:
        logdir: folder of the run.
        disk: what writes.
    """

    _numbers = itertools.count()

    def __init__(self, logdir: pathlib.Path, disk: Disk):
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._path, self._disk = logdir / name, disk
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, means: dict[str, float]) -> None:
        """Writes numbers by name."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in means.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def video(self, name: str, gif: bytes, size: tuple[int, int], step: int) -> None:
        """Writes an animated GIF of this height and width."""
        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=gif)
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def _add(self, event: Event) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._disk.append(KIND, self._path, record.getvalue())
