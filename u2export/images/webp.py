"""WebP files of cut-outs, written fast.

libwebp tries several filters on the complete transparency, which takes longer than encoding the
colours. A mask is smooth, so this writer always uses the gradient filter. It predicts a value from
the three neighbours before it.

Source:
    RFC 9649, WebP Image Format: the chunks VP8X, ICCP, ALPH, VP8 and EXIF; filter method 3.
"""

from __future__ import annotations

import heapq
import io
import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ICC_FLAG, _ALPHA_FLAG, _EXIF_FLAG = 0x20, 0x10, 0x08  # of VP8X
_ALPH_HEADER = 3 << 2 | 1  # gradient filter, lossless compression
_FIRST_COPY_SYMBOL = 256  # of green: symbols from here on are lengths of a copy, not values
_GREEN_SYMBOLS = _FIRST_COPY_SYMBOL + 24
_MAX_COPY_LENGTH = 4096  # values
_MAX_CODE_BITS = 15
_BLOCK_SIDE = 16  # pixels; the colours of a block are coded together
_VISIBLE_TABLE = [0] + 255 * [255]  # by alpha: 255 where a pixel is visible at all
_PIECE_VALUES = 1 << 20  # values that are coded at a time
_BAND_ROWS = 64  # rows at a time: few enough for a processor's cache


class WebpParts:
    """What the file of a cut-out is made of; the cut-out itself can be freed.

    Attributes:
        size: (width, height) in pixels.
    """

    def __init__(self, image: Image.Image) -> None:
        """Compress the transparency of a cut-out, and separate the colours.

        Args:
            image: mode RGBA, at most 16383 pixels a side.
        """
        self.size = image.size
        alpha = image.getchannel("A")
        self._alpha = bytes([_ALPH_HEADER]) + _compress_plane(_filter_gradient(np.asarray(alpha)))
        self._colours = _fill_hidden_colours(image, alpha)

    def write(
        self,
        file: BinaryIO,
        *,
        quality: int,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
        limiter: AbstractContextManager[object] | None = None,
    ) -> None:
        """Write the file: the colours lossy, the transparency lossless.

        Args:
            file: open for writing.
            quality: 1 to 100, of the colours.
            icc_profile: an ICC colour profile.
            exif: with or without its leading `Exif` mark.
            limiter: held while libwebp works, which takes six bytes a pixel more.

        Raises:
            OSError: the file cannot be written.
        """
        flags = _ALPHA_FLAG | (_ICC_FLAG if icc_profile else 0) | (_EXIF_FLAG if exif else 0)
        sides = b"".join((side - 1).to_bytes(3, "little") for side in self.size)
        chunks = [_make_chunk(b"VP8X", struct.pack("<I", flags) + sides)]
        if icc_profile:
            chunks.append(_make_chunk(b"ICCP", icc_profile))
        chunks.append(_make_chunk(b"ALPH", self._alpha))
        with limiter or nullcontext():
            colours = _encode_lossy(self._colours, quality=quality, method=0)
        chunks.append(_make_chunk(b"VP8 ", _find_chunk(colours, b"VP8 ")))
        if exif:
            chunks.append(_make_chunk(b"EXIF", exif.removeprefix(b"Exif\0\0")))
        size = sum(map(len, chunks)) + len(b"WEBP")
        file.write(b"RIFF" + struct.pack("<I", size) + b"WEBP")
        for chunk in chunks:
            file.write(chunk)


