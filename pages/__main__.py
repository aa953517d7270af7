"""Writes the web page of a run, report/index.html in its folder; runs of dreamerv3-torch have one too:

python -m pages logdir/20261129-230605-gym_CartPole-v1
"""

import argparse
import pathlib
import sys

from pages.run_page import read_settings, write


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser("python -m pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=pathlib.Path, help="folder of a run")
    options = parser.parse_args(argv)
    try:
        if not (options.logdir / "metrics.jsonl").exists():
            raise ValueError(f"{options.logdir} holds no run: there is no metrics.jsonl; give the folder of a run")
        path = write(options.logdir, read_settings(options.logdir))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"The page: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
