"""Checkpoints: this program's own and dreamerv3-torch's, read without running code, and fitted to an agent."""

from checkpoints.files import AGENT, RUN, VERSION, load, locate, previous, random_state, restore_random_state, save
from checkpoints.sizes import sizes_of

__all__ = ["AGENT", "RUN", "VERSION", "load", "locate", "previous", "random_state", "restore_random_state", "save", "sizes_of"]
