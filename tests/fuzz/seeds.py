"""Make the first inputs of every corpus.

    PYTHONPATH=tests python -m fuzz.seeds

Files of other names stay: inputs that showed a fault, and those that `python -m fuzz keep` chose.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from attacks.table import SMALL_PICTURE
from fuzz.readers import CORPORA, DATA, DEMO, PICTURE_FORMATS, SMALL_WEIGHTS_FILE, SOUND_QUALITY
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save

from u2export.compare.stages import PipelineTrace
from u2export.core.artifact import Artifact, manifest_path
from u2export.core.digest import DIGEST_KEY, blank_digest, embed_digest
from u2export.core.facts import FACTS_KEY, QUANTIZATION_KEY, Facts
from u2export.parity.certificate import CERTIFICATE_KEY
from u2export.parity.replay import ReplayRecord, write_replay
from u2export.system.files import file_sha256

Seeds = Iterator[tuple[str, bytes]]  # names and contents
SIDE = 8  # pixels of the small network's input
MANIFESTS = ("fp32.onnx", "int8-64.onnx", "fp16.engine", "fp16.xml")
PICTURE = SMALL_PICTURE.resize((16, 12))


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / "exported" / f"{DEMO}-{name}.json").read_bytes())
    return document


def _budgets() -> Seeds:
    yield "some.json", b'{"fp32": {"mask_mae": 0.1, "raw_max": null}, "int8": {"worst_iou": 0.5}}'
    yield "strict.json", (DATA / "strict-budget.json").read_bytes()


def _reports() -> Seeds:
    yield "bench.json", _json(_short_report())


def _short_report() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / "bench.json").read_bytes())
    for row in document["rows"]:
        row["latency"]["blocks"] = row["latency"]["blocks"][:10]
    document["calibration"] = document["calibration"][:10]
    return document


def _manifests() -> Seeds:
    """Manifests of an empty file called `a.onnx`."""
    files = {"a.onnx": hashlib.sha256(b"").hexdigest()}
    for name in MANIFESTS:
        document = {**_manifest(name), "files": files}
        if certificate := document["checks"].get(CERTIFICATE_KEY):
            document["checks"] = {CERTIFICATE_KEY: {**certificate, "files": files}}
        document["facts"]["build"].pop(QUANTIZATION_KEY, None)
        yield f"{name}.json", _json(document)


def _facts() -> Seeds:
    for name in MANIFESTS:
        yield f"{name}.json", _json(_manifest(name)["facts"])


def _int8_records() -> Seeds:
    record = json.loads(_manifest("int8-64.onnx")["facts"]["build"][QUANTIZATION_KEY])
    record["why"] = dict(list(record["why"].items())[:5])
    yield "record.json", _json(record)


def _search_caches() -> Seeds:
    yield "entry.json", SOUND_QUALITY.model_dump_json().encode()
    yield "nothing.json", b'{"in_float": 1, "mask_iou": null, "worst_iou": null, "mask_mae": null}'


def _pins() -> Seeds:
    yield "pins.json", _json({"u2net_portrait": "0" * 64, "u2netp": "f" * 64})


def _known_weights() -> Seeds:
    yield "path", b"/nowhere/w.pth"
    yield "here", b"."


def _state() -> dict[str, torch.Tensor]:
    return {"side1.bias": torch.zeros(1), "outconv.weight": torch.ones(1, 6, 1, 1)}


def _zip_weights() -> Seeds:
    documents = {
        "plain": _state(),
        "wrapped": {"state_dict": {f"module.{name}": value for name, value in _state().items()}},
        "numbers": {"model": _state(), "epoch": np.int64(3), "loss": np.float32(0.5)},
    }
    for name, document in documents.items():
        yield f"{name}.pth", _saved(document)


def _pickled_weights() -> Seeds:
    yield "plain.pth", _saved(_state(), _use_new_zipfile_serialization=False)
    half = {"w": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3)}
    yield "half.pth", _saved({"net": half}, _use_new_zipfile_serialization=False)


def _saved(document: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(document, file, **options)
    return file.getvalue()


def _safetensors() -> Seeds:
    yield "plain.safetensors", save(_state())
    metadata = {FACTS_KEY: blank_digest() + _facts_of("fp32.onnx").model_dump_json()}
    yield "facts.safetensors", save(_state(), metadata)


def _facts_of(name: str) -> Facts:
    facts = Facts.model_validate_json(_json(_manifest(name)["facts"]))
    return facts.model_copy(update={"size": SIDE, "batch": None, "build": {}})


def _small_network() -> onnx.ModelProto:
    """A convolution of one pixel, and a sigmoid: the least that is run as a U²-Net."""
    shapes = {"x": ["N", 3, SIDE, SIDE], "y": ["N", 1, SIDE, SIDE]}
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Sigmoid", ["c"], ["y"])]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], [0.0] * 3)
    graph = helper.make_graph(nodes, "small", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _onnx() -> Seeds:
    model = _small_network()
    yield "foreign.onnx", model.SerializeToString()
    model.metadata_props.add(key=FACTS_KEY, value=_facts_of("fp32.onnx").model_dump_json())
    model.metadata_props.add(key=DIGEST_KEY, value=blank_digest())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.onnx"
        path.write_bytes(model.SerializeToString())
        embed_digest(path)
        yield "ours.onnx", path.read_bytes()


def _openvino() -> Seeds:
    from u2export.backends.openvino.convert import OPENVINO_DIGEST_PREFIX, WEIGHTS_HASH_KEY
    from u2export.backends.openvino.library import ov

    model = ov.Core().read_model(_small_network().SerializeToString())
    weights_hash = hashlib.sha256(SMALL_WEIGHTS_FILE).hexdigest()
    facts = _facts_of("fp32.onnx").model_copy(update={"build": {WEIGHTS_HASH_KEY: weights_hash}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        yield "foreign.xml", path.read_bytes()
        model.set_rt_info(facts.model_dump_json(), [FACTS_KEY, FACTS_KEY])
        model.set_rt_info(blank_digest(OPENVINO_DIGEST_PREFIX), [FACTS_KEY, DIGEST_KEY])
        ov.save_model(model, path, compress_to_fp16=False)
        embed_digest(path, OPENVINO_DIGEST_PREFIX)
        yield "ours.xml", path.read_bytes()
        assert len(path.with_suffix(".bin").read_bytes()) <= len(SMALL_WEIGHTS_FILE)


def _replays() -> Seeds:
    """A whole replay file of the small network, with and without a manifest."""
    import zipfile

    with zipfile.ZipFile(DATA / f"{DEMO}-int8-64.onnx.replay.zip") as archive:
        record = ReplayRecord.model_validate_json(archive.read("replay.json"))
    record = record.model_copy(update={"artifact": "a.onnx"})
    picture, small = np.asarray(PICTURE), np.full((SIDE, SIDE), 0.5, np.float32)
    x = np.zeros((1, 3, SIDE, SIDE), np.float32)
    trace = PipelineTrace(picture, x, small, small * 0, np.zeros(picture.shape[:2], np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / "a.onnx", Path(folder) / "r.zip"
        path.write_bytes(dict(_onnx())["ours.onnx"])
        artifact = Artifact(path, "onnx", _facts_of("fp32.onnx"), {path.name: file_sha256(path)})
        write_replay(target, record, artifact, _encoded(PICTURE, "PNG"), trace, trace)
        yield "alone.zip", target.read_bytes()
        manifest_path(path).write_text(artifact.manifest.text(), "utf-8")
        write_replay(target, record, artifact, _encoded(PICTURE, "PNG"), trace, trace)
        yield "listed.zip", target.read_bytes()


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


MODES = {
    "JPEG": ("L", "CMYK"),
    "PNG": ("L", "P", "I;16", "RGBA", "LA"),
    "GIF": ("P",),
    "BMP": ("L", "1", "RGBA"),
    "PPM": ("L", "1", "I", "F"),
    "WEBP": ("RGBA",),
    "TIFF": ("L", "1", "I;16", "F", "CMYK", "RGBA", "LAB"),
    "AVIF": ("RGBA",),
    "JPEG2000": ("L", "RGBA"),
    "TGA": ("L", "P", "RGBA"),
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "JPEG": {"progressive": {"progressive": True}},
    "GIF": {"frames": {"save_all": True, "append_images": [PICTURE.rotate(180)]}},
    "PNG": {"frames": {"save_all": True, "append_images": [PICTURE.rotate(180)]}},
    "WEBP": {
        "lossless": {"lossless": True},
        "frames": {"save_all": True, "append_images": [PICTURE.rotate(180)]},
    },
    "TIFF": {
        **{name: {"compression": name} for name in ("tiff_lzw", "tiff_deflate", "jpeg")},
        "frames": {"save_all": True, "append_images": [PICTURE.rotate(180)]},
    },
    "TGA": {"rle": {"compression": "tga_rle"}},
}


def _pictures(kind: str) -> Seeds:
    yield "rgb", _encoded(PICTURE, kind)
    for mode in MODES[kind]:
        source = PICTURE.convert("I") if mode == "I;16" else PICTURE
        source = source.convert("L") if mode in ("F", "LAB") else source
        picture = Image.new("LAB", PICTURE.size) if mode == "LAB" else source.convert(mode)
        yield mode.replace(";", "-").lower(), _encoded(picture, kind)
    for name, options in OPTIONS.get(kind, {}).items():
        yield name, _encoded(PICTURE, kind, **options)
    if kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "x"
        yield "exif", _encoded(PICTURE, kind, exif=exif)


def _runs() -> Seeds:
    for kind in PICTURE_FORMATS:
        name, content = list(_pictures(kind))[-1]
        yield f"{kind.lower()}-{name}", content


def _names() -> Seeds:
    yield "plain", b"{folder}/{stem}-{index:03}.{ext}\na.png\nsub/a.jpg\nb.tif"
    yield "odd", "{name!r:>20}.png\né.png\n-.png\n.hidden.png\nx.PNG\nx.png".encode()
    yield "out", b"../{stem}\na b.png\n\xff.png"


def _patterns() -> Seeds:
    yield "stars", b"in/**/*.[pt]*"
    yield "set", b"in/b[[]1].j?g"
    yield "folder", b"in"


def _machine() -> Seeds:
    cpu = b"model name\t: Some CPU\nflags\t\t: avx2 avx512f avx512_vnni\n"
    yield "quota", cpu + b"\n150000 100000\n"
    yield "free", cpu + b"\nmax 100000\n"


def _frames() -> Seeds:
    yield "two", b"2x1\n" + bytes(12)
    yield "cut", b"2x2\n" + bytes(13)


SEEDS = {
    "budgets": _budgets,
    "benchmark-reports": _reports,
    "baselines": _reports,
    "manifests": _manifests,
    "facts": _facts,
    "int8-records": _int8_records,
    "search-caches": _search_caches,
    "pins": _pins,
    "known-weights": _known_weights,
    "weights-zip": _zip_weights,
    "weights-pickle": _pickled_weights,
    "safetensors": _safetensors,
    "onnx": _onnx,
    "openvino": _openvino,
    "replays": _replays,
    **{f"pictures-{kind.lower()}": lambda kind=kind: _pictures(kind) for kind in PICTURE_FORMATS},
    "runs": _runs,
    "names": _names,
    "patterns": _patterns,
    "machine": _machine,
    "frames": _frames,
}


def write_seeds() -> None:
    """Write every seed into its corpus."""
    for reader, make in SEEDS.items():
        folder = CORPORA / reader
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in make():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    write_seeds()
