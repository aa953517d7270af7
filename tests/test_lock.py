"""Two runs in one folder: the second is refused; what a killed one leaves behind locks nothing."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from storage.lock import NAME, Lock

slow = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
RUN = [
    sys.executable,
    str(ROOT / "dreamer.py"),
    "--configs",
    "defaults",
    "debug",
    "--task",
    "gym_CartPole-v1",
    "--device",
    "cpu",
    "--envs",
    "2",
]
HOLD = """
import pathlib, sys, time
from storage.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@slow
def test_a_second_holder_is_refused_with_the_first_ones_process_and_host(tmp_path, holder):
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"process {holder.pid} on {socket.gethostname()}"):
        Lock(tmp_path)
    assert contents(tmp_path) == before


@slow
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    assert (tmp_path / NAME).exists()
    lock = Lock(tmp_path)
    assert f"did not end by itself (process {holder.pid} on" in capsys.readouterr().out
    assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    lock.close()
    assert not (tmp_path / NAME).exists()


def test_a_lock_whose_file_was_removed_in_between_is_none(tmp_path, monkeypatch):
    """As when its holder closes it just after another process has opened the file."""
    acquire = Lock._acquire

    def removed(self, file):
        acquire(self, file)
        monkeypatch.setattr(Lock, "_acquire", acquire)
        (tmp_path / NAME).unlink()

    monkeypatch.setattr(Lock, "_acquire", removed)
    lock = Lock(tmp_path)
    assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    lock.close()


def test_a_run_of_the_same_process_is_refused_whatever_its_thread_and_the_name_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    lock = Lock(tmp_path / "run")
    before = contents(tmp_path)
    for name in ("run", "link"):
        with pytest.raises(ValueError, match=f"another run of this process is writing into {tmp_path / name}; .*another --logdir"):
            Lock(tmp_path / name)
    assert contents(tmp_path) == before
    lock.close()
    again = Lock(tmp_path / "link")
    lock.close()  # a second time: it has nothing to release
    with pytest.raises(ValueError, match="another run of this process"):
        Lock(tmp_path / "run")
    again.close()
    assert not (tmp_path / "run" / NAME).exists()


def test_of_many_threads_one_gets_the_lock(tmp_path):
    found, start = [], threading.Barrier(8)

    def take():
        start.wait()
        try:
            found.append(Lock(tmp_path))
        except ValueError as error:
            found.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lock,) = (one for one in found if isinstance(one, Lock))
    assert len(found) == 8
    lock.close()


def test_a_lock_that_cannot_be_written_holds_nothing(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError):
        Lock(tmp_path)
    (tmp_path / NAME).rmdir()
    Lock(tmp_path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_neither_holds_nor_removes_the_lock_of_its_parent(tmp_path):
    lock = Lock(tmp_path)
    child = os.fork()
    if not child:
        lock.close()
        try:
            Lock(tmp_path)
        except ValueError as error:
            os._exit(7 if f"process {os.getppid()} on" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (tmp_path / NAME).exists()
    lock.close()


@slow
def test_a_second_run_is_refused_and_one_after_a_kill_goes_on(tmp_path):
    logdir = tmp_path / "run"
    command = [*RUN, "--logdir", str(logdir), "--steps", "100000", "--eval_every", "0"]
    with open(tmp_path / "log.txt", "w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while not list(logdir.glob("train_eps/*.npz")):
                assert first.poll() is None, (tmp_path / "log.txt").read_text()
                time.sleep(0.05)
            second = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert second.returncode == 2
            assert f"another run is writing into {logdir}: process {first.pid} on {socket.gethostname()}" in second.stderr
            assert second.stdout == "" and first.poll() is None
        finally:
            first.send_signal(signal.SIGKILL)  # its workers are left behind, and must not keep the lock
            first.wait()
    after = subprocess.run([*command, "--steps", "1"], capture_output=True, text=True, timeout=120)
    assert after.returncode == 0, after.stderr
    assert f"did not end by itself (process {first.pid} on" in after.stdout
    assert not (logdir / NAME).exists()
