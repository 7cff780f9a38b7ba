"""A headless Chromium, driven by the protocol of its developer tools.

Chromium speaks it over two pipes, as JSON between zero bytes, so that keys, sliders and
downloads can be real ones, and no further package is needed.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # that an answer may take on a busy machine


class Browser:
    """One page in a process of Chromium."""

    def __init__(self, program, folder):
        import fcntl  # not on Windows

        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.problems = []  # errors of scripts, and what the page's policy refused
        self._number, self._rest = 0, b""
        receives, self._to = os.pipe()
        self._from, sends = os.pipe()
        # Beyond 3 and 4, the numbers that Chromium asks for.
        inherited = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (receives, sends)]
        command = [program, "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
        shell = ["bash", "-c", 'exec "$@" 3<&{} 4>&{}'.format(*inherited), "bash"]
        self._process = subprocess.Popen(
            [*shell, *command],
            pass_fds=inherited,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (receives, sends, *inherited):
            os.close(fd)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(self.downloads),
        )

    _session = None

    def call(self, method, **parameters):
        """Result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            assert ready, f"Chromium did not answer within {SECONDS} s"
            part = os.read(self._from, 2**20)
            assert part, "Chromium has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(event["params"])

    def open(self, path, *, size=(1280, 900), scheme="light"):
        """Show a file in a window of a width and a height."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """Value of an expression of JavaScript in the page."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition):
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, *keys):
        """Press and release keys, one after the other."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38}
        codes |= {"ArrowRight": 39, "ArrowDown": 40, "PageUp": 33, "PageDown": 34}
        for key in keys:
            event = {"key": key, "code": key}
            event["windowsVirtualKeyCode"] = codes.get(key, ord(key[0].upper()))
            if len(key) == 1 or key == "Enter":
                event["text"] = "\r" if key == "Enter" else key
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def click(self, selector):
        """Click the middle of an element."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def downloaded(self, name):
        """Bytes of a file that the page has given for download."""
        file, end = self.downloads / name, time.monotonic() + SECONDS
        while not file.exists():
            assert time.monotonic() < end, list(self.downloads.iterdir())
            self.run("1")
            time.sleep(0.02)
        return file.read_bytes()

    def screenshot(self, path, **options):
        """Write a picture of the window."""
        picture = self.call("Page.captureScreenshot", format="png", **options)["data"]
        path.write_bytes(base64.b64decode(picture))

    def close(self):
        """End the process."""
        os.write(self._to, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium; skips where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs chromium")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
