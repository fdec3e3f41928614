"""Find and run the program under test."""
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = ROOT / os.environ.get("BUILD", "build")
EXE = pathlib.Path(os.environ.get("IMPETUS", BUILD / "impetus"))


def command(*args, stdin=None, timeout=600):
    r = subprocess.run([str(EXE), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout)
    if r.returncode:
        raise RuntimeError(f"impetus {args[0]} ended with {r.returncode}: {r.stderr.strip()[-300:]}")
    return r.stdout


class Server:
    """`impetus serve` on a free port of 127.0.0.1, for the time of a with block."""

    def __init__(self, *models, args=()):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        cmd = [str(EXE), "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        for m in models:
            cmd += ["-m", str(m)]
        self.log = open(BUILD / "reference-server.log", "w+")
        self.proc = subprocess.Popen(cmd + [str(a) for a in args], stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + 120
        while time.monotonic() < end and self.proc.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/ready", timeout=2) as r:
                    if r.status == 200:
                        return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("impetus serve is not ready: " + self.text()[-300:])

    def __exit__(self, *unused):
        if self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
        self.log.flush()

    def text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()

    def post(self, path, body):
        """(status, parsed answer) of a JSON request."""
        req = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(req, timeout=300) as r:
                return r.status, json.load(r)
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read() or b"null")

    def models(self):
        with urllib.request.urlopen(self.url + "/v1/models", timeout=30) as r:
            return [m["id"] for m in json.load(r)["data"]]
