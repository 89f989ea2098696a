"""What was written is told, whatever ends the work."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from attacks.table import picture

from u2export import ray
from u2export.cli.run import _Reporter
from u2export.errors import InputError, OutputError
from u2export.images import encode
from u2export.inference import process
from u2export.inference.journal import Journal
from u2export.inference.process import ImageResult, process_images
from u2export.inference.segmenter import Segmenter, load

COUNT = 8


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[Path, Path]]:
    return [
        (picture(tmp_path / "in" / f"{n}.png"), tmp_path / "out" / f"{n}.png") for n in range(COUNT)
    ]


def _fail_at(monkeypatch, name: str, error: BaseException) -> None:
    real = encode.save_image

    def save(image, path: Path, *rest: object) -> None:
        if path.name == name:
            raise error
        real(image, path, *rest)

    monkeypatch.setattr(encode, "save_image", save)


def _written(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "out").glob("*.png")}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_full_disk(workers: int, batch: int, quick, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "batch", batch)
    _fail_at(monkeypatch, "4.png", OutputError("full"))
    told = []
    with load(quick, at_once=workers, threads=2) as segment:
        assert segment.workers == workers
        names = (Path(result.output).name for result in process_images(segment, pairs))
        with pytest.raises(OutputError, match="full"):
            told.extend(names)
    assert set(told) == _written(tmp_path)
    if workers == 1:  # several may find the disk full before an earlier batch is written
        assert {"0.png", "1.png", "2.png", "3.png"} <= set(told)
    assert len(told) == len(set(told)) < COUNT


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_caller_that_stops(workers: int, batch: int, quick, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "batch", batch)
    unclaimed: list[list[ImageResult]] = []
    with load(quick, at_once=workers, threads=2) as segment:
        results = process_images(segment, pairs, unclaimed=unclaimed)
        told = [next(results)]
        results.close()
    told += [result for batch_of in unclaimed for result in batch_of]
    assert {Path(result.output).name for result in told} == _written(tmp_path)
    assert len(told) == len(_written(tmp_path))


def test_a_signal_in_the_middle_of_a_batch(quick, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "batch", COUNT)
    _fail_at(monkeypatch, "5.png", SystemExit(143))
    unclaimed: list[list[ImageResult]] = []
    with load(quick, threads=1) as segment, pytest.raises(SystemExit):
        list(process_images(segment, pairs, unclaimed=unclaimed))
    assert [Path(result.output).name for [*batch] in unclaimed for result in batch] == [
        f"{n}.png" for n in range(5)
    ]
    assert len(_written(tmp_path)) == 5


def test_rays_results_keep_to_their_pictures(pairs, monkeypatch):
    """A picture that a full disk hit is left out of what `process_images` gives."""

    def half(segmenter, local, options):
        for picture_path, output in (local[0], local[2]):
            yield ImageResult(picture_path, output, sha256=picture_path.name)
        raise OutputError("full")

    monkeypatch.setattr(ray, "process_images", half)
    actor = ray._ImageActor.__new__(ray._ImageActor)
    actor._segmenter = actor._options = None
    texts = [ray._Pair(str(one), str(other)) for one, other in pairs[:4]]
    rows = actor._process(texts, Path("unused"))
    assert [row["picture"] for row in rows] == [one for one, *_ in texts]
    assert [row["sha256"] for row in rows] == ["0.png", "", "2.png", ""]
    assert [row["fatal"] for row in rows] == ["", "full", "", "full"]
    with pytest.raises(OutputError, match="full"):
        ray._result_from_row(rows[1])
    with pytest.raises(InputError, match="else"):
        ray._result_from_row(ray._result_row(texts[0], ImageResult("", ""), InputError("else")))


def test_a_log_that_fails_hides_no_result(capsys):
    def full(result: ImageResult) -> None:
        raise OutputError("the log is full")

    stdout = io.StringIO()
    reporter = _Reporter(SimpleNamespace(add=full), stdout, watching=False)
    with pytest.raises(OutputError):
        reporter.tell(ImageResult("a", "o/a"))
    reporter.tell(ImageResult("b", "o/b"))
    reporter.tell(ImageResult("c", "o/c", error="c is broken"))
    assert stdout.getvalue() == "o/a\no/b\n"
    assert "c is broken" in capsys.readouterr().err


def test_a_disk_that_takes_a_part_of_a_line_gets_the_rest(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"x")
    journal = Journal(tmp_path / "l.jsonl", tmp_path / "a.onnx")
    taken = bytearray()

    def write(content: memoryview) -> int:
        taken.extend(content[:7])
        return min(7, len(content))

    journal._file.close()
    journal._file = SimpleNamespace(write=write, close=lambda: None)
    journal.add(ImageResult("a", "o/a"))
    assert json.loads(taken)["picture"] == "a"
    assert taken.endswith(b"}\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "3.png needs more memory than there is"),
        (IndexError("no\nsuch"), "3.png failed: IndexError: no"),
        (RecursionError(), "3.png failed: RecursionError: RecursionError"),
    ],
)
@pytest.mark.parametrize("step", ["preprocess", "compose", "stretch_saliency"])
def test_whatever_goes_wrong_with_one_picture_is_its_own(
    step: str, error: Exception, sentence: str, quick, pairs, monkeypatch
):
    real, calls = getattr(process, step), iter(range(100))

    def fail_once(*values: object) -> object:
        if next(calls) == 3:
            raise error
        return real(*values)

    monkeypatch.setattr(process, step, fail_once)
    with load(quick, threads=1) as segment:
        results = list(process_images(segment, pairs))
    assert [bool(result.error) for result in results] == [n == 3 for n in range(COUNT)]
    assert results[3].error.endswith(sentence)
