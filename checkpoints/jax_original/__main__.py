"""Writes a flat agent of 2025 as the JAX original stores it:

python -m checkpoints.jax_original logdir/run exported
"""

import argparse
import pathlib
import sys

import checkpoints
from checkpoints.jax_original import export, options


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m checkpoints.jax_original", description="Writes a flat agent of dreamerv3_2025 as the JAX original stores it."
    )
    parser.add_argument("checkpoint", help="a flat run of dreamerv3_2025, its latest.pt, or a run of the JAX original")
    parser.add_argument("output", type=pathlib.Path, help="the folder to write; it must not exist")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.exists():
            raise ValueError(f"{arguments.output} exists; give another name")
        state = export.export(checkpoints.load(arguments.checkpoint, "Give another one"))
        folder = export.write(arguments.output.expanduser(), state)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"Wrote {folder}: {len(state['params'])} arrays after {state['counters']['updates']:,} updates. To go on with it in the original:"
    )
    flags = options.size_flags(state["options"])
    print(f"    python dreamerv3/main.py --task {state['options']['task']} {flags} --logdir {arguments.output.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
