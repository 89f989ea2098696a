"""Raw frames in, raw masks out."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2export.core import registry
from u2export.errors import InputError
from u2export.images.synthetic import draw_image
from u2export.inference import video
from u2export.inference.segmenter import load

SIZE = (96, 72)


def _clip(count: int) -> list[Image.Image]:
    """A drawn subject that moves."""
    still = draw_image(1_000_600, (SIZE[0] + 40, SIZE[1])).picture
    return [still.crop((2 * n, 0, 2 * n + SIZE[0], SIZE[1])) for n in range(count)]


def _raw(pictures: list[Image.Image]) -> bytes:
    return b"".join(picture.tobytes() for picture in pictures)


def test_each_frame_has_the_mask_it_has_as_a_picture(quick: Path):
    clip, sink = _clip(6), io.BytesIO()
    with load(quick, at_once=2, threads=2) as segment:
        assert (
            video.convert_video(segment, io.BytesIO(_raw(clip)), sink, video.FrameFormat(SIZE)) == 6
        )
        expected = np.stack([np.asarray(segment(picture)) for picture in clip])
    found = np.frombuffer(sink.getvalue(), np.uint8).reshape(6, SIZE[1], SIZE[0])
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_cut_outs_are_rgba_frames(quick: Path):
    sink, clip = io.BytesIO(), _clip(2)
    with load(quick) as segment:
        video.convert_video(
            segment, io.BytesIO(_raw(clip)), sink, video.FrameFormat(SIZE, cutout=True)
        )
    found = np.frombuffer(sink.getvalue(), np.uint8).reshape(2, SIZE[1], SIZE[0], 4)
    seen = found[1, ..., 3] > 0
    np.testing.assert_array_equal(found[1][seen][:, :3], np.asarray(clip[1])[seen])
    assert not found[1][~seen].any()


class _Maps:
    """In a segmenter's place: maps that were chosen."""

    workers = batch = 1

    def __init__(self, maps: list[float], quick: Path) -> None:
        self.artifact = registry.open_artifact(quick)
        self.spec = self.artifact.facts.picture
        self._left = list(maps)

    def saliency(self, x: np.ndarray) -> np.ndarray:
        value = self._left.pop(0)
        return np.tile(np.float32([[0, 1], [value, value]]), (1, 1, 1))


def test_smoothing_keeps_a_share_of_the_frames_before_but_not_over_a_cut(quick: Path):
    picture = Image.new("RGB", (2, 2))
    segment = _Maps([1.0, 0.6, 0.6, 0.0], quick)
    found = [
        int(np.asarray(mask)[1, 0])
        for mask in video.segment_frames(
            segment, [picture] * 4, video.FrameFormat((2, 2), smooth=0.5)
        )
    ]
    # 0.6 + 0.5 x 0.4 = 0.8; 0.6 + 0.5 x 0.2 = 0.7; then half of the map changes by 0.7: a cut
    assert found == [255, 204, pytest.approx(178, abs=1), 0]


def test_a_frame_that_is_cut_short_is_an_error_after_the_whole_ones(quick: Path):
    sink, content = io.BytesIO(), _raw(_clip(3))[:-5]
    with load(quick, at_once=2, threads=2) as segment:
        with pytest.raises(InputError, match="has 20731 of 20736 bytes: it was cut short, or"):
            video.convert_video(segment, io.BytesIO(content), sink, video.FrameFormat(SIZE))
        with pytest.raises(InputError, match="no frame"):
            video.convert_video(segment, io.BytesIO(), sink, video.FrameFormat(SIZE))
    assert len(sink.getvalue()) == 2 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize("text", ["1280x720", "1280X720", "1280×720"])
def test_a_frames_size_is_written_as_people_do(text: str):
    assert video.parse_frame_size(text) == (1280, 720)


@pytest.mark.parametrize("text", ["1280", "0x10", "axb", "1280x720x3", "-1x5"])
def test_a_frames_size_is_two_numbers(text: str):
    with pytest.raises(InputError, match=r"WIDTHxHEIGHT|has no pixels"):
        video.FrameFormat(video.parse_frame_size(text))


def test_smoothing_is_below_one():
    with pytest.raises(InputError, match="smooth must be"):
        video.FrameFormat((2, 2), smooth=1.0)


def test_the_recipe_with_ffmpeg_works(quick: Path, tmp_path: Path):
    """As in the README: ffmpeg decodes, the command segments, ffmpeg encodes."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed: the recipe is tested where it is")
    for place, picture in enumerate(_clip(8)):
        picture.save(tmp_path / f"{place}.png")
    quiet = f"{ffmpeg} -v error -y"
    script = (
        f"{quiet} -i %d.png -pix_fmt yuv420p clip.mkv && "
        f"{quiet} -i clip.mkv -f rawvideo -pix_fmt rgb24 - | "
        f"{sys.executable} -m u2export video {quick} --frame {SIZE[0]}x{SIZE[1]} | "
        f"{quiet} -f rawvideo -pix_fmt gray -s {SIZE[0]}x{SIZE[1]} -i - -c:v ffv1 mask.mkv && "
        f"{quiet} -i mask.mkv m%d.png"
    )
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True)
    assert len(list(tmp_path.glob("m*.png"))) == 8
    with load(quick) as segment:
        expected = np.asarray(segment(_clip(1)[0])).astype(int)
    found = np.asarray(Image.open(tmp_path / "m1.png").convert("L")).astype(int)
    assert np.abs(found - expected).mean() < 12  # the clip was compressed
