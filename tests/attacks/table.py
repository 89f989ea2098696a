"""The table: an attack on the command line, and what is right."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from u2export.core.digest import text_with_digest

SMALL_PICTURE = Image.radial_gradient("L").convert("RGB").resize((64, 48))
SMALL_PICTURE.paste((255, 0, 0), (5, 5, 20, 15))


@dataclass(frozen=True)
class Attack:
    """One row.

    Attributes:
        name: what is attacked.
        make: makes the inputs in a folder that also holds `a.onnx` and its manifest.
        words: what is typed after `u2export`, in that folder.
        status: the exit status.
        sentence: a part of what is told on standard error; empty where nothing must be.
        results: names that must lie in `o/` afterwards.
    """

    name: str
    make: Callable[[Path], object]
    words: tuple[str, ...]
    status: int
    sentence: str
    results: tuple[str, ...] = ()


def picture(path: Path) -> Path:
    """Save a sound picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SMALL_PICTURE.save(path)
    return path


def gray_png(path: Path, width: int, height: int) -> None:
    """Write a PNG of any size, row by row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(b"\0" + b"\x80" * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows + compressor.flush())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b""))


def in_folder(*makers: Callable[[Path], object]) -> Callable[[Path], object]:
    """Make a folder `in` of a sound picture and whatever the makers add to it."""

    def make(folder: Path) -> None:
        picture(folder / "in" / "sound.png")
        for maker in makers:
            maker(folder / "in")

    return make


def file_named(name: str, content: bytes) -> Callable[[Path], object]:
    """Write a file."""
    return lambda folder: (folder / name).write_bytes(content)


def link_named(name: str, target: str) -> Callable[[Path], object]:
    """Make a link."""
    return lambda folder: (folder / name).symlink_to(target)


def pipe_named(name: str) -> Callable[[Path], object]:
    """Make a named pipe."""
    return lambda folder: os.mkfifo(folder / name)


def frames_named(name: str) -> Callable[[Path], object]:
    """Save three pictures in one file."""
    ways = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
    others = [SMALL_PICTURE.transpose(way) for way in ways]
    return lambda folder: SMALL_PICTURE.save(folder / name, save_all=True, append_images=others)


def damaged(name: str, change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    """Save three pictures in one file, and change its content."""

    def make(folder: Path) -> None:
        frames_named(name)(folder)
        content = bytearray((folder / name).read_bytes())
        change(content)
        (folder / name).write_bytes(content)

    return make


def _pages(tiff: bytearray) -> list[tuple[int, int]]:
    """Where each page's directory begins, and where its link to the next one is."""
    found, begin = [], int.from_bytes(tiff[4:8], "little")
    while begin:
        link = begin + 2 + 12 * int.from_bytes(tiff[begin : begin + 2], "little")
        found.append((begin, link))
        begin = int.from_bytes(tiff[link : link + 4], "little")
    return found


def _link_back(tiff: bytearray) -> None:
    (first, _), *_, (_, link) = _pages(tiff)
    tiff[link : link + 4] = first.to_bytes(4, "little")


def _link_to_nowhere(tiff: bytearray) -> None:
    (_, link), *_ = _pages(tiff)
    tiff[link : link + 4] = (2**31).to_bytes(4, "little")


def _enlarge_second_page(tiff: bytearray) -> None:
    begin, link = _pages(tiff)[1]
    for entry in range(begin + 2, link, 12):
        if int.from_bytes(tiff[entry : entry + 2], "little") in (256, 257):  # width and height
            tiff[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 20_000)


def _claim_frames(count: int) -> Callable[[bytearray], object]:
    def change(png: bytearray) -> None:
        begin = png.index(b"acTL")
        png[begin + 4 : begin + 8] = count.to_bytes(4, "big")
        png[begin + 12 : begin + 16] = zlib.crc32(png[begin : begin + 12]).to_bytes(4, "big")

    return change


def _cut(content: bytearray) -> None:
    del content[-100:]


