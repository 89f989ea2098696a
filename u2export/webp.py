"""WebP files of cut-outs written fast: colours and transparency are encoded apart.

libwebp tries several filters on the whole transparency, for which it takes longer than for the
colours. A mask is smooth, so one filter serves: the gradient of the three pixels before.

Source:
    RFC 9649, WebP Image Format: the chunks VP8X, ICCP, ALPH, VP8 and EXIF; filter method 3.
"""

from __future__ import annotations

import heapq
import io
import struct
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PROFILE, _ALPHA, _EXIF = 0x20, 0x10, 0x08  # flags of VP8X
_FILTERED = 3 << 2 | 1  # of ALPH: by gradient, and then losslessly compressed
_COPY = 256  # the first of green's symbols that say how much is repeated, not a value
_SYMBOLS = _COPY + 24
_LONGEST = 4096  # of a repetition
_DEEPEST = 15  # bits of a code
_BLOCK = 16  # pixels a side, whose colours are told together
_SEEN = [0] + 255 * [255]  # by transparency
_PIECE = 1 << 20  # values at a time
_BAND = 64  # rows at a time, few enough for a processor's cache


class Parts:
    """What a cut-out's file is made of; the cut-out itself is needed no longer.

    Attributes:
        size: (width, height) in pixels.
    """

    def __init__(self, image: Image.Image) -> None:
        """Take a cut-out apart.

        Args:
            image: mode RGBA, at most 16383 pixels a side.
        """
        self.size = image.size
        alpha = image.getchannel("A")
        self._alpha = bytes([_FILTERED]) + _packed(_filtered(np.asarray(alpha)))
        self._colours = _filled(image, alpha)

    def write(
        self,
        file: BinaryIO,
        *,
        quality: int,
        profile: bytes | None = None,
        exif: bytes | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """Write the file: colours as exactly as the quality says, transparency exactly.

        Args:
            file: open for writing.
            quality: 1 to 100, of the colours.
            profile: an ICC profile.
            exif: with or without its leading `Exif` mark.
            turn: held while libwebp works, which takes six bytes a pixel of its own.

        Raises:
            OSError: the file cannot be written.
        """
        flags = _ALPHA | (_PROFILE if profile else 0) | (_EXIF if exif else 0)
        sides = b"".join((side - 1).to_bytes(3, "little") for side in self.size)
        chunks = [_chunk(b"VP8X", struct.pack("<I", flags) + sides)]
        if profile:
            chunks.append(_chunk(b"ICCP", profile))
        chunks.append(_chunk(b"ALPH", self._alpha))
        with turn or nullcontext():
            colours = _encoded(self._colours, quality=quality, method=0)
        chunks.append(_chunk(b"VP8 ", _part(colours, b"VP8 ")))
        if exif:
            chunks.append(_chunk(b"EXIF", exif.removeprefix(b"Exif\0\0")))
        size = sum(map(len, chunks)) + len(b"WEBP")
        file.write(b"RIFF" + struct.pack("<I", size) + b"WEBP")
        for one in chunks:
            file.write(one)


def _filled(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """The colours, of which hidden ones beside visible ones are the mean of those in their block.

    A block's colours are told together, so that a black one that is hidden would darken its
    neighbours, and cost bytes.

    Returns:
        Mode RGBX.
    """
    width, height = image.size
    seen = np.asarray(alpha.point(_SEEN).reduce(_BLOCK))  # 255 where all of it is
    mixed = (seen > 0) & (seen < 255)
    rows, columns = mixed.shape
    found = np.zeros((rows * _BLOCK, columns * _BLOCK, 4), np.uint8)  # of whole blocks
    blocks = found.reshape(rows, _BLOCK, columns, _BLOCK, 4)
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        found[top:bottom, :width] = np.asarray(image.crop((0, top, width, bottom)))
        of_band = blocks[top // _BLOCK : -(-bottom // _BLOCK)]
        which = np.nonzero(mixed[top // _BLOCK : -(-bottom // _BLOCK)])
        colours = of_band[which[0], :, which[1]]
        visible = colours[..., 3:] > 0
        sums = np.where(visible, colours, 0).sum((1, 2), dtype=np.uint32)
        means = sums // visible.sum((1, 2), dtype=np.uint32)
        of_band[which[0], :, which[1]] = np.where(visible, colours, means[:, None, None])
    return Image.frombuffer("RGBX", image.size, found, "raw", "RGBX", 4 * columns * _BLOCK, 1)


def _packed(values: NDArray[np.uint8]) -> bytes:
    """A plane, (H,W), as the green channel of a lossless image without its size."""
    flat = values.ravel()
    pieces = [_tokens(flat[i : i + _PIECE]) for i in range(0, len(flat), _PIECE)]
    counts = sum(np.bincount(symbols, minlength=_SYMBOLS) for symbols, _ in pieces)
    lengths = _code_lengths(np.asarray(counts))
    codes = _codes(lengths)
    bits = _Bits()
    for value, count in _HEAD:
        bits.add(value, count)
    for length in lengths:
        bits.add(_reversed(int(length), 4), 4)
    for value, count in _TAIL:
        bits.add(value, count)
    for symbols, extra in pieces:
        told = codes[symbols] | extra.astype(np.uint64) << lengths[symbols].astype(np.uint64)
        bits.join(told, lengths[symbols] + _SYMBOL_BITS[symbols])
    return bits.whole()


def _tokens(flat: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """What tells a row of values: symbols of green's, and what is added to each.

    Each run of equal values is the value, then the command to repeat what is on the left so often.
    """
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    again = np.diff(starts, append=len(flat)) - 1
    full, rest = np.divmod(again, _LONGEST)
    each = 1 + full + (rest > 0)  # tokens of a run
    firsts = np.cumsum(each) - each
    symbols = np.full(int(each.sum()), _COPY + _KINDS[_LONGEST], np.uint16)
    extra = np.full(len(symbols), _EXTRA[_LONGEST], np.uint16)
    symbols[firsts], extra[firsts] = flat[starts], 0
    some = rest > 0
    lasts, rest = (firsts + each - 1)[some], rest[some]
    symbols[lasts], extra[lasts] = _COPY + _KINDS[rest], _EXTRA[rest]
    return symbols, extra


class _Bits:
    """Bits one after the other, the lowest of each value first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._value, self._count = 0, 0  # that make no whole byte yet

    def add(self, value: int, count: int) -> None:
        """Put a few bits after those that there are."""
        self._value |= value << self._count
        self._count += count

    def join(self, values: NDArray[np.uint64], counts: NDArray[np.uint8]) -> None:
        """Put values of so many bits each, at most 31, after those that there are."""
        ends = np.cumsum(counts, dtype=np.int64) + self._count
        places = ends - counts
        words, shifts = places >> 5, (places & 31).astype(np.uint64)
        shifted = values << shifts
        total = int(ends[-1]) // 32 + 2
        # no two have a bit in common, so sums are exact: each is below 2^32
        low = np.bincount(words, shifted & np.uint64(0xFFFFFFFF), total)
        high = np.bincount(words + 1, shifted >> np.uint64(32), total)
        start = np.frombuffer(self._value.to_bytes(4 * total, "little"), "<u4")
        packed = ((low + high).astype("<u4") | start).tobytes()
        whole, self._count = divmod(int(ends[-1]), 8)
        self._parts.append(packed[:whole])
        self._value = packed[whole]

    def whole(self) -> bytes:
        """All of them, filled with zeros to a byte."""
        return b"".join(self._parts) + self._value.to_bytes(-(-self._count // 8), "little")


def _code_lengths(counts: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Huffman's, of at most 15 bits; of two symbols at least."""
    weights = counts.copy()
    if np.count_nonzero(weights) < 2:
        weights[:2] = np.maximum(weights[:2], 1)
    while True:
        heap: list[tuple[int, int, tuple[int, ...]]]
        heap = [(int(w), i, (i,)) for i, w in enumerate(weights) if w]
        heapq.heapify(heap)
        lengths = np.zeros(len(weights), np.uint8)
        while len(heap) > 1:
            one, two = heapq.heappop(heap), heapq.heappop(heap)
            members = one[2] + two[2]
            lengths[list(members)] += 1
            heapq.heappush(heap, (one[0] + two[0], min(one[1], two[1]), members))
        if lengths.max() <= _DEEPEST:
            return lengths
        weights = np.where(weights > 0, (weights + 1) // 2, 0)  # flatter, so less deep


def _codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Canonical prefix codes: shorter ones first, then by symbol; as they are read, bit by bit."""
    found = np.zeros(len(lengths), np.uint64)
    code = last = 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)):
        code <<= int(lengths[symbol]) - last
        last = int(lengths[symbol])
        found[symbol] = _reversed(code, last)
        code += 1
    return found


def _reversed(value: int, count: int) -> int:
    return int(f"{value:0{count}b}"[::-1], 2)


def _lengths_table() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """How lengths of 1 to 4096 are told: which of 24 kinds, and what is added, in how many bits."""
    less = np.maximum(np.arange(-1, _LONGEST), 0)
    high = np.frexp(np.maximum(less, 1))[1] - 1
    second = (less >> np.maximum(high - 1, 0)) & 1
    small = less < 2
    bits = np.where(small, 0, high - 1)
    kinds = np.where(small, less, 2 * high + second)
    of_symbol = np.zeros(_SYMBOLS, np.uint8)
    of_symbol[_COPY + kinds] = bits
    return kinds, less & ((1 << bits) - 1), of_symbol


_KINDS, _EXTRA, _SYMBOL_BITS = _lengths_table()
# No transform, no cache, one set of codes. Then how lengths of green's codes are told: 0 to 15 in
# four bits each; 16, 17 and 18, in the format's order the ninth, first and second, are unused.
_LENGTHS = (*[(0, 3)] * 2, *[(4, 3)] * 6, (0, 3), *[(4, 3)] * 10)
_HEAD = ((0, 1), (0, 1), (0, 1), (0, 1), (15, 4), *_LENGTHS, (0, 1))
# Red, blue and alpha are always 0, and what is copied is always on the left: codes of no bits.
_ZERO = ((1, 1), (0, 1), (0, 1), (0, 1))
_TAIL = (*_ZERO * 3, (1, 1), (0, 1), (0, 1), (1, 1))


def _filtered(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is left of each value, modulo 256, after what the three before it let expect."""
    found = values.copy()
    found[0, 1:] -= values[0, :-1]
    found[1:, 0] -= values[:-1, 0]
    for top in range(1, len(values), _BAND):
        rows = slice(top, top + _BAND)
        here = values[rows]
        above = values[top - 1 : top - 1 + len(here)]
        expected = here[:, :-1].astype(np.int16)
        expected += above[:, 1:]
        expected -= above[:, :-1]
        found[rows, 1:] -= np.clip(expected, 0, 255, out=expected).astype(np.uint8)
    return found


def _encoded(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()


def _part(content: bytes, name: bytes) -> bytes:
    """A chunk of a WebP file."""
    place = len(b"RIFFsizeWEBP")
    while place < len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        if content[place : place + 4] == name:
            return content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    raise OSError(f"libwebp wrote no chunk {name.decode()}")


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
