"""Checkpoints of this program, of dreamerv3-torch and of the JAX original: reading, writing, and loading into an agent.

Reading runs no code from a file.
"""

from checkpoints.files import (
    AGENT,
    PUBLISHED,
    RUN,
    SHIPPED,
    VERSION,
    load,
    locate,
    previous,
    random_state,
    report_folder,
    restore_random_state,
    save,
    shipped,
)
from checkpoints.sizes import sizes_of

__all__ = [
    "AGENT",
    "PUBLISHED",
    "RUN",
    "SHIPPED",
    "VERSION",
    "load",
    "locate",
    "previous",
    "random_state",
    "report_folder",
    "restore_random_state",
    "save",
    "shipped",
    "sizes_of",
]
