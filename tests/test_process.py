"""Folders of pictures: what is written, what overlaps, and what happens when things break."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import signal
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import POSIX
from overlap import Overlap
from PIL import Image

from u2export.core import registry
from u2export.core.backend import Runner
from u2export.core.enums import Format, Resize, Stage
from u2export.core.execution import Execution
from u2export.core.models import MODELS
from u2export.core.requests import RunRequest
from u2export.errors import ExportError, InputError
from u2export.images import webp
from u2export.images.compose import Composition
from u2export.images.decode import decode_image, open_image, read_header
from u2export.images.encode import Encoding
from u2export.images.postprocess import stretch_saliency
from u2export.images.preprocess import min_decode_side, preprocess
from u2export.images.synthetic import draw_image
from u2export.inference import process
from u2export.inference.process import ImageOptions, process_images
from u2export.inference.segmenter import Segmenter, load

PHOTO = draw_image(1_000_500, (400, 300))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve small JPEGs."""
    place = tmp_path / "in"
    place.mkdir()
    for n in range(12):
        draw_image(1_000_500 + n, (80 + n, 60)).picture.save(place / f"{n:02}.jpg", quality=90)
    return place


class Bright(Runner):
    """Finds bright pixels; each of its calls takes so long, and it notes what overlaps."""

    def __init__(self, batch: int | None = None, seconds: float = 0.0) -> None:
        super().__init__(32, batch)
        self.seconds, self.noted = seconds, Overlap()

    def _infer(self, x: np.ndarray) -> np.ndarray:
        self.noted.wait(self.seconds)
        return np.clip(x.mean(axis=1, keepdims=True) / 5 + 0.5, 0, 1)

    def _executed(self) -> Execution:
        raise NotImplementedError

    def _release(self) -> None:
        pass


