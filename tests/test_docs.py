"""What the README, the docs and the docstrings show is run, or checked against the real thing.

- `python` blocks of a page run from top to bottom as one program, in an empty folder.
- Commands in `console`, `bash` and `sh` blocks: `infobatch` commands run, with fewer epochs and
  seeds and a narrower model, and on a few random pictures where the user would bring CIFAR; with
  `--compile`, which takes minutes, and for tasks whose data or extras are not here, they are only
  parsed by the real command line: such a task has tests of its own. `torchrun` runs
  a script for two epochs, and what `-m infobatch` gets is parsed. `make`, `pip install`,
  `git clone`, `python script.py` are checked against the repository. Any other command fails the
  test.
- The new side of a `diff` block, or of each of its hunks, is valid Python.
- `text` blocks are left alone; any other language fails the test.
"""

import doctest
import importlib
import itertools
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer.main

import infobatch
from infobatch.lab.arms import choose_arms
from infobatch.lab.commands import app
from infobatch.lab.registry import choose
from infobatch.lab.tasks import all_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CARDS = sorted((ROOT / "docs" / "methods").glob("*.md"))  # short: they run in one process

RUNNABLE = ("digits", "cifar10", "cifar100")  # tasks
SHELLS = ("console", "bash", "sh")
LANGUAGES = ("python", "diff", "text", *SHELLS)
# Appended to every documented `infobatch compare`; of an option given twice the last one counts.
CHEAP = ("--epochs", "2", "--seeds", "1", "--device", "cpu", "--width", "4")

on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


class DocsError(AssertionError):
    """A page shows something that does not work."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line inside the fence, counted from 1
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


# --- finding the blocks ---------------------------------------------------------------------------


def blocks_of(page: Path) -> list[Block]:
    found, fence, start, language, body = [], None, 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*([^\s`]*)", line)
        if fence is None:
            if mark:
                fence, language, start, body = mark.group(1), mark.group(2), number + 1, []
        elif mark and not mark.group(2) and mark.group(1).startswith(fence):
            found.append(Block(page, start, language, textwrap.dedent("\n".join(body))))
            fence = None
        else:
            body.append(line)
    if fence is not None:
        raise DocsError(f"{page.name}:{start - 1}: this code block is never closed")
    for block in found:
        if block.language not in LANGUAGES:
            raise DocsError(
                f"{block.place}: a code block is one of {', '.join(LANGUAGES)}, "
                f"not {block.language!r}; `text` is for what cannot be run"
            )
    return found


# --- python, diff ---------------------------------------------------------------------------------


def write_script(page: Path, folder: Path) -> Path | None:
    """The page as one program in which each line stands where it stands in the page."""
    program: list[str] = []
    for block in blocks_of(page):
        if block.language == "python":
            program += [""] * (block.line - 1 - len(program)) + block.text.splitlines()
    if not program:
        return None
    script = folder / f"page_{page.stem}.py"  # random.py would hide a module
    script.write_text("\n".join(program) + "\n", encoding="utf-8")
    return script


def run_python(page: Path, folder: Path) -> None:
    """Run the program that a page is, if it has any Python."""
    script = write_script(page, folder)
    if script is None:
        return
    # A page must not teach what is deprecated; warnings from inside other packages are theirs.
    strict = ("-W", "error::DeprecationWarning:__main__")
    run([sys.executable, *strict, script.name], folder, page.name)


def check_diff(block: Block) -> None:
    for hunk in re.split(r"^@@.*$", block.text, flags=re.MULTILINE):
        new_side = [
            line[1:] for line in hunk.splitlines() if not line.startswith(("-", "+++", "\\"))
        ]
        try:
            compile(textwrap.dedent("\n".join(new_side)), block.place, "exec")
        except SyntaxError as error:
            raise DocsError(
                f"{block.place}: the new side of the diff is not Python: {error}"
            ) from None


# --- commands -------------------------------------------------------------------------------------


def commands_of(block: Block) -> list[str]:
    """The commands of a block: after `$ ` in console blocks, every line in the others."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
        if not lines:
            raise DocsError(f"{block.place}: no line of this console block starts with `$ `")
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [part for part in parts if part and not part.startswith("#")]