def _wipe_end(content: bytearray) -> None:
    content[-60:-20] = bytes(40)


def _wipe_last_frame(webp: bytearray) -> None:
    begin = webp.rindex(b"ANMF") + 40  # behind the headers
    webp[begin : begin + 20] = bytes(20)


def _gif(*sides: int) -> bytes:
    """A GIF of one pixel, whose frames say that they are squares of these sides."""
    head = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff"
    frame = b"\x2c\0\0\0\0%b\0\2\2\x44\1\0"
    return head + b"".join(frame % struct.pack("<HH", side, side) for side in sides) + b";"


def _of_frames(*numbers: int) -> tuple[str, ...]:
    """The names of results."""
    return tuple(f"x-{number:04}.png" for number in numbers)


def manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    """Change the manifest of `a.onnx`, and give it a right digest where it can have one."""

    def make(folder: Path) -> None:
        picture(folder / "p.png")
        path = folder / "a.onnx.json"
        document = json.loads(path.read_text("utf-8"))
        changed = change(document)
        if isinstance(changed, str):
            path.write_text(changed, "utf-8")
        else:
            path.write_text(text_with_digest(document), "utf-8")

    return make


def listing(name: str) -> Callable[[Path], object]:
    """Let the manifest list a file of this name too."""
    return manifest(lambda m: m["files"].update({name: "0" * 64}))  # type: ignore[attr-defined]


