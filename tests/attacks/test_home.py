"""Nothing is left in a user's home but our own cache, and nobody is called."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
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


# What runtimes call from C++, no Python code sees. `strace` sees every system call of a process
# and of those it starts, and with a filter in the kernel it slows only the calls that are watched.
STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none")
CALLING = ("-e", "trace=connect,sendto,sendmsg,sendmmsg")
# Of this machine's own: other processes, and the kernel's list of interfaces. An address of no
# family takes a connection back.
OWN = re.compile(r"sa_family=AF_(UNIX|NETLINK|UNSPEC)\b")
RESOLVER = "/resolve/"  # systemd's socket, which looks names up for others


def _why_nothing_is_traced() -> str:
    """Why this machine shows no system calls; empty where it does."""
    if sys.platform != "linux" or not shutil.which("strace"):
        return "only strace on Linux sees what C++ code calls: apt-get install strace"
    tried = subprocess.run([*STRACE, "true"], capture_output=True, text=True, check=False)
    return f"strace is not allowed here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def untraced() -> str:
    return _why_nothing_is_traced()


@pytest.fixture
def traced(untraced: str) -> None:
    if untraced:
        pytest.skip(untraced)


def _outward(trace: Path) -> list[str]:
    """The calls in a trace that leave this machine, or look up a name."""
    lines = [line for line in trace.read_text(errors="replace").splitlines() if "sa_" in line]
    return [line for line in lines if RESOLVER in line or not OWN.search(line)]


@dataclass(frozen=True)
class Seen:
    """What was seen while every command ran.

    Attributes:
        left: names that a command left in the home, after the command.
        calls: what Python code looked up or connected to.
        trace: what any code did, where the machine shows it.
    """

    left: dict[str, list[str]]
    calls: Path
    trace: Path


@pytest.fixture(scope="module")
def seen(untraced: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Run every command once, in an empty home."""
    folder = tmp_path_factory.mktemp("seen")
    home, watch = folder / "home", folder / "watch"
    home.mkdir()
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    picture(folder / "p.png")
    seen = Seen({}, folder / "calls", folder / "trace")
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")} | {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "U2EXPORT_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(watch), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CALLS": str(seen.calls),
    }
    tracer = () if untraced else (*STRACE, *CALLING, "-A", "-o", str(seen.trace))
    for words in COMMANDS:
        done = subprocess.run(
            [*tracer, sys.executable, "-m", "u2export", *words],
            cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", check=False,
        )  # fmt: skip
        # so small a network gives hardly a mask, which `bench` calls wrong
        assert done.returncode in ((0, 6) if words[0] in ("bench", "recommend") else (0,)), (
            f"{words}: {done.stderr}"
        )
        seen.left[" ".join(words)] = [str(path.relative_to(home)) for path in home.rglob("*")]
    return seen


@pytest.mark.timeout(600)
def test_every_command_leaves_a_home_empty(seen: Seen):
    assert {words: left for words, left in seen.left.items() if left} == {}


@pytest.mark.timeout(600)
def test_no_python_code_calls_anybody(seen: Seen):
    assert not seen.calls.exists(), seen.calls.read_text()


@pytest.mark.timeout(600)
def test_no_code_calls_anybody(seen: Seen, traced: None):
    assert _outward(seen.trace) == []


CONNECT = """
import ctypes, socket, sys
address = bytes.fromhex(sys.argv[1])
libc = ctypes.CDLL(None)
libc.connect(libc.socket(address[0], socket.SOCK_DGRAM, 0), address, len(address))
"""
# An address in C begins with its family: 1 is a file's name, 2 is IPv4, 10 is IPv6 (on Linux).
PORT = struct.pack(">H", 9)
NOBODY = bytes([192, 0, 2, 1])  # an address that documents use


@pytest.mark.parametrize(
    ("address", "outward"),
    [
        (struct.pack("=H", 2) + PORT + NOBODY + bytes(8), True),
        (struct.pack("=H", 10) + PORT + bytes(4) + b"\x20\x01\x0d\xb8" + bytes(16), True),
        (struct.pack("=H", 1) + b"/run/systemd/resolve/io.systemd.Resolve\0", True),
        (struct.pack("=H", 1) + b"/run/nobody-listens-here\0", False),
    ],
    ids=["IPv4", "IPv6", "a name is looked up", "another process"],
)
def test_a_connection_from_c_is_seen(address: bytes, outward: bool, tmp_path: Path, traced: None):
    trace = tmp_path / "trace"
    words = [*STRACE, *CALLING, "-o", str(trace), sys.executable, "-c", CONNECT, address.hex()]
    subprocess.run(words, check=True)
    assert "connect(" in trace.read_text()
    assert bool(_outward(trace)) is outward


def test_who_wants_telemetry_keeps_it(tmp_path: Path):
    code = "import os, u2export; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, found in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | given
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == found