def check_commands(block: Block, folder: Path) -> None:
    for command in commands_of(block):
        check_command(command, folder, block.place)


def check_command(command: str, folder: Path, place: str) -> None:
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    try:
        check = CHECKS[words[0]]
    except (IndexError, KeyError):
        raise DocsError(
            f"{place}: nobody knows how to check `{command}`; known: {', '.join(CHECKS)}"
        ) from None
    check(words[1:], folder, f"{place}: `{command}`")


def check_make(arguments: list[str], folder: Path, place: str) -> None:
    run(["make", "--dry-run", *arguments], ROOT, place)


def check_infobatch(arguments: list[str], folder: Path, place: str) -> None:
    task = dict(itertools.pairwise(arguments)).get("--task", "digits")
    if "--compile" in arguments or task not in RUNNABLE:
        parse_infobatch(arguments, place)
        return
    if "--data-dir" in arguments:
        arguments = list(arguments)
        arguments[arguments.index("--data-dir") + 1] = str(random_pictures(folder / "pictures"))
    if arguments[:1] == ["report"]:
        for results in arguments[1:]:
            bring_committed(results, folder)
    cheap = CHEAP if arguments[:1] == ["compare"] and "--help" not in arguments else ()
    if cheap and "--cost" in arguments:
        cheap = (*cheap, "--cost", "0.9")  # the first of two epochs is full
    program = str(Path(sys.executable).with_name("infobatch"))
    run([program, *arguments, *cheap], folder, place)


