from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from u2export.backends.openvino import backend, library
from u2export.backends.openvino.convert import OPENVINO_DIGEST_PREFIX
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.digest import blank_digest, embed_digest
from u2export.core.enums import Device, Precision
from u2export.core.execution import check_execution
from u2export.core.models import MODELS, PictureSpec
from u2export.core.requests import ExportSpec, RunRequest, RunSpec
from u2export.diagnostics.inspect import inspect_artifact, raise_if_mismatch
from u2export.errors import ArtifactError, DependencyError, InputError, ParityError
from u2export.export.build import build_artifact
from u2export.export.publish import publish
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.network import weights
from u2export.system import hardware
from u2export.system.files import file_sha256

DEMO = MODELS["u2netp-demo"]
STEM = "u2netp-demo-fp32"
BF16 = "BF16" in hardware.cpu_features()[1]
needs_bf16 = pytest.mark.skipif(not BF16, reason="needs a CPU with bfloat16 arithmetic")


@pytest.fixture
def copied(exported: Path, tmp_path: Path):
    def make(stem: str = STEM, *, manifest: bool = True) -> Path:
        for suffix in (".xml", ".bin", *([".xml.json"] if manifest else [])):
            shutil.copy(exported / f"{stem}{suffix}", tmp_path)
        return tmp_path / f"{stem}.xml"

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return preprocess(draw_image(1_000_004).picture, PictureSpec())


def test_the_file_carries_the_facts_of_the_onnx_file(exported: Path):
    model = ov.Core().read_model(exported / f"{STEM}.xml")
    original = onnx.load(exported / f"{STEM}.onnx")
    told = {entry.key: entry.value for entry in original.metadata_props}
    names = [key.removeprefix("u2export.") for key in told if key.startswith("u2export.")]
    assert {"mean", "std", "size", "weights_sha256", "output_rule"} <= set(names)
    for name in set(names) - {"digest"}:
        assert model.get_rt_info(["u2export", name]).astype(str) == told[f"u2export.{name}"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_holds_its_values_in_its_precision(exported: Path, precision: str):
    size = (exported / f"u2netp-demo-{precision}.bin").stat().st_size
    bytes_each = 4 if precision == "fp32" else 2
    # 1,131,181 parameters less 2 of 4 values per batch norm, which are folded away
    assert 1.10e6 * bytes_each < size < 1.14e6 * bytes_each


def test_the_same_export_gives_the_same_bytes(exported: Path, tmp_path: Path):
    for suffix in (".onnx", ".onnx.json"):
        shutil.copy(exported / f"{STEM}{suffix}", tmp_path)
    again = build_artifact("openvino", ExportSpec(DEMO, 320), weights.find(DEMO), tmp_path)
    assert again.files == registry.open_artifact(exported / f"{STEM}.xml").files


def test_the_parent_is_reused_and_a_damaged_one_is_made_again(
    small: Path, tmp_path: Path, monkeypatch, capsys
):
    stem = f"{STEM}-64-bN"
    for suffix in (".onnx", ".onnx.json"):
        shutil.copy(small / f"{stem}{suffix}", tmp_path)
    spec = ExportSpec(DEMO, 64, batch=None)
    parent = tmp_path / f"{stem}.onnx"
    before = parent.stat().st_mtime_ns
    build_artifact("openvino", spec, weights.find(DEMO), tmp_path)
    assert parent.stat().st_mtime_ns == before
    whole = parent.read_bytes()
    parent.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    build_artifact("openvino", spec, weights.find(DEMO), tmp_path)
    assert parent.read_bytes() == whole
    assert "was changed after it was exported" in capsys.readouterr().err


def test_a_lone_copy_runs_as_the_artifact_does(copied, exported: Path, picture):
    alone = registry.open_artifact(copied(manifest=False))
    assert alone.facts == registry.open_artifact(exported / f"{STEM}.xml").facts
    with (
        registry.open_runner(alone) as one,
        registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")) as two,
    ):
        np.testing.assert_array_equal(one(picture), two(picture))


@pytest.mark.parametrize("manifest", [True, False], ids=["with manifest", "alone"])
def test_a_missing_bin_is_refused(copied, manifest: bool):
    path = copied(manifest=manifest)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ArtifactError, match=rf"is incomplete: {STEM}.bin is missing beside it"):
        registry.open_artifact(path)


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [(True, "was changed after it was exported"), (False, f"does not belong to {STEM}.xml")],
    ids=["with manifest", "alone"],
)
@pytest.mark.parametrize("what", ["swapped", "cut"])
def test_another_bin_is_refused(copied, exported: Path, manifest: bool, sentence: str, what: str):
    path = copied(manifest=manifest)
    weights_file = path.with_suffix(".bin")
    if what == "swapped":
        shutil.copy(exported / "u2netp-demo-fp16.bin", weights_file)
    else:
        weights_file.write_bytes(weights_file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=rf"{sentence}|OpenVINO .* refuses"):
        registry.open_artifact(path)


