"""Checkpoints of this program, of dreamerv3-torch and of the JAX original: reading, writing, and loading into an agent.

Reading runs no code from a file.
"""

from checkpoints.files import AGENT, RUN, VERSION, load, locate, previous, random_state, restore_random_state, save
from checkpoints.sizes import sizes_of

__all__ = ["AGENT", "RUN", "VERSION", "load", "locate", "previous", "random_state", "restore_random_state", "save", "sizes_of"]
