"""Long tests of the promises in docs/reliability.md: `python -m benchmarks.reliability files`."""

import sys

from benchmarks.reliability import environments, files, kill

PARTS = {"environments": environments.main, "files": files.main, "kill": kill.main}

if __name__ == "__main__":
    name, *argv = sys.argv[1:] or [""]
    if name not in PARTS:
        sys.exit(f"usage: python -m benchmarks.reliability {{{','.join(PARTS)}}} ...")
    sys.exit(PARTS[name](argv))
