"""Which pictures are taken, and where their results go."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from u2export.core.enums import Format
from u2export.errors import InputError
from u2export.images import inputs
from u2export.images.inputs import InputImage, find_images, watch_folders
from u2export.images.outputs import OutputPaths, choose_output_paths, output_format
from u2export.system.files import partial_path, remove_partials


def _files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    _files(tmp_path, "photos/b.jpg", "photos/a.PNG", "photos/notes.txt", "photos/._b.jpg")
    _files(tmp_path, "photos/more/c.webp", "photos/more/deep/d.jpg", "photos/.hidden/e.jpg")
    return Path("photos")


def _taken(found: list[InputImage]) -> list[tuple[str, str]]:
    return [(str(one.path), str(one.folder)) for one in found]


def test_a_folder_gives_its_pictures_by_name_and_nothing_hidden(photos: Path):
    assert _taken(find_images([photos])) == [("photos/a.PNG", "."), ("photos/b.jpg", ".")]


def test_folders_of_folders_are_taken_when_asked(photos: Path):
    assert _taken(find_images([photos], recursive=True)) == [
        ("photos/a.PNG", "."), ("photos/b.jpg", "."),
        ("photos/more/c.webp", "more"), ("photos/more/deep/d.jpg", "more/deep"),
    ]  # fmt: skip


def test_results_lie_as_their_pictures_do(photos: Path):
    pairs = OutputPaths(Path("out"), recursive=True).targets([photos])
    assert [str(result) for _, result in pairs] == [
        "out/a.png", "out/b.png", "out/more/c.png", "out/more/deep/d.png",
    ]  # fmt: skip


def test_a_folder_of_results_is_no_folder_of_pictures(photos: Path):
    _files(Path(), "photos/masks/a.png")
    plan = OutputPaths(photos / "masks", recursive=True)
    assert not [one for one, _ in plan.targets([photos]) if "masks" in str(one)]


def test_patterns_find_files_at_any_depth(photos: Path):
    found = find_images([Path("photos/**/*.jpg")])
    assert [str(one.path) for one in found] == ["photos/b.jpg", "photos/more/deep/d.jpg"]
    with pytest.raises(InputError, match=r"no file is called like photos/\*\.gif"):
        find_images([Path("photos/*.gif")])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(photos: Path):
    _files(Path(), "photos/[1].jpg", "photos/1.jpg")
    assert _taken(find_images([Path("photos/[1].jpg")])) == [("photos/[1].jpg", ".")]


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="holds no pictures"):
        find_images([tmp_path])


def test_two_pictures_of_one_stem_keep_their_whole_names(tmp_path: Path):
    _files(tmp_path, "in/a.jpg", "in/a.png", "in/b.jpg", "in/more/a.jpg")
    pairs = OutputPaths(tmp_path / "out", recursive=True).targets([tmp_path / "in"])
    assert [str(r.relative_to(tmp_path / "out")) for _, r in pairs] == [
        "a.jpg.png", "a.png.png", "b.png", "more/a.png",
    ]  # fmt: skip


def test_a_template_names_results(photos: Path):
    plan = OutputPaths(Path("out"), "webp", "{folder}/{index:03}-{stem}.{ext}", recursive=True)
    assert [str(result) for _, result in plan.targets([photos])] == [
        "out/000-a.webp", "out/001-b.webp", "out/more/002-c.webp", "out/more/deep/003-d.webp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{stem}{size}.png", "not of 'size'"),
        ("{}.png", "not of 'nothing'"),
        ("{stem", "no template"),
        ("{stem:{size}}", "no template"),
        ("../{stem}.png", "does not lie in the folder"),
        ("/tmp/{stem}.png", "does not lie in the folder"),
        ("same.png", "would both be written to"),
        ("{stem.real}.png", r"not of 'stem\.real'"),
    ],
)
def test_a_template_that_leads_elsewhere_is_refused(photos: Path, template: str, sentence: str):
    with pytest.raises(InputError, match=sentence):
        OutputPaths(Path("out"), template=template).targets([photos])


def test_no_result_overwrites_a_picture(photos: Path):
    os.symlink("photos", "link")
    _files(Path(), "photos/z.png")
    for out in ("photos", "photos/more/..", "link"):
        with pytest.raises(InputError, match="is one of the pictures"):
            OutputPaths(Path(out)).targets([Path("photos/z.png")])


def test_one_picture_goes_into_a_file_or_to_standard_output(photos: Path):
    assert OutputPaths(Path("m.png")).targets([photos / "b.jpg"]) == [
        (photos / "b.jpg", Path("m.png"))
    ]
    assert OutputPaths(Path("-")).targets([Path("-")]) == [(Path("-"), Path("-"))]
    assert OutputPaths(Path("out")).targets([Path("-")]) == [(Path("-"), Path("out/picture.png"))]
    for out in ("m.png", "-"):
        with pytest.raises(InputError, match="2 pictures do not fit"):
            OutputPaths(Path(out)).targets([photos])


def test_what_is_there_is_left_out_when_asked(photos: Path):
    _files(Path(), "out/a.png")
    plan = OutputPaths(Path("out"), skip_existing=True)
    assert plan.targets([photos]) == [(photos / "b.jpg", Path("out/b.png"))]


def test_a_hundred_thousand_pictures_are_named_in_seconds(tmp_path: Path):
    found = [InputImage(tmp_path / f"{n}.jpg") for n in range(100_000)]
    import time

    begun = time.process_time()
    chosen = choose_output_paths(found, tmp_path / "out", "png", None)
    assert time.process_time() - begun < 10  # looking each up among all would take hours
    assert len(set(chosen.values())) == 100_000


def test_the_format_is_what_is_asked_or_what_the_name_says():
    assert output_format(None, None) is Format.PNG
    assert output_format(None, Path("a.jpeg")) is Format.JPG
    assert output_format("webp", Path("folder")) is Format.WEBP
    with pytest.raises(InputError, match=r"a\.png ends in another format than --format jpg"):
        output_format("jpg", Path("a.png"))
    with pytest.raises(InputError, match="format must be one of png, webp, jpg"):
        output_format("gif", None)


def test_what_a_dead_process_left_is_swept_and_nothing_else(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = partial_path(tmp_path / "a.png")
    left = own.with_name(own.name.replace(str(os.getpid()), str(dead.pid)))
    elsewhere = tmp_path / f".b.png.another_host-{dead.pid}.part"
    for path in (own, left, elsewhere, tmp_path / ".a.part", tmp_path / "a.png"):
        path.write_bytes(b"x")
    remove_partials({tmp_path})
    assert not left.exists()
    assert all(p.exists() for p in (own, elsewhere, tmp_path / ".a.part", tmp_path / "a.png"))


def test_a_watched_folder_gives_what_no_longer_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inputs, "POLL_SECONDS", 0)
    _files(tmp_path, "old.jpg")
    rounds = OutputPaths(tmp_path / "out", skip_existing=True).watch([tmp_path])

    def names() -> list[str]:
        return [f"{picture.name} {result.name}" for picture, result in next(rounds)]

    assert [names(), names(), names()] == [[], ["old.jpg old.png"], []]
    _files(tmp_path, "new.jpg")
    assert names() == []
    (tmp_path / "new.jpg").write_bytes(b"longer")  # it grows
    assert [names(), names(), names()] == [[], ["new.jpg new.png"], []]
    _files(tmp_path, "new.png")  # the same stem, later
    assert [names(), names()] == [[], ["new.png new.png.png"]]
    for name in ("old.jpg", "new.png"):  # a picture's result keeps its name
        (tmp_path / name).write_bytes(b"another")
    assert [names(), names()] == [[], ["new.png new.png.png", "old.jpg old.png"]]
    with pytest.raises(InputError, match="no folder that could be watched"):
        next(watch_folders([tmp_path / "old.jpg"]))
    with pytest.raises(InputError, match="is watched: results in it would be taken"):
        next(OutputPaths(tmp_path).watch([tmp_path]))


def test_no_two_pictures_of_a_watch_share_a_result(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(inputs, "POLL_SECONDS", 0)
    (tmp_path / "in").mkdir()
    plan = OutputPaths(tmp_path / "o", template="{stem}.{ext}", recursive=True)
    rounds, found = plan.watch([tmp_path / "in"]), []
    for n in range(3):
        _files(tmp_path, f"in/{n}/a.jpg")
        found += [result.name for _ in range(2) for _, result in next(rounds)]
    assert found == ["a.png", "a.jpg.png", "a.jpg.2.png"]
    _files(tmp_path, "in/b.jpg", "in/b.png")  # in one round
    next(rounds)
    assert [result.name for _, result in next(rounds)] == ["b.png", "b.png.png"]


def test_what_is_named_twice_is_taken_once(photos: Path):
    pairs = OutputPaths(Path("out")).targets([photos, photos / "b.jpg"])
    assert [result.name for _, result in pairs] == ["a.png", "b.png"]


def test_what_is_there_already_is_left_out_of_a_watch(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(inputs, "POLL_SECONDS", 0)
    _files(tmp_path, "a.jpg", "b.jpg", "out/a.png")
    rounds = OutputPaths(tmp_path / "out", skip_existing=True).watch([tmp_path])
    first = list(itertools.islice(rounds, 3))
    assert [[p.name for p, _ in one] for one in first] == [[], ["b.jpg"], []]