@pytest.fixture
def opened(quick: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a segmenter around a runner of ours."""

    def make(runner: Runner, *, at_once: int = 2, threads: int = 2) -> Segmenter:
        monkeypatch.setattr(registry, "open_runner", lambda *_, **__: runner)
        artifact = registry.open_artifact(quick).with_facts(size=32)
        return Segmenter(artifact, RunRequest(threads=threads, streams=at_once))

    return make


def _pairs(folder: Path, out: Path) -> list[tuple[Path, Path]]:
    return [(path, out / f"{path.stem}.png") for path in sorted(folder.iterdir())]


def test_more_pictures_than_any_machine_has_threads_are_no_mistake(quick: Path):
    with load(quick, at_once=100_000, threads=2) as segment:
        assert segment.workers == 2


def test_many_pictures_give_what_each_gives_alone(quick: Path, folder: Path, tmp_path: Path):
    pairs = _pairs(folder, tmp_path / "out")
    with load(quick, at_once=2, threads=2) as segment:
        assert segment.streams == 2
        done = list(process_images(segment, pairs))
    assert [(one.picture, one.output) for one in done] == pairs
    with load(quick, threads=1) as segment:
        for picture, result in pairs:
            alone = np.asarray(segment(Image.open(picture))).astype(int)
            assert np.abs(alone - np.asarray(Image.open(result))).max() <= 1


def test_stages_overlap_and_calls_do_as_far_as_the_runtime_can(opened, folder: Path, tmp_path):
    runner = Bright(seconds=0.05)
    with opened(runner) as segment:
        done = list(process_images(segment, _pairs(folder, tmp_path / "out")))
    assert runner.noted.most == 2
    assert all(set(one.ms) == set(Stage) for one in done)
    assert all(one.ms["infer"] >= 50 for one in done)


def test_a_runtime_that_takes_one_call_gets_one(opened, folder: Path, tmp_path, monkeypatch):
    runner = Bright(seconds=0.02)
    alone = dataclasses.replace(registry.load("onnx"), run_options=())
    monkeypatch.setattr(registry, "load", lambda _: alone)
    with opened(runner) as segment:
        assert segment.workers == 2
        assert len(list(process_images(segment, _pairs(folder, tmp_path / "out")))) == 12
    assert runner.noted.most == 1


def test_a_file_of_a_fixed_batch_gets_full_calls(opened, folder: Path, tmp_path: Path):
    (folder / "05.jpg").write_bytes(b"broken")
    runner = Bright(batch=4)
    with opened(runner) as segment:
        done = list(process_images(segment, _pairs(folder, tmp_path / "out")))
    assert runner.noted.calls == 3  # of 12 pictures
    assert [bool(one.error) for one in done] == [n == 5 for n in range(12)]
    single = Bright()
    with opened(single) as segment:
        assert not [d for d in process_images(segment, _pairs(folder, tmp_path / "b")) if d.error][
            1:
        ]
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_stage_times_of_one_thread_add_up_to_the_wall_time(quick: Path, tmp_path: Path):
    place = tmp_path / "in"
    place.mkdir()
    for n in range(6):
        draw_image(1_000_500 + n, (1200, 900)).picture.save(place / f"{n}.jpg")
    with load(quick, threads=1) as segment:
        list(process_images(segment, _pairs(place, tmp_path / "warm")))
        begun = time.perf_counter()
        done = list(process_images(segment, _pairs(place, tmp_path / "out")))
        wall = 1e3 * (time.perf_counter() - begun)
    assert sum(sum(one.ms.values()) for one in done) == pytest.approx(wall, rel=0.05)


def test_no_more_pixels_are_in_memory_than_there_is_room(opened, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "MAX_PIXELS_IN_MEMORY", 6000)  # of one picture
    runner = Bright(seconds=0.01)
    with opened(runner) as segment:
        assert len(list(process_images(segment, _pairs(folder, tmp_path / "out")))) == 12
    assert runner.noted.most == 1


def test_a_runtime_that_fails_fails_that_picture_only(opened, folder: Path, tmp_path: Path):
    class Failing(Bright):
        def _infer(self, x: np.ndarray) -> np.ndarray:
            y = super()._infer(x)
            if self.noted.calls == 3:
                raise ExportError("the runtime failed: out of memory")
            return y * np.nan if self.noted.calls == 5 else y

    with opened(Failing(), threads=1) as segment:
        done = list(process_images(segment, _pairs(folder, tmp_path / "out")))
    assert [n for n, one in enumerate(done) if one.error] == [2, 4]
    assert "out of memory" in done[2].error
    assert "NaN" in done[4].error
    assert len(list((tmp_path / "out").iterdir())) == 10


def test_a_picture_that_changes_while_it_is_read_is_an_error(opened, folder, tmp_path, monkeypatch):
    real = decode_image

    def slow(header: Image.Image, **options: object) -> Image.Image:
        if Path(header.fp.name).stem == "03":
            with (folder / "03.jpg").open("ab") as file:
                file.write(b"more")
        if Path(header.fp.name).stem == "04":  # replaced, as a whole: what was opened is read
            (folder / "05.jpg").rename(folder / "04.jpg")
        return real(header, **options)

    monkeypatch.setattr(process, "decode_image", slow)
    pairs = [p for p in _pairs(folder, tmp_path / "out") if p[0].stem != "05"]
    with opened(Bright(), threads=1) as segment:
        done = list(process_images(segment, pairs))
    assert [one.picture.stem for one in done if one.error] == ["03"]
    assert done[3].error.endswith("03.jpg was changed while it was read")


# --- reduced decoding ---------------------------------------------------------------------------

REDUCED_BOUND = 0.004  # mean difference of masks; drawn pictures differ by 0.0005 at most


@pytest.mark.parametrize("resize", [r for r in Resize if r is not Resize.AUTHORS])
def test_reduced_decoding_stays_close_to_all_of_it(fp32, resize: Resize, tmp_path: Path):
    for seed in (1_000_501, 1_000_502):
        draw_image(seed, (2600, 1900)).picture.save(tmp_path / f"{seed}.jpg", quality=92)
    with Segmenter(fp32, resize=resize) as segment:
        for path in sorted(tmp_path.glob("*.jpg")):
            header = read_header(path)
            reduced, size = decode_image(header, min_side=min_decode_side(segment.spec))
            assert size == (2600, 1900)
            assert min(reduced.size) < 1900  # something was saved
            few = segment.saliency(preprocess(reduced, segment.spec))[0]
            all_ = segment.saliency(preprocess(open_image(path), segment.spec))[0]
            masks = [stretch_saliency(y, segment.spec) for y in (few, all_)]
            assert np.abs(masks[0] - masks[1]).mean() < REDUCED_BOUND


def test_the_authors_resize_takes_all_pixels_and_a_reduced_mask_has_full_size(
    quick: Path, tmp_path: Path
):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "a.jpg"
    draw_image(1_000_503, (1600, 1200)).picture.save(path, exif=exif)
    for resize, least in ((Resize.AUTHORS, None), (Resize.LANCZOS, 128)):
        with Segmenter(registry.open_artifact(quick), resize=resize) as segment:
            assert min_decode_side(segment.spec) == least
            (done,) = process_images(segment, [(path, tmp_path / "m.png")])
        assert done.size == (1200, 1600)
        with Image.open(tmp_path / "m.png") as found:
            assert found.size == (1200, 1600)


# --- the command --------------------------------------------------------------------------------


def test_the_command_makes_what_its_options_say(command, quick: Path, folder: Path, tmp_path):
    words = ["run", quick, folder, "--out", "o", "--background", "#204080", "--crop", "--format"]
    done = command(*words, "jpg", "--quality", "80", "--name", "{stem}_on_blue.{ext}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"o/{n:02}_on_blue.jpg" for n in range(12)]
    with Image.open(tmp_path / "o/00_on_blue.jpg") as found:
        assert (found.format, found.mode) == ("JPEG", "RGB")
    refined = command("run", quick, folder, "--cutout", "--refine", "guided", "--post-process")
    assert refined.returncode == 0, refined.stderr
    with Image.open(tmp_path / "cutouts/00.png") as found:
        assert found.mode == "RGBA"


def test_a_picture_goes_through_a_pipe(quick: Path, folder: Path, tmp_path: Path):
    content = (folder / "00.jpg").read_bytes()
    words = [sys.executable, "-m", "u2export", "run", str(quick), "-"]
    piped = subprocess.run(words, input=content, capture_output=True, check=True, cwd=tmp_path)
    with Image.open(io.BytesIO(piped.stdout)) as found, load(quick) as segment:
        assert (found.format, found.size) == ("PNG", (80, 60))
        np.testing.assert_array_equal(
            np.asarray(found), np.asarray(segment(Image.open(folder / "00.jpg")))
        )
    assert piped.stderr == b""
    broken = subprocess.run(words, input=b"no", capture_output=True, check=False, cwd=tmp_path)
    assert broken.returncode == 7
    assert broken.stdout == b""
    assert b"standard input cannot be read as a picture" in broken.stderr


def test_the_log_has_a_line_for_each_picture(command, quick: Path, folder: Path, tmp_path: Path):
    import hashlib

    (folder / "03.jpg").write_bytes(b"broken")
    assert command("run", quick, folder, "--log", "run.jsonl").returncode == 7
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    first, third = lines[0], lines[3]
    assert first["sha256"] == hashlib.sha256((folder / "00.jpg").read_bytes()).hexdigest()
    assert first["artifact_sha256"] == hashlib.sha256(quick.read_bytes()).hexdigest()
    assert (first["width"], first["height"], first["error"]) == (80, 60, None)
    assert set(first["ms"]) == set(Stage)
    assert third["result"] is None
    assert "03.jpg cannot be read as a picture" in third["error"]
    command("run", quick, folder, "--log", "run.jsonl")
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 24  # nothing is lost


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cutout", "--format", "jpg"], "JPEG has no transparency"),
        (["--refine", "magic"], "refine must be one of plain, guided, matting, got 'magic'"),
        (["--background", "nothing"], "neither a colour"),
        (["--out", "in/00.jpg/x"], "00.jpg is no folder"),
        (["--log", "in"], "it is a folder"),
        (["--name", "{what}"], "not of 'what'"),
        (["--threshold", "2"], "a threshold must be"),
    ],
)
def test_what_makes_no_sense_is_status_2_before_any_work(command, quick, folder, words, sentence):
    done = command("run", quick, folder, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_a_drawing_has_no_subject_to_cut_out(opened, folder: Path, tmp_path: Path):
    portrait = MODELS["u2net_portrait"]
    with opened(Bright()) as segment:
        segment.artifact = segment.artifact.with_facts(task=portrait.task)
        pairs = _pairs(folder, tmp_path / "out")
        with pytest.raises(InputError, match="a drawing"):
            next(process_images(segment, pairs, ImageOptions(composition=Composition(cutout=True))))
        assert not next(process_images(segment, pairs)).error


def test_a_watched_folder_is_served_until_it_is_interrupted(quick, folder, tmp_path):
    words = [sys.executable, "-m", "u2export", "run", str(quick), str(folder), "--watch"]

    def interruptible() -> None:  # even where the tests run in a shell's background
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        [*words, "--out", "o"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible,
    ) as process:  # fmt: skip
        assert [process.stdout.readline() for _ in range(12)] == [
            f"o/{n:02}.png\n" for n in range(12)
        ]
        (folder / "00.jpg").rename(folder / "new.jpg")
        assert process.stdout.readline() == "o/new.png\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


# --- faults -------------------------------------------------------------------------------------


def _encoded(fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PHOTO.picture.resize((64, 48)).save(buffer, fmt, **options)
    return buffer.getvalue()


def _broken() -> dict[str, bytes | None]:
    """Ten ways for a file not to be a picture; None is a link to nothing."""
    jpeg, png, webp, tiff = (_encoded(f) for f in ("JPEG", "PNG", "WEBP", "TIFF"))
    huge = bytearray(png)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height of its header
    spoilt = bytearray(png)
    spoilt[60:90] = bytes(30)
    return {
        "empty.jpg": b"",
        "text.jpg": b"this is no picture\n" * 20,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "header.png": png[:8],
        "cut.webp": webp[: len(webp) // 2],
        "cut.tif": tiff[: len(tiff) // 3],
        "huge.png": bytes(huge),
        "spoilt.png": bytes(spoilt),
        "gone.jpg": None,
    }


def test_of_a_thousand_files_a_hundred_broken_ones_are_named(command, quick, tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    good = [("jpg", _encoded("JPEG")), ("png", _encoded("PNG")), ("webp", _encoded("WEBP"))]
    for n in range(900):
        ending, content = good[n % 3]
        (place / f"good{n}.{ending}").write_bytes(content)
    for n in range(10):
        for name, content in _broken().items():
            path = place / f"bad{n}{name}"
            path.symlink_to("nowhere") if content is None else path.write_bytes(content)
    done = command("run", quick, place, "--out", "out")
    assert done.returncode == 7
    results = sorted((tmp_path / "out").iterdir())
    assert len(results) == len(done.stdout.splitlines()) == 900
    assert {path.stem[:4] for path in results} == {"good"}
    errors = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert len([line for line in errors if line.startswith("u2export: error: ")]) == 101
    for n in range(10):
        for name in _broken():
            assert sum(f"bad{n}{name} " in f"{line} " for line in errors[:-1]) == 1
    assert errors[-1].startswith("u2export: error: 100 of 1000 pictures failed (")
    assert errors[-1].endswith("and 95 more); the rest were written")


def _whole(folder: Path) -> int:
    """How many results there are; all can be read to their end."""
    for path in folder.glob("*.png"):
        with Image.open(path) as found:
            found.load()
    return len(list(folder.glob("*.png")))


def test_a_run_that_is_killed_goes_on_and_leaves_nothing_half_written(quick, tmp_path):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    for n in range(40):
        draw_image(1_000_500, (640, 480)).picture.save(place / f"{n}.jpg")
    words = [sys.executable, "-m", "u2export", "run", str(quick), str(place), "--out", str(out)]
    rng = random.Random()
    for _ in range(4):
        with subprocess.Popen(
            [*words, "--skip-existing"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            for _ in range(rng.randint(1, 6)):
                process.stdout.readline()
            time.sleep(rng.random() / 50)
            process.kill()
        assert _whole(out) < 40  # it was killed at work
    subprocess.run([*words, "--skip-existing"], check=True, capture_output=True)
    assert _whole(out) == 40
    assert len(list(out.iterdir())) == 40  # hidden files too


def test_two_runs_into_one_folder_leave_whole_results(quick: Path, folder: Path, tmp_path: Path):
    words = [sys.executable, "-m", "u2export", "run", str(quick), str(folder), "--out", "o"]
    both = [
        subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [(p.wait(60), p.stderr.read()) for p in both] == [(0, b"")] * 2
    for child in both:
        child.stderr.close()
    assert _whole(tmp_path / "o") == len(list((tmp_path / "o").iterdir())) == 12


@POSIX
def test_a_full_disk_ends_the_run_and_leaves_whole_results(quick: Path, tmp_path: Path):
    place = tmp_path / "in"
    place.mkdir()
    draw_image(1_000_500, (64, 48)).picture.save(place / "a.jpg")
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(place / "b.jpg")

    def limit() -> None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "u2export", "run", str(quick), str(place), "--background", "white",
         "--out", "o"],
        preexec_fn=limit, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "b.png could not be written: File too large" in done.stderr
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["a.png"]


def test_three_hundred_megapixels_are_refused_or_done_in_bounded_memory(quick, tmp_path):
    Image.new("RGB", (20_000, 15_000), (90, 120, 60)).save(tmp_path / "a.jpg", quality=50)
    code = (
        "import sys; from u2export.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    words = [sys.executable, "-c", code, "run", str(quick), "a.jpg"]
    refused = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert refused.stdout.splitlines()[0] == "7"
    assert "300.0 million pixels" in refused.stderr
    allowed = subprocess.run(
        [*words, "--max-pixels", "300000000"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    status, peak = allowed.stdout.splitlines()[-2:]
    assert status == "0"
    header = (tmp_path / "masks/a.png").read_bytes()[:24]
    assert struct.unpack(">II", header[16:]) == (20_000, 15_000)
    # Pillow keeps 4 bytes for a pixel of RGB, the mask is 1; and 350 MB for all else
    assert int(peak) * 1024 < 5 * 300e6 + 350e6


def test_results_that_cannot_be_encoded_are_errors_of_their_own(opened, tmp_path: Path):
    Image.new("RGB", (16_400, 4), (9, 90, 200)).save(tmp_path / "wide.png")
    PHOTO.picture.save(tmp_path / "fine.png")
    pairs = [(tmp_path / f"{n}.png", tmp_path / f"{n}.webp") for n in ("wide", "fine")]
    with opened(Bright()) as segment:
        done = list(process_images(segment, pairs, ImageOptions(encoding=Encoding(Format.WEBP))))
    assert "more than webp's 16383 a side" in done[0].error
    assert not done[1].error
    assert [path.name for path in tmp_path.glob("*.webp")] == ["fine.webp"]


def _webp(folder: Path, out: Path) -> list[tuple[Path, Path]]:
    return [(picture, result.with_suffix(".webp")) for picture, result in _pairs(folder, out)]


CUTOUTS = ImageOptions(Composition(cutout=True), Encoding(Format.WEBP))


@pytest.mark.parametrize(("threads", "half"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_half_of_the_threads_compress_webp_at_once(
    threads: int, half: int, opened, folder, tmp_path, monkeypatch
):
    noted, real = Overlap(), webp._encode_lossy

    def slowly(image: Image.Image, **options: object) -> bytes:
        noted.wait(0.03)
        return real(image, **options)

    monkeypatch.setattr(webp, "_encode_lossy", slowly)
    with opened(Bright(), at_once=threads, threads=threads) as segment:
        done = list(process_images(segment, _webp(folder, tmp_path / "out"), CUTOUTS))
    assert [one.error for one in done] == 12 * [""]
    assert noted.most == half


def test_neither_picture_nor_cutout_is_kept_while_webp_is_compressed(
    opened, folder, tmp_path, monkeypatch
):
    made: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def finished(*given):
        result = real(*given)
        made.extend([weakref.ref(given[-1]), weakref.ref(result)])
        return result

    def encoded(image: Image.Image, **options: object) -> bytes:
        alive.append(sum(one() is not None for one in made))
        return encode(image, **options)

    real, encode = process.compose, webp._encode_lossy
    monkeypatch.setattr(process, "compose", finished)
    monkeypatch.setattr(webp, "_encode_lossy", encoded)
    with opened(Bright(), at_once=1, threads=1) as segment:
        list(process_images(segment, _webp(folder, tmp_path / "out"), CUTOUTS))
    assert len(made) == 24
    assert alive == 12 * [0]