def test_a_file_of_a_later_openvino_is_refused(copied):
    path = copied(manifest=False)
    content = path.read_bytes()
    assert b'version="11"' in content
    start = content.rfind(OPENVINO_DIGEST_PREFIX.encode())
    blank = blank_digest(OPENVINO_DIGEST_PREFIX).encode()
    content = content[:start] + blank + content[start + len(blank) :]
    path.write_bytes(content.replace(b'version="11"', b'version="99"', 1))
    embed_digest(path, OPENVINO_DIGEST_PREFIX)
    with pytest.raises(ArtifactError, match=rf"OpenVINO {library.VERSION} refuses .*{STEM}.xml"):
        registry.open_runner(registry.open_artifact(path))


def test_a_changed_byte_of_a_lone_copy_is_found(copied):
    path = copied(manifest=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed after it was exported"):
        registry.open_artifact(path)


def test_somebody_elses_file_runs_when_its_model_is_named(exported: Path, tmp_path: Path, picture):
    model = ov.Core().read_model(exported / f"{STEM}.onnx")
    ov.save_model(model, tmp_path / "theirs.xml", compress_to_fp16=False)
    with pytest.raises(InputError, match="says nothing about its preprocessing"):
        registry.open_artifact(tmp_path / "theirs.xml")
    theirs = registry.open_artifact(tmp_path / "theirs.xml", "u2netp")
    with (
        registry.open_runner(theirs) as one,
        registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")) as two,
    ):
        np.testing.assert_allclose(one(picture), two(picture), atol=1e-5)


# --- what really runs ---------------------------------------------------------------------------


@needs_bf16
def test_without_the_pin_bfloat16_is_found_and_is_status_6(exported: Path, cache, monkeypatch):
    """Some CPUs compute in bfloat16 unless told not to; the check must see it."""
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    with registry.open_runner(artifact) as runner:
        assert set(runner.executed().share_of_macs()) == {"fp32 on cpu"}
    original = ov.Core.compile_model

    def unpinned(core, model, device, settings):
        settings = {k: v for k, v in settings.items() if k != "INFERENCE_PRECISION_HINT"}
        return original(core, model, device, settings | {"CACHE_DIR": ""})

    monkeypatch.setattr(ov.Core, "compile_model", unpinned)
    with pytest.raises(
        ParityError,
        match=r"asked to compute in fp32 on cpu, but \d+ of \d+ layers"
        r" did something else .* bf16 on cpu",
    ) as caught:
        registry.open_runner(artifact)
    assert caught.value.exit_status == 6
    account = inspect_artifact(artifact.path)
    assert account.macs["bf16 on cpu"] > 0.9
    with pytest.raises(ParityError):
        raise_if_mismatch(account)


@needs_bf16
def test_bfloat16_on_demand_is_bfloat16(exported: Path, cache, picture):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    with (
        registry.open_runner(artifact, RunRequest(precision=Precision.BF16)) as bf16,
        registry.open_runner(artifact) as fp32,
    ):
        assert set(bf16.executed().share_of_macs()) == {"bf16 on cpu"}
        difference = np.abs(bf16(picture) - fp32(picture)).max()
    assert 1e-4 < difference < 0.5


def test_half_precision_is_not_to_be_had_on_a_cpu_that_lacks_it(exported: Path, cache):
    if "FP16" in hardware.cpu_features()[1]:
        pytest.skip("this CPU has half-precision arithmetic")
    artifact = registry.open_artifact(exported / "u2netp-demo-fp16.xml")
    with pytest.raises((ParityError, DependencyError)):
        registry.open_runner(artifact, RunRequest(precision=Precision.FP16))


def test_a_half_precision_file_runs_in_float32_on_a_cpu_and_says_so(exported: Path):
    with registry.open_runner(registry.open_artifact(exported / "u2netp-demo-fp16.xml")) as runner:
        assert runner.executed().summary() == "stored fp16, computed fp32 on cpu"


def test_layers_are_named_after_pytorch_modules(exported: Path):
    with registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")) as runner:
        names = [layer.name for layer in runner.executed().layers if layer.macs]
    modules = {".".join(name.split("/")[0].split(".")[:2]) for name in names}
    assert {"stage1.rebnconvin", "stage2d.rebnconv1d", "side1"} <= modules


# --- threads, streams, cache --------------------------------------------------------------------


@pytest.mark.usefixtures("all_cpus")
def test_threads_and_streams_are_what_was_asked(exported: Path, cache):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    for threads, streams in ((1, 1), (2, 1), (2, 2)):
        with registry.open_runner(artifact, RunRequest(threads=threads, streams=streams)) as runner:
            assert runner._compiled.get_property("INFERENCE_NUM_THREADS") == threads
            assert runner._compiled.get_property("NUM_STREAMS") == streams


def test_a_stream_of_one_reused_buffer_gives_each_its_own_result(exported: Path, cache):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    pictures = [preprocess(draw_image(1_000_010 + i).picture, PictureSpec()) for i in range(5)]
    buffer = np.empty_like(pictures[0])

    def refilled():
        for picture in pictures:
            buffer[...] = picture
            yield buffer

    with registry.open_runner(artifact, RunRequest(streams=2)) as runner:
        found = list(runner.stream(refilled()))
        for picture, y in zip(pictures, found, strict=True):
            np.testing.assert_allclose(y, runner(picture), atol=1e-5)


def test_a_read_only_input_is_taken(exported: Path, picture):
    frozen = picture.copy()
    frozen.flags.writeable = False
    with registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")) as runner:
        np.testing.assert_array_equal(runner(frozen), runner(picture))


def test_the_second_start_compiles_nothing(exported: Path, cache: Path):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    with registry.open_runner(artifact) as runner:
        assert not runner.from_cache
    with registry.open_runner(artifact) as runner:
        assert runner.from_cache
        assert set(runner.executed().share_of_macs()) == {"fp32 on cpu"}
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("all_cpus")
def test_the_cache_knows_one_request_from_another(exported: Path, cache: Path, picture):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    registry.open_runner(artifact, RunRequest(threads=1)).close()
    with registry.open_runner(artifact, RunRequest(threads=2)) as runner:
        assert runner._compiled.get_property("INFERENCE_NUM_THREADS") == 2
    if BF16:
        with registry.open_runner(artifact, RunRequest(precision=Precision.BF16)) as runner:
            assert set(runner.executed().share_of_macs()) == {"bf16 on cpu"}


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped"])
def test_a_damaged_cache_is_no_matter(exported: Path, cache: Path, picture, damage: str):
    artifact = registry.open_artifact(exported / f"{STEM}.xml")
    with registry.open_runner(artifact) as runner:
        expected = runner(picture)
    blobs = list(cache.rglob("*.blob"))
    assert blobs
    for blob in blobs:
        content = bytearray(blob.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        elif damage == "garbage":
            content = bytearray(b"garbage" * 100)
        else:
            middle = len(content) // 2
            content[middle : middle + 4096] = bytes(b ^ 0xFF for b in content[middle:][:4096])
        blob.write_bytes(content)
    code = (
        "import sys, numpy as np; from pathlib import Path;"
        "from u2export.core import registry;"
        f"a = registry.open_artifact(Path({str(artifact.path)!r}));"
        "x = np.load('x.npy'); np.save('y.npy', registry.open_runner(a)(x))"
    )
    np.save(cache.parent / "x.npy", picture)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cache.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(cache.parent / "y.npy"), expected, atol=1e-5)


def test_a_cache_that_cannot_be_written_is_said_and_no_matter(
    exported: Path, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path / "file"))
    registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")).close()
    assert "compiled models cannot be kept" in capsys.readouterr().err


