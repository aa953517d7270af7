"""Runs what a plan says, several runs at a time, on this machine or through Slurm:

    python -m scale.sweep benchmarks/plan.yaml --executor local --jobs 2
    python -m scale.sweep benchmarks/plan.yaml --executor slurm --partition gpu --gpus 1 --time 240
    python -m scale.sweep benchmarks/plan.yaml --executor local --only cartpole --seeds 0

A run is `python dreamer.py ...` in a process of its own. What has a result in benchmarks/data/ is left out; what was stopped
continues. Ctrl-C stops the runs on this machine, which save first; jobs of Slurm stay in its queue. The same command continues in
either case. docs/sweeps.md explains the rest.
"""

import argparse
import contextlib
import io
import os
import pathlib
import shutil
import signal
import sys
import time

from scale import job as job_module
from scale.job import Job
from scale.plan import ROOT, Run, is_done, load_plan, planned_runs, result_path
from scale.watch import Progress, Screen, cells

SECONDS = {"local": 0.5, "slurm": 2.0}  # between looks at the runs
SECONDS_OF_SLURM = 30.0  # between questions to Slurm
GRACE = 180  # seconds before the end of a job's time in which dreamer.py saves
YEAR = 365 * 24 * 60  # minutes
QUEUED = ("PENDING", "UNKNOWN", "REQUEUED", "PREEMPTED")  # states of Slurm


class Entry:
    """A row of the sweep: a run, or the random policy of a task.

    Args:
        frames: the length of the run; 0 for the random policy.
        folder: of the run, with the folder `run` of dreamer.py in it.
        job: what is submitted.
        origin: name of the entry that must be done before; None for none.
        done: whether there is a result of it.
    Attributes:
        state: waits, queued, runs, done, stopped or failed.
        submitted: submitit's job; None before.
        told: why it failed.
    """

    def __init__(self, name: str, frames: int, folder: pathlib.Path, job: Job, origin: str | None = None, done: bool = False):
        self.name, self.frames, self.folder, self.job, self.origin = name, frames, folder, job, origin
        self.state, self.submitted, self.told = "done" if done else "waits", None, ""
        self.progress = Progress(folder / "run" / "metrics.jsonl")

    @property
    def active(self) -> bool:
        return self.state in ("queued", "runs")


