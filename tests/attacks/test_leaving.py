"""Signals while a runtime computes without an end, or a runner is closed while it computes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from attacks.table import picture
from conftest import POSIX
from onnx import TensorProto, helper

from u2export.core import registry
from u2export.errors import ExportError, InputError
from u2export.system import leaving


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """An ONNX file that looks like a U²-Net of 64 pixels and never answers."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("Identity", ["v"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    shape = [1, 1, 320, 320]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
            helper.make_node("Loop", ["", "go", "m"], ["y"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("go", TensorProto.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "endless.onnx"
    onnx.save(model, path)
    return path


# computes for hours in C code that nothing interrupts
UNINTERRUPTIBLE = """
import hashlib
from u2export.system.leaving import leave_on_signals
leave_on_signals()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def _start(*words: str, stderr: int = subprocess.PIPE, **given: Any) -> subprocess.Popen[str]:
    """Start Python and wait until it computes; an interrupt is not ignored there."""
    process = subprocess.Popen(
        [sys.executable, *words], stderr=stderr, text=True, **given,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    _wait_until_it_computes(process.pid)
    return process


@POSIX
@BOTH
def test_a_call_of_onnxruntime_without_an_end_is_interrupted(endless: Path, number: int):
    folder = endless.parent
    picture(folder / "p.png")
    words = ("-m", "u2export", "run", endless.name, "p.png", "--model", "u2netp", "--out", "o")
    process = _start(*words, cwd=folder)
    begun = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert time.monotonic() - begun < 2
    assert process.returncode == 128 + number
    assert told == ("u2export: interrupted\n" if number == signal.SIGINT else "")
    assert [path for path in folder.rglob("*") if "partial" in path.name] == []


@POSIX
@BOTH
@pytest.mark.parametrize("signals", [1, 2])
def test_what_cannot_be_interrupted_is_left(number: int, signals: int):
    process = _start("-c", UNINTERRUPTIBLE)
    begun = time.monotonic()
    for _ in range(signals):
        process.send_signal(number)
        time.sleep(0.3)
    _, told = process.communicate(timeout=20)
    taken = time.monotonic() - begun
    assert process.returncode == 128 + number
    assert "Traceback" not in told
    if signals == 1:
        assert leaving.GRACE_S <= taken + 0.1 < leaving.GRACE_S + 5
        assert "something still computes after 5 s" in told
    else:
        assert taken < 3


def test_an_interrupted_runner_refuses_later_calls(quick: Path):
    with registry.open_runner(registry.open_artifact(quick)) as runner:
        x = np.zeros((1, 3, runner.size, runner.size), np.float32)
        runner(x)
        runner.interrupt()
        with pytest.raises(ExportError, match=r"onnxruntime .* failed: .*terminate"):
            runner(x)


def test_runners_that_are_gone_are_not_interrupted():
    class Counting:
        count = 0

        def interrupt(self) -> None:
            Counting.count += 1

    gone, here = Counting(), Counting()
    leaving.interrupt_when_leaving(gone)
    leaving.interrupt_when_leaving(here)
    del gone
    leaving._interrupt_all()
    assert here.count == 1


STARTED_S = 5.0  # processor time: longer than it takes to start, however busy the machine is


def _wait_until_it_computes(pid: int) -> None:
    import psutil

    process = psutil.Process(pid)
    for _ in range(1200):
        time.sleep(0.1)
        if process.cpu_times().user > STARTED_S:
            return
    pytest.fail("it never computed")


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".safetensors"])
def test_closing_waits_for_calls_under_way_and_refuses_later_ones(suffix: str, small: Path):
    name = "u2netp-demo-fp32-64-bN" if suffix != ".safetensors" else "u2netp-demo-fp32"
    path = small / f"{name}{suffix}"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the small artifacts")
    runner = registry.open_runner(registry.open_artifact(path))
    x = np.zeros((1, 3, runner.size, runner.size), np.float32)
    outcomes: list[object] = []

    def call() -> None:
        try:
            for _ in range(1000):
                runner(x)
        except InputError as error:
            outcomes.append(str(error))
        except BaseException as error:  # nothing else may come
            outcomes.append(error)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    runner.close()
    for thread in threads:
        thread.join(30)
    assert outcomes == ["this runner is closed: open the artifact again"] * 8


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_closed_runner_streams_nothing(suffix: str, small: Path):
    runner = registry.open_runner(registry.open_artifact(small / f"u2netp-demo-fp32-64-bN{suffix}"))
    runner.close()
    x = np.zeros((1, 3, runner.size, runner.size), np.float32)
    with pytest.raises(InputError, match="this runner is closed"):
        list(runner.stream([x]))


def test_a_picture_that_holds_no_numbers_is_refused(quick: Path):
    with registry.open_runner(registry.open_artifact(quick)) as runner:
        for value in (np.nan, np.inf):
            x = np.full((1, 3, runner.size, runner.size), value, np.float32)
            with pytest.raises(InputError, match="must be finite: it holds NaN or infinity"):
                runner(x)


def test_a_batch_that_no_memory_holds_is_refused(quick: Path, tmp_path: Path, command):
    model = onnx.load(quick)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**31
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "huge.onnx")
    picture(tmp_path / "p.png")
    done = command("run", "huge.onnx", "p.png", "--model", "u2netp")
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr


@POSIX
def test_nobody_who_reads_standard_error_does_not_keep_the_process():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(65536))
    os.set_blocking(writing, True)
    process = _start("-c", UNINTERRUPTIBLE, stderr=writing)
    os.close(writing)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    os.close(reading)


def test_a_dead_disk_does_not_keep_the_process():
    code = (
        "import os\n"
        "from u2export.system import leaving\n"
        "def dead(): raise OSError(116, 'Stale file handle')\n"
        "leaving.remove_own_partials = dead\n"
        "leaving._leave_at_once(15)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143
