"""What parity, certificates and replay files may not let through."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from attacks.table import picture
from onnx import TensorProto, helper, numpy_helper

from u2export.core.digest import text_with_digest
from u2export.errors import ArtifactError, InputError, OutputError
from u2export.parity.replay import replay_failure
from u2export.parity.replay_archive import ReplayArchive
from u2export.system.files import file_sha256

DATA = Path(__file__).parents[1] / "compatibility" / "data"
REPLAY = DATA / "u2netp-demo-int8-64.onnx.replay.zip"
ONNX = "u2netp-demo-fp32-64-bN.onnx"


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    for path in small.glob("u2netp-demo-fp32-64-bN.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def _manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(Path(f"{path}.json").read_text("utf-8"))
    change(document)
    Path(f"{path}.json").write_text(text_with_digest(document), "utf-8")


def _scaled_in_batches(source: Path, target: Path) -> None:
    """The same network, whose output is halved wherever a call has two pictures or more."""
    model = onnx.load(source)
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["whole" if output == name else output for output in node.output]
        node.input[:] = ["whole" if tensor == name else tensor for tensor in node.input]
    graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5]))
    graph.initializer.append(helper.make_tensor("full", TensorProto.FLOAT, [1], [1.0]))
    graph.node.extend(
        [
            helper.make_node("Shape", ["whole"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["count"]),
            helper.make_node("Greater", ["count", "one"], ["many"]),
            helper.make_node("Where", ["many", "half", "full"], ["factor"]),
            helper.make_node("Mul", ["whole", "factor"], [name]),
        ]
    )
    _save_as_ours(model, source, target)


def _save_as_ours(model: onnx.ModelProto, source: Path, target: Path, **facts: object) -> None:
    """Save a model with the manifest of another one, made to fit."""
    del model.metadata_props[:]
    onnx.save(model, target)
    manifest = json.loads(Path(f"{source}.json").read_text("utf-8"))
    manifest["files"], manifest["checks"] = {target.name: file_sha256(target)}, {}
    manifest["facts"].update(facts)
    Path(f"{target}.json").write_text(text_with_digest(manifest), "utf-8")


def test_a_file_that_is_wrong_for_batches_alone_gets_no_certificate(command, folder: Path):
    _scaled_in_batches(folder / ONNX, folder / "batches.onnx")
    done = command("parity", ONNX, "batches.onnx", "--json", "r.json")
    assert done.returncode == 6, done.stderr
    [candidate] = json.loads((folder / "r.json").read_text())["candidates"]
    failed = [case["name"] for case in candidate["cases"] if not case["passed"]]
    assert failed == ["a batch and its pictures alone"]


def test_a_certificate_says_which_properties_were_checked(command, folder: Path):
    assert command("parity", "torch", ONNX).returncode == 0
    manifest = json.loads((folder / f"{ONNX}.json").read_text())
    found = manifest["checks"]["certificate"]["properties"]
    assert found == ["the same twice", "a batch and its pictures alone"]


def test_one_candidate_that_is_refused_does_not_hide_the_others(command, folder: Path):
    (folder / "damaged.onnx").write_bytes(b"no network at all")
    words = ("parity", ONNX, ONNX, "damaged.onnx", "--model", "u2netp-demo", "--json", "r.json")
    done = command(*words, "--junit", "j.xml", "--html", "h.html")
    assert (done.returncode, "Traceback" in done.stderr) == (4, False), done.stderr
    whole, damaged = json.loads((folder / "r.json").read_text())["candidates"]
    assert damaged["party"]["name"] == "damaged.onnx"
    assert damaged["refused"]
    assert whole["judgement"]["mask_iou"] == 1
    assert "damaged.onnx was refused: " in done.stdout
    assert "refused" in (folder / "j.xml").read_text()
    assert "refused" in (folder / "h.html").read_text()


def test_a_candidate_that_fails_while_it_computes_does_not_hide_the_others(command, folder: Path):
    _fails_while_it_computes(folder / ONNX, folder / "fails.onnx")
    done = command("parity", ONNX, ONNX, "fails.onnx", "--json", "r.json")
    assert (done.returncode, "Traceback" in done.stderr) == (4, False), done.stderr
    whole, fails = json.loads((folder / "r.json").read_text())["candidates"]
    assert fails["refused"].startswith("onnxruntime ")
    assert whole["judgement"]["mask_iou"] == 1
    alone = command("parity", ONNX, "fails.onnx")
    assert (alone.returncode, "Traceback" in alone.stderr) == (4, False), alone.stderr


def _fails_while_it_computes(source: Path, target: Path) -> None:
    """Save a copy whose last node reshapes to more values than there are."""
    model = onnx.load(source)
    graph = model.graph
    name, more = graph.output[0].name, numpy_helper.from_array(np.array([1, 1, 64, 65]), "more")
    [last] = [node for node in graph.node if name in node.output]
    last.output[list(last.output).index(name)] = "whole"
    graph.initializer.append(more)
    graph.node.extend(
        [
            helper.make_node("Shape", [graph.input[0].name], ["shape"]),
            helper.make_node("Max", ["shape", "more"], ["larger"]),  # known only when it computes
            helper.make_node("Reshape", ["whole", "larger"], [name]),
        ]
    )
    _save_as_ours(model, source, target)


def test_one_file_that_is_refused_does_not_hide_the_others_from_a_benchmark(command, folder):
    (folder / "damaged.onnx").write_bytes(b"no network at all")
    words = ("bench", ONNX, "damaged.onnx", "--model", "u2netp-demo", "--reference", ONNX)
    done = command(*words, "--duration", "1", "--json", "b.json")
    assert "Traceback" not in done.stderr
    rows = {row["file"]: row for row in json.loads((folder / "b.json").read_text())["rows"]}
    assert rows["damaged.onnx"]["failed"].startswith("it was refused: ")
    assert rows[ONNX]["latency"]["median"] > 0
    assert done.returncode == 6, done.stderr


def test_a_file_that_another_tool_rewrote_is_that_tools_file(command, exported, tmp_path):
    model = onnx.load(exported / "u2netp-demo-fp32.onnx")
    model.producer_name = "another tool"
    onnx.save(model, tmp_path / "rewritten.onnx")
    picture(tmp_path / "p.png")
    done = command("run", "rewritten.onnx", "p.png")
    assert done.returncode == 4
    assert "was changed after it was exported" in done.stderr
    assert "name its model, as in --model u2net, to take it as another tool's file" in done.stderr
    done = command("run", "rewritten.onnx", "p.png", "--model", "u2netp-demo", "--out", "o.png")
    assert done.returncode == 0, done.stderr
    assert "it is taken as another tool's file" in done.stderr
    assert (
        command("run", exported / "u2netp-demo-fp32.onnx", "p.png", "--out", "p2.png").returncode
        == 0
    )
    assert (tmp_path / "o.png").read_bytes() == (tmp_path / "p2.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c["judgement"].update(mask_iou=0.01, worst_iou=0.01),
            "it passed, but mask_iou 0.0100",
        ),
        (lambda c: c["judgement"].update(raw_max=None), "cannot be read: judgement.raw_max"),
        (lambda c: c["judgement"].update(mask_iou=None), "it has no figures of masks"),
        (lambda c: c["judgement"].update(subjects=0), "0 of "),
        (lambda c: c.update(cases=0), "cannot be read: cases"),
        (lambda c: c.update(cases="many"), "cannot be read: cases"),
        (lambda c: c["budget"].update(mask_mae=True), "cannot be read: budget.mask_mae"),
    ],
)
def test_a_certificate_that_contradicts_itself_is_none(change, sentence, command, folder: Path):
    assert command("parity", "torch", ONNX).returncode == 0
    assert command("verify", ONNX).returncode == 0
    _manifest(folder / ONNX, lambda m: change(m["checks"]["certificate"]))
    done = command("verify", ONNX)
    assert done.returncode == 4, done.stderr
    assert sentence in done.stderr


# --- replay files


def _changed(entries: dict[str, bytes | None], target: Path) -> Path:
    """The kept replay file, with entries replaced, added, or left out where None."""
    with zipfile.ZipFile(REPLAY) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = entries.get(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name in entries.keys() - set(old.namelist()):
            new.writestr(name, entries[name] or b"")
    return target


def _arrays(**changes: Any) -> bytes:
    with zipfile.ZipFile(REPLAY) as old:
        arrays = dict(np.load(io.BytesIO(old.read("arrays.npz"))))
    file = io.BytesIO()
    np.savez(file, **{name: v for name, v in {**arrays, **changes}.items() if v is not None})
    return file.getvalue()


def _header_of(shape: str) -> bytes:
    return _header_text(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    )


def _header_text(text: str) -> bytes:
    npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    source, target = io.BytesIO(_arrays()), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, npy if name == "found_saliency.npy" else old.read(name))
    return target.getvalue()


def _list_of(count: int) -> bytes:
    """An archive whose list names one empty entry so often, though it has none."""
    entry = b"PK\1\2" + bytes(42) + b"x"
    entry = entry[:28] + (1).to_bytes(2, "little") + entry[30:]
    listed = entry * count
    end = b"PK\5\6" + bytes(4) + (0xFFFF).to_bytes(2, "little") * 2
    return listed + end + len(listed).to_bytes(4, "little") + bytes(6)


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


CHANGES: dict[str, dict[str, bytes | None]] = {
    "no record": {"replay.json": None},
    "a deep record": {"replay.json": b"[" * 100_000},
    "an empty record": {"replay.json": b"{}"},
    "no picture": {"picture": None},
    "no arrays": {"arrays.npz": None},
    "an .npy in the .npz's place": {"arrays.npz": _npy()},
    "arrays that are no archive": {"arrays.npz": b"PK\3\4"},
    "a header of 4 TiB": {"arrays.npz": _header_of("(1048576, 1048576)")},
    "a negative shape": {"arrays.npz": _header_of("(-1, 64)")},
    **{
        f"a header of {text!r}": {"arrays.npz": _header_text(f"{text}\n")}
        for text in (
            "{[]: 1}",
            "{1: 2, 'a': 3}",
            "((",
            "{'descr': 'f4,(', 'shape': (1,)}",
            "  x\n y",
        )
    },
    "a long list of entries": {"arrays.npz": _list_of(60_000)},
    "text as saliency": {"arrays.npz": _arrays(found_saliency=np.array(["a"]))},
    "objects as saliency": {"arrays.npz": _arrays(found_saliency=np.array([{}], dtype=object))},
    "one array less": {"arrays.npz": _arrays(found_mask=None)},
    "a saliency of another size": {
        "arrays.npz": _arrays(found_saliency=np.zeros((3, 3), np.float32))
    },
    "a mask of another size": {"arrays.npz": _arrays(found_mask=np.zeros((3, 3), np.uint8))},
    "a name longer than the disk takes": {f"artifact/{'x' * 300}": b""},
}


@pytest.mark.parametrize("entries", CHANGES.values(), ids=CHANGES)
def test_a_replay_file_that_was_tampered_with_is_status_4(entries, tmp_path: Path):
    with pytest.raises(ArtifactError, match="is no replay file, or was cut"):
        replay_failure(_changed(entries, tmp_path / "r.zip"))


LISTED = REPLAY.read_bytes().index(b"PK\1\2")  # the first entry in the archive's own list


def _spoilt(position: int, value: int) -> bytes:
    content = bytearray(REPLAY.read_bytes())
    content[position] = value
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        REPLAY.read_bytes()[:1000],
        _spoilt(LISTED + 8, 1),  # encrypted
        _spoilt(LISTED + 10, 77),  # an unknown compression
        _spoilt(LISTED + 10, 12),  # another compression than it has
        _spoilt(60, 255),  # a rotten stream
        _spoilt(200, 0),
    ],
)
def test_a_damaged_replay_file_is_status_4_or_judged(content: bytes, tmp_path: Path):
    (tmp_path / "r.zip").write_bytes(content)
    with pytest.raises(ArtifactError, match="is no replay file, or was cut"):
        replay_failure(tmp_path / "r.zip")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch):
    from u2export.parity import replay_archive

    monkeypatch.setattr(replay_archive, "MAX_UNPACKED_BYTES", 10_000_000)
    with zipfile.ZipFile(tmp_path / "r.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("replay.json", bytes(50_000_000))
    archive = ReplayArchive(tmp_path / "r.zip")
    with pytest.raises(ArtifactError, match="it unpacks to more than 10000000 bytes"):
        archive.read("replay.json")
    archive.close()


def test_a_long_list_of_entries_is_not_read(tmp_path: Path):
    (tmp_path / "r.zip").write_bytes(_list_of(60_000))
    with pytest.raises(ArtifactError, match="its list of entries is too long"):
        ReplayArchive(tmp_path / "r.zip")


def test_a_disk_that_is_full_while_unpacking_is_no_damage(tmp_path: Path):
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    archive = ReplayArchive(REPLAY)
    with pytest.raises(OutputError, match="could not be written: No space left on device"):
        archive.unpack("replay.json", Full())
    archive.close()


def test_what_is_no_replay_file_is_not_waited_for(tmp_path: Path):
    import os

    with pytest.raises(InputError, match="there is no replay file at"):
        replay_failure(tmp_path / "absent.zip")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.zip")
        with pytest.raises(InputError, match="it is a named pipe, not a file"):
            replay_failure(tmp_path / "pipe.zip")
