"""Make the picture that README and documentation start with, `images/overview.png`.

    python docs/make_images.py

Its first row shows the demo picture, its mask and its cut-out; the second the parity report of the
exported files. The files are exported with the bundled demo weights into a temporary folder.
Chromium draws the report; `CHROMIUM` may name its program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "weights" / "demo-picture.jpg"
TARGET = ROOT / "docs" / "images" / "overview.png"
MAX_BYTES = 400_000
WIDTH, GAP = 1200, 16
COLUMN = (WIDTH - 4 * GAP) // 3
CAPTION = 30  # pixels of a caption's line
REPORT_HEIGHT = 464  # pixels of the report that are shown
WINDOW = (WIDTH - 2 * GAP, 1600)
PAPER, INK, FRAME = "#ffffff", "#1b1f24", "#d5dae0"
COLOURS = 128  # of the palette that keeps the file small
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
)


def run_u2export(*words: object) -> None:
    """Run a command of u2export with the demo weights, offline."""
    command = [sys.executable, "-m", "u2export", *map(str, words)]
    environment = {**os.environ, "U2EXPORT_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def make_results(folder: Path) -> tuple[Image.Image, Image.Image, Path]:
    """Export the demo network and run it; give the mask, the cut-out and the report's page."""
    onnx, openvino = (folder / f"u2netp-demo-fp16.{suffix}" for suffix in ("onnx", "xml"))
    mask, cutout, page = folder / "mask.png", folder / "cutout.png", folder / "parity.html"
    for backend in ("onnx", "openvino"):
        run_u2export(backend, "--model", "u2netp-demo", "--fp16", "--out", folder)
    run_u2export("run", onnx, PICTURE, "--out", mask)
    run_u2export("run", onnx, PICTURE, "--cutout", "--out", cutout)
    run_u2export("parity", "torch", onnx, openvino, "--pictures", PICTURE, "--html", page)
    return Image.open(mask).convert("RGB"), Image.open(cutout), page


def photograph_page(page: Path, folder: Path) -> Image.Image:
    """Let Chromium draw the top of a page.

    Raises:
        SystemExit: there is no Chromium.
    """
    names = [os.environ.get("CHROMIUM", ""), *PROGRAMS]
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"this needs Chromium: none of {', '.join(PROGRAMS)} is installed")
    shot = folder / "page.png"
    size = f"--window-size={WINDOW[0]},{WINDOW[1]}"
    command = [program, *QUIET, size, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    return Image.open(shot).convert("RGB").crop((0, 0, WINDOW[0], REPORT_HEIGHT))


def on_checkerboard(cutout: Image.Image, square: int = 12) -> Image.Image:
    """Put a cut-out on the checkerboard that stands for transparency."""
    tile = Image.new("RGB", (2 * square, 2 * square), "#ffffff")
    for corner in ((0, 0), (square, square)):
        tile.paste("#dddddd", (*corner, corner[0] + square, corner[1] + square))
    board = Image.new("RGB", cutout.size)
    for top in range(0, cutout.height, 2 * square):
        for left in range(0, cutout.width, 2 * square):
            board.paste(tile, (left, top))
    board.paste(cutout, mask=cutout.getchannel("A"))
    return board


def arrange(columns: dict[str, Image.Image], report: Image.Image) -> Image.Image:
    """Put captioned pictures side by side, and the report below."""
    first = next(iter(columns.values()))
    height = round(COLUMN * first.height / first.width)
    second_row = GAP + CAPTION + height + GAP
    canvas = Image.new("RGB", (WIDTH, second_row + CAPTION + report.height + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=20)
    for index, (caption, picture) in enumerate(columns.items()):
        left = GAP + index * (COLUMN + GAP)
        draw.text((left, GAP), caption, INK, font)
        canvas.paste(picture.resize((COLUMN, height)), (left, GAP + CAPTION))
    draw.text((GAP, second_row), "the parity report of the exported files", INK, font)
    place = (GAP, second_row + CAPTION)
    canvas.paste(report, place)
    corner = (place[0] + report.width - 1, place[1] + report.height - 1)
    draw.rectangle((*place, *corner), outline=FRAME)
    return canvas


def main() -> None:
    """Make the picture, unless its pixels are those of the one that is there.

    Raises:
        SystemExit: the file is too large for a README.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mask, cutout, page = make_results(folder)
        columns = {
            "picture": Image.open(PICTURE).convert("RGB"),
            "mask": mask,
            "cut-out": on_checkerboard(cutout),
        }
        picture = arrange(columns, photograph_page(page, folder)).quantize(COLOURS)
    if (
        TARGET.is_file()
        and not ImageChops.difference(
            Image.open(TARGET).convert("RGB"), picture.convert("RGB")
        ).getbbox()
    ):
        print(f"{TARGET} is as it was")
        return
    TARGET.parent.mkdir(exist_ok=True)
    picture.save(TARGET, optimize=True)
    size = TARGET.stat().st_size
    print(f"{TARGET}: {size} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"that is more than {MAX_BYTES}: take fewer colours")


if __name__ == "__main__":
    main()
