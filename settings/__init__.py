"""Settings: configs.yaml, the command line, and what a continued run may change.

configs.yaml is the only place where a setting, its default and its description stand; `--help` and docs/configuration.md are
made from it (`python -m settings` writes the latter).
"""

from settings.files import flatten, holds_settings, plain, read_yaml, write_yaml
from settings.loading import Config, load_config, parse_flags, unknown
from settings.resume import changes_from_defaults, changes_of_model, changes_of_run, shown

__all__ = [
    "Config",
    "changes_from_defaults",
    "changes_of_model",
    "changes_of_run",
    "flatten",
    "holds_settings",
    "load_config",
    "parse_flags",
    "plain",
    "read_yaml",
    "shown",
    "unknown",
    "write_yaml",
]
