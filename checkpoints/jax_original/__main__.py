"""Writes a flat agent of 2025 as the JAX original stores it:

python -m checkpoints.jax_original logdir/run exported
"""

import argparse
import pathlib
import shlex
import sys

import checkpoints
import settings
from checkpoints.jax_original import export, options


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m checkpoints.jax_original", description="Writes a flat agent of dreamerv3_2025 as the JAX original stores it."
    )
    parser.add_argument("checkpoint", help="a flat run of dreamerv3_2025, its latest.pt, or a run of the JAX original")
    parser.add_argument("output", type=pathlib.Path, help="the folder to write; it must not exist")
    arguments = parser.parse_args(argv)
    output = arguments.output.expanduser().resolve()
    try:
        if output.exists():
            raise ValueError(f"{output} exists; give another name")
        checkpoint = checkpoints.load(arguments.checkpoint, "Give another one")
        try:
            state = export.export(checkpoint)
        except ValueError as error:
            raise ValueError(f"{arguments.checkpoint} cannot be written as the original stores it: {error}") from error
        folder = export.write(output, state)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {folder}: {len(state['params'])} arrays after {state['counters']['updates']:,} updates, without episodes.")
    if checkpoint.get("notes"):
        print(f"Not written: {checkpoint['notes']}.")
    config = settings.completed(checkpoint["config"])
    print("To go on with it in the original:")
    print(f"    python dreamerv3/main.py {options.flags(config)} --logdir {shlex.quote(str(output))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
