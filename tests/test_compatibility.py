"""What users keep on disk and in scripts still works: see `compatibility/README.md`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from compatibility import artifact_hashes
from compatibility.artifact_hashes import EXPORTS, MODEL, PICTURE, RECORD
from conftest import every_cpu
from filelock import FileLock
from PIL import Image

import u2export
from u2export.errors import ArtifactError

DATA = Path(__file__).parent / "compatibility" / "data"
OLD = "u2netp-demo-int8-64.onnx"  # a whole old artifact lies in the replay file
REPLAY = DATA / f"{OLD}.replay.zip"
BUDGET = DATA / "strict-budget.json"
NO_BENCH_REPORT = "is no benchmark report"
# Names below these keys are data, such as the packages that are installed.
OPEN_KEYS = {"versions", "run"}
# The shared fixtures export these.
WHOLE = [
    "u2netp-demo-fp32.safetensors",
    *(f"u2netp-demo-{p}{s}" for s in (".onnx", ".xml", ".engine") for p in ("fp32", "fp16")),
]
SMALL = ["u2netp-demo-fp32-64-bN.onnx", "u2netp-demo-fp32-64-bN.xml"]
# Its bytes depend on how many CPUs a process may use, so the shared fixtures cannot export it.
FRESH = [OLD]
# The packages that write each kind of file.
WRITERS = {
    ".safetensors": ("torch",),
    ".onnx": ("torch", "onnx", "onnxscript", "onnxsim"),
    ".xml": ("torch", "onnx", "onnxscript", "onnxsim", "openvino"),
    ".engine": ("torch", "onnx", "onnxscript", "onnxsim", "tensorrt-rtx", "tensorrt"),
}
STATUS = {
    "InputError": 2,
    "DependencyError": 3,
    "ArtifactError": 4,
    "ExportError": 5,
    "ParityError": 6,
}


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """The hashes, with the machine and the tools they were made with."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


@pytest.fixture(scope="module")
def doctor(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doctor says of this machine with all of its CPUs."""
    with every_cpu():
        tree = artifact_hashes.Tree(tmp_path_factory.mktemp("doctor"))
        found: dict[str, Any] = json.loads(tree.u2export("doctor", "--json"))
    return found


@pytest.fixture(scope="module")
def here(doctor: dict[str, Any]) -> dict[str, Any]:
    """The same facts of this machine as the record has of its own."""
    return artifact_hashes.machine(doctor)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The old artifact, its old manifest with a certificate beside it."""
    with zipfile.ZipFile(REPLAY) as archive:
        for name in (OLD, f"{OLD}.json"):
            (tmp_path / name).write_bytes(archive.read(f"artifact/{name}"))
    return tmp_path / OLD


def _require_tools(record: dict[str, Any], here: dict[str, Any], names: tuple[str, ...]) -> None:
    """Skip, or fail in CI, where other versions are installed than the hashes were made with."""
    then, now = record["machine"]["versions"], here["versions"]
    unlike = [
        f"{name} {then[name] or 'absent'} (here {now[name] or 'absent'})"
        for name in ("u2export", *names)
        if then[name] != now[name]
    ]
    if not unlike:
        return
    sentence = f"the hashes were made with {', '.join(unlike)}: make them again, see README.md"
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


def _other_cpu(record: dict[str, Any], here: dict[str, Any], *facts: str) -> str:
    """Say how this CPU differs from the record's, or nothing."""
    then = record["machine"]
    return ", ".join(
        f"{fact}: {then[fact]}, here {here[fact]}" for fact in facts if then[fact] != here[fact]
    )


def _require_cpu(record: dict[str, Any], here: dict[str, Any], *facts: str) -> None:
    if unlike := _other_cpu(record, here, "cpu", "features", *facts):
        pytest.skip(f"these bytes depend on the CPU, and this is another: {unlike}")


def _hashes(folder: Path, record: dict[str, Any], file: str) -> dict[str, str]:
    """sha256 of an artifact's files in a folder, by the recorded names."""
    names = record["artifacts"][file]["files"]
    return {name: artifact_hashes.sha256_of(folder / name) for name in names}


def _keys(document: object, at: str = "") -> set[str]:
    """Every key of a JSON document with the keys above it, `[]` for the entries of a list."""
    if isinstance(document, list):
        return set().union(*(_keys(value, f"{at}[]") for value in document))
    if not isinstance(document, dict) or at.rpartition(".")[2] in OPEN_KEYS:
        return set()
    below = (_keys(value, f"{at}.{key}") for key, value in document.items())
    return {f"{at}.{key}" for key in document}.union(*below)


def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text())


# --- bytes


