"""Names, messages, docstrings and guides use the words of the glossary in CONTRIBUTING.md, and US spelling."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, text_of

SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".cu", ".cuh", ".cpp", ".h", ".inl"}
DIRECTORIES = (
    "mask2former",
    "tests",
    "tools",
    "demo",
    "demo_video",
    "datasets",
    "docs",
    "examples",
    "configs",
    ".github",
    ".ci",
)
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
# Only the package: the guides may speak of a folder, and tests of a document.
OLD_WORDS_OF_THE_PACKAGE = {
    "directory": r"\bfolders?\b",  # names such as register_semantic_folder and FrameFolder are no words by themselves
    "ground truth": r"\bground[ \n]truths\b",
    "return whether": r"\btells[ \n]whether\b",
    "requested, selected, indices": r"\b(wanted|chosen|places) =",
    "an": r"\b[Aa] (annotation|array|augmentation|encoder|error|evaluation|image|index|instance|iteration|object)\b",
    "one article": r"\b(the|an?) (the|an?)\b",
}
FIRST_WORDS_THAT_ARE_NO_VERBS = (
    "What|Whether|How|Which|The|A|An|All|Any|One|Of|From|As|In|For|Where|When|"
    "Names|Number|Scores|Boxes|Masks|Pairs|Precision|Context|States|Learning|Largest|Trainable"
)
TEST = Path(__file__).resolve()


def checked_text(path: Path) -> str:
    """Return the text of a file, without the glossary of old words and the table of modules that were renamed."""
    text = text_of(path)
    if path.name == "CONTRIBUTING.md":
        return re.sub(r"\n## Words\n.*?\n## ", "\n## ", text, flags=re.DOTALL)
    return re.sub(r"^\| `.*", "", text, flags=re.MULTILINE) if path.name == "CHANGELOG.md" else text


def uses(pattern: str, files: list[Path], flags: int = 0) -> list[str]:
    """Return file, line and text of each match of `pattern`."""
    matches = []
    for path in files:
        if path.resolve() == TEST:
            continue
        text = checked_text(path)
        for match in re.finditer(pattern, text, flags):
            line = text.count("\n", 0, match.start()) + 1
            matches.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}")
    return matches


@pytest.mark.parametrize("word", OLD_WORDS)
def test_words_of_the_glossary(word: str) -> None:
    matches = uses(OLD_WORDS[word], FILES, re.IGNORECASE if word == "US spelling" else 0)
    assert not matches, f"say {word!r} instead:\n" + "\n".join(matches)


@pytest.mark.parametrize("word", OLD_WORDS_OF_THE_PACKAGE)
def test_words_of_the_package(word: str) -> None:
    matches = uses(OLD_WORDS_OF_THE_PACKAGE[word], PYTHON)
    assert not matches, f"say {word} instead:\n" + "\n".join(matches)


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
    """A verb ("Return", "Build") comes first; an article, question word or noun does not say what the function does."""
    wrong = [
        f"line {line}: {text.splitlines()[0]}"
        for line, text in public_docstrings(path)
        if re.match(rf"({FIRST_WORDS_THAT_ARE_NO_VERBS})\b", text)
    ]
    assert not wrong, "\n".join(wrong)
