#!/usr/bin/env python3
"""Drives a headless Chromium over its debugging pipe: no port, no other package.
In: URL, width, height, then steps: NAME, EXPRESSION (JavaScript). Each must become true within 20 seconds.
Out: "ok NAME" or "FAILED NAME: what it was" a step; at the end whatever the page complained of. With SHOTS=DIR a
picture of the page after the last step, DIR/$SHOT.png; DARK=1: as who prefers dark."""
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

STEP_S = 20
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions --disable-sync "
    "--disable-background-networking --disable-component-update --disable-default-apps --hide-scrollbars "
    "--no-proxy-server --remote-debugging-pipe"
).split()
# Not a name is looked up, not an address spoken to, but this machine's.
FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")


class Browser:
    def __init__(self, program, folder):
        to_read, self.write_fd = os.pipe()
        self.read_fd, to_write = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={folder}"]
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec 3<&{to_read} 4>&{to_write}; exec "$@"', "sh", *command],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.number, self.rest, self.session, self.complaints = 0, b"", None, []

    def message(self):
        while b"\0" not in self.rest:
            block = os.read(self.read_fd, 65536)
            if not block:
                raise RuntimeError("the browser has ended")
            self.rest += block
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.hear(answer)

    def end(self):
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(5)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def hear(self, event):
        what, about = event.get("method"), event.get("params", {})
        if what == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in about["args"]))
        elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            return "error: " + result["exceptionDetails"]["text"] + str(result["result"].get("description", ""))
        return result["result"].get("value")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the browser is closed all the same
    url, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    steps = list(zip(sys.argv[4::2], sys.argv[5::2]))
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    folder = tempfile.mkdtemp(prefix="tf-browser-")
    browser = Browser(program, folder)
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = "dark" if os.environ.get("DARK") else "light"
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.call("Page.navigate", url=url)
        for name, expression in steps:
            deadline, value = time.monotonic() + STEP_S, None
            while value is not True and time.monotonic() < deadline:
                value = browser.evaluate(expression)
                if value is not True:
                    time.sleep(0.2)
            print(f"ok {name}" if value is True else f"FAILED {name}: {value!r}", flush=True)
        if os.environ.get("SHOTS"):
            shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            with open(f"{os.environ['SHOTS']}/{os.environ.get('SHOT', 'page')}.png", "wb") as file:
                file.write(base64.b64decode(shot))
        complaints = "; ".join(browser.complaints)
        print(f"FAILED the page complains of nothing: {complaints}" if complaints else "ok the page complains of nothing")
    finally:
        browser.end()
        for _ in range(20):  # what it started writes for a moment yet
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


main()
