"""Random bytes and random changes for every reader of foreign bytes.

Nothing but an error of ours may come of them. `fuzz/readers.py` lists the readers. Here hypothesis
changes their committed inputs for some seconds; `make fuzz` does so for as long as it is told.
"""

from __future__ import annotations

import contextlib
import json

import pytest
from fuzz import forms
from fuzz.readers import READERS, Reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from u2export.errors import U2ExportError
from u2export.images.decode import as_image

FUZZED = settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "0" * 64, "fp32", "1e999", "int8"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(document: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where values lie in a document of JSON."""
    pairs = (
        list(document.items())
        if isinstance(document, dict)
        else list(enumerate(document))
        if isinstance(document, list)
        else []
    )
    deeper = [place for key, value in pairs for place in _places(value, (*at, key))]
    return [*((*at, key) for key, _ in pairs), *deeper]


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A document of JSON with one to three values replaced."""
    document = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        target = document
        for key in above:
            target = target[key]
        target[last] = draw(VALUES)
    return json.dumps(document).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with some bytes replaced, and perhaps cut."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return (
        bytes(changed[: draw(st.integers(0, len(changed)))])
        if draw(st.booleans())
        else bytes(changed)
    )


def _is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), (dict, list))
    except (ValueError, RecursionError):
        return False


@st.composite
def changed_inputs(draw: st.DrawFn, reader: Reader) -> bytes:
    """One of a reader's committed inputs, changed; or any few bytes."""
    content = draw(st.sampled_from(reader.corpus)).read_bytes()
    if not content or not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=60))
    if reader.mutate is forms.json_text and _is_json(content):
        return draw(changed_json(content))
    return draw(changed_bytes(content))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@FUZZED
@given(st.data())
def test_nothing_but_an_error_of_ours_comes_of_changed_inputs(reader: Reader, data: st.DataObject):
    fault = reader.find_fault(data.draw(changed_inputs(reader)))
    assert fault is None, fault.text


@FUZZED
@given(VALUES | st.binary(max_size=5))
def test_what_is_handed_over_as_a_picture(value: object):
    if not isinstance(value, str):
        with contextlib.suppress(U2ExportError):
            as_image(value)
