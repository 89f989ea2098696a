"""Files of several pictures: every frame a picture of its own, in memory one at a time."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2export.cli.run import _Reporter
from u2export.core.enums import Frames
from u2export.errors import InputError
from u2export.images import frames, inputs
from u2export.images.compose import Composition
from u2export.images.decode import decode_image
from u2export.images.frames import (
    Frame,
    count_frames,
    draw_frames_before,
    frames_of,
    read_frame_header,
)
from u2export.images.outputs import OutputPaths
from u2export.inference.process import ImageOptions, ImageResult, process_images
from u2export.inference.segmenter import load
from u2export.ray import _ImageActor

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
SIZE = (64, 48)
LOSSLESS = {"a.gif": {}, "a.webp": {"lossless": True}, "a.apng": {}, "a.tif": {}}


def _drawn(number: int) -> Image.Image:
    """A ground of a frame's own colour, and a white square that is nowhere else."""
    image = Image.new("RGB", SIZE, COLOURS[number])
    image.paste((255, 255, 255), (10 * number, 8, 10 * number + 12, 28))
    return image


def _saved(path: Path, count: int = 3, **options: object) -> Path:
    first, *others = map(_drawn, range(count))
    first.save(path, save_all=True, append_images=others, **options)
    return path


def _decoded(path: Path, number: int, **options: int) -> Image.Image:
    header = read_frame_header(path, number, **options)
    draw_frames_before(header, number)
    return decode_image(header).picture


# --- frames of a file ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_frame_is_what_was_drawn(name: str, tmp_path: Path):
    path = _saved(tmp_path / name, 4, **LOSSLESS[name])
    assert frames_of(path) == [Frame(path, number) for number in (1, 2, 3, 4)]
    for number in (4, 1, 3, 2):  # each for itself
        found = np.asarray(_decoded(path, number).convert("RGB"))
        assert np.array_equal(found, np.asarray(_drawn(number - 1)))


# What becomes of a frame before the next one. Source: GIF89a, section 23; PNG, third edition, fcTL.
STAYS, IS_CLEARED, IS_TAKEN_BACK = 1, 2, 3


@pytest.mark.parametrize("fate", [STAYS, IS_CLEARED, IS_TAKEN_BACK])
@pytest.mark.parametrize("name", ["a.gif", "a.apng"])
def test_frames_are_drawn_over_each_other_as_the_formats_say(name: str, fate: int, tmp_path: Path):
    spots, drawn = [], Image.new("RGBA", SIZE)
    for number, colour in enumerate(COLOURS):
        spots.append(Image.new("RGBA", SIZE))
        spots[-1].paste((*colour, 255), (10 * number, 5, 10 * number + 20, 30))
    options = {"disposal": fate} if name == "a.gif" else {"disposal": fate - 1, "blend": 1}
    path = tmp_path / name
    spots[0].save(path, save_all=True, append_images=spots[1:], **options)
    for number, spot in enumerate(spots, 1):
        drawn = Image.alpha_composite(drawn, spot) if fate == STAYS else spot
        found = np.asarray(_decoded(path, number).convert("RGBA"))
        expected = np.asarray(drawn)
        assert np.array_equal(found[..., 3], expected[..., 3])
        assert np.array_equal(found * (found[..., 3:] > 0), expected)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "a.tif", "a.avif"])
def test_a_frame_is_what_pillow_finds_there(name: str, tmp_path: Path):
    path = _saved(tmp_path / name, 4)
    for number in (1, 2, 3, 4):
        with Image.open(path) as file:
            file.seek(number - 1)
            expected = np.asarray(file.convert("RGB"))
        assert np.array_equal(np.asarray(_decoded(path, number).convert("RGB")), expected)


def test_a_file_of_one_picture_has_no_frames(tmp_path: Path):
    (tmp_path / "text.gif").write_text("no picture")
    _drawn(0).save(tmp_path / "a.png")
    _drawn(0).save(tmp_path / "a.gif")
    names = ("a.png", "a.gif", "text.gif", "absent.gif")
    assert [frames_of(tmp_path / name) for name in names] == [[]] * 4


def test_the_content_says_what_a_file_holds_and_not_its_name(tmp_path: Path):
    path = _saved(tmp_path / "a.gif").rename(tmp_path / "a.jpg")
    assert len(frames_of(path)) == 3


