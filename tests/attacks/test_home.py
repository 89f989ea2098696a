"""Nothing is left in a user's home but our own cache, and nobody is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.table import picture

# Told of every address that Python code looks up or connects to, in this and in started processes.
WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        if not isinstance(arguments[-1], str) or not arguments[-1].startswith("/"):
            with open(os.environ["CALLS"], "a") as file:
                file.write(f"{sys.argv} {event} {arguments}\\n")
sys.addaudithook(note)
"""
SMALL_DEMO = ("--model", "u2netp-demo", "--size", "64", "--out", "e")
ONNX, XML = "e/u2netp-demo-fp32-64.onnx", "e/u2netp-demo-fp32-64.xml"
COMMANDS = [
    ("torch", "--model", "u2netp-demo", "--out", "e"),
    *((name, *SMALL_DEMO) for name in ("onnx", "openvino", "tensorrt")),
    ("run", ONNX, "p.png", "--out", "o"),
    ("run", XML, "p.png", "--out", "o"),
    ("inspect", ONNX),
    ("inspect", XML),
    ("parity", ONNX, XML, "--html", "p.html"),
    ("verify", XML),
    ("bench", ONNX, XML, "--duration", "1", "--html", "b.html", "--json", "b.json"),
    ("recommend", "b.json"),
    ("doctor",),
    ("backends",),
    ("weights", "list"),
]


@pytest.mark.timeout(600)
def test_every_command_leaves_a_home_empty_and_calls_nobody(command, tmp_path: Path):
    home, cache, calls = tmp_path / "home", tmp_path / "cache", tmp_path / "calls"
    home.mkdir()
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    picture(tmp_path / "p.png")
    env = {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "U2EXPORT_CACHE": str(cache),
        "U2EXPORT_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(watch), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CALLS": str(calls),
        **{name: "" for name in os.environ if name.startswith("XDG_")},
    }
    for words in COMMANDS:
        done = command(*words, env=env, retraced=True)  # so that `watch` is imported
        # so small a network gives hardly a mask, which `bench` calls wrong
        assert done.returncode in ((0, 6) if words[0] in ("bench", "recommend") else (0,)), (
            f"{words}: {done.stderr}"
        )
        left = [str(path.relative_to(home)) for path in home.rglob("*")]
        assert left == [], f"{words} left {left}"
    assert not calls.exists(), calls.read_text()


def test_who_wants_telemetry_keeps_it(tmp_path: Path):
    code = "import os, u2export; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, found in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | given
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == found
