"""Sweeps: plans, what is shown of runs, and jobs on this machine and through a Slurm of a few lines."""

import json
import os
import pathlib
import pty
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from scale import sweep, watch
from scale.job import INCOMPLETE, Job
from scale.plan import ROOT, load_plan, planned_runs
from scale.sweep import Entry, Sweep
from scale.watch import Progress, cells

VARIANTS = {"flat": {"presets": [], "flags": {}}, "two": {"presets": ["hdreamer_split"], "flags": {}}}
TASK = {"presets": ["debug"], "seeds": [0, 1], "flags": {"task": "gym_CartPole-v1", "steps": 300, "eval_every": 0, "log_every": 20}}


def write_plan(folder: pathlib.Path, **parts) -> pathlib.Path:
    """A plan in JSON, which is YAML too, with the random policies' results, so that they are not played."""
    plan = {"results": str(folder / "results"), "variants": VARIANTS, "tasks": {"cartpole": TASK}, **parts}
    (folder / "results").mkdir(exist_ok=True)
    for task in plan.get("tasks") or {}:
        (folder / "results" / f"{task}-random.json").write_text("{}")
    path = folder / "plan.yaml"
    path.write_text(json.dumps({name: part for name, part in plan.items() if part is not None}))
    return path


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"tasks": None}, "has no `tasks`, a mapping"),
        ({"tasks": {"cartpole": {**TASK, "seeds": 3}}}, "cartpole of tasks has no `seeds`, a list"),
        ({"tasks": {"cartpole": {**TASK, "from": "balance", "keep": "all"}}}, "`from` is a task that stands above it"),
        ({"tasks": {"cartpole": {**TASK, "from": "cartpole", "keep": "all"}}}, "`from` is a task that stands above it"),
        ({"tasks": {"cartpole": {**TASK, "seeds": []}}}, "cartpole of tasks has no seeds"),
        ({"tasks": {"cartpole": {**TASK, "seeds": [3, 3]}}}, "two runs that are called cartpole-flat-3"),
        ({"tasks": {"cartpole": {**TASK, "presets": [1]}}}, "`presets` are [1]"),
        ({"tasks": {"cartpole": {**TASK, "flags": {"logdir": "/tmp"}}}}, "the sweep sets logdir itself"),
        ({"variants": {"": VARIANTS["flat"]}}, "the name is ''"),
        ({"variants": {}}, "has no `variants`, a mapping"),
        ({"tasks": {"cartpole": {**TASK, "flags": {"task": "gym_CartPole-v1", "stepps": 3}}}}, "cartpole-flat-0: unknown setting 'stepps'"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_in_one_line(parts, message, tmp_path, capsys):
    assert sweep.main([str(write_plan(tmp_path, **parts)), "--folder", str(tmp_path / "runs")]) == 2
    assert re.fullmatch(r"error: [^\n]*\n", error := capsys.readouterr().err) and message in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "pong", "cartpole"], "there is no task pong in {plan}; there are cartpole"),
        (["--seeds", "7"], "no run of cartpole has one of the seeds 7"),
        (["--variants", "deep"], "there is no variant deep in {plan}; there are flat, two"),
        (["--partition", "gpu"], "--partition is for --executor slurm"),
        (["--executor", "slurm"], "--executor slurm needs sbatch, srun, sacct, scontrol of Slurm"),
    ],
)
def test_a_command_line_that_cannot_be_run_is_refused_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = write_plan(tmp_path)
    assert sweep.main([str(plan), *words, "--folder", str(tmp_path / "runs")]) == 2
    assert re.fullmatch(r"error: [^\n]*\n", error := capsys.readouterr().err) and message.format(plan=plan) in error
    assert not (tmp_path / "runs").exists()


