"""A few calls of Chromium's DevTools protocol over a pipe: enough to open a page, run a script in it and look at it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
]


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One headless browser with one tab. `console` and `requests` keep all that the page said and asked for."""

    def __init__(self, width: int, height: int, flags: tuple[str, ...] = (), patience: float = 60):
        self.patience = patience  # seconds that an answer may take
        self.profile = tempfile.TemporaryDirectory(prefix="loom4d-browser-", ignore_cleanup_errors=True)
        ours_out, theirs_in = os.pipe()[::-1]
        theirs_out, ours_in = os.pipe()[::-1]
        # Chromium reads the protocol from descriptor 3 and answers on 4.
        command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        arguments = [*FLAGS, *flags, f"--window-size={width},{height}", f"--user-data-dir={self.profile.name}"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, chromium() or "", *arguments, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.write, self.read = ours_out, ours_in
        self.buffer, self.last, self.session = b"", 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        page = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.session = None
        try:
            self.call("Browser.close")
        except (OSError, EOFError):
            self.process.kill()
        self.process.wait(20)
        os.close(self.write)
        os.close(self.read)
        self.profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self.patience
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser gave no answer")
            chunk = os.read(self.read, 1 << 20)
            if not chunk:
                raise EOFError("the browser has gone")
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.console.append(f"{facts['type']}: {[one.get('value') for one in facts['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.console.append(f"exception: {facts['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.console.append(f"{facts['entry']['level']}: {facts['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, path: Path, address: str = "") -> None:
        for url in ("about:blank", path.resolve().as_uri() + address):  # so that another "#..." loads the page again
            self.loaded = False
            self.call("Page.navigate", url=url)
            while not self.loaded:
                self._receive()

    def visit(self, url: str) -> None:
        """Opens an address and waits until the page has loaded."""
        self.loaded = False
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._receive()

    def wait(self, script: str, seconds: float = 120) -> Any:
        """The first value of an expression in the page that is true; of an element, that it is there."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"((found) => found instanceof Node || found)({script})")):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {script}\n{self.console}\n{self.run('document.body.innerText')}")
            time.sleep(0.1)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to the page's file input, as a user's choice would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "script failed"))
        return answer["result"].get("value")

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def screenshot(self, **clip: float) -> Image.Image:
        area = {"clip": {**clip, "scale": 1}} if clip else {}
        data = self.call("Page.captureScreenshot", format="png", **area)["data"]
        return Image.open(BytesIO(base64.b64decode(data))).convert("RGB")

    def press(self, key: str, code: str = "") -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code or key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code or key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        for part in (0.5, 1.0):
            x, y = (a + part * (b - a) for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)
