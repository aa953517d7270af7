"""What a job of a sweep does, on this machine or on a node of a cluster: it runs dreamer.py, and stops it so that it saves."""

import os
import pathlib
import signal
import subprocess
import time

INCOMPLETE = 3  # exit code of what runs after dreamer.py if that has ended well, but not at the end of the run
PATIENCE = 300.0  # seconds after SIGTERM in which Slurm says whether it preempts the job or ends it


class Job:
    """Runs a command, with others before and after it. submitit stores it in a file, and calls it in a process of its own.

    Args:
        folder: gets what they print, appended to log.txt, and how long the command took, appended to seconds.txt.
        command: words of the command; SIGINT lets it save and end.
        before: runs first, and if it fails, nothing else does; None for nothing.
        after: runs when the command has ended, in whatever way; None for nothing.
        variables: environment variables of all three; None removes one.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        command: list[str],
        *,
        before: list[str] | None = None,
        after: list[str] | None = None,
        variables: dict[str, str | None] | None = None,
    ):
        self._folder, self._command, self._before, self._after = folder, command, before, after
        self._variables = variables or {}
        self._running, self._stopped, self._preempted = None, False, False

    def __call__(self) -> int:
        """Runs all; returns the exit code of the first that failed, or 0. A job that is preempted ends here and is queued again."""
        self._stopped = self._preempted = False
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: calls `checkpoint`, and tells Slurm
        self._handle_signals()
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "log.txt", "a") as log:
            code = self._start(self._before, log).wait() if self._before else 0
            if code:
                return code
            code = self._train(log)
            self._wait_for_slurm()
            if self._preempted:
                requeue(signal.SIGUSR2, None)
            after = self._start(self._after, log).wait() if self._after else 0
        return code or after

    def checkpoint(self):
        """What submitit stores for the next turn of a preempted job: the same again, which continues in the same folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._stop)
        # Ctrl-C in the terminal of a local sweep reaches this process too, and the sweep passes it on as SIGTERM. A handler that
        # does nothing, since the commands would inherit an ignored or blocked signal.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))

    def _stop(self, number: int, _) -> None:
        self._preempted |= number == signal.SIGUSR2
        if not self._stopped and self._running:  # once, since a second SIGINT stops dreamer.py before it has saved
            self._running.send_signal(signal.SIGINT)
        self._stopped = True

    def _start(self, words: list[str], log) -> subprocess.Popen:
        variables = {name: value for name, value in {**os.environ, **self._variables}.items() if value is not None}
        return subprocess.Popen(words, stdout=log, stderr=log, env=variables, start_new_session=True)

    def _train(self, log) -> int:
        """Runs the command, unless the job has been stopped before."""
        if self._stopped:
            return 1
        start = time.time()
        self._running = self._start(self._command, log)
        if self._stopped:  # meanwhile
            self._running.send_signal(signal.SIGINT)
        code = self._running.wait()
        self._running = None
        with open(self._folder / "seconds.txt", "a") as file:
            file.write(f"{time.time() - start:.0f}\n")
        return code

    def _wait_for_slurm(self) -> None:
        """After SIGTERM Slurm either kills the job, or sends the signal of preemption, which may come later than the end of dreamer.py."""
        until = time.monotonic() + PATIENCE
        while self._stopped and not self._preempted and os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and time.monotonic() < until:
            time.sleep(0.2)
