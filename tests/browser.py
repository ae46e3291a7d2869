"""A headless Chromium, driven over its debugging port: open a page at a width, collect what went wrong,
evaluate, type, photograph.
"""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

DESKTOP, PHONE = (1280, 900), (390, 844)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The browser's program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. `errors` holds console errors, uncaught exceptions and requests that failed since the last
    `open`.
    """

    def __init__(self) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
        ]
        command = [
            find(),
            *flags,
            "--remote-debugging-port=0",
            "--remote-allow-origins=*",
            f"--user-data-dir={self.profile.name}",
            "about:blank",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=60)
        self.ids, self.errors, self.loaded = itertools.count(1), [], False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.profile.cleanup()

    def _port(self, patience: float = 60) -> int:
        file, end = Path(self.profile.name) / "DevToolsActivePort", time.monotonic() + patience
        while time.monotonic() < end:
            if file.exists() and (text := file.read_text()):
                return int(text.splitlines()[0])
            time.sleep(0.1)
        raise TimeoutError("Chromium opened no debugging port")

    def send(self, method: str, **parameters: object) -> dict:
        """Call a method of the DevTools protocol and return its result."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        kind, details = message.get("method"), message.get("params", {})
        if kind == "Page.loadEventFired":
            self.loaded = True
        elif kind == "Runtime.exceptionThrown":
            self.errors.append(details["exceptionDetails"]["text"])
        elif kind == "Runtime.consoleAPICalled" and details["type"] == "error":
            self.errors.append(str([argument.get("value") for argument in details["args"]]))
        elif kind == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])
        elif kind == "Network.loadingFailed" and not details.get("canceled"):
            self.errors.append(details["errorText"])

    def open(self, address: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        """Load a page and wait for its load event."""
        width, height = size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.errors.clear()
        self.loaded = False
        self.send("Page.navigate", url=address)
        while not self.loaded:
            self._note(json.loads(self.socket.recv()))

    def open_when_up(self, address: str, patience: float = 120) -> None:
        """`open`, once a server answers at the address."""
        end = time.monotonic() + patience
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        self.open(address)

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, patience: float = 120) -> object:
        """The first truthy value of an expression. Raises TimeoutError."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.25)
        raise TimeoutError(expression)

    def press(self, key: str, code: int) -> None:
        """One key, down and up, where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def photograph(self, path: Path) -> None:
        """A PNG of what is in view."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