def _fill_hidden_colours(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Give hidden pixels the mean colour of the visible pixels in their block.

    The colours of a block are coded together. A hidden black pixel would darken its visible
    neighbours, and cost bytes.

    Returns:
        Mode RGBX.
    """
    width, height = image.size
    coverage = np.asarray(alpha.point(_VISIBLE_TABLE).reduce(_BLOCK_SIDE))  # 255: all visible
    is_mixed = (coverage > 0) & (coverage < 255)
    rows, columns = is_mixed.shape
    filled = np.zeros((rows * _BLOCK_SIDE, columns * _BLOCK_SIDE, 4), np.uint8)  # complete blocks
    blocks = filled.reshape(rows, _BLOCK_SIDE, columns, _BLOCK_SIDE, 4)
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        filled[top:bottom, :width] = np.asarray(image.crop((0, top, width, bottom)))
        block_rows = slice(top // _BLOCK_SIDE, -(-bottom // _BLOCK_SIDE))
        _fill_blocks(blocks[block_rows], is_mixed[block_rows])
    return Image.frombuffer("RGBX", image.size, filled, "raw", "RGBX", 4 * columns * _BLOCK_SIDE, 1)


def _fill_blocks(blocks: NDArray[np.uint8], is_mixed: NDArray[np.bool_]) -> None:
    """Fill the hidden pixels of the mixed blocks, in place.

    Args:
        blocks: (rows, 16, columns, 16, 4) RGBA.
        is_mixed: (rows, columns), which blocks have both hidden and visible pixels.
    """
    row, column = np.nonzero(is_mixed)
    colours = blocks[row, :, column]
    visible = colours[..., 3:] > 0
    sums = np.where(visible, colours, 0).sum((1, 2), dtype=np.uint32)
    means = sums // visible.sum((1, 2), dtype=np.uint32)
    blocks[row, :, column] = np.where(visible, colours, means[:, None, None])


def _filter_gradient(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Subtract from each value its prediction, modulo 256: left + above - above left, limited."""
    residuals = values.copy()
    residuals[0, 1:] -= values[0, :-1]
    residuals[1:, 0] -= values[:-1, 0]
    for top in range(1, len(values), _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        band = values[rows]
        above = values[top - 1 : top - 1 + len(band)]
        predicted = band[:, :-1].astype(np.int16)
        predicted += above[:, 1:]
        predicted -= above[:, :-1]
        residuals[rows, 1:] -= np.clip(predicted, 0, 255, out=predicted).astype(np.uint8)
    return residuals


def _compress_plane(values: NDArray[np.uint8]) -> bytes:
    """Code a plane, (H,W), as the green channel of a lossless image without its size."""
    flat = values.ravel()
    starts = range(0, len(flat), _PIECE_VALUES)
    pieces = [_run_length_tokens(flat[start : start + _PIECE_VALUES]) for start in starts]
    counts = sum(np.bincount(symbols, minlength=_GREEN_SYMBOLS) for symbols, _ in pieces)
    lengths = _code_lengths(np.asarray(counts))
    codes = _canonical_codes(lengths)
    writer = _BitWriter()
    writer.write_fields(_HEADER_FIELDS)
    writer.write_fields((_reverse_bits(int(length), 4), 4) for length in lengths)
    writer.write_fields(_TRAILER_FIELDS)
    for symbols, extras in pieces:
        bits = codes[symbols] | extras.astype(np.uint64) << lengths[symbols].astype(np.uint64)
        writer.write_array(bits, lengths[symbols] + _EXTRA_BITS[symbols])
    return writer.to_bytes()


def _run_length_tokens(
    flat: NDArray[np.uint8],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Split values into runs: each is a value, then copies of the value on the left.

    Returns:
        (N,) symbols of green, and (N,) extra bits of each symbol.
    """
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    repeats = np.diff(starts, append=len(flat)) - 1
    full_copies, rest = np.divmod(repeats, _MAX_COPY_LENGTH)
    token_counts = 1 + full_copies + (rest > 0)
    first_tokens = np.cumsum(token_counts) - token_counts
    longest = _FIRST_COPY_SYMBOL + _LENGTH_PREFIXES[_MAX_COPY_LENGTH]
    symbols = np.full(int(token_counts.sum()), longest, np.uint16)
    extras = np.full(len(symbols), _LENGTH_EXTRAS[_MAX_COPY_LENGTH], np.uint16)
    symbols[first_tokens], extras[first_tokens] = flat[starts], 0
    has_rest = rest > 0
    last_tokens, rest = (first_tokens + token_counts - 1)[has_rest], rest[has_rest]
    symbols[last_tokens] = _FIRST_COPY_SYMBOL + _LENGTH_PREFIXES[rest]
    extras[last_tokens] = _LENGTH_EXTRAS[rest]
    return symbols, extras


class _BitWriter:
    """Collects values of a few bits each; the lowest bit comes first."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._pending, self._pending_count = 0, 0  # bits that do not fill a byte yet

    def write_fields(self, fields: Iterable[tuple[int, int]]) -> None:
        """Append fields: (value, number of bits)."""
        for value, count in fields:
            self._pending |= value << self._pending_count
            self._pending_count += count

    def write_array(self, values: NDArray[np.uint64], counts: NDArray[np.uint8]) -> None:
        """Append values of at most 31 bits each; `counts` are their numbers of bits."""
        ends = np.cumsum(counts, dtype=np.int64) + self._pending_count
        offsets = ends - counts
        words, shifts = offsets >> 5, (offsets & 31).astype(np.uint64)
        shifted = values << shifts
        word_count = int(ends[-1]) // 32 + 2
        # No two values share a bit, so each sum stays below 2^32, and is exact in float64.
        low = np.bincount(words, shifted & np.uint64(0xFFFFFFFF), word_count)
        high = np.bincount(words + 1, shifted >> np.uint64(32), word_count)
        pending = np.frombuffer(self._pending.to_bytes(4 * word_count, "little"), "<u4")
        packed = ((low + high).astype("<u4") | pending).tobytes()
        full_bytes, self._pending_count = divmod(int(ends[-1]), 8)
        self._pieces.append(packed[:full_bytes])
        self._pending = packed[full_bytes]

    def to_bytes(self) -> bytes:
        """All bits, padded with zeros to a byte."""
        pending = self._pending.to_bytes(-(-self._pending_count // 8), "little")
        return b"".join(self._pieces) + pending


def _code_lengths(counts: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The lengths of a Huffman code, limited to 15 bits; at least two symbols get a code.

    Args:
        counts: (symbols,) how often each symbol occurs.

    Returns:
        (symbols,) bits of each symbol's code; 0 where it does not occur.
    """
    weights = counts.copy()
    if np.count_nonzero(weights) < 2:
        weights[:2] = np.maximum(weights[:2], 1)
    lengths = _huffman_lengths(weights)
    while lengths.max() > _MAX_CODE_BITS:
        weights = np.where(weights > 0, (weights + 1) // 2, 0)  # more equal weights, shorter codes
        lengths = _huffman_lengths(weights)
    return lengths


def _huffman_lengths(weights: NDArray[np.intp]) -> NDArray[np.uint8]:
    """The lengths of a Huffman code without a limit."""
    heap: list[tuple[int, int, tuple[int, ...]]]  # weight, smallest symbol, symbols
    heap = [(int(weight), i, (i,)) for i, weight in enumerate(weights) if weight]
    heapq.heapify(heap)
    lengths = np.zeros(len(weights), np.uint8)
    while len(heap) > 1:
        weight_a, first_a, symbols_a = heapq.heappop(heap)
        weight_b, first_b, symbols_b = heapq.heappop(heap)
        symbols = symbols_a + symbols_b
        lengths[list(symbols)] += 1
        heapq.heappush(heap, (weight_a + weight_b, min(first_a, first_b), symbols))
    return lengths


def _canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Canonical prefix codes: ordered by length, then by symbol; bits in the order of reading."""
    codes = np.zeros(len(lengths), np.uint64)
    code = previous_length = 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s)):
        code <<= int(lengths[symbol]) - previous_length
        previous_length = int(lengths[symbol])
        codes[symbol] = _reverse_bits(code, previous_length)
        code += 1
    return codes


def _reverse_bits(value: int, count: int) -> int:
    return int(f"{value:0{count}b}"[::-1], 2)


def _copy_length_tables() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
    """How copy lengths are coded: one of 24 prefixes, then extra bits.

    Returns:
        (4097,) the prefix of each length; (4097,) its extra bits; (symbols,) how many extra bits
        each symbol of green has.
    """
    offsets = np.maximum(np.arange(-1, _MAX_COPY_LENGTH), 0)  # length less 1
    high_bit = np.frexp(np.maximum(offsets, 1))[1] - 1
    second_bit = (offsets >> np.maximum(high_bit - 1, 0)) & 1
    is_small = offsets < 2
    bit_counts = np.where(is_small, 0, high_bit - 1)
    prefixes = np.where(is_small, offsets, 2 * high_bit + second_bit)
    symbol_bits = np.zeros(_GREEN_SYMBOLS, np.uint8)
    symbol_bits[_FIRST_COPY_SYMBOL + prefixes] = bit_counts
    return prefixes, offsets & ((1 << bit_counts) - 1), symbol_bits


_LENGTH_PREFIXES, _LENGTH_EXTRAS, _EXTRA_BITS = _copy_length_tables()
# Fields are (value, number of bits). The header: no transform, no colour cache, one set of codes.
# Then the code of green's code lengths: lengths 0 to 15 take four bits each. The symbols 16, 17 and
# 18 are unused; in the format's order they are the ninth, first and second.
_CODE_LENGTH_FIELDS = (*[(0, 3)] * 2, *[(4, 3)] * 6, (0, 3), *[(4, 3)] * 10)
_HEADER_FIELDS = ((0, 1), (0, 1), (0, 1), (0, 1), (15, 4), *_CODE_LENGTH_FIELDS, (0, 1))
# Red, blue and alpha are always 0. The distance of a copy is always "on the left". Their codes have
# no bits.
_ZERO_CODE_FIELDS = ((1, 1), (0, 1), (0, 1), (0, 1))
_TRAILER_FIELDS = (*_ZERO_CODE_FIELDS * 3, (1, 1), (0, 1), (0, 1), (1, 1))


def _encode_lossy(image: Image.Image, **options: object) -> bytes:
    """Let libwebp encode an opaque image."""
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()


def _find_chunk(content: bytes, name: bytes) -> bytes:
    """The content of a chunk in a WebP file."""
    offset = len(b"RIFFsizeWEBP")
    while offset < len(content):
        size = int.from_bytes(content[offset + 4 : offset + 8], "little")
        if content[offset : offset + 4] == name:
            return content[offset + 8 : offset + 8 + size]
        offset += 8 + size + size % 2
    raise OSError(f"libwebp wrote no chunk {name.decode()}")


def _make_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