def test_without_submitit_the_command_that_installs_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep.main([str(write_plan(tmp_path)), "--folder", str(tmp_path / "runs")]) == 2
    assert "pip install -r requirements/sweep.txt" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "stored, message",
    [
        ('{"settings": {"task": "gym_CartPole-v1", "steps": "7"}, "frames": 7}', "was measured with other settings"),
        ('{"settings": {"ta', "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_result_of_other_settings_or_a_damaged_one_is_refused_before_anything_starts(stored, message, tmp_path, capsys):
    plan = write_plan(tmp_path)
    (tmp_path / "results" / "cartpole-two-1.json").write_text(stored)
    assert sweep.main([str(plan), "--folder", str(tmp_path / "runs")]) == 2
    assert f"cartpole-two-1.json {message}" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_task_that_is_named_twice_runs_once(tmp_path):
    options = sweep.make_parser().parse_args([str(write_plan(tmp_path)), "--only", "cartpole", "cartpole", "--seeds", "1"])
    options.device = "cpu"
    assert [entry.name for entry in sweep.entries_of(options)] == ["cartpole-random", "cartpole-flat-1", "cartpole-two-1"]
    options.variants = ["two"]
    assert [entry.name for entry in sweep.entries_of(options)] == ["cartpole-random", "cartpole-two-1"]


def test_planned_runs_are_those_of_the_tasks_and_seeds_that_are_named(tmp_path):
    plan = load_plan(write_plan(tmp_path, tasks={"cartpole": TASK, "after": {**TASK, "from": "cartpole", "keep": "top"}}))
    runs = planned_runs(plan, ["after"], [1, 9])
    assert [(run.name, run.origin, run.keep) for run in runs] == [
        ("after-flat-1", "cartpole-flat-1", "top"),
        ("after-two-1", "cartpole-two-1", "top"),
    ]
    assert [run.config.hierarchical_mode for run in runs] == [False, True] and {run.frames for run in runs} == {300}


def test_progress_is_what_has_been_appended_with_the_return_of_evaluations_if_there_are_some(tmp_path):
    progress = Progress(path := tmp_path / "metrics.jsonl")
    progress.update()
    assert (progress.frame, progress.returned) == (0, None)
    path.write_text('{"step": 10, "episode/return": 3.0, "time/fps": 5.0}\n{"step": 20, "epis')
    progress.update()
    assert (progress.frame, progress.returned, progress.speed) == (10, 3.0, 5.0)
    with open(path, "a") as file:
        file.write('ode/return": 4.0}\nbroken\n{"step": 30, "eval/return": 9.0}\n{"step": 40, "episode/return": 1.0}\n')
    progress.update()
    assert (progress.frame, progress.returned, progress.speed) == (40, 9.0, 5.0)
    progress.update()
    assert progress.frame == 40
    # 29,960 frames at 5 a second are 5,992 seconds, 1 h 39.9 min.
    assert cells("a", "runs", 30_000, progress) == ("a", "runs", "40 of 30,000", "9", "5", "1 h 40 min")
    assert cells("a", "done", 30_000, progress) == ("a", "done", "30,000 of 30,000", "9", "", "")


def test_a_table_that_does_not_fit_shows_what_runs_and_counts_the_rest(capsys, monkeypatch):
    rows = [(f"run-{number}", "done" if number < 5 else "runs", "", "", "", "") for number in range(7)]
    lines = watch._table([*rows, ("run-7", "waits for run-6", "", "", "", "")], 80, 7).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["run-0", "run-5", "run-6"]
    assert lines[4] == "8 in all: 5 done, 2 runs, 1 waits"
    assert max(map(len, watch._table(rows, 20, 40).splitlines())) == 19
    screen = watch.Screen()
    for _ in range(2):
        screen.show([("a", "runs", "1 of 9", "0.5", "3", "")])
    screen.show([("a", "done", "9 of 9", "2.5", "", "")])
    assert capsys.readouterr().out == "a: runs, 1 of 9 frames, return 0.5\na: done, 9 of 9 frames, return 2.5\n"


def test_what_follows_a_run_is_done_however_it_ends_and_nothing_without_what_comes_before(tmp_path):
    def words(text: str, code: int) -> list[str]:
        return ["sh", "-c", f"echo {text} $OMP_NUM_THREADS$GONE; exit {code}"]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)}
    os.environ["GONE"] = "?"
    try:
        variables = {"OMP_NUM_THREADS": "3", "GONE": None}
        job = Job(tmp_path, words("trains", 0), before=words("begins", 0), after=words("stores", INCOMPLETE), variables=variables)
        assert job() == INCOMPLETE
        assert Job(tmp_path, words("fails", 7), after=words("stores", 0))() == 7
        assert Job(tmp_path, words("never", 0), before=words("refuses", 2), after=words("never", 0))() == 2
    finally:
        del os.environ["GONE"]
        for number, handler in handlers.items():
            signal.signal(number, handler)
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert lines[:3] == ["begins 3", "trains 3", "stores 3"]
    assert [line.split()[0] for line in lines[3:-1]] == ["fails", "stores", "refuses"]
    assert len((tmp_path / "seconds.txt").read_text().split()) == 2


