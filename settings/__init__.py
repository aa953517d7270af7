"""Settings: configs.yaml, the command line, and what a continued run may change.

configs.yaml is the only place where a setting, its default and its description stand; `--help` and docs/configuration.md are
made from it (`python -m settings` writes the latter).
"""

from settings.effects import without_effect
from settings.files import flatten, holds_settings, plain, read_yaml, write_yaml
from settings.levels import SIZES, level_sizes
from settings.loading import Config, load_config, parse_flags, unknown
from settings.resume import changes_from_defaults, changes_of_model, changes_of_run, completed, keep_stored, shown, take

__all__ = [
    "SIZES",
    "Config",
    "changes_from_defaults",
    "changes_of_model",
    "changes_of_run",
    "completed",
    "flatten",
    "holds_settings",
    "keep_stored",
    "level_sizes",
    "load_config",
    "parse_flags",
    "plain",
    "read_yaml",
    "shown",
    "take",
    "unknown",
    "without_effect",
    "write_yaml",
]
