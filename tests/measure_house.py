"""Print the figures that keep this house readable; `test_house.py` holds them to their limits.

    python tests/measure_house.py

How each figure is counted:

* A word of a sentence holds a letter or a digit. A code span is one word.
* The words of the README are what stands between blanks, as `wc -w` counts, tables included.
* A sentence ends with `.`, `!` or `?`, or with its paragraph or list item. Only prose counts:
  no code blocks, tables, headings, comments, pictures or front matter.
* A room is an entry directly under `u2export/`, or a package inside one of them.
* A body is the lines from a function's first statement to its last, without its docstring.
* A backend is named where its name is a word of a string that is no docstring.
* A place writes atomically where it calls `os.replace`, `os.rename` or `Path.replace`, or spells
  the suffix `.part`.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "u2export"
README = ROOT / "README.md"
DOCS = ROOT / "docs"
ATOMIC_WRITER = PACKAGE / "system" / "files.py"
LONG_MODULE = 450  # lines

_FENCE = re.compile(r"^[ ]*(```|~~~).*?^[ ]*\1[ ]*$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[((?:[^\]\[]|\[[^\]]*\])*)\]\([^)]*\)")
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_NO_PROSE = re.compile(r"[ ]*(\||#|!!!|\?\?\?|===|:::|<|--8<--)")
_ITEM = re.compile(r"^[ ]*([-*+]|\d+\.)[ ]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)\"'*_]*\s+(?=\S)")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|al)\.", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def readme_words() -> int:
    """Count what stands between blanks in the README."""
    return len(README.read_text("utf-8").split())


def words(text: str) -> int:
    """Count the words of prose."""
    return sum(any(char.isalnum() for char in word) for word in text.split())


def paragraphs(markdown: str) -> Iterator[str]:
    """Yield the prose of a Markdown text, one paragraph or list item at a time."""
    for pattern in (_FRONT_MATTER, _FENCE, _COMMENT, _PICTURE):
        markdown = pattern.sub("\n\n", markdown)
    lines: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        ends = not line.strip() or _NO_PROSE.match(line)
        if (ends or _ITEM.match(line)) and lines:
            yield _plain(" ".join(lines))
            lines = []
        if not ends:
            lines.append(_ITEM.sub("", line).strip())


def _plain(paragraph: str) -> str:
    text = _CODE.sub("code", _LINK.sub(r"\1", paragraph))
    return _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text)


def sentences(markdown: str) -> list[str]:
    """Split the prose of a Markdown text into its sentences."""
    parts = (part for text in paragraphs(markdown) for part in _SENTENCE_END.split(text))
    return [part for part in parts if words(part)]


def mean_sentence(*files: Path) -> float:
    """Average the words of a sentence over Markdown files."""
    return statistics.fmean(
        words(sentence) for path in files for sentence in sentences(path.read_text("utf-8"))
    )


def doc_pages() -> list[Path]:
    """List the pages of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def modules() -> list[Path]:
    """List the package's modules."""
    return sorted(PACKAGE.rglob("*.py"))


def long_modules() -> dict[str, int]:
    """Give the modules that have too many lines, with these."""
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in modules()}
    return {_name(path): count for path, count in lines.items() if count > LONG_MODULE}


def rooms() -> list[str]:
    """List the package's entries, and the packages inside them."""
    entries = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or _is_package(path)]
    inside = [path.parent for path in PACKAGE.glob("*/*/__init__.py")]
    return sorted(_name(path) for path in [*entries, *inside])


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def bodies() -> list[int]:
    """Give the lines of every function's body, shortest first."""
    return sorted(
        _body_lines(node)
        for path in modules()
        for node in ast.walk(_tree(path))
        if isinstance(node, Function)
    )


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _body_lines(function: Function) -> int:
    statements = function.body[ast.get_docstring(function) is not None :]
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


def percentile(values: list[int], percent: int) -> int:
    """Give the smallest value that so many percent of sorted values do not exceed."""
    return values[-(-len(values) * percent // 100) - 1]


def backends() -> dict[str, Path]:
    """Give the backends with the file or folder of each."""
    found = sorted((PACKAGE / "backends").iterdir())
    own = [path for path in found if path.suffix == ".py" or _is_package(path)]
    return {path.stem: path for path in own if path.stem != "__init__"}


def files_that_name(backend: str) -> list[str]:
    """List the modules that name a backend, its own ones left out."""
    own = backends()[backend]
    word = re.compile(rf"(?<![\w.-]){re.escape(backend)}(?![\w-])")
    return [
        _name(path)
        for path in modules()
        if own not in (path, *path.parents)
        and any(word.search(text) for text in _strings(_tree(path)))
    ]


def _strings(tree: ast.Module) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            yield node.value


def atomic_writes() -> list[str]:
    """List where the package writes atomically without its one writer, as `file:line`."""
    return [
        f"{_name(path)}:{node.lineno}"
        for path in modules()
        if path != ATOMIC_WRITER
        for node in ast.walk(_tree(path))
        if _renames(node) or _names_part(node)
    ]


def _renames(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    owner = node.func.value
    if isinstance(owner, ast.Name) and owner.id == "os":
        return node.func.attr in ("replace", "rename")
    # a text's `replace` takes two arguments, a dataclass's and a date's take names
    return node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords


def _names_part(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.endswith(".part")
    )


def main() -> None:
    """Print every figure."""
    pages, lengths = doc_pages(), bodies()
    print(f"README: {readme_words()} words")
    print(f"README: {mean_sentence(README):.1f} words a sentence")
    for path in pages:
        print(f"  {path.relative_to(ROOT)}: {_describe(path)}")
    if pages:
        print(f"docs: {mean_sentence(*pages):.1f} words a sentence, {len(pages)} pages")
    print(f"modules over {LONG_MODULE} lines: {long_modules() or 'none'}")
    print(f"rooms: {len(rooms())}: {', '.join(rooms())}")
    middle, high = statistics.median(lengths), percentile(lengths, 95)
    print(f"{len(lengths)} functions: body median {middle:g} lines, 95th percentile {high}")
    for name in backends():
        named = files_that_name(name)
        print(f"{name} is named in {len(named)} other files: {', '.join(named)}")
    writes = atomic_writes()
    print(f"{len(writes)} places write atomically on their own: {', '.join(writes)}")


def _describe(path: Path) -> str:
    text = path.read_text("utf-8")
    return f"{words(text)} words, {mean_sentence(path):.1f} a sentence" if sentences(text) else "-"


if __name__ == "__main__":
    main()
