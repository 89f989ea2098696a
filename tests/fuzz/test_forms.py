"""Changed inputs keep the lengths and checksums that their readers ask for first."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from xml.etree import ElementTree

import onnx
import pytest
from fuzz import forms
from fuzz.readers import READERS
from PIL import Image

SEEDS = range(40)


def _turn_last(content: bytes, largest: int) -> bytes:
    """Change the last byte."""
    return content[:-1] + bytes([content[-1] ^ 0xFF]) if content else b"x"


def _seed_of(reader: str, name: str) -> bytes:
    [path] = [path for path in READERS[reader].corpus if path.name == name]
    return path.read_bytes()


def test_the_chunks_of_a_changed_png_have_right_checksums():
    def turn_a_pixel(content: bytes, largest: int) -> bytes:
        place = content.index(b"IHDR") + 7  # the last byte of the width
        return content[:place] + b"\x05" + content[place + 1 :]

    content = forms.png(_seed_of("pictures-png", "rgb"), 8192, random.Random(0), turn_a_pixel)
    assert Image.open(io.BytesIO(content)).size == (5, 12)
    place = content.index(b"IHDR")
    assert content[place + 17 : place + 21] == zlib.crc32(content[place : place + 17]).to_bytes(
        4, "big"
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_stays_one_and_its_parts_change():
    whole, changed = _seed_of("replays", "listed.zip"), 0
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        before = {name: archive.read(name) for name in archive.namelist()}
    for seed in SEEDS:
        content = forms.zip_archive(whole, 16384, random.Random(seed), lambda part, _: part)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            after = [(name, archive.read(name)) for name in archive.namelist()]
        changed += after != list(before.items())
    assert changed > len(SEEDS) / 4


def test_a_changed_document_is_json_again():
    whole, documents = _seed_of("budgets", "some.json"), []
    for seed in SEEDS:
        content = forms.json_text(whole, 2048, random.Random(seed), lambda part, _: part)
        documents.append(json.loads(content))
    assert sum(document != json.loads(whole) for document in documents) > len(SEEDS) / 2


def test_a_changed_header_has_its_length():
    whole, lengths = _seed_of("safetensors", "plain.safetensors"), set()
    for seed in SEEDS:
        content = forms.headed_json(whole, 4096, random.Random(seed), lambda part, _: part)
        length = int.from_bytes(content[:8], "little")
        json.loads(content[8 : 8 + length])
        lengths.add(length)
    assert len(lengths) > 2


@pytest.mark.parametrize(
    "mutate",
    [forms.json_text, forms.zip_archive, forms.headed_json, forms.xml_text, forms.protobuf],
)
def test_what_has_no_such_form_is_changed_as_bytes(mutate: forms.Mutation):
    assert mutate(b"no form", 100, random.Random(0), _turn_last) == b"no for\x92"


def test_a_changed_message_is_one_again_at_every_depth():
    whole, read = _seed_of("onnx", "ours.onnx"), 0
    for seed in SEEDS:
        content = forms.protobuf(whole, 4096, random.Random(seed), lambda part, _: part)
        read += content != whole
        onnx.load_from_string(content)
    assert read > len(SEEDS) / 4


def test_a_changed_document_of_xml_is_one_again():
    whole, texts = _seed_of("openvino", "ours.xml"), set()
    for seed in SEEDS:
        content = forms.xml_text(whole, 16384, random.Random(seed), lambda part, _: part)
        texts.add(ElementTree.tostring(ElementTree.fromstring(content)))
    assert len(texts) > len(SEEDS) / 4
