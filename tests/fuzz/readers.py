"""The readers of foreign bytes, and how each takes them.

Both fuzzers go by this list: atheris (`make fuzz`) and hypothesis (`attacks/test_fuzz.py`).
A new reader gets a row here, its seeds in `seeds.py`, and its corpus from `python -m fuzz.seeds`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fuzz import forms
from fuzz.forms import Mutation
from fuzz.watch import Fault, find_fault

from u2export.benchmark import baseline
from u2export.benchmark.limits import Limits
from u2export.benchmark.recommend import recommend
from u2export.benchmark.recommend_report import format_recommendation
from u2export.benchmark.report import BenchmarkReport, read_report
from u2export.compare.budgets import read_budgets, requested_budget
from u2export.compare.probe_images import user_cases
from u2export.core import registry
from u2export.core.artifact import Artifact, manifest_path, read_artifact
from u2export.core.digest import DIGEST_PREFIX, blank_digest, text_with_digest
from u2export.core.facts import QUANTIZATION_KEY, Facts, parse_facts
from u2export.core.int8_record import MaskQuality, read_int8_record
from u2export.core.models import MODELS
from u2export.core.requests import RunRequest
from u2export.errors import U2ExportError
from u2export.images.compose import Composition
from u2export.images.decode import composite_on_white, decode_image, read_header
from u2export.images.frames import (
    count_frames,
    draw_frames_before,
    frames_of,
    read_frame_header,
)
from u2export.images.inputs import find_images
from u2export.images.outputs import OutputPaths
from u2export.inference.process import ImageOptions, process_images
from u2export.inference.video import parse_frame_size, read_frames
from u2export.parity.certificate import read_certificate
from u2export.parity.verify import format_certificate
from u2export.quantization.report import format_text
from u2export.quantization.search_cache import SearchCache
from u2export.system import hardware

if TYPE_CHECKING:
    from u2export.inference.segmenter import Segmenter

CORPORA = Path(__file__).parent / "corpora"
DATA = Path(__file__).parents[1] / "compatibility" / "data"
PICTURE_FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA"),
)
DEMO, ONE_THREAD = "u2netp-demo", RunRequest(threads=1)
SMALL_WEIGHTS_FILE = bytes(64)  # the `.bin` of every `.xml`: its values are zeros
_MAX_PIXELS = 250_000
_MAX_FILES = 6


@dataclass(frozen=True)
class Reader:
    """A reader of foreign bytes.

    Attributes:
        name: of its corpus.
        read: takes bytes and an empty folder; raises errors of ours only.
        modules: of u2export that open or parse something here.
        mutate: how its bytes are changed.
        largest: bytes of an input.
        libraries: that are imported beforehand, for imports start programs and write files.
        memory_mb: how much one input may take, MB of 10^6 bytes.
    """

    name: str
    read: Callable[[bytes, Path], object]
    modules: tuple[str, ...] = ()
    mutate: Mutation = forms.any_bytes
    largest: int = 8192
    libraries: tuple[str, ...] = ()
    memory_mb: int = 300

    @property
    def corpus(self) -> list[Path]:
        """The committed inputs."""
        return sorted(path for path in (CORPORA / self.name).iterdir() if path.is_file())

    def find_fault(self, content: bytes) -> Fault | None:
        """Read an input, and see whether all holds that must."""
        for library in self.libraries:
            importlib.import_module(library)
        return find_fault(self.read, content, self.memory_mb)


def _written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


def _each(*steps: Callable[[], object]) -> None:
    """Take every step, also after one that refused."""
    for step in steps:
        with contextlib.suppress(U2ExportError):
            step()


def _budgets(content: bytes, folder: Path) -> None:
    read_budgets(_written(content, folder / "b.json"))


def _benchmark_report(content: bytes, folder: Path) -> None:
    report = read_report(_written(content, folder / "r.json"))
    for limits in (Limits(), Limits(max_latency_ms=1, max_memory_mb=1, min_iou=0.999)):
        format_recommendation(report, recommend(report, limits), limits)


@functools.cache
def _sound_report() -> BenchmarkReport:
    return read_report(DATA / "bench.json")


def _baseline(content: bytes, folder: Path) -> None:
    """Compare a sound report of the same machine with an earlier one."""
    earlier = read_report(_written(content, folder / "r.json"))
    report = _sound_report().model_copy(update={"machine": earlier.machine})
    baseline.missing_rows(report, earlier)
    changes = baseline.compare_reports(report, earlier, 0.1)
    for change in changes:
        baseline.format_change(change)
    baseline.raise_if_slower(changes, 0.1)


def _manifest(content: bytes, folder: Path) -> None:
    """Read a manifest with the right digest, where it can have one."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        content = text_with_digest(json.loads(content)).encode()
    path = _written(b"", folder / "a.onnx")
    manifest_path(path).write_bytes(content)
    artifact = read_artifact(path)
    _each(
        lambda: _facts_used(artifact.facts),
        lambda: artifact.int8_share,
        lambda: requested_budget(artifact),
        lambda: artifact.facts.model == DEMO or _source_of(artifact.facts),  # which hashes 2 MB
        lambda: format_certificate(path, read_certificate(artifact)),
    )


