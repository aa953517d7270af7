"""The dream page: its server, and the page itself in a real browser."""

import base64
import http.client
import io
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from dreams import episode, make_agent
from play import moments, server
from play.server import PAGE, Server
from play.session import Session, unpack

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def served():
    """A server in a thread, of an agent with two levels."""
    agent = make_agent("two levels")
    with Server(Session(agent, moments.from_episode(agent, episode(agent, 20), "recorded", 2))) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def ask(served: Server, path: str, body=None, method: str = "", **headers: str) -> tuple[int, bytes, dict]:
    """A request; a path without a leading slash is below the token."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=20)
    content = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
    headers = {"Content-Type": "application/json", **headers} if content is not None else headers
    connection.request(
        method or ("GET" if content is None else "POST"), path if path.startswith("/") else f"/{served.token}/{path}", content, headers
    )
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return found


def test_the_page_and_what_it_asks_for_are_served(served):
    assert re.fullmatch(rf"http://127\.0\.0\.1:{served.server_port}/[\w-]{{22}}/", served.url)
    for name, file in (("", "index.html"), ("style.css", "style.css"), ("dream.js", "dream.js")):
        status, content, headers = ask(served, name)
        assert status == 200 and content == (PAGE / file).read_bytes()
        assert headers["Content-Security-Policy"].startswith("default-src 'none'") and headers["Cache-Control"] == "no-store"
    status, content, _ = ask(served, "about")
    assert status == 200 and [level["name"] for level in json.loads(content)["levels"]] == ["top", "bottom"]
    assert set(unpack(ask(served, "pictures")[1])[1]) == {"0", "1"}
    status, content, _ = ask(served, "do", {"events": [["step", None]]})
    assert status == 200 and unpack(content)[0]["steps"] == 1
    assert ask(served, "link", {})[1].decode() == served.session.dream.save()
    assert Image.open(io.BytesIO(ask(served, "gif", {"fps": 5})[1])).format == "GIF"


def test_the_page_loads_nothing_from_elsewhere():
    for file in PAGE.iterdir():
        assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"^\s*//.*|[;{}] // .*", "", file.read_text(), flags=re.M)), file


def test_the_server_listens_on_this_machine_alone(served):
    assert served.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/about",
        "/x/about",
        "//about",
        "index.html",
        "../dream.py",
        "page/../server.py",
        "%2e%2e/server.py",
        "/etc/passwd",
        "style.css/",
        "do",
    ],
)
def test_other_paths_are_not_there(served, path):
    status, content, _ = ask(served, path)
    assert status == 404 and b"there is nothing here" in content


def test_a_wrong_token_is_refused_and_changes_nothing(served):
    wrong = served.token[:-1] + ("a" if served.token[-1] != "a" else "b")
    for token in (wrong, served.token + "a", served.token.upper(), ""):
        assert ask(served, f"/{token}/do", {"events": [["step", None]]})[0] == 404
    with socket.create_connection(("127.0.0.1", served.server_port)) as connection:
        connection.sendall(f"GET /\xe9/about HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}\r\n\r\n".encode("latin-1"))
        assert connection.recv(100).startswith(b"HTTP/1.1 404")
    assert served.session.dream.steps == 0


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1:80", ""])
def test_a_request_that_names_another_host_is_refused(served, host):
    assert ask(served, "about", Host=host)[0] == 403
    assert ask(served, "about", Host=f"localhost:{served.server_port}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_a_request_from_another_site_is_refused(served, origin):
    assert ask(served, "do", {"events": [["step", None]]}, Origin=origin.format(port=served.server_port))[0] == 403
    assert ask(served, "do", {}, Origin=f"http://127.0.0.1:{served.server_port}")[0] == 200
    assert served.session.dream.steps == 0


def test_requests_are_limited_in_size_and_kind(served):
    assert ask(served, "do", b" " * (server.LARGEST + 1))[0] == 413
    assert ask(served, "do", b"{}", **{"Content-Length": "1e3"})[0] == 413
    assert ask(served, "do", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    for body in (b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"events": NaN}'):
        status, content, _ = ask(served, "do", body)
        assert status == 400 and len(content) < 500
    assert ask(served, "do", method="DELETE")[0] == 501
    status, content, _ = ask(served, "do", {"events": [["restore", "x"]]})
    assert status == 400 and content == b"the link is damaged; copy the whole of it"


def test_requests_are_limited_in_their_rate(served, monkeypatch):
    monkeypatch.setattr(server, "RATE", 0.0)
    served._allowance = 3.0
    assert [ask(served, "about")[0] for _ in range(5)] == [200, 200, 200, 429, 429]


def test_connections_are_limited_in_number(served, monkeypatch):
    served._free = threading.BoundedSemaphore(2)
    held = [socket.create_connection(("127.0.0.1", served.server_port)) for _ in range(2)]
    for _ in range(100):
        if served._free._value == 0:
            break
        time.sleep(0.01)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(served, "about")
    for connection in held:
        connection.close()
    for _ in range(100):
        if served._free._value == 2:
            break
        time.sleep(0.01)
    assert ask(served, "about")[0] == 200


def test_a_port_that_is_taken_is_refused_in_one_line(served, capsys):
    import dream as command

    with pytest.raises(ValueError, match=f"--port is {served.server_port}, which cannot be used"):
        command.serve(served.session._agent, served.session, served.server_port, browser=False)


# In a browser


@pytest.fixture
def browser(tmp_path):
    selenium = pytest.importorskip("selenium.webdriver", reason="needs pip install -r requirements/browser.txt")
    chromium, driver = (next(filter(None, map(shutil.which, names)), None) for names in (("chromium", "google-chrome"), ("chromedriver",)))
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    for flag in (*flags.split(), f"user-data-dir={tmp_path / 'profile'}", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield made
    made.quit()


def until(condition, seconds: float = 20.0):
    """Waits for a condition and returns its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it has not happened in time"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_person_plays_in_a_browser(browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    agent = make_agent("2025")
    save_for(agent, tmp_path)
    command = [sys.executable, "-u", "dream.py", str(tmp_path), "--no-browser"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            browser.get(url)
            frame = lambda: browser.execute_script("return document.body.dataset.ready && frame")
            find = lambda selector: browser.find_element("css selector", selector)
            until(frame)

            browser.execute_script("document.body.focus()")
            ActionChains(browser).send_keys("n").send_keys("n").perform()
            assert until(lambda: frame()["steps"] == 2)
            ActionChains(browser).send_keys("t").perform()  # holds the top
            until(lambda: frame()["held"] == ["top"])
            top = code(frame(), "top")
            find("#agent").click()
            find("#play").click()
            until(lambda: frame()["steps"] > 10)
            ActionChains(browser).send_keys("p").perform()
            until(lambda: find("#play").text == "Play")
            assert code(frame(), "top") == top and frame()["action"] is not None

            browser.execute_script("pause(); $('speed').value = 4; play(); pause(); play()")  # one loop takes steps, not two
            begin, steps = time.monotonic(), frame()["steps"]
            until(lambda: frame()["steps"] > steps + 5)
            assert time.monotonic() - begin > 0.75  # two at once, and four at 4 steps/s
            browser.execute_script("pause()")
            time.sleep(0.3)

            before = frame()
            find("#level-bottom .row > button").click()  # redraw
            until(lambda: code(frame(), "bottom") != code(before, "bottom"))
            assert frame()["steps"] == before["steps"] and code(frame(), "top") == top

            row, column = 1, (top[1] + 1) % 3
            cell = "const box = arguments[0].getBoundingClientRect(); return [box.width / 3, box.height / 4]"
            grid = find("#level-top canvas")
            wide, high = browser.execute_script(cell, grid)
            offset = [int((column - 1) * wide), int((row - 1.5) * high)]
            ActionChains(browser).move_to_element_with_offset(grid, *offset).click().perform()
            expected = [*top[:1], column, *top[2:]]
            until(lambda: code(frame(), "top") == expected)
            image = picture(browser, "dream-image")

            find("#gif").click()
            film = until(lambda: next((tmp_path / "downloads").glob("*.gif"), None))
            assert Image.open(film).n_frames > 10

            find("#copy").click()
            link = until(lambda: "#" in browser.current_url and browser.current_url)
            ActionChains(browser).send_keys("r").perform()  # restarts
            until(lambda: frame()["steps"] == 0)
            browser.get("about:blank")
            browser.get(link)
            until(lambda: frame() and frame()["steps"] == before["steps"])
            assert code(frame(), "top") == expected and frame()["held"] == ["top"] and picture(browser, "dream-image") == image

            ActionChains(browser).send_keys(Keys.ESCAPE).perform()
            assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def save_for(agent, folder: pathlib.Path) -> None:
    """Writes a run's checkpoint and an episode."""
    import checkpoints
    from storage.episodes import save_episode

    entries = {"step": 0, "updates": 0, "last_eval": 0, "random_state": {}, "update_credit": 0.0}
    checkpoints.save(folder / "latest.pt", {**agent.checkpoint(), **entries})
    save_episode(folder / "train_eps", episode(agent, 20))


def code(frame: dict, level: str) -> list[int]:
    data = frame["arrays"][f"code/{level}"]["data"]
    return [data[str(index)] for index in range(len(data))] if isinstance(data, dict) else list(data)


def picture(browser, figure: str) -> bytes:
    """The pixels of a picture on the page."""
    script = f"return document.querySelector('#{figure} canvas').toDataURL()"
    return Image.open(io.BytesIO(base64.b64decode(browser.execute_script(script).partition(",")[2]))).tobytes()
