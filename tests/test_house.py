"""The house stays readable: each figure of `measure_house.py` has a limit."""

from __future__ import annotations

import statistics
from pathlib import Path

import measure_house
import pytest

README_WORDS = 700
SENTENCE_WORDS = 12.0
ROOMS = 26
BODY_LINES = {"median": 6, "95th percentile": 24}


def test_the_readme_is_short():
    assert measure_house.readme_words() <= README_WORDS


def test_sentences_are_short():
    assert measure_house.mean_sentence(measure_house.README) <= SENTENCE_WORDS
    assert measure_house.mean_sentence(*measure_house.doc_pages()) <= SENTENCE_WORDS


def test_no_module_is_long():
    assert measure_house.long_modules() == {}


def test_there_are_few_rooms():
    assert len(measure_house.rooms()) <= ROOMS


def test_functions_are_short():
    lengths = measure_house.bodies()
    assert len(lengths) > 100
    assert statistics.median(lengths) <= BODY_LINES["median"]
    assert measure_house.percentile(lengths, 95) <= BODY_LINES["95th percentile"]


MARKDOWN = """\
---
title: not prose
---

# A heading is no sentence

One two three. Four `code with blanks` six!
Seven [eight nine](where.md).

<!-- not. prose. -->

* An item ends
* without a full stop

| a | table. |
| - | - |

```sh
no. prose. here.
```

![no prose](picture.png)
"""


def test_sentences_are_those_of_the_prose():
    assert measure_house.sentences(MARKDOWN) == [
        "One two three.",
        "Four code six!",
        "Seven eight nine.",
        "An item ends",
        "without a full stop",
    ]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    return 1\n", 1),
        ('def f():\n    """Say."""\n    a = 1\n\n    return a\n', 3),
        ('def f():\n    """Say."""\n', 0),
    ],
)
def test_a_body_is_what_follows_the_docstring(
    source: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "module.py").write_text(source)
    monkeypatch.setattr(measure_house, "PACKAGE", tmp_path)
    assert measure_house.bodies() == [lines]


def test_a_percentile_is_a_value_that_few_exceed():
    assert measure_house.percentile(list(range(1, 101)), 95) == 95
    assert measure_house.percentile([1, 2, 3], 95) == 3


def test_writing_atomically_is_found_in_each_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = tmp_path / "module.py"
    module.write_text(
        "os.replace(a, b)\npath.replace(target)\nname = '.part'\n"
        "text.replace('a', 'b')\ndate.replace(year=1)\n"
    )
    monkeypatch.setattr(measure_house, "PACKAGE", tmp_path)
    assert measure_house.atomic_writes() == ["module.py:1", "module.py:2", "module.py:3"]
