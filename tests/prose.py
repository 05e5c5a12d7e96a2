"""Check the wording of Python files and Markdown pages: python -m tests.prose [PATH ...]

Docstrings, comments, messages and pages have sentences of at most 25 words. They have none of the phrases that readers
stumbled over. Pages have lines of at most 200 characters, and table cells of at most 40 words. docs/glossary.md has the
terms to use.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATHS = ("service", "model_export", "docs", "docker", "tests", "README.md", "CONTRIBUTING.md", "SECURITY.md")
MAX_WORDS = 25
MAX_CELL_WORDS = 40
MAX_LINE = 200
# A shorter string is not a text for people.
MESSAGE_WORDS = 5
# Phrases that readers stumbled over, and what to write instead.
PHRASES = {
    r"so (many|much|few|long)\b(?! (as|that))": "give the number a name: N, `count`, ...",
    r"whoever\b": "the client, the caller, the thread",
    r"(of|to|for|from) (those|them|him|her) who\b": "clients that, threads that",
    r"anew\b": "again",
    r"in vain\b": "has no effect",
    r"for want of\b": "for lack of",
    r"tells? of\b": "report",
    r"(is|are|be) told\b": "receive, be given, be logged",
    r"that is no [a-z]": "that is not a",
    r"what is no [a-z]": "anything that is not a",
    r"there is none\b": "name what is missing",
    r"by and by\b": "over time",
    r"the like\b": "name the things",
    r"somebody else's": "another project's, another user's",
    r"a good deal\b": "give the number",
    r"stints?\b": "a period at work",
    r"knobs?\b": "setting",
    r"fares?\b": "state, health",
}
FORBIDDEN = [(re.compile(rf"\b{phrase}", re.IGNORECASE), advice) for phrase, advice in PHRASES.items()]
# A docstring that begins with a question word is not a sentence.
QUESTION = re.compile(r"(What|Which|Who|Whose|Whether|How|Where|When|Why)\b(?![^.]*\?)")
# Dots that do not end a sentence.
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|vs|cf|etc|al|approx|Eq|Eqs|Fig|No|St|Dr|pp?)\.", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?:;](?=\s|$)[)\"'*]*")
CODE = re.compile(r"`[^`]*`|https?://\S+|\[([^\]]*)\]\([^)]*\)")
CODE_BLOCK = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:|ruff:|pragma|!)")


class Finding(NamedTuple):
    """One thing to mend: where it is, and what to do."""

    path: Path
    line: int
    advice: str


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a paragraph, without their code spans. A colon and a semicolon end a sentence, too."""
    plain = CODE.sub(lambda found: found[1] or "code", text)
    yield from filter(None, map(str.strip, SENTENCE_END.split(ABBREVIATIONS.sub(r"\1", plain))))


def words(text: str) -> int:
    """Return the number of words; signs alone do not count."""
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def in_paragraph(text: str) -> Iterator[str]:
    """Yield what to mend in one paragraph."""
    text = " ".join(text.split())
    for sentence in sentences(text):
        if (count := words(sentence)) > MAX_WORDS:
            yield f"a sentence of {count} words (at most {MAX_WORDS}): {sentence[:60]}..."
    plain = CODE.sub(lambda found: found[1] or "", text)
    for pattern, advice in FORBIDDEN:
        if found := pattern.search(plain):
            yield f"{found[0]!r}: {advice}"


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs and list items with the number of their first line, from 0. Indented examples are left out."""
    begun, lines = 0, []
    for number, line in enumerate([*text.splitlines(), ""]):
        starts_item = re.match(r"\s*([-*]|\d+\.) ", line)
        if lines and (not line.strip() or starts_item):
            yield begun, " ".join(lines)
            lines = []
        if line.strip():
            begun = begun if lines else number
            lines.append(line.strip().removeprefix("- ").removeprefix("* "))


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module with their line numbers, those of attributes included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str):
                    yield statement.lineno, value


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that are long enough to be read by people: errors, descriptions, log lines, help."""
    inside = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in ast.walk(node)}
    written = {line for line, _ in docstrings(tree)}
    for node in ast.walk(tree):
        parts: list[ast.expr] = (
            node.values if isinstance(node, ast.JoinedStr) else [node] if id(node) not in inside else []
        )
        texts = [part.value if isinstance(part, ast.Constant) else "N" for part in parts]
        if not texts or not all(isinstance(text, str) for text in texts) or not isinstance(node, ast.expr):
            continue
        text = "".join(texts)
        if node.lineno not in written and words(text) >= MESSAGE_WORDS and "\n" not in text:
            yield node.lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a module with their line numbers; those on consecutive lines are one."""
    begun, last, lines = 0, -1, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or DIRECTIVE.match(token.string):
            continue
        row, column = token.start
        stands_alone = not token.line[:column].strip()
        if lines and (row != last + 1 or not stands_alone):
            yield begun, "\n".join(lines)
            lines = []
        begun = begun if lines else row
        lines.append(token.string.lstrip("#").split("# noqa")[0].strip())
        last = row if stands_alone else -1
    if lines:
        yield begun, "\n".join(lines)


def in_python(path: Path) -> Iterator[Finding]:
    """Yield what to mend in a Python file."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    for start, text in docstrings(tree):
        if QUESTION.match(text):
            yield Finding(path, start, "a docstring that begins with a question word: begin with a verb or a noun")
    for start, text in (*docstrings(tree), *comments(source), *messages(tree)):
        for offset, paragraph in paragraphs(text):
            for advice in in_paragraph(paragraph):
                yield Finding(path, start + offset, advice)


def in_markdown(path: Path) -> Iterator[Finding]:
    """Yield what to mend in a page. Code blocks are left out."""
    text = CODE_BLOCK.sub(lambda found: "\n" * found[0].count("\n"), path.read_text("utf-8"))
    prose = []
    for number, line in enumerate(text.splitlines(), 1):
        is_row = line.lstrip().startswith("|")
        prose.append("" if is_row or line.startswith("#") else line)
        if is_row:
            for cell in line.replace(r"\|", "/").split("|"):
                if (count := words(CODE.sub("code", cell))) > MAX_CELL_WORDS:
                    yield Finding(
                        path, number, f"a cell of {count} words (at most {MAX_CELL_WORDS}): {cell.strip()[:60]}"
                    )
                yield from (
                    Finding(path, number, advice) for advice in in_paragraph(cell) if "a sentence" not in advice
                )
        elif len(line) > MAX_LINE:
            yield Finding(path, number, f"a line of {len(line)} characters (at most {MAX_LINE})")
    for start, paragraph in paragraphs("\n".join(prose)):
        yield from (Finding(path, start + 1, advice) for advice in in_paragraph(paragraph))


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the Python files and pages that the paths name or hold."""
    for path in paths:
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in found if file.suffix in (".py", ".md"))


def main(arguments: list[str]) -> int:
    """Print the findings, a line each; return 1 if there are any."""
    paths = [Path(argument) for argument in arguments] or [ROOT / name for name in PATHS if (ROOT / name).exists()]
    count = 0
    for file in files(paths):
        for finding in (in_python if file.suffix == ".py" else in_markdown)(file):
            print(f"{finding.path}:{finding.line}: {finding.advice}")
            count += 1
    print(f"{count} findings", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
