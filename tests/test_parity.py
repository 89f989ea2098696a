"""The parity check: what passes, what does not, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import parity_mutations as mutations
import pytest
from conftest import SMALL
from onnx import numpy_helper
from PIL import Image

from u2export.compare.budgets import BUDGETS, read_budgets
from u2export.compare.metrics import boundary_f, compare_maps, cosine
from u2export.compare.probe_images import degenerate_cases, synthetic_cases
from u2export.compare.stages import Pipeline, find_first_difference, run_pipeline
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Precision, Stage
from u2export.core.execution import Execution
from u2export.core.models import MODELS, PictureSpec
from u2export.core.requests import ExportSpec
from u2export.errors import ArtifactError, DependencyError, InputError, ParityError
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.network import weights
from u2export.parity import check
from u2export.parity.certificate import read_certificate, write_certificate
from u2export.parity.check import check_parity
from u2export.parity.outputs import raise_if_failed, write_reports
from u2export.parity.properties import _check_batch
from u2export.parity.replay import ReplayRecord, replay_failure, write_replay, write_replays
from u2export.parity.report import CandidateResult, CaseResult, ParityReport, RuntimeInfo
from u2export.parity.request import ParityRequest
from u2export.parity.text import format_report
from u2export.parity.verify import verify_artifact
from u2export.system import hardware
from u2export.testing import assert_parity

DEMO = MODELS["u2netp-demo"]
SPEC = PictureSpec()
FP32 = BUDGETS[Precision.FP32]
WHOLE, ONNX = "u2netp-demo-fp32.onnx", "u2netp-demo-fp32-64-bN.onnx"


# --- metrics ------------------------------------------------------------------------------------


def test_boundaries_two_pixels_apart_agree_and_three_apart_do_not():
    square = np.zeros((20, 20), bool)
    square[5:12, 5:12] = True
    two, three = np.roll(square, 2, axis=1), np.roll(square, 3, axis=1)
    assert boundary_f(square, square) == 1
    assert boundary_f(square, two) == 1
    # of the 24 boundary pixels, the far side's 7 are 3 away, and so is nothing else
    assert boundary_f(square, three) < 0.9
    assert boundary_f(square, np.zeros_like(square)) == 0
    assert boundary_f(np.zeros_like(square), np.zeros_like(square)) == 1


def test_the_angle_between_maps_is_that_worked_out_by_hand():
    a = np.array([[3.0, 4.0]], np.float32)
    assert cosine(a, np.array([[4.0, 3.0]], np.float32)) == pytest.approx(24 / 25)
    assert cosine(a, np.zeros_like(a)) == 0
    assert cosine(np.zeros_like(a), np.zeros_like(a)) == 1


def test_flipped_pixels_and_the_last_thousandth_are_those_worked_out_by_hand():
    reference = np.zeros((100, 100), np.float32)
    reference[:50] = 1
    candidate = reference.copy()
    candidate[0, :5] = 0  # five of ten thousand pixels
    found = compare_maps(reference, candidate)
    assert found.mask_flipped == 5e-4
    assert found.raw_max == 1
    assert found.raw_p999 == 0
    candidate[0, :20] = 0
    assert compare_maps(reference, candidate).raw_p999 == 1


# --- cases --------------------------------------------------------------------------------------


def test_the_degenerate_pictures_are_what_they_are_called():
    found = {case.name: case.read() for case in degenerate_cases(large=False)}
    sizes = {name: open_image(io.BytesIO(c)).size for name, c in found.items()}
    assert sizes["1x1"] == (1, 1)
    assert sizes["1xN"] == (1, 300)
    assert sizes["Nx1"] == (400, 1)
    assert sizes["turned by EXIF"] == (400, 300)
    modes = {name: Image.open(io.BytesIO(c)).mode for name, c in found.items()}
    assert modes["gray and alpha"] == "LA"
    assert modes["transparent ground"] == "RGBA"
    assert modes["palette"] == "P"
    assert modes["CMYK"] == "CMYK"
    assert modes["16 bits"].startswith("I;16")
    assert len(found) == 18


def test_the_large_picture_has_fifty_million_pixels():
    case = next(case for case in degenerate_cases(large=True) if case.name == "50 million pixels")
    assert open_image(io.BytesIO(case.read())).size == (8192, 6104)


# --- stages -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    with registry.open_runner(weights.find(DEMO)) as runner:
        yield mutations.side_of(runner, SPEC, "PyTorch")


@pytest.fixture(scope="module")
def whole(exported: Path) -> Artifact:
    return registry.open_artifact(exported / "u2netp-demo-fp32.onnx")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return mutations.contents(list(synthetic_cases(1)))


STAGES = {
    "red and blue swapped": Stage.INFER,
    "mean and standard deviation swapped": Stage.PREPROCESS,
    "divided by 255 instead of the largest value": Stage.PREPROCESS,
    f"all weights of {mutations.LAYER} 1 % too large": Stage.INFER,
    "upsampling with aligned corners": Stage.INFER,
    "d1 taken for d0": Stage.INFER,
    "EXIF orientation ignored": Stage.DECODE,
    "resized as rembg does": Stage.PREPROCESS,
}


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_is_seen_at_its_stage(reference, whole, files, tmp_path, mutation):
    with registry.open_runner(mutations.mutated(whole, mutation, tmp_path)) as runner:
        candidate = mutation.side(mutations.side_of(runner, SPEC, mutation.name))
        found = mutations.partings(files, reference, candidate, FP32)
    stages = [one.stage for one in found]
    if mutation.name == mutations.SAME:
        assert stages == [None, None, None]  # multiples of 32 never meet the ceiling
    else:
        assert STAGES[mutation.name] in stages
        assert next(stage for stage in stages if stage) is STAGES[mutation.name]


def test_a_whole_export_parts_nowhere(reference, whole, files):
    with registry.open_runner(whole) as runner:
        candidate = mutations.side_of(runner, SPEC, "whole")
        found = mutations.partings(files, reference, candidate, FP32)
    assert [one.stage for one in found] == [None, None, None]


def test_an_overflow_of_half_precision_names_its_module(files):
    found = mutations.overflowing(weights.find(DEMO), BUDGETS[Precision.FP16], files[0])
    assert "half precision overflows at stage2d.rebnconv2d" in str(found)


def test_a_network_that_gives_nan_never_passes(files):
    def nan(x: np.ndarray) -> np.ndarray:
        y = x[0, 0].copy()
        y[3, 4] = np.nan
        return y

    with pytest.raises(ParityError, match="x gave 1 NaN or infinite values"):
        run_pipeline(files[0], Pipeline("x", nan, SPEC))


def test_a_mask_that_is_moved_after_the_stretch_is_seen_there(files):
    def ramp(x: np.ndarray) -> np.ndarray:
        return np.tile(np.linspace(0, 1, x.shape[-1], dtype=np.float32), (x.shape[-1], 1))

    whole = run_pipeline(files[0], Pipeline("a", ramp, SPEC))
    moved = dataclasses.replace(whole, mask=np.roll(whole.mask, 20, axis=1))
    assert find_first_difference(whole, moved, FP32).stage is Stage.COMPOSE
    assert find_first_difference(whole, whole, FP32).stage is None


# --- the report's verdict -----------------------------------------------------------------------


PARTY = RuntimeInfo(name="x.onnx", backend="onnx", precision="fp32")
GOOD = compare_maps(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))


def _report(*candidates: CandidateResult, allow_missing: bool = False) -> ParityReport:
    return ParityReport(
        created="2026-01-01T00:00:00+00:00",
        command="u2export parity",
        machine={},
        versions={},
        reference=PARTY,
        candidates=candidates,
        allow_missing=allow_missing,
    )


def _candidate(contrast: float = 1.0, **other: object) -> CandidateResult:
    from u2export.compare.metrics import summarize_differences

    case = CaseResult(name="a", kind="drawn", passed=True, difference=GOOD, contrast=contrast)
    known = {
        "party": PARTY,
        "budget": FP32,
        "cases": (case,),
        "judgement": summarize_differences([GOOD], [contrast]),
    }
    return CandidateResult(**{**known, **other})  # type: ignore[arg-type]


def test_a_report_passes_when_all_candidates_do():
    assert _report(_candidate()).passed
    raise_if_failed(_report(_candidate()))


@pytest.mark.parametrize(
    ("candidates", "error"),
    [
        ((), ParityError),
        ((_candidate(), _candidate(reasons=("mask_mae over",))), ParityError),
        ((_candidate(contrast=0.1),), ParityError),  # a flat reference proves nothing
        ((_candidate(cases=(), judgement=None),), ParityError),
        ((_candidate(), _candidate(missing="no GPU", cases=(), judgement=None)), DependencyError),
        ((_candidate(missing="no GPU", cases=(), judgement=None),), DependencyError),
    ],
)
def test_a_report_does_not_pass_by_accident(candidates, error):
    assert not _report(*candidates).passed
    with pytest.raises(error):
        raise_if_failed(_report(*candidates))


def test_missing_candidates_may_be_allowed_but_not_all_of_them():
    missing = _candidate(missing="no GPU", cases=(), judgement=None)
    raise_if_failed(_report(_candidate(), missing, allow_missing=True))
    with pytest.raises(ParityError, match="nothing was judged"):
        raise_if_failed(_report(missing, allow_missing=True))


# --- budgets ------------------------------------------------------------------------------------


def test_a_budget_file_takes_the_place_of_what_it_names_only(tmp_path: Path):
    (tmp_path / "b.json").write_text('{"fp16": {"mask_mae": 0.5}}')
    found = read_budgets(tmp_path / "b.json")
    assert found[Precision.FP16].mask_mae == 0.5
    assert found[Precision.FP16].mask_iou == BUDGETS[Precision.FP16].mask_iou
    assert found[Precision.FP32] == FP32


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"fp8": {}}', "precision must be one of fp32"),
        ('{"fp16": {"mask_mea": 1}}', "mask_mea: Extra inputs"),
        ('{"fp16": {"mask_mae": "much"}}', "mask_mae: Input should be a valid number"),
        ('{"fp16": {"mask_mae": NaN}}', "NaN is no number of JSON"),
        ('{"fp16": {"mask_iou": -1}}', "mask_iou: Input should be greater than or equal to 0"),
        ("nonsense", "is no budget file"),
        ("[1]", "is no budget file"),
    ],
)
def test_a_budget_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, sentence: str):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_budgets(tmp_path / "b.json")


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> Path:
    """The demo artifacts of 64 pixels in a folder that may be written."""
    for path in small.glob("u2netp-demo-*"):
        if path.suffix != ".engine" or hardware.query_cuda().gpus:
            shutil.copy(path, tmp_path)
    return tmp_path


def test_whole_exports_pass_and_carry_their_certificate(command, copied: Path):
    build_artifact("onnx", ExportSpec(DEMO, SMALL, Precision.FP16), weights.find(DEMO), copied)
    names = ["u2netp-demo-fp16-64.onnx", "u2netp-demo-fp32-64-bN.xml"]
    done = command("parity", "torch", *names, "--json", "r.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("passed\n")
    report = ParityReport.model_validate_json((copied / "r.json").read_text())
    assert [(one.party.name, one.party.how) for one in report.candidates] == [
        (name, "executed") for name in names
    ]
    assert report.candidates[0].party.files == dict(registry.open_artifact(copied / names[0]).files)
    verified = command("verify", names[0])
    assert verified.returncode == 0, verified.stderr
    assert "is whole, and passed on" in verified.stdout
    assert not (copied / "replays").exists()


def test_an_emulated_precision_is_judged_beside_and_called_so(copied: Path, monkeypatch):
    monkeypatch.setattr(check, "degenerate_cases", lambda large: [])
    report, _ = check_parity(ParityRequest("torch", (copied / ONNX,), emulate=(Precision.FP16,)))
    assert report.passed, format_report(report)
    executed, emulated = report.candidates
    assert (executed.party.how, emulated.party.how) == ("executed", "emulated")
    assert emulated.party.name == "emulated fp16"
    # rounded to 11 bits at every step, and yet the same mask
    assert executed.judgement.raw_mean < 1e-5 < emulated.judgement.raw_mean < 3e-3


def test_an_artifact_that_was_never_judged_or_was_changed_does_not_verify(command, copied: Path):
    never = command("verify", ONNX)
    assert never.returncode == 6
    assert "was never judged: u2export parity torch" in never.stderr
    path = copied / ONNX
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert command("verify", ONNX).returncode == 4


def test_a_certificate_for_other_bytes_is_refused(copied: Path):
    artifact = registry.open_artifact(copied / ONNX)
    write_certificate(artifact, _candidate(), _report(_candidate()))
    artifact = registry.open_artifact(artifact.path)
    assert read_certificate(artifact).cases == 1
    checks = json.loads(json.dumps(artifact.checks))
    checks["certificate"]["files"] = {ONNX: "0" * 64}
    forged = dataclasses.replace(artifact, checks=checks)
    (copied / "u2netp-demo-fp32-64-bN.onnx.json").write_text(forged.manifest.text())
    with pytest.raises(ArtifactError, match="is for other bytes"):
        verify_artifact(artifact.path)


def test_a_missing_runtime_of_one_candidate_does_not_stop_the_others(copied: Path, monkeypatch):
    real = registry.load

    def load(name: str):
        if name == "openvino":
            raise DependencyError("the openvino backend needs openvino, which is not installed")
        return real(name)

    monkeypatch.setattr(registry, "load", load)
    question = ParityRequest(
        "torch", (copied / ONNX, copied / ONNX.replace("onnx", "xml")), allow_missing=True
    )
    report, _ = check_parity(question)
    assert report.passed, format_report(report)
    assert report.candidates[1].missing.startswith("the openvino backend needs openvino")


def test_a_foreign_file_carries_no_certificate(broken: Path):
    with pytest.raises(ParityError, match="carries no certificate"):
        verify_artifact(broken)


@pytest.fixture
def broken(exported: Path, tmp_path: Path) -> Path:
    """A foreign file of which one layer is 5 % off, beside the whole one."""
    for name in (WHOLE, f"{WHOLE}.json"):
        shutil.copy(exported / name, tmp_path)
    model = onnx.load(tmp_path / WHOLE)
    index, values = mutations._weights_of(model, mutations.LAYER)
    item = model.graph.initializer[index]
    item.CopyFrom(numpy_helper.from_array(values * np.float32(1.05), item.name))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def test_a_broken_file_fails_and_its_replay_gives_the_same_verdict(command, broken: Path):
    words = ["--model", "u2netp-demo", "--json", "r.json"]
    done = command("parity", WHOLE, "broken.onnx", *words)
    assert done.returncode == 6
    assert "at stage 'infer': raw_max" in done.stdout
    assert done.stderr.count("error: ") == 1
    file = broken.parent / "replays" / "broken.onnx.replay.zip"
    assert zipfile.ZipFile(file).testzip() is None
    again = command("replay", file, cwd=broken.parent)
    assert again.returncode == 6, again.stderr
    assert "fails here too, at stage 'infer'" in again.stdout
    assert "nothing is different here" in again.stdout


@pytest.mark.parametrize("name", ["broken.onnx", "broken.xml"])
def test_a_replay_says_what_is_different_here(broken: Path, tmp_path: Path, name: str):
    if name.endswith(".xml"):  # its weights lie in a file beside it, which must come along
        ov.save_model(ov.convert_model(broken), tmp_path / name)
    found = registry.open_artifact(tmp_path / name, "u2netp-demo")
    content = next(iter(synthetic_cases(1))).read()
    with registry.open_runner(found) as runner:
        way = run_pipeline(content, mutations.side_of(runner, SPEC, "x"))
    there = dataclasses.replace(way, saliency=way.saliency + np.float32(0.25))
    notes = ReplayRecord(
        created="then", command="c", machine={}, versions={"onnxruntime": "0.1"},
        party=PARTY, budget=FP32, case=CaseResult(name="a", kind="drawn", passed=False),
        artifact=name, model="u2netp-demo", resample=None,
    )  # fmt: skip
    write_replay(tmp_path / "r.zip", notes, found, content, way, there)
    told = replay_failure(tmp_path / "r.zip")
    assert told.passed
    assert "infer: up to 0.25 apart" in told.changed
    assert any(line.startswith("onnxruntime 0.1 there, ") for line in told.changed)


def test_a_name_that_is_no_text_is_reported_and_replayed(broken: Path, monkeypatch):
    monkeypatch.setattr(check, "degenerate_cases", lambda large: [])
    picture = broken.with_name(os.fsdecode(b"k\xe4se.png"))
    picture.write_bytes(next(synthetic_cases(1)).read())
    whole = str(broken.with_name(WHOLE))
    words = {"model": "u2netp-demo", "command": f"u2export --pictures {picture}"}
    question = ParityRequest(whole, (broken,), (picture,), **words)
    report, kept = check_parity(question)
    out = broken.parent / "reports"
    write_reports(report, kept, html_file=out / "r.html")
    assert "k?se.png" in (out / "r.html").read_text("utf-8")
    read = ParityReport.model_validate_json(report.model_dump_json())
    assert "k?se.png" in [case.name for case in read.candidates[0].cases]
    [replay_file] = write_replays(question, report, kept, out)
    assert not replay_failure(replay_file).passed


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_what_is_no_replay_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "r.zip").write_bytes(content)
    with pytest.raises(ArtifactError, match="is no replay file"):
        replay_failure(tmp_path / "r.zip")
    with pytest.raises(InputError, match="there is no replay file"):
        replay_failure(tmp_path / "none.zip")


@pytest.mark.skipif(
    bool(hardware.query_cuda().gpus), reason="this machine has a GPU: nothing is missing"
)
def test_a_runtime_that_is_missing_is_status_3_unless_allowed(command, copied: Path, small):
    engine = small / "u2netp-demo-fp32-64-bN.engine"
    done = command("parity", "torch", ONNX, engine)
    assert done.returncode == 3
    assert "was not judged" in done.stdout
    done = command("parity", "torch", ONNX, engine, "--allow-missing")
    assert done.returncode == 0, done.stderr
    done = command("parity", "torch", engine, "--allow-missing")
    assert done.returncode == 6
    assert "nothing was judged" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["torch"], "there is nothing to judge"),
        (["torch", ONNX, ONNX], f"two candidates are called {ONNX}"),
        (["torch", "none.onnx"], "there is no artifact at none.onnx"),
        (["none.onnx", ONNX], "there is no artifact at none.onnx"),
        (["torch", ONNX, "--cases", "some"], "cases must be quick or all"),
        (
            ["torch", ONNX, "--emulate", "int8"],
            "fp16 and bf16 can be emulated",
        ),
        (["torch", ONNX, "--pictures", "none"], "there is no picture at none"),
        (
            ["torch", ONNX, "--weights", "random:0"],
            "is not what the artifact",
        ),
    ],
)
def test_a_question_that_makes_no_sense_is_status_2(command, copied: Path, words, sentence):
    done = command("parity", *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert sentence in done.stderr


def test_all_cases_judge_the_properties_too(copied: Path):
    """On 64 pixels, where rebuilding and batches are quick."""
    question = ParityRequest("torch", (copied / ONNX,), thorough=True)
    report, _ = check_parity(question)
    assert report.passed, format_report(report)
    properties = {c.name: c.skipped for c in report.candidates[0].cases if c.kind == "property"}
    names = ["the same twice", "a batch and its pictures alone", "one thread and all", "rebuilt"]
    assert list(properties) == names
    assert properties["rebuilt"] == ""
    assert len(report.candidates[0].cases) == 8 + 8 + 19 + 4


def test_a_batch_that_is_not_its_pictures_fails():
    class Garbled(Runner):
        def _infer(self, x: np.ndarray) -> np.ndarray:
            y = x[:, :1].clip(0, 1).copy()
            if len(x) > 1:
                y[1] = 1 - y[1]
            return y

        def _executed(self) -> Execution:
            raise NotImplementedError

        def _release(self) -> None:
            pass

    inputs = [np.random.default_rng(i).random((1, 3, 320, 320), np.float32) for i in range(2)]
    found = _check_batch(Garbled(320, None), inputs, FP32, 8)
    assert not found.passed
    assert found.reasons[0].startswith("raw_max")


def test_a_budget_file_decides_and_is_told(command, copied: Path):
    (copied / "b.json").write_text('{"fp32": {"raw_mean": 0}, "fp16": {"mask_mae": 0.5}}')
    done = command("parity", "torch", ONNX, "--budget", "b.json")
    assert done.returncode == 6
    assert "raw_mean" in done.stdout
    assert "budgets of b.json:\n  fp32: raw_max 0.0003, raw_mean 0, " in done.stdout


def test_the_assertion_gives_the_report_or_raises_it(
    broken: Path, small: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(check, "degenerate_cases", lambda large: [])
    for path in small.glob("*.onnx*"):
        shutil.copy(path, tmp_path)
    assert assert_parity(tmp_path / ONNX).passed
    with pytest.raises(AssertionError, match=r"failed 'drawn .*' at stage 'infer'"):
        assert_parity(broken, broken.with_name(WHOLE), model="u2netp-demo")


def test_annotations_and_json_do_not_share_standard_output(command, small: Path):
    artifact = small / "u2netp-demo-fp32-64-bN.onnx"
    done = command("parity", artifact, artifact, "--github", "--json")
    assert done.returncode == 2
    assert "--github prints to standard output too: give --json a file" in done.stderr
    assert done.stdout == ""