def test_a_page_is_upright_by_its_own_orientation(tmp_path: Path):
    file = io.BytesIO()
    pages = [_drawn(0), _drawn(1)]
    pages[1].encoderinfo = {"tiffinfo": {274: 6}}  # Pillow reads a page's own tags from there
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    path = tmp_path / "a.tif"
    path.write_bytes(file.getvalue())
    assert [_decoded(path, number).size for number in (1, 2)] == [(64, 48), (48, 64)]


def test_a_later_page_has_a_size_of_its_own(tmp_path: Path):
    path = tmp_path / "a.tif"
    sizes = [(8, 8), (40, 30), (9, 7)]
    pages = [Image.new("RGB", size) for size in sizes]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert [_decoded(path, number).size for number in (1, 2, 3)] == sizes
    assert _decoded(path, 3, max_pixels=64).size == (9, 7)
    with pytest.raises(InputError, match=r"frame 2 of .*a.tif has 0.0 million pixels"):
        _decoded(path, 2, max_pixels=64)


def test_a_first_page_that_is_too_large_does_not_cost_the_second(tmp_path: Path):
    path = tmp_path / "a.tif"
    Image.new("L", (50, 50)).save(path, save_all=True, append_images=[Image.new("L", (4, 4))])
    assert len(frames_of(path)) == 2
    assert _decoded(path, 2, max_pixels=100).size == (4, 4)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_a_frame_that_is_not_there_is_told_of(name: str, tmp_path: Path):
    path = _saved(tmp_path / name) if name != "a.png" else tmp_path / name
    if name == "a.png":
        _drawn(0).save(path)
    with pytest.raises(InputError, match=rf"frame 9 of .*{name} cannot be read as a picture"):
        _decoded(path, 9)


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_frames_are_bounded(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAMES", 2)
    path = _saved(tmp_path / name, 4)
    assert [frame.number for frame in frames_of(path)] == [1, 2, 3]
    assert _decoded(path, 2).size == SIZE
    with pytest.raises(InputError, match=rf"{name} holds more than 2 frames: the rest is left out"):
        _decoded(path, 3)


def test_no_frame_lies_behind_too_many_pixels(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(frames, "MAX_PIXELS_BEFORE", 2 * 64 * 48)
    for name in LOSSLESS:
        path = _saved(tmp_path / name, 4, **LOSSLESS[name])
        assert _decoded(path, 3).size == SIZE
        if name == "a.tif":  # whose pages stand for themselves
            assert _decoded(path, 4).size == SIZE
            continue
        with pytest.raises(InputError, match="million pixels before it, more than the 0 million"):
            _decoded(path, 4)


def test_a_frame_whose_beginning_is_cut_off_is_counted_and_fails(tmp_path: Path):
    path = _saved(tmp_path / "a.gif")
    with Image.open(path) as file:
        file.seek(2)
        begin = file.tile[0].offset - 10  # of the last frame's descriptor
    path.write_bytes(path.read_bytes()[: begin + 4])
    assert [frame.number for frame in frames_of(path)] == [1, 2, 3]
    assert _decoded(path, 2).size == SIZE
    with pytest.raises(InputError, match="frame 3 of"):
        _decoded(path, 3)


def test_counting_goes_back_to_the_first_frame(tmp_path: Path):
    for name in LOSSLESS:
        header = read_frame_header(_saved(tmp_path / name, **LOSSLESS[name]), 1)
        assert count_frames(header) == 3
        found = np.asarray(decode_image(header).picture.convert("RGB"))
        assert np.array_equal(found, np.asarray(_drawn(0)))


# --- their results ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_each_frame_gets_the_mask_it_would_get_alone(threads: int, quick: Path, tmp_path: Path):
    path = _saved(tmp_path / "a.gif", 4)
    targets = [(frame, tmp_path / f"{frame.number}.png") for frame in frames_of(path)]
    with load(quick, at_once=threads, threads=threads) as segment:
        done = list(process_images(segment, targets, ImageOptions(hash_files=True)))
        alone = [np.asarray(segment(_drawn(number))).astype(int) for number in range(4)]
    assert [(one.picture, one.frame, one.error, one.notes) for one in done] == [
        (path, number, "", []) for number in (1, 2, 3, 4)
    ]
    assert len({one.sha256 for one in done}) == 1
    masks = [np.asarray(Image.open(output)).astype(int) for _, output in targets]
    assert all(np.abs(mask - one).max() <= 1 for mask, one in zip(masks, alone, strict=True))
    assert len({mask.tobytes() for mask in masks}) == 4


def test_a_cut_out_shows_its_own_frame(quick: Path, tmp_path: Path):
    path = _saved(tmp_path / "a.gif")
    options = ImageOptions(composition=Composition(background=(0, 0, 0)))
    targets = [(frame, tmp_path / f"{frame.number}.png") for frame in frames_of(path)]
    with load(quick, threads=1) as segment:
        assert not any(one.error for one in process_images(segment, targets, options))
    for number, (_, output) in enumerate(targets):
        found = np.asarray(Image.open(output)).astype(int).sum(axis=(0, 1))
        assert found.argmax() == found[: len(COLOURS[number])].argmax() == number


def test_a_damaged_frame_does_not_cost_those_before(quick: Path, tmp_path: Path):
    path = _saved(tmp_path / "a.gif", 4)
    path.write_bytes(path.read_bytes()[:-20])
    targets = [(frame, tmp_path / f"{frame.number}.png") for frame in frames_of(path)]
    with load(quick, threads=1) as segment:
        done = list(process_images(segment, targets))
    assert [bool(one.error) for one in done] == [False, False, False, True]
    assert done[3].error.startswith(f"frame 4 of {path} cannot be read as a picture: image file is")
    assert sorted(one.name for one in tmp_path.glob("*.png")) == ["1.png", "2.png", "3.png"]


def test_rays_workers_take_frames(quick: Path, tmp_path: Path):
    path = _saved(tmp_path / "a.gif")
    rows = [(str(path), f"{tmp_path}/{n}.png", n) for n in (0, 2, 9)]
    columns = {
        k: np.array(v)
        for k, v in zip(("picture", "output", "frame"), zip(*rows, strict=True), strict=True)
    }
    done = _ImageActor(quick, ImageOptions(), 1, {})(columns)
    assert done["frame"].tolist() == [0, 2, 9]
    assert [bool(error) for error in done["error"]] == [False, False, True]
    assert done["error"][2].startswith(f"frame 9 of {path} cannot be read")
    with load(quick, threads=1) as segment:
        for name, number in (("0.png", 0), ("2.png", 1)):
            expected = np.asarray(segment(_drawn(number))).astype(int)
            assert np.abs(np.asarray(Image.open(tmp_path / name)) - expected).max() <= 1


# --- their names --------------------------------------------------------------------------------


def _names(plan: OutputPaths, *paths: Path) -> list[str]:
    return [output.as_posix() for _, output in plan.targets(paths)]


ALL = {"frames": Frames.ALL}


def test_results_are_numbered_where_a_file_holds_several(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    _saved(tmp_path / "a.gif", 2)
    _saved(tmp_path / "a.tif", 2)
    _saved(tmp_path / "sub" / "b.gif", 2)
    _drawn(0).save(tmp_path / "c.png")
    plan = OutputPaths(Path("o"), recursive=True, **ALL)
    assert _names(plan, tmp_path) == [
        "o/a.gif-0001.png",
        "o/a.gif-0002.png",
        "o/a.tif-0001.png",
        "o/a.tif-0002.png",
        "o/c.png",
        "o/sub/b-0001.png",
        "o/sub/b-0002.png",
    ]
    first = OutputPaths(Path("o"), recursive=True)
    assert _names(first, tmp_path) == ["o/a.gif.png", "o/a.tif.png", "o/c.png", "o/sub/b.png"]


def test_a_template_takes_the_number(tmp_path: Path):
    _saved(tmp_path / "a.gif", 2)
    _drawn(0).save(tmp_path / "c.png")
    for template, names in {
        "{stem}/{frame:03}.{ext}": ["a/001.png", "a/002.png", "c/001.png"],
        "{index}.{ext}": ["0.png", "1.png", "2.png"],
    }.items():
        plan = OutputPaths(Path("o"), template=template, **ALL)
        assert _names(plan, tmp_path) == [f"o/{name}" for name in names]
    with pytest.raises(InputError, match=r"with --frames all, a template of names needs \{frame\}"):
        OutputPaths(Path("o"), template="{stem}.{ext}", **ALL)
    with pytest.raises(InputError, match="not of 'size'"):
        OutputPaths(Path("o"), template="{size}.{ext}", **ALL)


def test_two_pictures_do_not_share_a_numbered_name(tmp_path: Path):
    _saved(tmp_path / "a.gif", 2)
    _drawn(0).save(tmp_path / "a-0002.png")
    told = r"a-0002.png and frame 2 of .*a.gif would both be written to o/a-0002.png"
    with pytest.raises(InputError, match=told):
        _names(OutputPaths(Path("o"), **ALL), tmp_path)


def test_a_watched_file_that_gets_more_frames_keeps_its_names(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(inputs, "POLL_SECONDS", 0)
    rounds = OutputPaths(tmp_path / "o", **ALL).watch([tmp_path])
    next(rounds)

    def names() -> list[str]:
        return [f"{picture.number} {output.name}" for picture, output in next(rounds)]

    _saved(tmp_path / "a.gif", 2)
    assert [names(), names()] == [[], ["1 a-0001.png", "2 a-0002.png"]]
    _saved(tmp_path / "a.gif", 3)
    assert [names(), names()] == [[], ["1 a-0001.png", "2 a-0002.png", "3 a-0003.png"]]
    _saved(tmp_path / "a.tif", 2)  # the same stem, later
    assert [names(), names()] == [[], ["1 a.tif-0001.png", "2 a.tif-0002.png"]]


def test_errors_of_frames_are_held_back_each_until_the_file_changes(capsys):
    reporter = _Reporter(None, io.StringIO(), watching=True)
    for number, path in itertools.product((1, 2), (Path("a.gif"), Path("b.gif"))):
        reporter.tell(ImageResult(path, "o", error=f"{path} {number} failed", frame=number))
    reporter.drop_held([(Path("a.gif"), Path("o"))])
    reporter.tell_held(all_of_them=True)
    told = [line.removeprefix("u2export: error: ") for line in capsys.readouterr().err.splitlines()]
    assert told == ["b.gif 1 failed", "b.gif 2 failed"]
    assert reporter.failed == ["frame 1 of b.gif", "frame 2 of b.gif"]


# --- the command --------------------------------------------------------------------------------


def test_the_command_takes_every_frame(command, quick: Path, tmp_path: Path):
    _saved(tmp_path / "a.gif")
    _drawn(0).save(tmp_path / "b.png")
    words = ("run", quick, "a.gif", "b.png", "--frames", "all", "--out", "o")
    done = command(*words, "--log", "l.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    numbered = [f"o/a-{number:04}.png" for number in (1, 2, 3)]
    assert done.stdout.split() == [*numbered, "o/b.png"]
    entries = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [(entry["picture"], entry["frame"], entry["result"]) for entry in entries] == [
        *(("a.gif", number, result) for number, result in enumerate(numbered, 1)),
        ("b.png", None, "o/b.png"),
    ]
    (tmp_path / "o" / "a-0002.png").unlink()
    done = command(*words, "--skip-existing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "o/a-0002.png\n", "")


def test_the_command_says_what_cannot_be(command, quick: Path, tmp_path: Path):
    _saved(tmp_path / "a.gif")
    _drawn(0).save(tmp_path / "b.png")
    for words, told in {
        ("a.gif", "--out", "m.png"): "3 pictures do not fit into the one file m.png",
        ("a.gif", "--out", "-"): "3 pictures do not fit into the one file -",
        ("-", "--out", "o"): "of standard input it cannot count them",
        ("a.gif", "--name", "{stem}.{ext}"): "a template of names needs {frame}",
    }.items():
        done = command("run", quick, *words, "--frames", "all")
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = command("run", quick, "a.gif", "--frames", "two")
    assert "frames must be one of first, all, got 'two'" in done.stderr
    done = command("run", quick, "b.png", "--frames", "all", "--out", "m.png")
    assert (done.returncode, done.stdout) == (0, "m.png\n")
    done = command("run", quick, "a.gif", "--out", "m.png")
    assert (
        "a.gif holds 3 pictures; only the first was taken: --frames all takes each" in done.stderr
    )