def _facts_used(facts: Facts) -> None:
    """Take all that a command takes of facts."""
    assert facts.picture
    assert facts.readable()
    assert facts.credits()
    assert facts.profile is None or min(facts.profile) >= 0
    assert isinstance(facts.weights.variant, str)


def _source_of(facts: Facts) -> None:
    from u2export.network.weights import source_of  # with PyTorch

    source_of(facts)


def _embedded_facts(content: bytes, folder: Path) -> None:
    _facts_used(parse_facts(content.decode("utf-8", "replace"), folder / "a.onnx"))


@functools.cache
def _int8_facts() -> Facts:
    manifest = json.loads((DATA / "exported" / f"{DEMO}-int8-64.onnx.json").read_bytes())
    return parse_facts(json.dumps(manifest["facts"]), Path("a.onnx"))


def _int8_record(content: bytes, folder: Path) -> None:
    facts = _int8_facts()
    build = {QUANTIZATION_KEY: content.decode("utf-8", "replace")}
    artifact = Artifact(folder / "a.onnx", "onnx", facts.model_copy(update={"build": build}))
    assert facts.quantization
    requested_budget(artifact)
    format_text(read_int8_record(artifact), facts.quantization)


SOUND_QUALITY = MaskQuality(in_float=0, mask_iou=1, worst_iou=1, mask_mae=0)


def _search_cache(content: bytes, folder: Path) -> None:
    """Put the bytes into the place of an entry; a search computes what it cannot read."""
    SearchCache([], folder).get_or_compute(b"graph", lambda: SOUND_QUALITY)
    (entry,) = folder.glob("*.json")
    entry.write_bytes(content)
    found = SearchCache([], folder).get_or_compute(b"graph", lambda: SOUND_QUALITY)
    assert isinstance(found.description, str)


def _pins(content: bytes, folder: Path) -> None:
    from u2export.network.pins import expected_sha256, model_with_hash

    (folder / "weights").mkdir()
    _written(content, folder / "weights" / "pins.json")
    _each(lambda: model_with_hash("0" * 64), lambda: expected_sha256(MODELS["u2net_portrait"]))


def _known_weights(content: bytes, folder: Path) -> None:
    """Read the note that tells where somebody's own weights lie."""
    facts = _int8_facts()
    custom = facts.weights.model_copy(update={"origin": "custom", "sha256": "0" * 64})
    note = folder / "weights" / "known" / custom.sha256
    note.parent.mkdir(parents=True)
    _written(content, note)
    _source_of(facts.model_copy(update={"weights": custom}))


def _weights(content: bytes, folder: Path) -> None:
    from u2export.network.containers import read_state  # with PyTorch

    read_state(_written(content, folder / "w.pth"), lambda told: None)


def _safetensors(content: bytes, folder: Path) -> None:
    path = _written(_with_digest(content, DIGEST_PREFIX), folder / "w.safetensors")
    _each(
        lambda: _weights(content, folder),
        lambda: registry.open_artifact(path),
        lambda: registry.open_artifact(path, DEMO),
    )


