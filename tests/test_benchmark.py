"""`u2export bench`, `recommend` and `auto`, with real workers on artifacts of 64 pixels."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.judge import cheats
from conftest import DEMO
from onnx import numpy_helper

from u2export import auto
from u2export.auto import PRECISIONS, AutoRequest, choose_best
from u2export.benchmark import masks, measure, stats
from u2export.benchmark import report as benchmark_report
from u2export.benchmark.candidates import Candidate
from u2export.benchmark.energy import POWERCAP
from u2export.benchmark.limits import Limits
from u2export.benchmark.masks import _worst_map
from u2export.benchmark.measure import measure_artifacts
from u2export.benchmark.outputs import raise_if_failed
from u2export.benchmark.plan import BenchmarkPlan, parse_batches, parse_slowdown
from u2export.benchmark.recommend import raise_if_no_winner
from u2export.benchmark.report import STAGES, read_report
from u2export.benchmark.rounds import MIN_SAMPLES
from u2export.benchmark.worker import WorkerSpec
from u2export.benchmark.worker_process import WorkerError, WorkerProcess
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.enums import Device, Precision
from u2export.core.requests import RunRequest
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    OutputError,
    ParityError,
)
from u2export.images.synthetic import draw_image
from u2export.system import hardware

# Input sizes other than the model's own are judged by the masks of its own: not what is tested.
pytestmark = pytest.mark.usefixtures("_small_inputs_are_right")
ONNX, XML = "u2netp-demo-fp32-64-bN.onnx", "u2netp-demo-fp32-64-bN.xml"


@pytest.fixture
def _small_inputs_are_right(monkeypatch):
    monkeypatch.setattr(masks, "MIN_RESIZED_IOU", 0.0)
    monkeypatch.setattr(benchmark_report, "LEAST_PASSED_IOU", 0.0)
    # turns are what is tested, and not whether this machine is quiet
    monkeypatch.setattr(stats, "MAX_WAITING_SHARE", float("inf"))


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    for path in small.glob("u2netp-demo-*"):
        shutil.copy(path, tmp_path)
    for seed in (1_000_004, 1_000_005):
        draw_image(seed, (200, 150)).picture.save(tmp_path / f"{seed}.png")
    return tmp_path


@pytest.fixture
def pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.png")))


def _assigned(path: Path, folder: Path) -> WorkerSpec:
    np.save(folder / "x.npy", np.zeros((1, 3, 64, 64), np.float32))
    return WorkerSpec(artifact=path, inputs=folder / "x.npy", backend="onnx")


class Meter:
    """An energy meter that counts 12 joules between any two questions."""

    known = True

    def consumed_joules(self) -> float:
        return 12.0


def test_two_runtimes_are_measured_in_turns_with_everything_told(
    folder: Path, pictures, monkeypatch
):
    monkeypatch.setattr(measure, "EnergyMeter", lambda gpu: Meter())
    pictures_of: dict[str, list[int]] = {ONNX: [], XML: []}
    call = WorkerProcess.call

    def counting_call(self, command, **arguments):
        answer = call(self, command, **arguments)
        if command == "measure_block":
            pictures_of[self.spec.artifact.name].append(answer["pictures"])
        return answer

    monkeypatch.setattr(WorkerProcess, "call", counting_call)
    report, shown = measure_artifacts(
        BenchmarkPlan((folder / ONNX, folder / XML), pictures, seconds=4)
    )
    assert [row.name for row in report.rows] == [ONNX, XML]
    for row in report.rows:
        assert row.failed == ""
        assert min(map(len, row.latency.blocks)) >= MIN_SAMPLES
        assert row.latency.low <= row.latency.median <= row.latency.high
        assert set(row.stages) == set(STAGES)
        assert all(ms > 0 for ms in row.stages.values())
        assert row.memory_mb > 10
        counted = pictures_of[row.name]  # of the samples, and of warming up
        for pictures_of_turn, block in zip(counted, row.latency.blocks, strict=True):
            assert pictures_of_turn > len(block)
        assert row.joules == pytest.approx(12 * len(counted) / sum(counted))
        assert row.gpu_ms is None
        assert row.mask.passed
        assert 0 < row.mask.worst_iou <= row.mask.iou < 1  # those of 64 pixels, not of 320
        assert row.throughput.pictures > 0
        assert row.files == dict(registry.open_artifact(folder / row.file).files)
        size = sum((folder / name).stat().st_size for name in row.files)
        assert row.size_mb == pytest.approx(size / 1e6)
        assert row.ran.startswith("stored fp32, computed fp32 on cpu")
    assert set(report.rows[1].throughput.tried) >= {"batch 1", "batch 4", "2 streams"}
    blocks = {len(row.latency.blocks) for row in report.rows} | {len(report.calibration)}
    assert len(blocks) == 1  # one block each a round
    assert [ratio.name for ratio in report.ratios] == [XML]
    assert {one.candidate for one in shown} == {ONNX, XML}
    raise_if_failed(report)


def test_a_smaller_input_must_keep_the_masks_of_the_models_own(folder: Path, pictures, monkeypatch):
    monkeypatch.setattr(masks, "MIN_RESIZED_IOU", 0.975)
    report, _ = measure_artifacts(BenchmarkPlan((folder / ONNX,), pictures, seconds=1))
    assert report.rows[0].joules is None or POWERCAP.is_dir()
    assert not report.rows[0].mask.passed
    assert report.rows[0].mask.reasons[0].endswith("at least 0.975, against 320 pixels")
    assert report.winner is None
    plan = BenchmarkPlan((folder / ONNX,), pictures, reference=str(folder / XML), seconds=1)
    report, _ = measure_artifacts(plan)
    assert report.reference == XML
    assert report.rows[0].mask.iou > 0.9999


def test_a_sleep_in_every_call_is_seen(folder: Path, pictures):
    plan = BenchmarkPlan(
        (folder / ONNX, folder / XML), pictures, str(folder / XML), seconds=4, delays=(4.0, 0.0)
    )
    report, _ = measure_artifacts(plan)
    [ratio] = report.ratios
    assert ratio.verdict == "faster", report.rows
    assert ratio.ratio < 0.5  # the first sleeps for four times what a call takes


def test_rounds_in_which_a_row_waited_for_a_core_count_for_nothing(
    folder: Path, pictures, monkeypatch
):
    monkeypatch.setattr(stats, "MAX_WAITING_SHARE", 0.1)
    real, blocks = WorkerProcess.call, []

    def call(self: WorkerProcess, command: str, **arguments: object):
        answer = real(self, command, **arguments)
        if command == "measure_block":
            answer["waiting_share"] = 0.0
            if ONNX in str(self.spec.artifact):
                blocks.append(len(blocks))
                if blocks[-1] % 2:
                    answer |= {"waiting_share": 0.5, "samples": [777.0]}
        return answer

    monkeypatch.setattr(WorkerProcess, "call", call)
    plan = BenchmarkPlan((folder / ONNX, folder / XML), pictures, str(folder / XML), seconds=2)
    report, _ = measure_artifacts(plan)
    rounds, left = len(blocks), len(blocks) // 2
    for row in report.rows:
        assert len(row.latency.disturbed) == left
        assert len(row.latency.blocks) == rounds - left
    assert len(report.calibration) == rounds - left
    assert set(report.rows[0].latency.disturbed) == {(777.0,)}
    assert (777.0,) not in report.rows[0].latency.blocks
    assert f"in {left} of {rounds} rounds threads waited for a core: they count for nothing" in (
        report.notes
    )


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the kernel does not count")
def test_a_worker_tells_that_it_waited_for_a_core(folder: Path):
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with WorkerProcess(_assigned(folder / ONNX, folder)) as worker:
            worker.open()
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(worker.pid, {min(cores)})
            for one in burning:
                os.sched_setaffinity(one.pid, {min(cores)})
            busy = worker.call("measure_block", seconds=1.0, min_samples=3)["waiting_share"]
    finally:
        for one in burning:
            one.kill()
            one.wait()
    assert busy > 0.3  # five take turns on one core


def test_a_batch_is_a_row_of_its_own(folder: Path, pictures):
    report, _ = measure_artifacts(
        BenchmarkPlan((folder / ONNX,), pictures, str(folder / XML), batches=(1, 4), seconds=1)
    )
    assert [(row.name, row.batch) for row in report.rows] == [(ONNX, 1), (f"{ONNX} b4", 4)]
    one, four = report.rows
    assert (one.mask.passed, four.mask.passed) == (True, True)
    assert four.picture_ms == pytest.approx(four.latency.median / 4)


def test_of_a_file_with_a_fixed_batch_the_others_are_left_out(exported: Path, pictures):
    path = exported / "u2netp-demo-fp32.onnx"
    plan = BenchmarkPlan((path,), pictures, str(path), batches=(1, 4), seconds=1)
    report, _ = measure_artifacts(plan)
    [row] = report.rows
    assert (row.batch, row.failed) == (1, "")
    assert row.notes == (f"its batch is fixed, so there is no {path.name} b4",)
    raise_if_failed(report)
    report, _ = measure_artifacts(dataclasses.replace(plan, batches=(4,)))
    assert report.rows[0].failed == "it takes batches of 1, not of 4"
    with pytest.raises(ParityError, match="not measured"):
        raise_if_failed(report)


def test_a_fast_wrong_answer_is_marked_never_wins_and_is_status_6(folder: Path, pictures):
    wrong = onnx.load(folder / ONNX)
    item = next(i for i in wrong.graph.initializer if i.name.startswith("stage1.rebnconv2."))
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 2, item.name))
    cheats.save(wrong, folder / ONNX, folder / "wrong.onnx")
    paths = (folder / "wrong.onnx", folder / ONNX)
    plan = BenchmarkPlan(paths, pictures, seconds=1, delays=(0.0, 4.0))
    report, _ = measure_artifacts(plan)
    assert not report.rows[0].mask.passed
    assert report.rows[0].latency.high < report.rows[1].latency.low
    assert report.winner.file == ONNX
    with pytest.raises(ParityError, match=r"the mask is wrong: wrong\.onnx"):
        raise_if_failed(report)


def test_masks_that_could_not_be_compared_are_status_6(folder: Path, pictures):
    plan = BenchmarkPlan((folder / ONNX,), pictures, weights="random:0", seconds=1)
    report, _ = measure_artifacts(plan)
    assert report.rows[0].mask is None
    assert "is not what the artifact was made from" in report.rows[0].unjudged
    assert report.winner is None
    with pytest.raises(ParityError, match="were not compared"):
        raise_if_failed(report)


def test_a_batch_is_judged_at_every_place_in_it():
    candidate = Candidate("x", None, Path("x"))
    right, wrong = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    candidate.saliency = {"0/0": right, "1/0": wrong, "0/1": wrong, "0/2": right}
    assert _worst_map(candidate, 0, [right, right]) is wrong
    candidate.saliency["0/2"] = np.full((2, 2), np.nan, np.float32)
    assert _worst_map(candidate, 0, [right, right]) is candidate.saliency["0/2"]


def test_a_worker_takes_no_module_from_the_folder_one_stands_in(folder: Path, monkeypatch):
    (folder / "random.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(folder)
    with WorkerProcess(_assigned(folder / ONNX, folder)) as worker:
        assert worker.open()["batch"] == 1


def test_a_device_that_a_backend_does_not_know_is_told_in_its_row(folder: Path, pictures):
    plan = BenchmarkPlan((folder / XML,), pictures, run=RunRequest(Device.CUDA), seconds=1)
    report, _ = measure_artifacts(plan)
    assert "openvino backend runs on cpu, gpu, not on cuda" in report.rows[0].failed


def test_a_killed_worker_is_told_in_its_row_and_the_others_finish(
    folder: Path, pictures, monkeypatch
):
    real, commands = WorkerProcess.call, []

    def call(self: WorkerProcess, command: str, **arguments: object):
        if command == "measure_block" and ONNX in str(self.spec.artifact):
            commands.append(command)
            if len(commands) == 2:
                os.kill(self.pid, signal.SIGKILL)
        return real(self, command, **arguments)

    monkeypatch.setattr(WorkerProcess, "call", call)
    report, _ = measure_artifacts(
        BenchmarkPlan((folder / ONNX, folder / XML), pictures, str(folder / XML), seconds=1)
    )
    assert report.rows[0].failed == (
        "its process was killed (SIGKILL): out of memory, or by somebody"
    )
    assert report.rows[0].latency is None
    assert report.rows[1].mask.passed
    with pytest.raises(ParityError, match=r"not measured: .*SIGKILL"):
        raise_if_failed(report)


def test_a_worker_that_is_refused_its_file_says_why(folder: Path, pictures):
    (folder / "junk.onnx").write_bytes(b"no model")
    spec = _assigned(folder / "junk.onnx", folder).model_copy(update={"model": DEMO.name})
    with WorkerProcess(spec) as worker, pytest.raises(WorkerError, match="cannot be read as ONNX"):
        worker.open()


def test_a_worker_compiles_anew_whatever_was_run_before(folder: Path, pictures, monkeypatch):
    kept = folder / "kept"
    monkeypatch.setenv("U2EXPORT_CACHE", str(kept))
    with registry.open_runner(registry.open_artifact(folder / XML)):
        before = set(kept.rglob("*"))
    assert any(path.suffix == ".blob" for path in before)
    with WorkerProcess(_assigned(folder / XML, folder)) as worker:
        worker.open()
        compiled = Path(_environment(worker.pid)["U2EXPORT_COMPILED"])
        assert list(compiled.rglob("*.blob"))
    assert not compiled.exists()
    assert set(kept.rglob("*")) == before


def _environment(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


def test_the_workers_memory_is_what_the_kernel_says(folder: Path, pictures):
    with WorkerProcess(_assigned(folder / ONNX, folder)) as worker:
        worker.open()
        memory = worker.call("measure_memory")
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    assert memory["peak_mb"] == pytest.approx(peak, rel=0.03)
    assert 0 < memory["baseline_mb"] < memory["peak_mb"]


@pytest.mark.skipif(bool(hardware.query_cuda().gpus), reason="this machine has a GPU")
def test_a_runtime_that_is_missing_is_a_row_that_says_so(folder: Path, pictures):
    engine = folder / "u2netp-demo-fp32-64-bN.engine"
    report, _ = measure_artifacts(
        BenchmarkPlan((folder / ONNX, engine), pictures, str(folder / XML), seconds=1)
    )
    assert report.rows[1].failed.startswith("cannot run here: ")
    with pytest.raises(DependencyError, match="not measured"):
        raise_if_failed(report)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.onnx"], "there is no artifact at none.onnx"),
        ([ONNX, ONNX], f"two model files are called {ONNX}"),
        ([ONNX, "--batch", "0"], "batches are whole numbers above 0"),
        ([ONNX, "--duration", "0"], "the duration must be above 0"),
        ([ONNX, "--pictures", "none"], "there is no picture at none"),
        ([ONNX, "--max-slowdown", "much"], "a slowdown is a share such as 10%"),
        ([ONNX, "--baseline", "none.json"], "none.json cannot be read"),
        ([ONNX, "--baseline", f"{ONNX}.json"], "is no benchmark report"),
        ([ONNX, "--against", "typo"], f"no row is called 'typo': choose one of {ONNX}"),
        ([ONNX, "--reference", "none.onnx"], "there is no artifact at none.onnx"),
    ],
)
def test_a_plan_that_makes_no_sense_is_status_2(command, folder: Path, words, sentence):
    done = command("bench", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert sentence in done.stderr


def test_a_row_that_nothing_is_called_is_refused_before_anything_is_loaded(
    folder: Path, pictures, monkeypatch
):
    monkeypatch.setattr(measure, "start_worker", lambda *given: pytest.fail("it went to work"))
    with pytest.raises(InputError, match="no row is called 'typo'"):
        measure_artifacts(BenchmarkPlan((folder / ONNX,), pictures, baseline="typo"))


@pytest.mark.parametrize("option", ["--json", "--html", "--csv", "--markdown"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command, folder: Path, option: str
):
    begun = time.perf_counter()
    done = command("bench", ONNX, option, f"{XML}/report.json", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"u2export: error: {XML}/report.json cannot be written: {folder / XML} is no folder"
    )
    assert time.perf_counter() - begun < 5
    done = command("parity", XML, ONNX, "--html", ".", cwd=folder)
    assert done.returncode == 2
    assert "it is a folder" in done.stderr


def test_the_commands_measure_recommend_and_compare_with_before(command, folder: Path):
    words = [ONNX, XML, "--pictures", "1000004.png", "--duration", "2"]
    words += ["--reference", XML]
    forms = ["--json", "b.json", "--html", "b.html", "--csv", "b.csv", "--markdown", "b.md"]
    done = command("bench", *words, *forms)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(folder / "b.json")
    assert report.winner is not None
    assert f"fastest with the right mask: {report.winner.name}" in done.stdout
    assert {"b.html", "b.csv", "b.md"} <= {path.name for path in folder.iterdir()}
    done = command("recommend", "b.json", "--min-iou", "0.99")
    assert done.returncode == 0, done.stderr
    done = command("recommend", "b.json", "--max-latency-ms", "0.001", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["winner"] == ""
    done = command("bench", *words, "--baseline", "b.json", "--max-slowdown", "1000%")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times the baseline's latency" in done.stdout
    fast = json.loads((folder / "b.json").read_text())
    for row in fast["rows"]:
        for name in ("median", "low", "high"):
            row["latency"][name] /= 20
    (folder / "fast.json").write_text(json.dumps(fast))
    done = command("bench", *words, "--baseline", "fast.json")
    assert done.returncode == 6
    assert "slower than the baseline by more than 10%" in done.stderr


def test_auto_leaves_the_best_whole_and_certified(folder: Path, pictures, monkeypatch):
    monkeypatch.setattr(auto, "PRECISIONS", PRECISIONS[:1])
    wish = AutoRequest(DEMO, sizes=(64,), pictures=pictures, out=folder / "out", seconds=1)
    choice = choose_best(wish)
    assert choice.path is not None
    found = registry.open_artifact(choice.path)
    assert found.files
    assert found.checks["certificate"]["judgement"]["subjects"] > 0
    assert choice.path.name == choice.report.row(choice.recommendation.winner).file
    assert {path.name for path in choice.path.parent.iterdir() if path.name[0] != "."} == {
        *found.files,
        f"{choice.path.name}.json",
    }
    with registry.open_runner(found) as runner:
        assert np.isfinite(runner(np.zeros((1, 3, 64, 64), np.float32))).all()


def test_auto_tries_int8_where_there_are_pictures_for_it(folder: Path, pictures, monkeypatch):
    asked = []

    def refused(name, spec, *rest):
        asked.append((name, spec))
        raise ExportError("not now")

    monkeypatch.setattr(auto, "build_artifact", refused)
    wish = AutoRequest(
        DEMO, limits=Limits(min_iou=0.97), calibration=pictures, out=folder / "out", sizes=(64,)
    )
    with pytest.raises(ExportError, match="not now"):
        choose_best(wish)
    int8 = {name: spec.quantization for name, spec in asked if spec.precision is Precision.INT8}
    (first,) = int8  # what lost the mask there is not tried again with the same numbers elsewhere
    assert int8[first].pictures == pictures
    assert (int8[first].min_iou, int8[first].max_mae) == (0.97, 0.004)
    asked.clear()
    with pytest.raises(ExportError, match="not now"):
        choose_best(dataclasses.replace(wish, calibration=()))
    assert Precision.INT8 not in {spec.precision for _, spec in asked}


REFUSALS = [ArtifactError("changed"), DependencyError("no device"), ParityError("other"), None]


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_auto_goes_on_where_one_candidate_is_refused(error, folder, monkeypatch, capsys):
    whole = registry.open_artifact(folder / ONNX)

    def build(name, *rest):
        if name == "onnx" or not error:
            return whole
        raise error

    monkeypatch.setattr(auto, "build_artifact", build)
    found = list(auto._export_candidates(AutoRequest(DEMO, sizes=(64,)), whole, folder, print))
    assert {type(one) for one in found} == {Artifact, *([type(error)] if error else [])}
    assert not error or f"is left out: {error}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OutputError("full"), InputError("a bad path")])
def test_auto_ends_where_nothing_can_be_written(error, folder, monkeypatch):
    def build(*given):
        raise error

    monkeypatch.setattr(auto, "build_artifact", build)
    whole = registry.open_artifact(folder / ONNX)
    with pytest.raises(type(error), match=str(error)):
        list(auto._export_candidates(AutoRequest(DEMO), whole, folder, print))


def test_auto_without_a_backend_names_the_doctor(folder: Path, monkeypatch):
    monkeypatch.setattr(auto, "_usable_backends", lambda: iter(()))
    with pytest.raises(InputError, match="u2export doctor says why"):
        choose_best(AutoRequest(DEMO, out=folder / "out"))


def test_auto_does_not_judge_by_what_calibrates(folder: Path, pictures):
    wish = AutoRequest(DEMO, pictures=pictures, calibration=pictures, out=folder / "out")
    with pytest.raises(InputError, match=r"cannot calibrate and judge: give other --pictures"):
        choose_best(wish)


def test_auto_refuses_a_place_that_cannot_be_written_before_it_works(folder: Path, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr(auto, "_export_candidates", lambda *given: pytest.fail("it went to work"))
    with pytest.raises(InputError, match="cannot be written"):
        choose_best(AutoRequest(DEMO, out=folder / "file" / "out"))


def test_auto_leaves_nothing_where_nothing_keeps_the_limits(folder: Path, pictures, monkeypatch):
    made = [registry.open_artifact(folder / ONNX)]
    monkeypatch.setattr(auto, "_export_candidates", lambda *given: iter(made))
    monkeypatch.setattr(auto, "_check_candidates", lambda made, request, phase: (made, ()))
    limits = Limits(max_size_mb=0.1)
    choice = choose_best(
        AutoRequest(DEMO, limits=limits, pictures=pictures, out=folder / "out", seconds=1)
    )
    assert choice.path is None
    assert list((folder / "out").iterdir()) == []
    with pytest.raises(ParityError):
        raise_if_no_winner(choice.recommendation)


def test_shares_and_batches_are_read_or_refused():
    assert parse_slowdown("10%") == 0.1
    assert parse_slowdown("0.25") == 0.25
    assert parse_batches("1,4,4,8") == (1, 4, 8)
    for text in ("-1%", "nan", "inf"):
        with pytest.raises(InputError):
            parse_slowdown(text)
