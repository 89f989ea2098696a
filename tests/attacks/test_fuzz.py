"""Random bytes and random changes for every reader of foreign bytes.

Nothing but an error of ours may come of them.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.table import SMALL_PICTURE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from u2export.benchmark.report import read_report
from u2export.compare.budgets import read_budgets
from u2export.core.artifact import read_artifact
from u2export.core.enums import Architecture
from u2export.core.facts import parse_facts
from u2export.errors import U2ExportError
from u2export.images.decode import as_image, open_image
from u2export.images.inputs import InputImage
from u2export.images.outputs import choose_output_paths
from u2export.network import checkpoint
from u2export.network.containers import read_state
from u2export.parity.certificate import read_certificate
from u2export.parity.replay import replay_failure

DATA = Path(__file__).parents[1] / "compatibility" / "data"
FUZZED = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "0" * 64, "fp32", "1e999", "int8"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(document: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where values lie in a document of JSON."""
    pairs = (
        list(document.items())
        if isinstance(document, dict)
        else list(enumerate(document))
        if isinstance(document, list)
        else []
    )
    deeper = [place for key, value in pairs for place in _places(value, (*at, key))]
    return [*((*at, key) for key, _ in pairs), *deeper]


@st.composite
def changed_json(draw: st.DrawFn, text: str) -> str:
    """A document of JSON with one to three values replaced."""
    document = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        target = document
        for key in above:
            target = target[key]
        target[last] = draw(VALUES)
    return json.dumps(document)


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with some bytes replaced, and perhaps cut."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return (
        bytes(changed[: draw(st.integers(0, len(changed)))])
        if draw(st.booleans())
        else bytes(changed)
    )


def _only_our_errors(read: Callable[[], object]) -> None:
    with contextlib.suppress(U2ExportError):
        read()


BUDGETS = '{"fp32": {"mask_mae": 0.1, "raw_max": null}, "int8": {"worst_iou": 0.5}}'


@FUZZED
@given(st.binary(max_size=60) | changed_json(BUDGETS).map(str.encode))
def test_budgets(tmp_path: Path, content: bytes):
    (tmp_path / "b.json").write_bytes(content)
    _only_our_errors(lambda: read_budgets(tmp_path / "b.json"))


@FUZZED
@given(changed_json((DATA / "bench.json").read_text("utf-8")))
def test_benchmark_reports(tmp_path: Path, text: str):
    (tmp_path / "b.json").write_text(text, "utf-8")
    _only_our_errors(lambda: read_report(tmp_path / "b.json"))


MANIFEST = (DATA / "exported" / "u2netp-demo-fp32.onnx.json").read_text("utf-8")


@FUZZED
@given(changed_json(MANIFEST))
def test_manifests_and_certificates(tmp_path: Path, text: str):
    from u2export.core.digest import text_with_digest

    with contextlib.suppress(ValueError, TypeError, AttributeError):  # it can have no digest
        text = text_with_digest(json.loads(text))
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "a.onnx.json").write_text(text, "utf-8", "surrogatepass")
    _only_our_errors(lambda: read_certificate(read_artifact(tmp_path / "a.onnx")))


@FUZZED
@given(changed_json(json.dumps(json.loads(MANIFEST)["facts"])) | st.text(max_size=30))
def test_facts(text: str):
    _only_our_errors(lambda: parse_facts(text, Path("a.onnx")).picture)


def _encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    SMALL_PICTURE.save(file, kind, **options)
    return file.getvalue()


PICTURES = {
    kind: _encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA")
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PICTURES)
@FUZZED
@given(st.data())
def test_pictures(tmp_path: Path, kind: str, data: st.DataObject):
    path = tmp_path / "p.png"
    path.write_bytes(data.draw(changed_bytes(PICTURES[kind])))
    _only_our_errors(lambda: open_image(path, max_pixels=1_000_000))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    state = checkpoint.random_state(Architecture.SMALL, 1)
    few = {name: state[name] for name in list(state)[:4]}
    torch.save(few, folder / "zip.pth")
    torch.save(few, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(few, folder / "w.safetensors")
    return {path.suffix + path.stem: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [".pthzip", ".pthold", ".safetensorsw"])
@FUZZED
@given(st.data())
def test_weights(tmp_path: Path, saved: dict[str, bytes], kind: str, data: st.DataObject):
    content, path = saved[kind], tmp_path / "w.pth"
    # most of a file is values, and a change there is no damage: aim at both ends
    end = data.draw(st.sampled_from([600, len(content)]))
    head = data.draw(changed_bytes(content[:end]))
    path.write_bytes(head + content[end:])
    _only_our_errors(lambda: read_state(path, lambda told: None))


@pytest.mark.filterwarnings("ignore")
@settings(FUZZED, max_examples=40)
@given(changed_bytes((DATA / "u2netp-demo-int8-64.onnx.replay.zip").read_bytes()))
def test_replay_files(tmp_path: Path, content: bytes):
    (tmp_path / "r.zip").write_bytes(content)
    from u2export.parity import replay

    _only_our_errors(lambda: replay._read_replay(tmp_path / "r.zip", _empty(tmp_path / "f")))
    assert replay_failure  # the reader is its first step


def _empty(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


TEMPLATES = st.text(st.sampled_from("{}stemnafoldrix.:!0/\\ %[]-"), max_size=20)


@FUZZED
@given(TEMPLATES | st.text(max_size=12), st.text(min_size=1, max_size=10))
def test_templates_of_names(template: str, name: str):
    images = [InputImage(Path(name), Path("sub"))]

    def choose() -> None:
        [result] = choose_output_paths(images, Path("out"), "png", template).values()
        assert result.is_relative_to("out")
        assert ".." not in result.parts

    _only_our_errors(choose)


@FUZZED
@given(VALUES | st.binary(max_size=5))
def test_what_is_handed_over_as_a_picture(value: object):
    if not isinstance(value, str):
        _only_our_errors(lambda: as_image(value))
