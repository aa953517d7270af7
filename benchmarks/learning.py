"""Trains agents as `plan.yaml` says, on this machine:

    python benchmarks/learning.py                      # whatever of the plan is not done yet; Ctrl-C stops, the same command goes on
    python benchmarks/learning.py cartpole --jobs 1 --seeds 0

It is `python -m scale.sweep PLAN --executor local`, see docs/sweeps.md. A run is dreamer.py's own command in a process with one
thread. When it ends or is stopped, its returns are stored in `data/` as a small JSON file, with the frames that they cover; beside
them those of the random policy. `draw.py` draws them.
"""

import argparse
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from scale import sweep

PLAN = HERE / "plan.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks of the plan; all if none is named")
    parser.add_argument("--plan", type=pathlib.Path, default=PLAN, help="what to run (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", metavar="VARIANT", help="variants of the plan; all if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the plan's seeds that are run; all if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the runs are (default: logdir/ and the plan's `results`)")
    options = parser.parse_args()
    words = [str(options.plan), "--executor", "local", "--jobs", str(options.jobs), "--device", options.device]
    words += ["--only", *options.tasks] if options.tasks else []
    words += ["--variants", *options.variants] if options.variants else []
    words += ["--seeds", *map(str, options.seeds)] if options.seeds else []
    words += ["--folder", str(options.folder)] if options.folder else []
    return sweep.main(words)


if __name__ == "__main__":
    sys.exit(main())