@pytest.mark.slow
def test_runs_wait_for_their_origin_and_one_that_fails_is_named_with_its_error_and_log(tmp_path, capsys):
    pytest.importorskip("submitit")

    def entry(name: str, script: str, origin: str | None = None) -> Entry:
        return Entry(name, 10, tmp_path / name, Job(tmp_path / name, ["sh", "-c", f"date +%s%N; {script}; date +%s%N"]), origin)

    entries = [
        entry("after", "true", "good"),
        entry("good", "sleep 0.5"),
        entry("bad", "echo error: no such game >&2; echo more; exit 2"),
        entry("never", "true", "bad"),
    ]
    options = sweep.make_parser().parse_args(["plan"])
    executor = sweep.make_executor(options, tmp_path / "jobs")
    assert Sweep(entries, executor, local=True, jobs=1).run() == 1
    assert [item.state for item in entries] == ["done", "done", "failed", "failed"]
    good, after = ((tmp_path / name / "log.txt").read_text().split() for name in ("good", "after"))
    assert int(good[1]) < int(after[0])
    shown = capsys.readouterr()
    assert f"error: bad failed: no such game ({tmp_path / 'bad' / 'log.txt'})" in shown.err
    assert "never failed: it begins with the agent of bad" in shown.err and not (tmp_path / "never" / "log.txt").exists()
    assert "after: waits for good" in shown.out.splitlines()[0]


@pytest.mark.slow
def test_a_sweep_whose_output_nobody_reads_any_more_watches_its_runs_to_their_end(tmp_path):
    pytest.importorskip("submitit")
    script = f"""
import pathlib
from scale import sweep
folder = pathlib.Path({str(tmp_path)!r})
entries = [sweep.Entry(name, 9, folder / name, sweep.Job(folder / name, ["sleep", "1"])) for name in "ab"]
executor = sweep.make_executor(sweep.make_parser().parse_args(["plan"]), folder / "jobs")
code = sweep.Sweep(entries, executor, local=True, jobs=1).run()
(folder / "code").write_text(str([code, *(entry.state for entry in entries)]))
"""
    subprocess.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} | head -1", shell=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert (tmp_path / "code").read_text() == "[0, 'done', 'done']"


def wait_for(check, seconds: float = 300.0) -> None:
    """Waits until `check()` is true."""
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.1)


def frames_of(folder: pathlib.Path) -> int:
    progress = Progress(folder / "run" / "metrics.jsonl")
    progress.update()
    return progress.frame


@pytest.mark.slow
def test_a_plan_is_trained_stopped_with_ctrl_c_in_a_terminal_and_continued(tmp_path):
    pytest.importorskip("submitit")
    plan, runs = write_plan(tmp_path, tasks={"cartpole": {**TASK, "seeds": [0]}}), tmp_path / "runs"
    command = [sys.executable, "-m", "scale.sweep", str(plan), "--jobs", "1", "--folder", str(runs)]
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(sys.executable, command)
    wait_for(lambda: frames_of(runs / "cartpole-flat-0") >= 60)
    os.write(terminal, b"\x03")
    shown = b""
    while part := read(terminal):
        shown += part
    _, status = os.waitpid(process, 0)
    table = shown.decode().rpartition("\x1b[J")[2]
    assert os.waitstatus_to_exitcode(status) == 130 and "Stopped; the same command continues." in table
    assert re.findall(r"^(\S+) +(stopped|waits)", table, re.M) == [("cartpole-flat-0", "stopped"), ("cartpole-two-0", "waits")]
    partial = json.loads((tmp_path / "results" / "cartpole-flat-0.json").read_text())
    assert 60 <= partial["frames"] < 300 and len(re.findall(r"stopped +\d+ of 300", table)) == 1

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for run in planned_runs(load_plan(plan), ["cartpole"]):
        stored = json.loads((tmp_path / "results" / f"{run.name}.json").read_text())
        assert stored["frames"] == 300 and stored["training"] and "one thread a run" in stored["machine"]
        assert re.search(rf"^{run.name}: done, 300 of 300 frames, return ", result.stdout, re.M)
        assert ("Resuming at frame" in (runs / run.name / "log.txt").read_text()) == (run.variant == "flat")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.count(": done") == 3  # nothing is run again
    words = [sys.executable, str(ROOT / "compare.py"), str(runs), "--out", str(tmp_path / "compared.png")]
    compared = subprocess.run(words, capture_output=True, text=True)
    assert re.search(r"two levels +1 +0", compared.stdout), compared.stdout + compared.stderr


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # it is closed
        return b""