def in_the_manifests_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Put something else where the manifest is."""

    def replace(folder: Path) -> None:
        picture(folder / "p.png")
        path = folder / "a.onnx.json"
        path.unlink()
        make(path)

    return replace


def _set_fact(name: str, value: object) -> Callable[[Path], object]:
    return manifest(lambda m: m["facts"].update({name: value}))  # type: ignore[attr-defined]


def _budget(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "b.json").write_bytes(text.encode("utf-8", "surrogateescape"))


RUN = ("run", "a.onnx", "in", "--out", "o")
RUN_ONE = ("run", "a.onnx", "p.png", "--out", "o/p.png")
PARITY = ("parity", "a.onnx", "a.onnx", "--budget", "b.json")
ONE = ("sound.png",)
NOT_A_MANIFEST = "is not a manifest: it was cut or changed"

UNREADABLE = "cannot be read as a picture: "

EVERY_FRAME = [
    Attack(name, in_folder(make), (*RUN, "--frames", "all"), status, told, (*ONE, *results))
    for name, make, status, told, results in (
        ("pages in a circle", damaged("x.tif", _link_back), 0, "", _of_frames(1, 2, 3)),
        (
            "a link to a page behind the end",
            damaged("x.tif", _link_to_nowhere),
            7,
            f"frame 2 of in/x.tif {UNREADABLE}",
            _of_frames(1),
        ),
        (
            "a second page that is huge",
            damaged("x.tif", _enlarge_second_page),
            7,
            "frame 2 of in/x.tif has 400.0 million pixels, more than the 100.0 million allowed",
            _of_frames(1, 3),
        ),
        ("no frames", file_named("x.gif", _gif()), 7, f"in/x.gif {UNREADABLE}", ()),
        ("a claim of no frames", damaged("x.apng", _claim_frames(0)), 0, "", ("x.png",)),
        (
            "a claim of a frame that is not there",
            damaged("x.apng", _claim_frames(4)),
            7,
            f"frame 4 of in/x.apng {UNREADABLE}",
            _of_frames(1, 2, 3),
        ),
        (
            "a frame that outgrows its file",
            file_named("x.gif", _gif(1, 10_000, 1)),
            7,
            f"frame 3 of in/x.gif {UNREADABLE}frame 2 outgrows the file's 1x1 pixels",
            _of_frames(1),
        ),
        (
            "a frame of four billion pixels",
            file_named("x.gif", _gif(1, 65_535)),
            7,
            f"frame 2 of in/x.gif {UNREADABLE}",
            _of_frames(1),
        ),
        *(
            (
                f"a damaged frame in a {name[2:]}",
                damaged(name, change),
                7,
                f"frame 3 of in/{name} {UNREADABLE}",
                _of_frames(1, 2),
            )
            for name, change in (
                ("x.gif", _cut),
                ("x.apng", _cut),
                ("x.webp", _wipe_last_frame),
                ("x.avif", _wipe_end),
            )
        ),
    )
]

PICTURES = [
    *(
        Attack(
            f"{kind} under the name of a JPEG",
            in_folder(file_named("x.jpg", content)),
            RUN,
            7,
            "x.jpg cannot be read as a picture: it is none of jpeg, png",
            ONE,
        )
        for kind, content in {
            "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
            "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x10\0\0\0\x10\0\x08\0\3" + bytes(800),
            "FITS": (b"SIMPLE  =                    T" + b" " * 50) * 36,
            "WMF": b"\xd7\xcd\xc6\x9a" + bytes(200),
            "SPIDER": struct.pack(">24f", *[1.0] * 24) + bytes(2000),
            "IPTC": b"\x1c\x02\x00\x00\x02\x00\x02" + bytes(100),
        }.items()
    ),
    Attack(
        "HEIF without its plug-in, in a folder",
        in_folder(file_named("x.heic", b"\0\0\0\x18ftypheic" + bytes(500))),
        RUN,
        0,
        'left out of in: 1 .heic (which needs a plug-in: pip install "u2export[heif]")',
        ONE,
    ),
    Attack(
        "HEIF under the name of a JPEG",
        in_folder(file_named("x.jpg", b"\0\0\0\x18ftypheic" + bytes(500))),
        RUN,
        7,
        'HEIF needs a plug-in: pip install "u2export[heif]"',
        ONE,
    ),
    Attack(
        "files that are no pictures",
        in_folder(file_named("a.txt", b""), file_named("b.txt", b""), file_named("c", b"")),
        RUN,
        0,
        "left out of in: 1 without ending, 2 .txt",
        ONE,
    ),
    Attack(
        "a folder of HEIF alone",
        lambda folder: ((folder / "in").mkdir(), file_named("in/x.heic", b"")(folder)),
        RUN,
        2,
        "the folder in holds no pictures: 1 .heic (which needs a plug-in",
    ),
    Attack(
        "a named pipe in a folder",
        in_folder(pipe_named("x.jpg")),
        RUN,
        0,
        "in/x.jpg (it is a named pipe, not a file)",
        ONE,
    ),
    Attack(
        "a device behind a link, hashed for the log",
        in_folder(link_named("x.jpg", "/dev/zero")),
        (*RUN, "--log", "l.jsonl"),
        0,
        "in/x.jpg (it is a device, not a file)",
        ONE,
    ),
    Attack(
        "a link to itself",
        in_folder(link_named("x.jpg", "x.jpg")),
        (*RUN, "--recursive"),
        0,
        "in/x.jpg (Too many levels of symbolic links)",
        ONE,
    ),
    Attack(
        "a folder's link to itself",
        in_folder(link_named("sub", "sub")),
        (*RUN, "--recursive"),
        0,
        "left out of in: 1 without ending",
        ONE,
    ),
    Attack(
        "a link to nothing",
        in_folder(link_named("x.jpg", "nowhere")),
        RUN,
        7,
        "there is no picture at in/x.jpg",
        ONE,
    ),
    Attack(
        "a named pipe that is named",
        in_folder(pipe_named("x.jpg")),
        ("run", "a.onnx", "in/x.jpg", "in/sound.png", "--out", "o"),
        7,
        "in/x.jpg cannot be read as a picture: it is a named pipe, not a file",
        ONE,
    ),
    Attack(
        "a link to itself that is named",
        in_folder(link_named("x.jpg", "x.jpg")),
        ("run", "a.onnx", "in/x.jpg", "in/sound.png", "--out", "o"),
        7,
        "in/x.jpg cannot be read as a picture: Too many levels of symbolic links",
        ONE,
    ),
    Attack(
        "a pipe for parity",
        pipe_named("x.jpg"),
        ("parity", "a.onnx", "a.onnx", "--pictures", "x.jpg"),
        2,
        "x.jpg cannot be read as a picture: it is a named pipe, not a file",
    ),
    Attack(
        "rows of over 2^31 bits",
        in_folder(lambda folder: gray_png(folder / "x.png", 99_000_000, 1)),
        RUN,
        7,
        "x.png has a side of 99000000 pixels, more than the 1000000 allowed",
        ONE,
    ),
    Attack(
        "99 million rows",
        in_folder(lambda folder: gray_png(folder / "x.png", 1, 2_000_000)),
        RUN,
        7,
        "x.png has a side of 2000000 pixels",
        ONE,
    ),
    *(
        Attack(
            f"several pictures in a {name[2:]}",
            in_folder(frames_named(name)),
            RUN,
            0,
            f"in/{name} holds 3 pictures; only the first was taken",
            (*ONE, "x.png"),
        )
        for name in ("x.gif", "x.webp", "x.tif", "x.apng")
    ),
    Attack(
        "a result's name that is a folder",
        lambda folder: (in_folder()(folder), (folder / "o" / "sound.png").mkdir(parents=True)),
        ("run", "a.onnx", "in", "--out", "o", "--name", "{stem}.{ext}"),
        2,
        "o/sound.png cannot be written: it is a folder",
    ),
    Attack(
        "a second result's name that is a folder",
        lambda folder: (
            in_folder()(folder),
            picture(folder / "in" / "b.png"),
            picture(folder / "in" / "t.png"),
            (folder / "o" / "sound.png").mkdir(parents=True),
        ),
        RUN,
        7,
        "o/sound.png cannot be written: Is a directory",
        ("b.png", "t.png"),
    ),
    Attack(
        "a name of 254 characters",
        lambda folder: picture(folder / "in" / f"{'x' * 250}.png"),
        RUN,
        0,
        "",
        (f"{'x' * 250}.png",),
    ),
    Attack(
        "a result's name that is longer than the disk takes",
        in_folder(lambda folder: picture(folder / f"{'x' * 250}.png")),
        ("run", "a.onnx", "in", "--out", "o", "--name", "{stem}-mask.{ext}"),
        7,
        "cannot be written: File name too long",
        ("sound-mask.png",),
    ),
    Attack(
        "no pixels allowed",
        in_folder(),
        (*RUN, "--max-pixels", "-1"),
        2,
        "max-pixels must be at least 1, got -1",
    ),
    Attack(
        "escape sequences in a name",
        in_folder(file_named("a\x1b[31m\x07.png", b"")),
        RUN,
        7,
        "in/a\\x1b[31m\\x07.png cannot be read as a picture",
        ONE,
    ),
]
MANIFESTS = [
    *(
        Attack(f"a manifest that lists {name!r:.20}", listing(name), RUN_ONE, 4, NOT_A_MANIFEST)
        for name in ("../../etc/passwd", "/etc/passwd", ".", "..", "", "a" * 5000, "a\0b", "a\nb")
    ),
    Attack(
        "a deep manifest",
        manifest(lambda m: '{"schema_version":1,"backend":' + "[" * 200_000 + "]" * 200_000 + "}"),
        RUN_ONE,
        4,
        "it is nested too deeply",
    ),
    Attack(
        "NaN in a manifest",
        manifest(lambda m: json.dumps(m).replace("0.485", "NaN")),
        RUN_ONE,
        4,
        "NaN is no number of JSON",
    ),
    Attack(
        "1e999 in a manifest",
        manifest(lambda m: json.dumps(m).replace("0.485", "1e999")),
        RUN_ONE,
        4,
        "1e999 is no finite number",
    ),
    Attack(
        "a share that is no number",
        _set_fact("build", {"int8_share": "abc"}),
        RUN_ONE,
        4,
        NOT_A_MANIFEST,
    ),
    *(
        Attack(f"{name} {value!r}", _set_fact(name, value), RUN_ONE, 4, NOT_A_MANIFEST)
        for name, value in (
            *(("size", 0), ("size", "64"), ("size", 10**9), ("batch", -1), ("batch", 2**31)),
            *(("outputs", True), ("outputs", 10**6)),
        )
    ),
    Attack(
        "a folder as manifest", in_the_manifests_place(Path.mkdir), RUN_ONE, 4, "it is a folder"
    ),
    Attack(
        "a pipe as manifest", in_the_manifests_place(os.mkfifo), RUN_ONE, 4, "it is a named pipe"
    ),
    Attack(
        "a device as manifest",
        in_the_manifests_place(lambda path: path.symlink_to("/dev/zero")),
        RUN_ONE,
        4,
        "it is a device",
    ),
    Attack(
        "a pipe as artifact",
        lambda folder: (picture(folder / "p.png"), os.mkfifo(folder / "b.onnx")),
        ("run", "b.onnx", "p.png"),
        2,
        "b.onnx cannot be read: it is a named pipe, not a file",
    ),
]
DOCUMENTS = [
    Attack(
        "a manifest that names another model than the file does",
        _set_fact("model", "u2net9"),
        ("parity", "torch", "a.onnx"),
        4,
        "such as its model: export it again",
    ),
    *(
        Attack(f"a budget file: {name}", _budget(text), PARITY, 2, sentence)
        for name, text, sentence in (
            ("deep", "[" * 100_000, "it is nested too deeply"),
            ("a list", "[]", "it must be like"),
            ("null", "null", "it must be like"),
            ("a number", '{"fp16": 3}', "it must be like"),
            ("NaN", '{"fp32": {"mask_mae": NaN}}', "NaN is no number of JSON"),
            ("infinite", '{"fp32": {"mask_mae": 1e999}}', "1e999 is no finite number"),
            ("true", '{"fp32": {"mask_mae": true}}', "mask_mae: Input should be a valid number"),
            ("text", '{"fp32": {"mask_mae": "0.1"}}', "mask_mae: Input should be a valid number"),
            ("bytes", "\udcff", "b.json is no budget file"),
        )
    ),
    Attack(
        "a pipe as budget file",
        lambda folder: os.mkfifo(folder / "b.json"),
        PARITY,
        2,
        "b.json cannot be read: it is a named pipe, not a file",
    ),
    Attack(
        "a device as report",
        lambda folder: (folder / "b.json").symlink_to("/dev/zero"),
        ("recommend", "b.json"),
        2,
        "b.json cannot be read: it is a device, not a file",
    ),
    Attack(
        "a deep report", _budget("[" * 100_000), ("recommend", "b.json"), 2, "nested too deeply"
    ),
]
LONG = "n" * 300  # bytes: no usual disk takes such a name
TOO_LONG = "File name too long"


def _nothing_but_a_picture(folder: Path) -> None:
    picture(folder / "p.png")


LONG_NAMES = [
    Attack(f"a name that no disk takes: {name}", _nothing_but_a_picture, words, status, sentence)
    for name, words, status, sentence in (
        ("a picture", ("run", "a.onnx", LONG, "--out", "o/p.png"), 7, TOO_LONG),
        ("an artifact", ("run", LONG + ".onnx", "p.png"), 2, TOO_LONG),
        ("what is verified", ("verify", LONG + ".onnx"), 2, TOO_LONG),
        ("weights", ("onnx", "--weights", LONG), 2, "there is no weights file at nnn"),
        (
            "a background",
            ("run", "a.onnx", "p.png", "--out", "o/p.png", "--cutout", "--background", LONG),
            2,
            "is neither a colour",
        ),
        ("a report", ("bench", "a.onnx", "--json", f"{LONG}.json"), 2, TOO_LONG),
        ("a reference", ("parity", f"{LONG}.onnx", "a.onnx"), 2, TOO_LONG),
    )
]
ATTACKS = [*PICTURES, *EVERY_FRAME, *MANIFESTS, *DOCUMENTS, *LONG_NAMES]
