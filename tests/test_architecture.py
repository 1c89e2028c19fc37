"""The rooms of docs/architecture.md: imports run one way, and the method meets no torch, no files.

Read from the syntax trees, so that an import within a function counts as well.
"""

import ast
import importlib
import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "infobatch"
STOREYS = [  # a room may import from those above it in this list, and from itself
    ["errors", "distributed"],
    ["_core"],
    ["policies"],
    ["_settings"],
    ["_ranks", "_state", "_advice"],
    ["_loading"],
    ["_step"],
    ["losses"],
    ["_run", "batch_pruner", "schedule"],
    ["pruner"],
    ["infobatch"],
    ["testing", "integrations"],
    ["lab"],
]
STOREY_OF = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
FILES = sorted(
    path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[0] != "_"
)
FILES += [SOURCE / f"{name}.py" for name in ("_advice", "_run", "_settings")]


def modules_in(path):
    """All modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "infobatch":
                yield from (f"infobatch.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    for module in modules_in(path):
        package, _, rest = module.partition(".")
        if package != "infobatch" or room in ("lab", "integrations"):
            continue  # what stands on top uses the front door, and is used by nobody
        other = rest.partition(".")[0]
        assert other == room or STOREY_OF[other] < STOREY_OF[room], f"{path} imports {module}"


def test_every_room_has_its_storey():
    assert {room_of(path) for path in FILES} == set(STOREY_OF)


def test_what_stands_on_top_is_imported_by_nobody():
    for path in [*FILES, SOURCE / "__init__.py"]:
        rooms = {module.split(".")[1] for module in modules_in(path) if module[:10] == "infobatch."}
        above = {"lab", "integrations"} - {room_of(path)}
        if room_of(path) == "lab":
            above -= {"integrations"}
        assert not rooms & above, path


def test_the_method_meets_neither_torch_nor_files():
    allowed = {"numpy", "infobatch", "__future__"} | set(sys.stdlib_module_names)
    for path in FILES:
        if room_of(path) in ("_core", "policies") and path.name != "plan.py":  # shows tensors
            tops = {module.partition(".")[0] for module in modules_in(path)}
            assert tops <= allowed - {"pathlib", "os", "io"} | _users_line(path), path


def _users_line(path):
    """Warnings and messages name files: where the user's line is, and what was passed."""
    return {"pathlib", "os"} if path.name in ("user_warnings.py", "validation.py") else set()


def test_only_one_room_talks_to_other_processes():
    for path in FILES:
        talks = any(module.startswith("torch.distributed") for module in modules_in(path))
        assert not talks or room_of(path) in ("_ranks", "lab", "integrations"), path


PAGE = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_page_names_every_room():
    table = PAGE.split("\n## ")[1]
    rooms = re.findall(r"`([\w/]+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)))
    assert {room.rstrip("/") for room in rooms} == set(STOREY_OF)


NAMES = re.findall(r"`([\w/]+)\.py`, `([\w.]+)`", PAGE)


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_what_the_page_says_is_in_a_file_is_there(path, name):
    attrgetter(name)(importlib.import_module(f"infobatch.{path.replace('/', '.')}"))


def test_the_page_says_where_the_paper_is():
    assert len(NAMES) >= 8