def random_pictures(folder: Path) -> Path:
    """A stand-in for CIFAR in one of the forms that the lab reads."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0).integers
    for classes in (10, 100):
        arrays = {}
        for part, size in (("train", 32), ("test", 16)):
            arrays[f"x_{part}"] = draw(0, 256, (size, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{part}"] = draw(0, classes, size)
        np.savez(folder / f"cifar{classes}.npz", **arrays)
    return folder


def bring_committed(name: str, folder: Path) -> None:
    """Results of the repository, unless a command of the page has just made some by that name."""
    target = folder / name
    if target.exists() or not (ROOT / name).exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / name).is_dir():
        shutil.copytree(ROOT / name, target)
    else:
        shutil.copy(ROOT / name, target)


def parse_infobatch(arguments: list[str], place: str) -> None:
    command, name = typer.main.get_command(app), "infobatch"
    try:
        while (subcommands := getattr(command, "commands", None)) is not None:
            name, *arguments = arguments
            if name not in subcommands:
                raise DocsError(f"{place}: there is no `infobatch {name}`")
            command = subcommands[name]
        given = command.make_context(name, list(arguments)).params
        if name == "compare":
            task = choose(given["task"], all_tasks(), what="task")
            pairs = (word.split("=", 1) for word in given["option"] or ())
            task, _ = task.with_options(dict(pairs))
            task.check_model(given["model"] or task.model)
            choose_arms((given["arms"] or "full").split(","))
    except DocsError:
        raise
    except Exception as error:  # whatever the parser raises, its message is what the user would see
        message = getattr(error, "message", "") or str(error) or repr(error)
        raise DocsError(f"{place}: the command line refuses this: {message}") from error


def check_pip(arguments: list[str], folder: Path, place: str) -> None:
    if arguments[:1] != ["install"]:
        raise DocsError(f"{place}: only `pip install` is known")
    for requirement in (word for word in arguments[1:] if word not in ("-e", "-U", "--upgrade")):
        match = re.fullmatch(r"(?:infobatch|\.)(?:\[([\w,-]+)\])?", requirement)
        if not match:
            raise DocsError(f"{place}: {requirement!r} is neither infobatch nor this checkout")
        unknown = set((match.group(1) or "").split(",")) - {"", *PROJECT["optional-dependencies"]}
        if unknown:
            raise DocsError(f"{place}: pyproject.toml has no extra {sorted(unknown)}")


def check_git(arguments: list[str], folder: Path, place: str) -> None:
    home = PROJECT["urls"]["Homepage"]
    if arguments not in (["clone", home], ["clone", f"{home}.git"]):
        raise DocsError(f"{place}: not a clone of {home}")


def check_cd(arguments: list[str], folder: Path, place: str) -> None:
    if arguments != ["infobatch"]:
        raise DocsError(f"{place}: a clone is named infobatch")


def check_python(arguments: list[str], folder: Path, place: str) -> None:
    """The script is there, starts, and knows every option that the page names."""
    if arguments[:2] == ["-m", "pip"]:
        check_pip(arguments[2:], folder, place)
        return
    if not arguments or not (ROOT / arguments[0]).is_file():
        raise DocsError(f"{place}: there is no such script in the repository")
    text = run([sys.executable, arguments[0], "--help"], ROOT, place)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        if option not in re.findall(r"--[\w-]+", text):
            raise DocsError(f"{place}: the script has no option {option}")


def check_torchrun(arguments: list[str], folder: Path, place: str) -> None:
    """The script of the repository runs, for two epochs, in as many processes as the page says.

    `-m infobatch` is parsed; tests/lab/test_processes.py runs it.
    """
    if "-m" in arguments:
        at = arguments.index("-m")
        if arguments[at + 1] != "infobatch":
            raise DocsError(f"{place}: there is no such module in the repository")
        parse_infobatch(arguments[at + 2 :], place)
        return
    scripts = [number for number, word in enumerate(arguments) if word.endswith(".py")]
    if not scripts or not (ROOT / arguments[scripts[0]]).is_file():
        raise DocsError(f"{place}: there is no such script in the repository")
    arguments = list(arguments)
    arguments[scripts[0]] = str(ROOT / arguments[scripts[0]])
    run(
        [sys.executable, "-m", "torch.distributed.run", *arguments, "--epochs", "2"],
        folder,
        place,
    )


def check_ci(arguments: list[str], folder: Path, place: str) -> None:
    if arguments or not os.access(ROOT / ".ci" / "run", os.X_OK):
        raise DocsError(f"{place}: .ci/run takes no arguments and must be executable")


CHECKS = {
    "make": check_make,
    "infobatch": check_infobatch,
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_torchrun,
    "git": check_git,
    "cd": check_cd,
    ".ci/run": check_ci,
}


def prose_of(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    anchors, seen = set(), []
    for heading in re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        anchors.add(f"{words}-{seen.count(words)}" if words in seen else words)
        seen.append(words)
    return anchors


def broken_links(page: Path) -> list[str]:
    matches = re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", prose_of(page))
    broken = []
    for target in (link or image for link, image in matches):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    return broken


def run(command: list[str], folder: Path, place: str) -> str:
    # MAKEFLAGS and MAKELEVEL: `make test` must not talk to the `make` that a page shows.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "COLUMNS": "200"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        raise DocsError(f"{place} ended with status {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


# --- the pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in CARDS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_python_of_the_page_runs(page, tmp_path):
    run_python(page, tmp_path)


def test_the_python_of_the_method_cards_runs(tmp_path):
    scripts = [script for page in CARDS if (script := write_script(page, tmp_path))]
    assert len(scripts) > 15
    program = "import runpy, sys; [runpy.run_path(p, run_name='__main__') for p in sys.argv[1:]]"
    run([sys.executable, "-c", program, *map(str, scripts)], tmp_path, "docs/methods")


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


def check_docstrings(module: types.ModuleType) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = doctest.testmod(module, optionflags=flags).failed
    if failed:
        raise DocsError(f"{module.__name__}: {failed} wrong examples in docstrings")


def modules() -> list[str]:
    found = pkgutil.walk_packages(infobatch.__path__, "infobatch.", onerror=lambda name: None)
    names = sorted(module.name for module in found)
    # Those of the integrations need their frameworks, and are imported by the tests of these.
    return ["infobatch", *(n for n in names if not n.startswith("infobatch.integrations."))]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_the_docstrings_are_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_docstrings(importlib.import_module(name))


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
    with pytest.raises(DocsError, match="1 wrong"):
        check_docstrings(types.ModuleType("some_module", doc=">>> 1 + 1\n3\n"))


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    text = (
        "# One: a `heading`, here\n[a](page.md) [b](missing.md#part) [c](https://example.org/#d) "
        '<img src="missing.png"> [d](#one-a-heading-here) [e](page.md#two) [f](page.md#one)'
    )
    broken = ["missing.md#part", "missing.png", "page.md#two", "page.md#one"]
    assert broken_links(page_with(tmp_path, text)) == broken
