"""Compares runs: curves with mean and range over seeds, and a table of final values.

    python compare.py logdir/learning
    python compare.py flat=logdir/a flat=logdir/b "two levels=logdir/c" --metric episode/return --out returns.png

Each folder is a run, or contains runs at any depth. Each task has its own panel. Runs that differ only in the seed
form a group, named after the settings in which groups differ, or by hand as LABEL=FOLDER. Thin lines are single seeds.
A thick line is their mean and the shading their range, as far as all seeds of the group have values. A final value is
the mean over the last quarter of a run.
"""

import argparse
import pathlib
import sys

from matplotlib.figure import Figure

from pages.comparison import EVALUATION, TRAINING, draw, final_table, find_runs, group_runs, phrase, read_runs


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments; None for those of the process.
    Returns:
        exit code: 0, or 2 for an error that the user can correct.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER", help="a run or a folder that holds runs; LABEL names its group")
    chosen = f"{EVALUATION}, or {TRAINING} if no run has been evaluated"
    parser.add_argument("--metric", help=f"a name in metrics.jsonl (default: {chosen})")
    parser.add_argument("--by", nargs="+", metavar="SETTING", help="settings that groups differ in (default: all that matter)")
    parser.add_argument("--task", help="task of runs without config.yaml, which dreamerv3-torch does not write")
    parser.add_argument(
        "--out",
        nargs="+",
        type=pathlib.Path,
        default=[pathlib.Path("compare.png"), pathlib.Path("compare.svg")],
        metavar="FILE",
        help="figures to write, by their endings (default: compare.png compare.svg)",
    )
    options = parser.parse_args(argv)
    kinds = Figure().canvas.get_supported_filetypes()
    for path in options.out:
        if path.suffix[1:].lower() not in kinds:
            parser.error(f"--out {path}: a figure is written as {', '.join(f'.{kind}' for kind in ('png', 'svg', 'pdf'))}")
    try:
        metric, runs = read_runs(find_runs(options.folders), options.metric, options.task)
        tasks = group_runs(runs, options.by)
        figure = draw(tasks, metric)
        for path in options.out:
            figure.savefig(path, dpi=130)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{metric}, mean over the last quarter\n{final_table(tasks)}")
    for task, groups in tasks.items():
        for group in groups:
            if group.besides:
                print(f"{task}, {group.label}: also {', '.join(phrase(*setting) for setting in group.besides.items())}")
    print(f"Drawn: {' '.join(map(str, options.out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
