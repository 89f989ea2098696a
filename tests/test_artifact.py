from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from u2export.core import registry
from u2export.core.artifact import _read_manifest, manifest_path
from u2export.core.digest import DIGEST_PREFIX
from u2export.errors import ArtifactError, InputError
from u2export.system.files import check_writable, write_text

NAMES = ("u2netp-demo-fp32.onnx", "u2netp-demo-fp16.onnx", "u2netp-demo-fp32.safetensors")


@pytest.fixture
def copy(exported: Path, tmp_path: Path):
    def make(name: str, *, alone: bool = False) -> Path:
        shutil.copy(exported / name, tmp_path)
        if not alone:
            shutil.copy(exported / f"{name}.json", tmp_path)
        return tmp_path / name

    return make


def _flip(path: Path, position: int) -> bytes:
    before = path.read_bytes()
    changed = bytearray(before)
    changed[position] ^= 1
    path.write_bytes(changed)
    return before


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_byte_of_a_manifest_is_found(copy, name: str):
    path = copy(name)
    manifest = manifest_path(path)
    for position in range(manifest.stat().st_size):
        before = _flip(manifest, position)
        with pytest.raises(ArtifactError):
            _read_manifest(manifest)
        manifest.write_bytes(before)
    assert registry.open_artifact(path).facts.model == "u2netp-demo"


@pytest.mark.parametrize("alone", [False, True], ids=["with manifest", "alone"])
@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_of_a_model_file_are_found(copy, name: str, alone: bool):
    path = copy(name, alone=alone)
    size = path.stat().st_size
    rng = random.Random(0)
    positions = [0, 5, size - 1, size - 40, *(rng.randrange(size) for _ in range(20))]
    for position in positions:
        before = _flip(path, position)
        with pytest.raises(ArtifactError):
            registry.open_artifact(path)
        path.write_bytes(before)
    registry.open_artifact(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_byte_of_the_embedded_facts_is_found(copy, name: str):
    path = copy(name, alone=True)
    content = path.read_bytes()
    start = content.index(b"schema_version") - 2
    mark = content.rindex(DIGEST_PREFIX.encode())
    for position in [*range(start, start + 200, 7), *range(mark, mark + 79, 3)]:
        before = _flip(path, position)
        with pytest.raises(ArtifactError):
            registry.open_artifact(path)
        path.write_bytes(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_found_with_and_without_manifest(copy, name: str):
    for alone in (False, True):
        path = copy(name, alone=alone)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ArtifactError):
            registry.open_artifact(path)
        path.unlink()
        manifest_path(path).unlink(missing_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_file_carries_the_facts_of_its_manifest(copy, exported: Path, name: str):
    assert (
        registry.open_artifact(copy(name, alone=True)).facts
        == registry.open_artifact(exported / name).facts
    )


def test_a_manifest_of_a_newer_schema_is_refused_by_its_number(copy):
    path = copy(NAMES[0])
    manifest = manifest_path(path)
    document = json.loads(manifest.read_text())
    document["schema_version"] = 2
    document["something_new"] = True
    manifest.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="has schema 2, this u2export reads up to 1: upgrade"):
        registry.open_artifact(path)


def test_a_manifest_of_another_artifact_is_refused(copy, exported: Path):
    path = copy(NAMES[0])
    shutil.copy(exported / f"{NAMES[1]}.json", manifest_path(path))
    shutil.copy(exported / NAMES[1], path.with_name(NAMES[1]))
    with pytest.raises(ArtifactError, match="is not the manifest of u2netp-demo-fp32"):
        registry.open_artifact(path)


def test_an_absent_and_an_empty_artifact_are_told_apart(tmp_path: Path):
    with pytest.raises(InputError, match="there is no artifact"):
        registry.open_artifact(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        registry.open_artifact(tmp_path / "empty.onnx")


def test_the_file_says_in_plain_words_how_to_feed_it(exported: Path):
    import onnx

    model = onnx.load(exported / NAMES[1])
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["u2export.size"] == "320"
    assert facts["u2export.mean"] == "0.485 0.456 0.406"
    assert facts["u2export.std"] == "0.229 0.224 0.225"
    assert facts["u2export.resize"] == "authors"
    assert facts["u2export.precision"] == "fp16"
    assert len(facts["u2export.weights_sha256"]) == 64


def test_places_are_looked_at_before_the_work(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    check_writable(None, tmp_path / "new", tmp_path / "a" / "b", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path / "new", tmp_path)
    with pytest.raises(InputError, match="file is no folder"):
        check_writable(tmp_path / "file" / "a" / "b")


def test_a_pipe_is_a_place(tmp_path: Path):
    reading, writing = os.pipe()
    place = Path(f"/dev/fd/{writing}")
    check_writable(place)
    write_text(place, "a report")
    os.close(writing)
    assert os.read(reading, 100) == b"a report"
    os.close(reading)


def test_a_folder_that_may_not_be_changed_is_no_place(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="may not be changed"):
        check_writable(tmp_path / "new")