def test_the_record_has_every_export_and_all_can_be_repeated(record):
    assert set(record["artifacts"]) == set(EXPORTS)
    assert all(one["repeatable"] for one in record["artifacts"].values())


@pytest.mark.parametrize("file", [*WHOLE, *SMALL])
def test_artifacts_have_the_recorded_bytes(file, request, record, here):
    _require_tools(record, here, WRITERS[Path(file).suffix])
    if file.endswith(".engine"):
        _require_cpu(record, here)  # whether another CPU builds the same engine was not measured
    folder = request.getfixturevalue("exported" if file in WHOLE else "small")
    assert _hashes(folder, record, file) == record["artifacts"][file]["files"]


@pytest.mark.usefixtures("all_cpus")
@pytest.mark.parametrize("file", FRESH)
def test_artifacts_that_depend_on_the_cpu_have_the_recorded_bytes(
    file, command, tmp_path, record, here
):
    _require_cpu(record, here, "cpus")
    _require_tools(record, here, (*WRITERS[Path(file).suffix], "onnxruntime", "numpy"))
    backend, *words = EXPORTS[file]
    done = command(backend, *MODEL, *words)
    assert done.stdout == f"exported/{file}\n", done.stderr
    found = _hashes(tmp_path / "exported", record, file)
    assert found == record["artifacts"][file]["files"]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_other_tools_find_author_and_licence(suffix, small):
    """Only these two are taken out before the bytes are compared."""
    import onnx
    import openvino

    path = small / f"u2netp-demo-fp32-64-bN{suffix}"
    expected = {"model_author": "u2export", "model_license": "Apache-2.0"}
    if suffix == ".onnx":
        found = {one.key: one.value for one in onnx.load(path).metadata_props}
    else:
        info = openvino.Core().read_model(path).get_rt_info(["model_info"])
        found = {key: value.astype(str) for key, value in info.astype(dict).items()}
    assert {key: found[key] for key in expected} == expected
    assert len(path.read_bytes()) > len(artifact_hashes.without_credits(path))


# --- pixels


def test_the_mask_has_the_recorded_pixels(command, exported, tmp_path, record, here):
    artifact = exported / "u2netp-demo-fp32.onnx"
    assert command("run", artifact, PICTURE, "--out", "mask.png").returncode == 0
    assert command("run", artifact, PICTURE, "--out", "cut.png", "--cutout").returncode == 0
    with Image.open(tmp_path / "mask.png") as mask, Image.open(DATA / "demo-picture-mask.png") as m:
        found, expected = np.asarray(mask).astype(int), np.asarray(m).astype(int)
    assert np.ptp(expected) == 255
    assert np.abs(found - expected).max() <= 1
    versions = [here["versions"][n] == record["machine"]["versions"][n] for n in here["versions"]]
    if all(versions) and not _other_cpu(record, here, "cpu", "features"):
        kept = record["artifacts"][artifact.name]
        assert artifact_hashes.pixels_of(tmp_path / "mask.png") == kept["mask"]
        assert artifact_hashes.pixels_of(tmp_path / "cut.png") == kept["cutout"]


# --- manifests and certificates


@pytest.mark.parametrize(
    "file",
    [
        "u2netp-demo-fp32.onnx",
        "u2netp-demo-fp16.onnx",
        "u2netp-demo-fp16.xml",
        "u2netp-demo-fp32.safetensors",
    ],
)
def test_an_old_manifest_beside_a_new_file_is_accepted(
    file, command, exported, tmp_path, record, here
):
    _require_tools(record, here, WRITERS[Path(file).suffix])
    for name in record["artifacts"][file]["files"]:
        (tmp_path / name).write_bytes(artifact_hashes.without_credits(exported / name))
    shutil.copy(DATA / "exported" / f"{file}.json", tmp_path)
    done = command("verify", file)
    assert done.returncode == 0, done.stderr
    assert f"{file} is whole, and passed on 2026-11-28T" in done.stdout


def test_an_old_artifact_is_verified_and_tells_what_it_told(command, old, tmp_path):
    """Its masks were allowed to be what a file's own facts allowed, which no longer counts."""
    done = command("verify", old)
    assert done.returncode == 6, done.stderr
    assert "passed only by budgets of its own: " in done.stderr
    (tmp_path / "own.json").write_text(json.dumps({"int8": _read("verify.json")["budget"]}))
    told = json.loads(command("verify", old, "--budget", "own.json", "--json").stdout)
    # an old certificate does not name these
    new = {"properties": [], "precision": "", "kinds": {}, "budgets": "", "looser": ""}
    assert {name: told.pop(name) for name in new} == new
    assert told == _read("verify.json")
    assert told == _read(f"exported/{OLD}.json")["checks"]["certificate"]
    assert json.loads(command("sensitivity", old, "--json").stdout) == _read("sensitivity.json")


