"""Writes the checkpoint of a flat agent in the format of dreamerv3-torch:

python -m checkpoints logdir/run/latest.pt exported.pt [--compiled]
"""

import argparse
import pathlib
import sys

import torch

import checkpoints
from checkpoints import dreamerv3_torch
from storage import files


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m checkpoints", description="Writes the checkpoint of a flat agent in the format of dreamerv3-torch."
    )
    parser.add_argument("checkpoint", help="a flat run's latest.pt, or its folder")
    parser.add_argument("output", type=pathlib.Path, help="the file to write, for example latest.pt in a folder for dreamerv3-torch")
    parser.add_argument("--compiled", action="store_true", help="for a run of dreamerv3-torch with compile: True, its default")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.exists():
            raise ValueError(f"{arguments.output} exists; give another name")
        checkpoint = checkpoints.load(checkpoints.locate(arguments.checkpoint), "Give another file")
        exported = dreamerv3_torch.export(checkpoint, arguments.compiled)
        with files.replacing(arguments.output.expanduser()) as file:
            torch.save(exported, file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {arguments.output}: {len(exported['agent_state_dict'])} names, {len(exported['optims_state_dict'])} optimizers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