@pytest.mark.skipif(
    not backend.unavailable_reason(Device.GPU), reason="this machine has a GPU that OpenVINO knows"
)
def test_a_gpu_that_is_not_there_is_status_3(command, exported: Path, picture_file: Path):
    for device, sentence in (("gpu", "and no GPU"), ("cuda", "runs on cpu, gpu, not on cuda")):
        done = command("run", exported / f"{STEM}.xml", picture_file, "--device", device)
        assert done.returncode == 3
        assert sentence in done.stderr
    done = command("run", exported / f"{STEM}.xml", picture_file, "--device", "npu")
    assert done.returncode == 2
    assert "device must be one of cpu, cuda, gpu, got 'npu'" in done.stderr


def test_a_model_of_another_size_is_refused(exported: Path):
    found = registry.open_artifact(exported / f"{STEM}.xml")
    other = Artifact(found.path, found.backend, found.facts.model_copy(update={"size": 512}))
    with pytest.raises(ArtifactError, match="not pictures of 3x512x512: it is not a u2netp-demo"):
        registry.open_runner_unchecked(other, RunSpec(Device.CPU, 1))


def test_the_command_runs_it_on_a_picture(command, exported: Path, picture_file: Path, tmp_path):
    ours = command("run", exported / f"{STEM}.xml", picture_file, "--out", "a.png")
    assert (ours.returncode, ours.stdout) == (0, "a.png\n"), ours.stderr
    assert (tmp_path / "a.png").stat().st_size > 100


