"""Opens a page in which you play inside an agent's world model, and take each level of its latent in your hands:

    python dream.py logdir/20261129-230605-atari_pong
    python dream.py pretrained/road_runner

The folder of a run, a checkpoint in it, or an agent that comes with the program; without a name, one of the latter.
docs/dream.md explains the page. Its server listens on this machine only, and stops with Ctrl+C.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
import webbrowser

import torch

import checkpoints
import console
from dreamer import Dreamer, read_agent
from play import moments
from play.playing import add_import_flag
from play.server import Server
from play.session import Session
from training.stop import StopSignal

FAVOURITE = "road_runner"  # of the agents that come with the program
MEASURED_SECONDS = 2.0


def choose(name: str | None) -> pathlib.Path:
    """The checkpoint of the agent that a user names, or of one that comes with the program.

    Raises:
        ValueError: if there is none.
    """
    if name is None:
        shipped = checkpoints.shipped()
        if not shipped:
            raise ValueError("no agent comes with this checkout; give the folder of a run: python dream.py RUN")
        name = f"{checkpoints.SHIPPED.name}/{FAVOURITE if FAVOURITE in shipped else shipped[0]}"
    return checkpoints.locate(name)


def serve(agent: Dreamer, session: Session, port: int, browser: bool) -> None:
    """Serves the page until Ctrl-C or SIGTERM. The session is closed then; a second signal does not wait for it."""
    try:
        server = Server(session, port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port is {port}, which cannot be used ({error}); give another one, or 0 for any") from error
    with StopSignal(tells=False) as stop, server, contextlib.closing(session):
        console.say(f"{agent._config.task}: {server.url}")
        console.say("Ctrl+C stops it.")
        windows = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        if browser and windows:
            webbrowser.open(server.url)
        while not stop:
            server.handle_request()
        console.say("Stopped.")


def measure(session: Session) -> None:
    """Prints how many frames of the dream are computed and packed per second, with the agent's actions."""
    rows = []
    for name, mean in (("dream, and without the last level", True), ("dream", False)):
        request, count = {"events": [["step", None]], "mean": mean}, 0
        session.do(request)
        begin, busy = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < MEASURED_SECONDS:
            size = len(session.do(request))
            count += 1
        rate, cpu = count / (time.perf_counter() - begin), 1000 * (time.process_time() - busy) / count
        rows.append((name, f"{rate:.0f} frames/s, {cpu:.1f} ms of CPU, {size / 1000:.1f} kB"))
    console.say(console.table(f"dream of {session.about()['task']}, threads: {torch.get_num_threads()}", rows))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a run, a checkpoint file, or pretrained/NAME")
    parser.add_argument("--port", type=int, default=0, help="of the page's address (default: a free one)")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")
    parser.add_argument("--seed", type=int, default=0, help="of dreams and environments (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<number> or mps (default: %(default)s)")
    add_import_flag(parser)
    parser.add_argument("--measure", action="store_true", help="print the frames per second instead of serving a page")
    options = parser.parse_args(argv)
    if not 0 <= options.port < 2**16 or not 0 <= options.seed < 2**31:
        parser.error("--port must be from 0 to 65535, --seed from 0 to 2147483647")
    try:
        file = choose(options.run)
        agent, _ = read_agent(file, options.device)
        session = Session(agent, moments.find(agent, file.parent, options.modules, options.seed), options.modules, options.seed)
        if options.measure:
            measure(session)
        else:
            serve(agent, session, options.port, options.browser)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.say("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
