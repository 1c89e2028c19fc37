"""Runs what a page of the docs shows, or holds it against the real thing.

- `python` blocks of a page run from top to bottom as one program, in an empty folder.
- Commands in `console`, `bash` and `sh` blocks: `infobatch` commands run, with fewer epochs and
  seeds and a narrower model, and on a few random pictures where the user would bring CIFAR; with
  `--compile`, which takes minutes, and for tasks whose data or extras are not here, they are only
  parsed by the real command line: such a task has tests of its own. `torchrun` runs
  a script for two epochs, and what `-m infobatch` gets is parsed. `make`, `pip install`,
  `git clone`, `python script.py` are checked against the repository. Any other command fails.
- The new side of a `diff` block, or of each of its hunks, is valid Python.
- `text` blocks are left alone; any other language fails.

Programs and `infobatch` run in this process, which has imported torch already; only what starts
processes itself gets one of its own.
"""

import contextlib
import io
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer.main
from typer.testing import CliRunner

from infobatch.lab.arms import choose_arms
from infobatch.lab.command.app import app
from infobatch.lab.registry import choose
from infobatch.lab.tasks import all_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

RUNNABLE = ("digits", "cifar10", "cifar100")  # tasks
SHELLS = ("console", "bash", "sh")
LANGUAGES = ("python", "diff", "text", *SHELLS)
# Appended to every documented `infobatch compare`; of an option given twice the last one counts.
CHEAP = ["--epochs", "2", "--seeds", "1", "--device", "cpu", "--width", "4", "--limit-train", "32"]


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


@contextlib.contextmanager
def as_its_own_program(folder: Path, script: Path, *arguments: str):
    """Folder, arguments, threads and warnings are those of a program; restored afterwards.

    What is deprecated may not be taught; warnings from inside other packages are theirs.
    """
    there, words, threads = Path.cwd(), sys.argv, torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("error", category=DeprecationWarning, module="__main__")
        os.chdir(folder)
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.parent))
        try:
            yield
        finally:
            os.chdir(there)
            sys.argv = words
            sys.path.remove(str(script.parent))
            torch.set_num_threads(threads)
            for name, module in list(sys.modules.items()):  # its neighbours are no one else's
                if Path(getattr(module, "__file__", None) or "x").parent == script.parent:
                    del sys.modules[name]


def run_script(script: Path, folder: Path, place: str, *arguments: str) -> str:
    """Run a Python file in this process; what it has printed."""
    output = io.StringIO()
    printed = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
    try:
        with as_its_own_program(folder, script, *arguments), printed[0], printed[1]:
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise DocsError(f"{place} ended with {end.code}:\n{output.getvalue()}") from None
    except Exception:
        raise DocsError(f"{place}:\n{output.getvalue()}{traceback.format_exc()}") from None
    return output.getvalue()


def run_python(page: Path, folder: Path) -> None:
    """Run the program that a page is, if it has any; each line stands where it does in the page."""
    program: list[str] = []
    for block in blocks_of(page):
        if block.language == "python":
            program += [""] * (block.line - 1 - len(program)) + block.text.splitlines()
    if program:
        script = folder / f"page_{page.stem}.py"  # random.py would hide a module
        script.write_text("\n".join(program) + "\n", encoding="utf-8")
        run_script(script, folder, page.name)


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
        words = shlex.split(command, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        try:
            check = CHECKS[words[0]]
        except (IndexError, KeyError):
            raise DocsError(
                f"{block.place}: nobody knows how to check `{command}`; known: {', '.join(CHECKS)}"
            ) from None
        check(words[1:], folder, f"{block.place}: `{command}`")


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
    cheap = CHEAP if arguments[:1] == ["compare"] and "--help" not in arguments else []
    if cheap and "--cost" in arguments:
        cheap = [*cheap, "--cost", "0.9"]  # the first of two epochs is full
    with as_its_own_program(folder, folder / "infobatch"):
        done = CliRunner().invoke(app, [*arguments, *cheap])
    if done.exit_code != 0:
        raise DocsError(f"{place} ended with status {done.exit_code}:\n{done.output[-4000:]}")


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
    text = run_script(ROOT / arguments[0], ROOT, place, "--help")
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        if option not in re.findall(r"--[\w-]+", text):
            raise DocsError(f"{place}: the script has no option {option}")


def check_torchrun(arguments: list[str], folder: Path, place: str) -> None:
    """The script of the repository runs, for two epochs, in as many processes as the page says.

    `-m infobatch` is parsed; tests/lab/run/test_processes.py runs it.
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
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    run([*launcher, *arguments, "--epochs", "2"], folder, place)


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


def run(command: list[str], folder: Path, place: str) -> str:
    # MAKEFLAGS and MAKELEVEL: `make test` must not talk to the `make` that a page shows.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        raise DocsError(f"{place} ended with status {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


# --- links ----------------------------------------------------------------------------------------


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
