"""Names, messages, docstrings and guides use the words of the glossary in CONTRIBUTING.md, and US spelling."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, text_of

SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".cu", ".cuh", ".cpp", ".h", ".inl"}
DIRECTORIES = ("mask2former", "tests", "tools", "demo", "datasets", "docs", "configs", ".github", ".ci")
FILES = sorted(
    [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    + [path for name in DIRECTORIES for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
)
PYTHON = [path for path in FILES if path.suffix == ".py" and ROOT / "mask2former" in path.parents]

OLD_WORDS = {
    "image": r"\bpictures?\b|_pictures?\b|\bpictures?_|Pictures?\b",
    "dataset": r"\bdata[ \n]sets?\b",
    "label map": r"\blabel[ _-](picture|image)s?\b",
    "shortest edge": r"\bshort(er)?[ _]sides?\b|ShortSide",
    "degenerate": r"hollow",
    "similarity": r"likeness",
    "truncated": r"\bcut[ \n]short\b",
    "EMA weights": r"\bweight[ \n]averag(e|es|ing)\b|\baveraged[ \n]weights\b",
    "horizontally flipped": r"\bmirrored\b",
    "custom dataset": r"\byour own data\b|\bown data\b",
    "US spelling": r"colour|\bgrey|centre|neighbour|licence|behaviour|favour|honour|labelled|artefact|analyse"
    r"|(normal|summar|initial|raster|optim|recogn|serial|random|synchron|minim|maxim|general|visual|categor|local)is(e|ing|ation)",
}
TEST = Path(__file__).resolve()


def checked_text(path: Path) -> str:
    """Return the text of a file, without the glossary that lists the old words."""
    text = text_of(path)
    return re.sub(r"\n## Words\n.*?\n## ", "\n## ", text, flags=re.DOTALL) if path.name == "CONTRIBUTING.md" else text


@pytest.mark.parametrize("word", OLD_WORDS)
def test_words_of_the_glossary(word: str) -> None:
    pattern = re.compile(OLD_WORDS[word], re.IGNORECASE if word == "US spelling" else 0)
    matches = []
    for path in FILES:
        if path.resolve() == TEST:
            continue
        text = checked_text(path)
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            matches.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}")
    assert not matches, f"say {word!r} instead:\n" + "\n".join(matches)


def test_the_glossary_is_where_people_look() -> None:
    text = text_of(ROOT / "CONTRIBUTING.md")
    assert "| image | picture |" in text and "| dataset | data set |" in text


def public_docstrings(path: Path) -> list[tuple[int, str]]:
    """Return line and docstring of every public function and method of a module."""
    docstrings = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text:
                docstrings.append((node.lineno, text))
    return docstrings


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_functions_say_what_they_do(path: Path) -> None:
    """A verb ("Return", "Build") comes first; an article or a question word does not say what the function does."""
    wrong = [
        f"line {line}: {text.splitlines()[0]}"
        for line, text in public_docstrings(path)
        if re.match(r"(What|Whether|How|Which|The|A|An|All|Any|One|Of|From|As|In|For|Where|When)\b", text)
    ]
    assert not wrong, "\n".join(wrong)
