from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from u2export.core import registry
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.errors import ArtifactError, ExportError, InputError
from u2export.export.build import build_artifact, export_model
from u2export.network import weights
from u2export.system.hardware import usable_cpus

DEMO = MODELS["u2netp-demo"]
SPEC = ExportSpec(DEMO, 32)
NAME = "u2netp-demo-fp32-32.onnx"
WORDS = [sys.executable, "-m", "u2export", "onnx", "--model", "u2netp-demo", "--size", "32"]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return build_artifact("onnx", SPEC, weights.find(DEMO), tmp_path / "exported").path


def test_an_export_leaves_the_artifact_its_manifest_and_a_lock(finished: Path):
    names = sorted(p.name for p in finished.parent.iterdir())
    assert names == [f".{NAME}.lock", NAME, f"{NAME}.json"]


def test_a_second_export_of_the_same_name_is_refused_while_the_first_runs(tmp_path: Path):
    with FileLock(tmp_path / f".{NAME}.lock"), pytest.raises(ExportError, match="another export"):
        build_artifact("onnx", SPEC, weights.find(DEMO), tmp_path)


def test_a_failing_check_leaves_what_was_there(finished: Path, monkeypatch):
    before = {p.name: p.read_bytes() for p in finished.parent.iterdir()}

    def refuse(*args: object) -> None:
        raise ExportError("not the same")

    monkeypatch.setattr("u2export.export.confirm.check_before_publishing", refuse)
    with pytest.raises(ExportError, match="not the same"):
        build_artifact("onnx", SPEC, weights.find(DEMO), finished.parent)
    assert {p.name: p.read_bytes() for p in finished.parent.iterdir()} == before


@pytest.mark.parametrize("moment", ["unlink", "replace 1", "replace 2"])
def test_a_kill_between_two_steps_of_publishing_leaves_a_whole_artifact(
    finished: Path, monkeypatch, moment: str
):
    """The old file is another export, so that publishing replaces it for real."""
    other = build_artifact(
        "onnx", ExportSpec(DEMO, 32, variant="x"), weights.find(DEMO, "random:0"), finished.parent
    )
    os.replace(other.path, finished)
    Path(f"{other.path}.json").unlink()
    Path(f"{finished}.json").unlink()
    old = registry.open_artifact(finished).facts
    calls = 0
    real_unlink, real_replace = Path.unlink, os.replace

    def die_unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == f"{NAME}.json" and moment == "unlink":
            raise KeyboardInterrupt
        real_unlink(self, missing_ok)

    def die_replace(source: object, target: object) -> None:
        nonlocal calls
        if str(target).startswith(str(finished)):
            calls += 1
            if moment == f"replace {calls}":
                raise KeyboardInterrupt
        real_replace(source, target)

    monkeypatch.setattr(Path, "unlink", die_unlink)
    monkeypatch.setattr(os, "replace", die_replace)
    with pytest.raises(KeyboardInterrupt):
        build_artifact("onnx", SPEC, weights.find(DEMO), finished.parent)
    monkeypatch.undo()
    found = registry.open_artifact(finished).facts
    expected = "bundled" if moment == "replace 2" else "random"
    assert found.weights.origin == expected
    assert (found == old) == (expected == "random")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_export_with_its_status_and_nothing_left(
    tmp_path: Path, number: signal.Signals, status: int
):
    process = subprocess.Popen(
        WORDS,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a shell's background job, as CI may be, has the interrupt ignored
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    while not list(tmp_path.glob("exported/.*partial")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert not (tmp_path / "exported").exists()


def test_killed_exports_never_leave_an_artifact_that_is_not_whole(tmp_path: Path):
    """Two here; benchmarks/kill_export.py does fifty."""
    rng = random.Random(0)
    path = tmp_path / "exported" / NAME
    for _ in range(2):
        process = subprocess.Popen(
            WORDS, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.5, 9))
        process.kill()
        process.wait()
        if path.exists():
            registry.open_artifact(path)
    done = subprocess.run(WORDS, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("exported/.*partial"))


def test_a_half_written_file_would_be_found(finished: Path):
    """The check above can fail: a file cut short is not accepted."""
    Path(f"{finished}.json").unlink()
    finished.write_bytes(finished.read_bytes()[:-100])
    with pytest.raises(ArtifactError):
        registry.open_artifact(finished)


def test_the_demo_weights_are_refused_where_they_do_not_belong(tmp_path: Path):
    with pytest.raises(InputError, match="exports fp32, not fp16"):
        export_model("torch", ExportSpec(DEMO, 320, precision="fp16"), None, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_threads_follow_the_containers_quota(tmp_path: Path, monkeypatch, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cpus(tmp_path) == (cpus or 8)


def test_threads_follow_affinity(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    assert usable_cpus(tmp_path) == 2
