"""What the README, the docs and the docstrings show is run, or checked against the real thing.

How: tests/support/pages.py and tests/support/examples.py.
"""

from pathlib import Path

import pytest
from tests.support.examples import Example, ExampleError, examples_in, run_example
from tests.support.examples import blocks_of as indented
from tests.support.pages import (
    ROOT,
    SHELLS,
    Block,
    DocsError,
    blocks_of,
    broken_links,
    check_commands,
    check_diff,
    commands_of,
    run_python,
)

import infobatch

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Those of the integrations need their frameworks, and are run among the tests of these.
EXAMPLES = examples_in(infobatch, leave_out=("infobatch.integrations.",))

on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


# --- the pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_python_of_the_page_runs(page, tmp_path):
    run_python(page, tmp_path)


@on_every_page
def test_the_commands_of_the_page_work(page, tmp_path):
    for block in blocks_of(page):
        if block.language in SHELLS:
            check_commands(block, tmp_path)


@on_every_page
def test_the_diffs_of_the_page_are_python(page):
    for block in blocks_of(page):
        if block.language == "diff":
            check_diff(block)


@on_every_page
def test_the_links_of_the_page_lead_to_what_exists(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_the_example_of_the_docstring_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(example)


# --- the runner can fail --------------------------------------------------------------------------


def page_with(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_python_block_that_raises_is_reported_with_its_line_in_the_page(tmp_path):
    text = "# A page\n\n```python\nx = 1\n```\n\nand\n\n```python\nassert x == 2\n```\n"
    page = page_with(tmp_path, text)
    with pytest.raises(DocsError, match=r"line 10\b[\s\S]*AssertionError"):
        run_python(page, tmp_path)


def test_python_blocks_of_a_page_share_their_names(tmp_path):
    text = "```python\nx = 1\n```\n\n- item\n\n  ```python\n  assert x == 1\n  ```\n"
    run_python(page_with(tmp_path, text), tmp_path)


@pytest.mark.parametrize("language", ["", "json", "Python", "shell"])
def test_a_block_of_another_language_fails(tmp_path, language):
    with pytest.raises(DocsError, match="a code block is one of"):
        blocks_of(page_with(tmp_path, f"```{language}\nx\n```\n"))


def test_a_block_that_is_never_closed_fails(tmp_path):
    with pytest.raises(DocsError, match="never closed"):
        blocks_of(page_with(tmp_path, "```python\nx = 1\n"))


def test_a_console_block_without_a_command_fails(tmp_path):
    with pytest.raises(DocsError, match="starts with"):
        commands_of(Block(tmp_path / "page.md", 1, "console", "make demo"))


def test_a_diff_whose_new_side_is_no_python_fails(tmp_path):
    good = Block(tmp_path / "page.md", 1, "diff", " for x in y:\n-    f(x\n+    f(x)")
    bad = Block(tmp_path / "page.md", 1, "diff", " for x in y:\n-    f(x)\n+    f(x")
    check_diff(good)
    with pytest.raises(DocsError, match="not Python"):
        check_diff(bad)


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "pip install 'infobatch[no-such-extra]'",
        "pip install other",
        "pip download infobatch",
        "infobatch compare --no-such-option",
        "infobatch compare --compile --no-such-option",
        "infobatch no-such-command --compile",
        "infobatch compare --task cifar10",
        "python no_such_script.py",
        "git clone https://github.com/infobatch/other",
        "rm file",
        "FLAG=1 rm file",
        "make help && rm file",
    ],
)
def test_a_command_that_does_not_work_fails(command, tmp_path):
    block = Block(tmp_path / "page.md", 1, "bash", command)
    with pytest.raises(DocsError):
        check_commands(block, tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "make test PYTEST_ARGS='-x'  # with a comment",
        "pip install 'infobatch[lab]'",
        "python -m pip install -e '.[lab,dev]'",
        "HYPOTHESIS_PROFILE=thorough make test",
        "git clone https://github.com/infobatch/infobatch && cd infobatch",
        "infobatch compare --compile --epochs 200",
        "infobatch compare --help",
        "infobatch compare --arms full && infobatch report runs/digits",
        "infobatch compare --task cifar10 --data-dir DIR --arms full",
    ],
)
def test_a_command_that_works_passes(command, tmp_path):
    check_commands(Block(tmp_path / "page.md", 1, "bash", command), tmp_path)


def test_a_wrong_example_in_a_docstring_fails():
    docstring = """Text.

Args:
    x: no example, and its

        continuation is none either.

An example:

    loss = pruner.update(loss_of(model(x), y))

    loss.backward()
    ...
"""
    (good,) = indented(docstring)
    assert good.endswith("loss.backward()\n...\n")
    run_example(Example("", "good", good))
    for bad in ("model(z)\n", "... # who knows\n", "def test_it():\n    assert 1 > 2\n", "x y\n"):
        with pytest.raises(ExampleError):
            run_example(Example("", "bad", good + bad))


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    text = (
        "# One: a `heading`, here\n[a](page.md) [b](missing.md#part) [c](https://example.org/#d) "
        '<img src="missing.png"> [d](#one-a-heading-here) [e](page.md#two) [f](page.md#one)'
    )
    broken = ["missing.md#part", "missing.png", "page.md#two", "page.md#one"]
    assert broken_links(page_with(tmp_path, text)) == broken