def _with_digest(content: bytes, prefix: str) -> bytes:
    """Put the digest of a model file right, where it holds one."""
    zeros = blank_digest(prefix).encode()
    start = content.rfind(prefix.encode())
    if start < 0:
        return content
    blank = content[:start] + zeros + content[start + len(zeros) :]
    return blank.replace(zeros, (prefix + hashlib.sha256(blank).hexdigest()).encode())


def _onnx(content: bytes, folder: Path) -> None:
    """Read an ONNX file as one of ours and as another tool's, and open it; nothing is computed."""
    path = _written(_with_digest(content, DIGEST_PREFIX), folder / "a.onnx")
    _each(
        lambda: registry.open_artifact(path),
        lambda: registry.with_stored_precision(_foreign(path)),
        lambda: registry.open_runner(registry.open_artifact(path, DEMO), ONE_THREAD).close(),
    )


def _foreign(path: Path) -> Artifact:
    backend = {".onnx": "onnx", ".xml": "openvino"}[path.suffix]
    return Artifact(path, backend, _int8_facts(), foreign=True)


def _openvino(content: bytes, folder: Path) -> None:
    """Read an `.xml` as one of ours and as another tool's; nothing is compiled."""
    from u2export.backends.openvino.convert import OPENVINO_DIGEST_PREFIX

    _written(SMALL_WEIGHTS_FILE, folder / "a.bin")
    path = _written(_with_digest(content, OPENVINO_DIGEST_PREFIX), folder / "a.xml")
    _each(
        lambda: registry.open_artifact(path),
        lambda: registry.open_artifact(path, DEMO),
        lambda: registry.with_stored_precision(_foreign(path)),
    )


def _replay(content: bytes, folder: Path) -> None:
    from u2export.parity.replay import replay_failure

    replay_failure(_written(content, folder / "r.zip"), ONE_THREAD)


def _picture(content: bytes, folder: Path) -> None:
    """Decode a picture as `run` does, and as `parity` does."""
    path = _written(content, folder / "p.png")
    _each(lambda: _decode(path, None), lambda: _decode(path, 8), lambda: _decode_frames(path))
    [case] = user_cases([path])
    assert case.read() == content


def _decode(path: Path, min_side: int | None) -> None:
    with read_header(path, max_pixels=_MAX_PIXELS) as header:
        count_frames(header)
        decoded = decode_image(header, min_side=min_side)
    assert decoded.picture.mode in ("RGB", "RGBA")
    composite_on_white(decoded.picture)


def _decode_frames(path: Path) -> None:
    """Decode the first pictures of a file of several, and the last, as `run --frames all` does."""
    frames = frames_of(path)
    for frame in (*frames[:2], *frames[2:][-1:]):
        with contextlib.suppress(U2ExportError):
            header = read_frame_header(path, frame.number, max_pixels=_MAX_PIXELS)
            with header:
                draw_frames_before(header, frame.number)
                decode_image(header)


@functools.cache
def _segmenter() -> Segmenter:
    from u2export.inference.segmenter import Segmenter

    return Segmenter(registry.open_artifact(CORPORA / "onnx" / "ours.onnx"), ONE_THREAD)


def _run(content: bytes, folder: Path) -> None:
    """Cut the subject out of a picture of any format, with the picture's metadata."""
    path = _written(content, folder / "p.png")
    options = ImageOptions(
        Composition(cutout=True, crop=True), max_pixels=_MAX_PIXELS, hash_files=True
    )
    [result] = process_images(_segmenter(), [(path, folder / "o" / "p.png")], options)
    assert " failed: " not in result.error, result.error
    assert result.error or Path(result.output).is_file()