def test_an_account_of_another_precision_is_refused_by_the_same_check(exported: Path):
    with registry.open_runner(registry.open_artifact(exported / f"{STEM}.xml")) as runner:
        account = runner.executed()
    with pytest.raises(ParityError):
        check_execution(account, RunSpec(Device.CPU, 1, Precision.BF16), STEM)


# --- publishing two files -----------------------------------------------------------------------


def _named_net(folder: Path, exported: Path, precision: str) -> Artifact:
    folder.mkdir(exist_ok=True)
    for suffix in (".xml", ".bin"):
        shutil.copy(exported / f"u2netp-demo-{precision}{suffix}", folder / f"net{suffix}")
    facts = registry.open_artifact(exported / f"u2netp-demo-{precision}.xml").facts
    files = {name: file_sha256(folder / name) for name in ("net.xml", "net.bin")}
    return Artifact(folder / "net.xml", "openvino", facts, files)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_kill_between_two_steps_of_publishing_never_leaves_two_halves(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    """Whatever step is the last: the old artifact, the new one, or none; never one of each."""
    out = tmp_path / "out"
    out.mkdir()
    publish(_named_net(tmp_path / "a", exported, "fp32"), tmp_path / "a", out)
    new = _named_net(tmp_path / "b", exported, "fp16")
    taken = 0

    def step_taken() -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            raise KeyboardInterrupt

    real_unlink, real_replace = Path.unlink, os.replace

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.parent == out:  # what happens in the workspace is invisible
            step_taken()
        real_unlink(self, missing_ok)

    def replace(source: Path, target: Path) -> None:
        if target.parent == out:
            step_taken()
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        patch.setattr(os, "replace", replace)
        try:
            publish(new, tmp_path / "b", out)
        except KeyboardInterrupt:
            assert taken == step
        else:
            assert (step, taken) == (6, 5)  # five steps in all
    if (out / "net.xml").exists():
        found = registry.open_artifact(out / "net.xml")
        assert found.facts.precision == (Precision.FP32 if step <= 2 else Precision.FP16)
        size = (out / "net.bin").stat().st_size
        assert (size > 4e6) == (found.facts.precision is Precision.FP32)
    else:
        assert step in (3, 4)


@pytest.fixture(scope="module")
def brain_floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo weights in bfloat16, as an ONNX file."""
    out = tmp_path_factory.mktemp("bfloat16")
    build_artifact("onnx", ExportSpec(DEMO, 64, Precision.BF16), weights.find(DEMO), out)
    return out


@pytest.fixture
def bfloat16(brain_floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Convert that on a CPU that has bfloat16, or not."""

    def make(features: list[str]) -> Artifact:
        monkeypatch.setattr(backend, "cpu_features", lambda: ("x", features))
        shutil.copytree(brain_floats, tmp_path, dirs_exist_ok=True)
        return build_artifact(
            "openvino", ExportSpec(DEMO, 64, Precision.BF16), weights.find(DEMO), tmp_path
        )

    return make


def test_bfloat16_is_judged_by_emulation_and_runs_as_nothing_else(bfloat16, capsys, monkeypatch):
    artifact = bfloat16(["AVX2"])
    assert artifact.path.name == "u2netp-demo-bf16-64.xml"
    assert artifact.checks["not_executed"] == "this CPU has no bfloat16 arithmetic"
    found = artifact.checks["parent"]["u2netp-demo-bf16-64.onnx"]["emulated_bf16"]
    assert (
        0.97 <= found["mask_iou"] <= 1
    )  # 8 digits of 24: the mask stays; a small one to the pixel
    assert found["raw_mean"] > 1e-5
    with pytest.raises(DependencyError, match=r"no bfloat16 arithmetic; --precision fp32 runs it"):
        registry.open_runner(artifact)
    with registry.open_runner(artifact, RunRequest(precision=Precision.FP32)) as runner:
        assert set(runner.executed().share_of_macs()) == {"fp32 on cpu"}
    assert "was built but not run on cpu" in capsys.readouterr().err
    monkeypatch.setattr(backend, "cpu_features", lambda: ("", []))  # nobody tells
    monkeypatch.setitem(library.PRECISION_HINTS, Precision.BF16, "f32")
    with pytest.raises(ParityError, match="asked to compute in bf16 on cpu"):
        registry.open_runner(artifact)


@needs_bf16
def test_a_bfloat16_file_runs_in_bfloat16(bfloat16):
    with registry.open_runner(bfloat16(["BF16"])) as runner:
        assert set(runner.executed().share_of_macs()) == {"bf16 on cpu"}


def test_tensorrt_has_no_bfloat16(command):
    done = command("tensorrt", "--model", "u2netp-demo", "--bf16")
    assert done.returncode == 2
    assert "the tensorrt backend exports fp32, fp16, int8, not bf16" in done.stderr


def test_openvinos_converter_is_there_once_it_is_asked_for():
    code = (
        "import sys, u2export.backends.openvino, openvino\n"
        "print('openvino.tools.ovc' in sys.modules)\n"
        "from openvino import convert_model\n"
        "import openvino.tools.ovc\n"
        "print(convert_model is openvino.tools.ovc.convert_model is openvino.convert_model)\n"
        "try: openvino.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = ["False", "True", "module 'openvino' has no attribute 'nothing'"]
    assert done.stdout.splitlines() == told


def test_a_cpu_plugin_that_does_not_load_is_told(monkeypatch):
    class Broken:
        def get_property(self, *_: str) -> str:
            raise RuntimeError("Exception from src/plugin.cpp:1:\nCannot load library plugin.so")

    monkeypatch.setattr(library.ov, "Core", Broken)
    reason = backend.unavailable_reason(Device.CPU)
    assert reason.endswith("cannot start its CPU plugin: Cannot load library plugin.so")
