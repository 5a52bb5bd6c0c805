"""The documents agree with the code: references, links, commands and quoted messages."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mmva_platform.cli.jobs import _parse
from mmva_platform.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OPERATORS = {";", "&", "&&", "|", "||", ">", ">>", "<", "(", ")"}
QUOTED = re.compile(r"^#{3} `(.+)`$", re.MULTILINE)


def test_references_are_those_of_the_code(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("references", ROOT / "docs" / "references.py")
    assert spec is not None
    assert spec.loader is not None
    references = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(references)
    references.main(tmp_path)
    for page in ("cli.md", "settings.md"):
        made = (tmp_path / page).read_text(encoding="utf-8")
        assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == made, "run `make references`"
        options = made.partition("## Recipe")[0]
        assert not re.findall(r"^\| `.*\|  \|$", options, re.MULTILINE), "an option or a key without a meaning"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.fixture(scope="module")
def root() -> Any:
    """The whole command line, as click sees it."""
    return typer.main.get_command(app)


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `mmva` in the page's blocks."""
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in {"yaml", "python", "json"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            words.commenters = "#" if not re.search(r"\S#", line) else ""
            try:
                tokens = list(words)
            except ValueError:  # a quotation over several lines, which holds no command of ours
                continue
            for start in [index for index, token in enumerate(tokens) if token == "mmva"]:
                if start and tokens[start - 1] not in OPERATORS and "=" not in tokens[start - 1]:
                    continue  # a name, not a command
                end = next((n for n in range(start, len(tokens)) if tokens[n] in OPERATORS), len(tokens))
                arguments = [token.strip("[]") for token in tokens[start + 1 : end] if token != "..."]
                yield ["5" if argument == "N" else argument for argument in arguments]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_parses(page: Path, root: Any) -> None:
    for arguments in commands(page):
        if not arguments or "--help" in arguments or arguments[0] == "--version":
            continue
        try:
            parsed = root.make_context("mmva", list(arguments))
            rest = [*parsed._protected_args, *parsed.args]
            _parse(root, parsed, rest)
            if rest[:2] == ["jobs", "submit"]:
                at = next(index for index, word in enumerate(rest[2:], 2) if word in root.commands)
                _parse(root, parsed, rest[at:])
        except Exception as error:
            error.add_note(f"mmva {shlex.join(arguments)}")
            raise


@functools.cache
def literals(folder: Path) -> str:
    """All texts of the code, one after another; what is computed is a mark."""
    parts = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts.append("".join(str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
    return "\n".join(parts)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = "".join(literals(ROOT / folder) for folder in ("mmva", "platform"))
    messages = QUOTED.findall(page)
    assert messages
    for message in messages:
        for part in filter(None, map(str.strip, message.split("..."))):
            assert part in known, message


def test_every_cause_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").partition("## Why an item")[2]
    causes = re.findall(r"`([a-z]+-[a-z-]+)`", "".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)))
    known = literals(ROOT / "mmva").splitlines() + literals(ROOT / "platform").splitlines()
    assert causes
    assert {*causes} <= {*known}