def _names(content: bytes, folder: Path) -> None:
    """Choose results for files of foreign names, by a foreign template."""
    template, *names = content.decode("utf-8", "surrogateescape").split("\n")
    for name in names[:_MAX_FILES]:
        with contextlib.suppress(OSError, ValueError):  # no disk takes such a name
            path = folder / "in" / _inside(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for chosen in (None, template):
        with contextlib.suppress(U2ExportError):
            paths = OutputPaths(folder / "out", "png", chosen, recursive=True)
            for _, result in paths.targets([folder / "in"]):
                assert result.is_relative_to(folder / "out")
                assert ".." not in result.parts


def _inside(name: str) -> PurePosixPath:
    """A relative path that leads nowhere else."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return PurePosixPath(*parts)


def _patterns(content: bytes, folder: Path) -> None:
    """Look for pictures by a foreign pattern."""
    for name in ("in/a.png", "in/b[1].jpg", "in/sub/.c.png", "in/sub/d.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    find_images([folder / _inside(content.decode("utf-8", "surrogateescape"))], recursive=True)


def _machine(content: bytes, folder: Path) -> None:
    """Read what the system tells of the processor, and of the container's quota."""
    (folder / "cpu").mkdir()
    cpu, _, quota = content.partition(b"\n\n")
    hardware.cpu_features(_written(cpu, folder / "cpuinfo"))
    _written(quota, folder / "cpu.max")
    hardware.usable_cpus(folder)
    first, _, second = quota.partition(b" ")
    _written(b"", folder / "cpu.max")
    _written(first, folder / "cpu/cpu.cfs_quota_us")
    _written(second, folder / "cpu/cpu.cfs_period_us")
    hardware.usable_cpus(folder)


def _frames(content: bytes, folder: Path) -> None:
    size, _, frames = content.partition(b"\n")
    width, height = parse_frame_size(size.decode("utf-8", "replace"))
    if 0 < width * height <= _MAX_PIXELS:
        list(read_frames(io.BytesIO(frames), (width, height)))


_CONTAINERS, _TORCH = ("network/containers",), ("torch",)
_READERS = (
    Reader("budgets", _budgets, ("compare/budgets",), forms.json_text, 2048),
    Reader("benchmark-reports", _benchmark_report, ("benchmark/report",), forms.json_text, 16384),
    Reader("baselines", _baseline, ("benchmark/report",), forms.json_text, 16384),
    Reader(
        "manifests",
        _manifest,
        ("core/artifact", "core/digest", "parity/certificate", "system/files"),
        forms.json_text,
        libraries=_TORCH,
    ),
    Reader("facts", _embedded_facts, ("core/facts",), forms.json_text, 4096),
    Reader("int8-records", _int8_record, ("core/int8_record",), forms.json_text),
    Reader("search-caches", _search_cache, ("quantization/search_cache",), forms.json_text, 1024),
    Reader("pins", _pins, ("network/pins",), forms.json_text, 1024, _TORCH),
    Reader("known-weights", _known_weights, ("network/weights",), largest=512, libraries=_TORCH),
    Reader("weights-zip", _weights, _CONTAINERS, forms.zip_archive, libraries=_TORCH),
    Reader("weights-pickle", _weights, _CONTAINERS, largest=4096, libraries=_TORCH),
    Reader("safetensors", _safetensors, _CONTAINERS, forms.headed_json, 4096, _TORCH),
    Reader(
        "onnx",
        _onnx,
        ("core/digest", "backends/onnx/stored"),
        forms.protobuf,
        largest=4096,
        libraries=("onnx", "onnxruntime"),
    ),
    Reader(
        "openvino",
        _openvino,
        ("core/digest", "backends/openvino/stored"),
        forms.xml_text,
        largest=16384,
        libraries=("openvino",),
    ),
    Reader(
        "replays",
        _replay,
        ("parity/replay", "parity/replay_archive"),
        forms.zip_archive,
        16384,
        ("onnxruntime",),
        1300,
    ),
    *(
        Reader(
            f"pictures-{name.lower()}",
            _picture,
            ("images/decode", "compare/probe_images"),
            forms.png if name == "PNG" else forms.any_bytes,
            memory_mb=1300 if name == "GIF" else 300,  # opening one takes a byte for each pixel
        )
        for name in PICTURE_FORMATS
    ),
    Reader("runs", _run, ("inference/process",), libraries=("onnxruntime",)),
    Reader("names", _names, largest=512),
    Reader("patterns", _patterns, largest=512),
    Reader("machine", _machine, largest=1024),
    Reader("frames", _frames, largest=1024),
)
READERS = {reader.name: reader for reader in _READERS}