# One program under the names of Slurm's. A job runs on "node", again if it was put into the queue again.
SLURM = """
import os, pathlib, shutil, subprocess, sys

program, words, state = pathlib.Path(sys.argv[0]).name, sys.argv[1:], pathlib.Path(os.environ["FAKE_SLURM"])
if program == "sbatch":
    number = "123"
    shutil.copy(words[0], state / f"{number}.sh")
    node = [pathlib.Path(sys.argv[0]).with_name("node"), number]
    subprocess.Popen(node, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job", number)
elif program == "node":
    again, variables = state / f"{words[0]}.again", {**os.environ, "SLURM_JOB_ID": words[0], "SLURM_PROCID": "0"}
    while True:
        (state / f"{words[0]}.state").write_text("RUNNING")
        code = subprocess.run(["bash", state / f"{words[0]}.sh"], env=variables).returncode
        if not again.exists():
            break
        again.unlink()
    (state / f"{words[0]}.state").write_text("FAILED" if code else "COMPLETED")
elif program == "srun":
    number = os.environ["SLURM_JOB_ID"]
    (state / f"{number}.pid").write_text(str(os.getpid()))
    output = os.open(words[2].replace("%j", number).replace("%t", "0"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    os.execvp(words[3], words[3:])
elif program == "sacct":
    print("JobID|State|NodeList")
    for path in state.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|node1")
elif program == "scontrol":
    assert words[0] == "requeue"
    (state / f"{words[1]}.again").touch()
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> pathlib.Path:
    """A Slurm that runs every job at once; the folder of its state."""
    programs, state = tmp_path / "programs", tmp_path / "state"
    programs.mkdir(), state.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol", "node"):
        (programs / name).write_text(f"#!{sys.executable}\n{SLURM}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


@pytest.mark.slow
def test_a_run_through_slurm_is_left_to_it_watched_again_and_continued_after_a_preemption(tmp_path, slurm):
    pytest.importorskip("submitit")
    plan, folder = write_plan(tmp_path, variants={"flat": VARIANTS["flat"]}), tmp_path / "runs"
    command = [sys.executable, "-m", "scale.sweep", str(plan), "--executor", "slurm", "--seeds", "1", "--folder", str(folder)]
    command += ["--partition", "gpus", "--time", "60", "--cpus", "2", "--mem", "3GB"]
    watching = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for((folder / "cartpole-flat-1" / "job.txt").exists)
    watching.send_signal(signal.SIGINT)
    assert "These jobs go on: 123." in watching.communicate()[0] and watching.returncode == 130

    script = (slurm / "123.sh").read_text()
    flags = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.M))
    assert flags.items() >= {"partition": "gpus", "time": "60", "cpus-per-task": "2", "mem": "3GB", "signal": "USR2@180"}.items()
    assert flags["job-name"] == "cartpole-flat-1" and "requeue" in flags and "gpus-per-node" not in flags

    watching = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: frames_of(folder / "cartpole-flat-1"))
    task = int((slurm / "123.pid").read_text())
    os.kill(task, signal.SIGTERM)  # Slurm tells both, the second up to a minute later
    wait_for(lambda: "Stopped at frame" in (folder / "cartpole-flat-1" / "log.txt").read_text())
    time.sleep(1.0)
    os.kill(task, signal.SIGUSR2)
    output = watching.communicate()[0]
    assert watching.returncode == 0 and "cartpole-flat-1: done, 300 of 300 frames" in output, output
    log = (folder / "cartpole-flat-1" / "log.txt").read_text()
    assert log.count("Resuming at frame") == 1 and "Finished at frame 300" in log
    assert [path.name for path in slurm.glob("*.sh")] == ["123.sh"]
    result = json.loads((tmp_path / "results" / "cartpole-flat-1.json").read_text())
    assert result["frames"] == 300 and "2 threads a run" in result["machine"]


def test_the_commands_and_the_script_on_the_page_are_those_of_the_program(slurm):
    pytest.importorskip("submitit")
    page = (ROOT / "docs" / "sweeps.md").read_text()
    found = re.findall(r"^    python -m scale.sweep (.*)$", page, re.M)
    commands = [sweep.make_parser().parse_args(shlex.split(words, comments=True)) for words in found]
    options = next(options for options in commands if options.executor == "slurm")
    executor = sweep.make_executor(options, pathlib.Path("/home/me/hdreamer/logdir/learning/jobs"))
    executor.python = "/home/me/venv/bin/python"
    executor.update_parameters(job_name="cartpole-flat-0")
    script = executor._make_submission_file_text(executor._submitit_command_str, uid="")
    shown = re.search(r"^    #!/bin/bash\n(?:    .*\n|\n)*", page, re.M)[0]
    assert textwrap.dedent(shown).strip() == script.strip()