class Sweep:
    """Submits the jobs of entries, and watches them until all have ended or the sweep is stopped.

    Args:
        executor: of submitit.
        local: whether it starts processes on this machine, which end with the sweep.
        jobs: how many run or are queued at a time; None for all.
    """

    def __init__(self, entries: list[Entry], executor, *, local: bool, jobs: int | None):
        self._entries, self._executor, self._local = entries, executor, local
        self._jobs = jobs or len(entries)
        self._by_name = {entry.name: entry for entry in entries}
        self._stops, self._told_at, self._asked_at = 0, 0.0, 0.0
        self._screen = Screen()

    def run(self) -> int:
        """Runs everything; returns 0 if all is done, 1 if something failed, 130 if the sweep was stopped.

        Raises:
            ValueError: if Slurm refuses a job. Those that were submitted before stay.
        """
        numbers = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []))  # nohup
        handlers = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            if not self._local:
                self._find_jobs()
            while True:
                self._look()
                if not self._stops:
                    self._submit()
                self._show()
                if self._ended():
                    return self._summary()
                time.sleep(SECONDS["local" if self._local else "slurm"])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _show(self) -> None:
        try:
            self._screen.show([self._row(entry) for entry in self._entries])
        except OSError:  # the terminal is closed, or who read it has ended, as `| head` does; runs are watched all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _stop(self, *_) -> None:
        self._stops += 1
        if self._stops == 1 and self._local:
            self._screen.keep()
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, b"\nStopping; every run saves first (Ctrl-C again: leave them to it).\n")  # it may come amid another print

    def _ended(self) -> bool:
        """Whether nothing runs any more, or need not be watched."""
        if self._stops and (not self._local or self._stops > 1):
            return True
        return not any(entry.active or (entry.state == "waits" and not self._stops) for entry in self._entries)

    def _find_jobs(self) -> None:
        """Takes up the jobs of Slurm that an earlier call of the command has submitted."""
        found = {}
        for entry in self._entries:
            if entry.state == "waits" and (stored := entry.folder / "job.txt").exists():
                found[entry] = self._executor.job_class(self._executor.folder, stored.read_text().strip())
        for place, (entry, submitted) in enumerate(found.items()):
            if submitted.get_info(mode="cache" if place else "force") and not submitted.done():  # one question is about all jobs
                entry.submitted, entry.state = submitted, "queued"

    def _look(self) -> None:
        """Updates the state of everything that has been submitted."""
        ask = time.monotonic() - self._asked_at > SECONDS_OF_SLURM
        for entry in self._entries:
            entry.progress.update()
            if not entry.active:
                continue
            if self._local and self._stops and time.monotonic() - self._told_at > 2.0:
                self._tell()
            if entry.submitted.done(force_check=ask):
                self._end(entry)
            else:
                entry.state = "queued" if not self._local and entry.submitted.state in QUEUED else "runs"
            if ask and not self._local:  # one question is about all jobs
                ask, self._asked_at = False, time.monotonic()

    def _tell(self) -> None:
        """Tells local jobs to stop; several times, since one that is about to start may not have heard the first time."""
        self._told_at = time.monotonic()
        for entry in self._entries:
            if entry.active and not entry.submitted.done():
                os.kill(int(entry.submitted.job_id), signal.SIGTERM)

    def _end(self, entry: Entry) -> None:
        """Notes how a job has ended."""
        code = None
        if not self._stops or entry.submitted.paths.result_pickle.exists():  # else it was stopped before it began
            try:
                code = entry.submitted.result()
            except Exception:  # whatever killed it, or what it raised
                entry.told = "" if self._local else f" ({entry.submitted.state})"
        entry.progress.update()
        stopped = self._stops or code == job_module.INCOMPLETE
        entry.state = "done" if code == 0 else "stopped" if stopped else "failed"
        entry.told += f": {_last_words(log)} ({log})" if (log := entry.folder / "log.txt").exists() else ""

    def _submit(self) -> None:
        """Submits what may start, in order, as far as there is room."""
        room = self._jobs - sum(entry.active for entry in self._entries)
        for entry in self._entries:
            origin = self._by_name.get(entry.origin)
            if entry.state != "waits" or (origin and origin.state in ("waits", "queued", "runs")):
                continue
            if origin and origin.state != "done":
                entry.state, entry.told = "failed", f": it begins with the agent of {origin.name}, which has not been trained to its end"
            elif room > 0:
                room -= 1
                self._start(entry)

    def _start(self, entry: Entry) -> None:
        entry.folder.mkdir(parents=True, exist_ok=True)
        self._executor.update_parameters(job_name=entry.name)
        # The processes of local jobs must not hear Ctrl-C, since submitit's would kill a run that is still saving.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit prints what it raises too
                entry.submitted = self._executor.submit(entry.job)
        except Exception as error:
            raise ValueError(f"{entry.name} could not be submitted: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        entry.state = "runs" if self._local else "queued"
        if not self._local:
            (entry.folder / "job.txt").write_text(f"{entry.submitted.job_id}\n")

    def _row(self, entry: Entry) -> tuple[str, ...]:
        origin = self._by_name.get(entry.origin)
        waits_for = f" for {origin.name}" if entry.state == "waits" and origin and origin.state != "done" else ""
        return cells(entry.name, entry.state + waits_for, entry.frames, entry.progress)

    def _summary(self) -> int:
        """Prints what failed, and what to do next; returns the exit code."""
        failed = [entry for entry in self._entries if entry.state == "failed"]
        for entry in failed:
            print(f"error: {entry.name} failed{entry.told}", file=sys.stderr)
        watched = [entry.submitted.job_id for entry in self._entries if entry.active]
        if watched and not self._local:
            print(f"These jobs go on: {' '.join(watched)}. The same command watches them again; scancel stops them.")
        elif self._stops:
            print("Stopped; the same command continues.")
        if self._stops:
            return 130
        return 0 if all(entry.state == "done" for entry in self._entries) else 1


def _last_words(path: pathlib.Path) -> str:
    """The last error in a log, or its last line."""
    lines = [line for line in path.read_text(errors="replace")[-10_000:].split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it printed nothing"])[-1].removeprefix("error: ").strip()


# The command line


def entries_of(options: argparse.Namespace) -> list[Entry]:
    """What is to be run.

    Raises:
        ValueError: for a plan, a task, a variant, seeds or settings that cannot be run, or if a result of other settings is stored.
    """
    plan = load_plan(options.plan)
    tasks = list(dict.fromkeys(options.only or plan["tasks"]))
    for kind, named in (("task", tasks), ("variant", options.variants or [])):
        if unknown := sorted(set(named) - set(plan[f"{kind}s"])):
            raise ValueError(f"there is no {kind} {', '.join(unknown)} in {options.plan}; there are {', '.join(plan[f'{kind}s'])}")
    runs = planned_runs(plan, tasks, options.seeds, options.variants)
    if not runs:
        raise ValueError(f"no run of {', '.join(tasks)} has one of the seeds {' '.join(map(str, options.seeds or []))}")
    folder = (options.folder or pathlib.Path("logdir") / pathlib.Path(plan["results"]).name).expanduser().absolute()
    entries = []
    for task in tasks:
        name = f"{task}-random"
        job = Job(folder / name, _trial("random", task, options, folder), variables=_variables(options))
        entries.append(Entry(name, 0, folder / name, job, done=result_path(plan["results"], name).exists()))
    for run in runs:
        try:
            entries.append(_entry(plan, run, options, folder))
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
    return entries


def _entry(plan: dict, run: Run, options: argparse.Namespace, folder: pathlib.Path) -> Entry:
    logdir, frames = folder / run.name, run.frames
    command = [sys.executable, str(ROOT / "dreamer.py"), *run.command, "--device", options.device, "--logdir", str(logdir / "run")]
    before = None
    if run.origin:
        before = _trial("begin", run.name, options, folder)
        command += ["--from_checkpoint", str(logdir / "origin.pt")]
    job = Job(logdir, command, before=before, after=_trial("store", run.name, options, folder), variables=_variables(options))
    return Entry(run.name, frames, logdir, job, run.origin, is_done(plan, run))


def _trial(what: str, name: str, options: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """A command line of benchmarks/trial.py."""
    flags = ["--plan", str(options.plan.absolute()), "--folder", str(folder), "--device", options.device]
    return [sys.executable, str(ROOT / "benchmarks" / "trial.py"), what, name, *flags]


def _variables(options: argparse.Namespace) -> dict[str, str | None]:
    """Environment variables of jobs: threads, and the GPUs of this machine, which submitit hides from local jobs."""
    threads = {"OMP_NUM_THREADS": str(options.cpus or 1)}
    if options.executor == "slurm":
        return threads
    return {**threads, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}


def make_executor(options: argparse.Namespace, folder: pathlib.Path):
    """submitit's executor for the options.

    Raises:
        ValueError: if submitit or Slurm is not there.
    """
    try:
        import cloudpickle
        import submitit
    except ImportError as error:
        raise ValueError(f"sweeps need submitit ({error}): pip install -r requirements/sweep.txt") from error
    cloudpickle.register_pickle_by_value(job_module)  # so that a job starts in any folder
    if options.executor == "local":
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
        return executor
    missing = [program for program in ("sbatch", "srun", "sacct", "scontrol") if not shutil.which(program)]
    if missing:
        raise ValueError(f"--executor slurm needs {', '.join(missing)} of Slurm, which is not installed here; use --executor local")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)
    asked = {"partition": options.partition, "gpus_per_node": options.gpus, "mem": options.mem}
    executor.update_parameters(
        time=options.time or 240,
        cpus_per_task=options.cpus or 1,
        signal_delay_s=GRACE,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={"requeue": True},
        **{name: value for name, value in asked.items() if value is not None},
    )
    return executor


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}, and must be a whole number from 1 on")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scale.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=pathlib.Path, metavar="PLAN", help="what to run, as benchmarks/plan.yaml")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="tasks of the plan; all if none is named")
    parser.add_argument("--variants", nargs="+", metavar="VARIANT", help="variants of the plan; all if none is named")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the plan's seeds that are run; all if not given")
    parser.add_argument("--jobs", type=_count, help="runs at a time (default: as many as there are cores for; with Slurm, all)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the runs are (default: logdir/ and the plan's `results`)")
    parser.add_argument("--device", help="cpu, cuda, cuda:<number> or mps (default: cuda with --gpus, else cpu)")
    parser.add_argument("--cpus", type=_count, help="cores of a run, which has as many threads (default: 1)")
    slurm = parser.add_argument_group("for --executor slurm")
    slurm.add_argument("--partition", help="(default: that of the cluster)")
    slurm.add_argument("--time", type=_count, metavar="MINUTES", help="of a job, which is queued again when they are over (default: 240)")
    slurm.add_argument("--gpus", type=_count, help="of a job (default: none)")
    slurm.add_argument("--mem", metavar="SIZE", help="memory of a job, such as 16GB (default: that of the cluster)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: as `Sweep.run`, or 2 for what the user can correct."""
    options = make_parser().parse_args(argv)
    local = options.executor == "local"
    options.device = options.device or ("cuda" if options.gpus else "cpu")
    try:
        if local and (given := [name for name in ("partition", "time", "gpus", "mem") if getattr(options, name)]):
            raise ValueError(f"--{given[0]} is for --executor slurm, and the executor is local")
        entries = entries_of(options)
        executor = make_executor(options, entries[0].folder.parent / "jobs")
        jobs = options.jobs or (max(1, os.cpu_count() // (options.cpus or 1)) if local else None)
        return Sweep(entries, executor, local=local, jobs=jobs).run()
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before anything has started
        return 130


if __name__ == "__main__":
    sys.exit(main())