def test_an_old_artifact_runs_from_python(old, tmp_path, record, here):
    with Image.open(PICTURE) as picture, u2export.load(old) as segment:
        mask = segment(picture)
        assert (mask.mode, mask.size) == ("L", picture.size)
    mask.save(tmp_path / "mask.png")
    if not _other_cpu(record, here, "cpu", "features", "versions"):
        kept = record["artifacts"][OLD]["mask"]
        assert artifact_hashes.pixels_of(tmp_path / "mask.png") == kept


@pytest.mark.parametrize("file", EXPORTS)
def test_every_old_manifest_is_read(file, tmp_path):
    """Only the model file is not the manifest's; a manifest that was changed is told apart."""
    manifest = tmp_path / f"{file}.json"
    shutil.copy(DATA / "exported" / manifest.name, manifest)
    (tmp_path / file).write_text("other bytes")
    with pytest.raises(ArtifactError, match="its sha256 is not the manifest's"):
        u2export.load(tmp_path / file)
    manifest.write_text(manifest.read_text().replace('"size": ', '"size": 1'))
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        u2export.load(tmp_path / file)


# --- reports


def test_an_old_benchmark_report_is_recommended_from(command):
    done = command("recommend", DATA / "bench.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == _read("recommend.json")


def test_an_old_benchmark_report_is_read_as_a_baseline(command, tmp_path):
    """It is read, then refused on another machine; else the file to be measured is missed."""
    done = command("bench", "none.onnx", "--baseline", DATA / "bench.json")
    assert done.returncode == 2
    expected = (
        "there is no artifact at",
        "measured on another machine",
        "piece of work was another",
    )
    assert any(sentence in done.stderr for sentence in expected), done.stderr
    newer = {**_read("bench.json"), "schema_version": 99}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    done = command("bench", "none.onnx", "--baseline", "newer.json")
    assert (done.returncode, "has schema 99" in done.stderr) == (2, True)
    (tmp_path / "other.json").write_text(json.dumps({**newer, "schema_version": 2, "more": 1}))
    done = command("bench", "none.onnx", "--baseline", "other.json")
    assert (done.returncode, NO_BENCH_REPORT in done.stderr) == (2, True)


def test_a_failed_check_leaves_what_it_left(command, old, tmp_path):
    """An old budget file is applied; JSON, JUnit and replay file have the old form."""
    done = command(
        "parity", "torch", old.name, "--budget", BUDGET, "--json", "p.json", "--junit", "p.xml"
    )
    assert done.returncode == 6, done.stderr
    assert "mask_mae" in done.stdout
    found, kept = json.loads((tmp_path / "p.json").read_text()), _read("parity-failed.json")
    assert _keys(kept) - _keys(found) == set()
    assert found["schema_version"] == kept["schema_version"]
    assert found["candidates"][0]["budget"] == kept["candidates"][0]["budget"]
    assert found["candidates"][0]["budget"]["mask_mae"] == 1e-06
    names = [[one["name"] for one in of["candidates"][0]["cases"]] for of in (found, kept)]
    # a quick check has more cases than before
    more = ("a batch and its pictures alone", "nearer to the reference than to a mistake")
    drawn = "drawn for these files"
    assert [name for name in names[0] if name not in more and drawn not in name] == names[1]
    tests = [
        [case.attrib["name"] for case in ElementTree.parse(path).iter("testcase")]
        for path in (tmp_path / "p.xml", DATA / "parity-failed.xml")
    ]
    kept_tests = [
        name for name in tests[0] if not name.startswith(more) and not name.startswith(drawn)
    ]
    assert kept_tests == tests[1]
    (written,) = (tmp_path / "replays").iterdir()
    assert written.name == REPLAY.name
    with zipfile.ZipFile(written) as new, zipfile.ZipFile(REPLAY) as before:
        assert new.namelist() == before.namelist()
        notes = [json.loads(one.read("replay.json")) for one in (before, new)]
        arrays = [np.load(one.open("arrays.npz")).files for one in (before, new)]
    assert _keys(notes[0]) - _keys(notes[1]) == set()
    assert arrays[0] == arrays[1]


def test_an_old_failure_is_replayed(command):
    done = command("replay", REPLAY)
    assert done.returncode == 6, done.stderr
    assert "'checkerboard' of u2netp-demo-int8-64.onnx fails here too" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "file"),
    [
        (["inspect", OLD, "--json"], 0, "inspect.json"),
        (["backends", "--json"], 0, "backends.json"),
        (
            ["bisect", "torch", OLD, "--picture", PICTURE, "--budget", BUDGET, "--json"],
            6,
            "bisect.json",
        ),
    ],
    ids=["inspect", "backends", "bisect"],
)
@pytest.mark.usefixtures("old")
def test_what_is_printed_as_json_keeps_its_keys(command, words, status, file):
    done = command(*words)
    assert done.returncode == status, done.stderr
    assert _keys(_read(file)) - _keys(json.loads(done.stdout)) == set()


