from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from u2export.core import plugins, registry
from u2export.diagnostics import doctor
from u2export.errors import DependencyError, InputError
from u2export.system import hardware
from u2export.system.hardware import cpu_features, cpu_quota, query_cuda

# Flags as Linux prints them on an AMD EPYC 9004, an Intel Xeon with AMX, and an AWS Graviton 3.
EPYC = "model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
XEON = "model name\t: Xeon\nflags\t: avx2 avx512f avx512_vnni avx512_bf16 amx_tile avx512_fp16\n"
GRAVITON = "BogoMIPS : 2100\nFeatures : fp asimd asimdhp asimddp bf16 i8mm\n"


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (EPYC, "AMD EPYC", ["AVX2", "AVX-512", "VNNI", "BF16"]),
        (XEON, "Xeon", ["AVX2", "AVX-512", "VNNI", "BF16", "FP16", "AMX"]),
        (GRAVITON, "", ["BF16", "FP16", "NEON", "NEON dot product"]),
    ],
)
def test_cpu_features_are_read_from_linux(tmp_path: Path, text, name, features):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path / "cpuinfo") == (name, features)


def test_a_system_that_hides_its_cpu_has_no_features(tmp_path: Path):
    assert cpu_features(tmp_path / "none") == ("", [])


@pytest.mark.parametrize(("text", "found"), [("150000 100000\n", 1.5), ("max 100000\n", None)])
def test_the_containers_quota_is_told(tmp_path: Path, text, found):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == found


def test_a_driver_that_is_not_there_is_a_reason_and_no_crash():
    assert query_cuda("libcuda-that-is-not-there.so").reason == "no NVIDIA driver is installed"
    assert query_cuda("libcuda-that-is-not-there.so").gpus == ()


@pytest.fixture(scope="module")
def report() -> doctor.DoctorReport:
    return doctor.examine_machine()


def test_every_backend_is_examined_and_can_export_here(report: doctor.DoctorReport):
    assert [one.name for one in report.backends] == registry.names()
    for one in report.backends:
        if one.name in ("onnx", "openvino", "tensorrt", "torch"):
            assert one.export == ""


def test_what_each_runtime_reads_covers_what_we_write(report: doctor.DoctorReport):
    found = {one.name: one for one in report.backends}
    for name in ("onnx", "openvino", "tensorrt"):
        assert 18 in found[name].opsets
        assert 8 in found[name].irs
        assert found[name].takes_ours
    assert found["torch"].takes_ours is None


def test_a_runtime_that_is_too_old_for_what_we_write_is_told(report: doctor.DoctorReport):
    old = report.backends[0].model_copy(
        update={"opsets": [16, 17], "irs": [8], "takes_ours": False}
    )
    text = doctor.format_report(report.model_copy(update={"backends": [old]}))
    assert "which it does not take: upgrade it" in text


def test_what_is_missing_is_told_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(registry, "is_importable", lambda name: name != "openvino")
    found = doctor.examine_backend("openvino")
    line = 'openvino not installed: pip install "u2export[openvino]"'
    assert found.run["cpu"] == line
    assert 'pip install "u2export[openvino,export]"' in found.export


def test_a_machine_without_the_parents_runtime_is_still_examined(monkeypatch):
    """As with `pip install "u2export[openvino]"` alone."""
    real = registry.load

    def load(name: str):
        if name == "onnx":
            raise DependencyError("the onnx backend needs onnxruntime")
        return real(name)

    monkeypatch.setattr(registry, "load", load)
    found = doctor.examine_backend("openvino")
    assert found.run["cpu"] == ""
    assert found.export == "the onnx backend needs onnxruntime"
    assert doctor.examine_backend("onnx").run == {"": "the onnx backend needs onnxruntime"}


def test_a_plugin_that_breaks_leaves_the_others(monkeypatch):
    entries = dict(plugins.entries())
    monkeypatch.setattr(plugins, "entries", lambda: dict(sorted(entries.items())))
    monkeypatch.setattr(registry, "names", lambda: sorted(entries))
    entries["aaa"] = EntryPoint("aaa", "u2export.errors:no_such_thing", "u2export.backends")
    assert "cannot be imported: AttributeError" in doctor.examine_backend("aaa").export
    assert registry._backend_by_suffix(Path("x.onnx")).name == "onnx"
    entries["aaa"] = EntryPoint("aaa", "u2export.errors:InputError", "u2export.backends")
    assert "is no u2export Backend" in doctor.examine_backend("aaa").export
    assert registry._backend_by_suffix(Path("x.onnx")).name == "onnx"


def test_a_demand_that_is_not_met_is_status_3(report: doctor.DoctorReport):
    doctor.require_backends(report, ["onnx", "openvino", "torch"])
    with pytest.raises(InputError, match="no backend is called 'coreml'"):
        doctor.require_backends(report, ["coreml"])
    if not hardware.query_cuda().gpus:
        with pytest.raises(DependencyError, match="tensorrt cannot run here"):
            doctor.require_backends(report, ["tensorrt"])


def test_the_commands_print_for_people_and_for_machines(command):
    people = command("doctor")
    assert people.returncode == 0, people.stderr
    for word in ("CPU:", "GPU:", "Installed: ", "torch 2", "u2export openvino", "opset 16 to"):
        assert word in people.stdout
    machines = command("doctor", "--json", "--require", "openvino")
    assert machines.returncode == 0, machines.stderr
    assert json.loads(machines.stdout)["machine"]["cpus"] >= 1
    listed = command("backends", "--json")
    assert [one["name"] for one in json.loads(listed.stdout)] == registry.names()
    if not hardware.query_cuda().gpus:
        refused = command("doctor", "--require", "tensorrt")
        assert refused.returncode == 3
        assert refused.stderr.count("error: ") == 1
