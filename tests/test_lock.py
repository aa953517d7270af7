"""Two runs in one folder: the second is refused; what a killed one leaves behind locks nothing."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from storage.lock import NAME, Lock

pytestmark = pytest.mark.slow

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


def test_a_second_holder_is_refused_with_the_first_ones_process_and_host(tmp_path, holder):
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"process {holder.pid} on {socket.gethostname()}"):
        Lock(tmp_path)
    assert contents(tmp_path) == before


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
