"""Writes docs/configuration.md: `python -m settings`."""

from settings.files import CONFIG_FILE
from settings.help import markdown

DOCS_FILE = CONFIG_FILE.parent / "docs" / "configuration.md"

if __name__ == "__main__":
    DOCS_FILE.write_text(markdown())
    print(f"wrote {DOCS_FILE}")