def test_the_doctor_says_what_it_said(doctor):
    assert _keys(_read("doctor.json")) - _keys(doctor) == set()


def test_a_log_keeps_its_keys_and_goes_on(command, old, tmp_path):
    shutil.copy(DATA / "run.jsonl", tmp_path)
    before = (tmp_path / "run.jsonl").read_text()
    shutil.copy(PICTURE, tmp_path)
    command("run", old.name, PICTURE.name, "no-such.png", "--log", "run.jsonl")
    after = (tmp_path / "run.jsonl").read_text()
    assert after.startswith(before)
    kept, added = (
        {bool(one["error"]): set(one) for one in map(json.loads, text.splitlines())}
        for text in (before, after.removeprefix(before))
    )
    assert set(kept) == {True, False}
    for failed in kept:
        assert kept[failed] - added[failed] == set()


# --- statuses and import paths


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (2, ["no-such-command"]),
        (2, ["--no-such-option"]),
        (2, ["run", OLD, "picture.jpg", "--no-such-option"]),
        (2, ["run", "none.onnx", "picture.jpg"]),
        (2, ["onnx", "--size", "300"]),
        (2, ["onnx", "--model", "u2nett"]),
        (2, ["replay", "none.zip"]),
        (2, ["recommend", "cut.json"]),
        (3, ["run", OLD, "picture.jpg", "--device", "gpu"]),
        (3, ["onnx", "--model", "u2netp"]),
        (3, ["weights", "fetch", "u2netp"]),
        (4, ["verify", "changed.onnx"]),
        (4, ["verify", "newer.onnx"]),
        (4, ["weights", "verify", "unknown.pth"]),
        (4, ["replay", "cut.zip"]),
        (6, ["verify", "lone.onnx"]),
        (6, ["recommend", DATA / "bench.json", "--max-latency-ms", "0.001"]),
        (6, ["inspect", OLD, "--precision", "fp16"]),
        (6, ["run", OLD, "picture.jpg", "--precision", "fp32"]),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) if isinstance(value, list) else str(value),
)
def test_a_bad_call_has_its_status(command, old, status, words):
    _bad_files(old)
    done = command(*words)
    assert done.returncode == status, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr


def _bad_files(old: Path) -> None:
    """Files that are refused, each for a reason of its own."""
    folder, content = old.parent, old.read_bytes()
    shutil.copy(PICTURE, folder / "picture.jpg")
    (folder / "lone.onnx").write_bytes(content)
    half = len(content) // 2
    changed = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    (folder / "changed.onnx").write_bytes(changed)
    (folder / "newer.onnx").write_bytes(content)
    manifest = {**json.loads(Path(f"{old}.json").read_text()), "schema_version": 9}
    (folder / "newer.onnx.json").write_text(json.dumps(manifest))
    (folder / "unknown.pth").write_bytes(b"unknown")
    (folder / "cut.zip").write_bytes(REPLAY.read_bytes()[:90_000])
    (folder / "cut.json").write_text((DATA / "bench.json").read_text()[:900])


def test_an_export_that_runs_already_is_status_5(command, tmp_path):
    """The lock has its old name, so that an old and a new u2export wait for each other too."""
    (tmp_path / "exported").mkdir()
    with FileLock(tmp_path / "exported" / ".u2netp-demo-fp32.safetensors.lock"):
        done = command("torch", *MODEL)
    assert done.returncode == 5, done.stderr
    assert "another export of exported/u2netp-demo-fp32.safetensors is running" in done.stderr


def test_errors_keep_their_names_and_statuses():
    found = {name: getattr(u2export, name).exit_status for name in STATUS}
    assert found == STATUS
    assert all(issubclass(getattr(u2export, name), u2export.U2ExportError) for name in STATUS)


def test_public_names_are_imported_from_where_they_were(tmp_path):
    code = (
        "from u2export import Segmenter, load\n"
        "from u2export.errors import ParityError, U2ExportError\n"
        "from u2export.ray import map_pictures\n"
        "from u2export.testing import assert_parity\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_program_and_the_backends_are_found_by_their_names():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="u2export")
    assert script.value == "u2export.cli:main"
    assert callable(script.load())
    found = {one.name: one for one in importlib.metadata.entry_points(group="u2export.backends")}
    for name in ("onnx", "openvino", "tensorrt", "torch"):
        assert found[name].load().name == name
