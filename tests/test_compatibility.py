"""docs/compatibility.md names a test for all that it says works or is refused, and the pins."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in PAGE.split("\n## ")[1:]}
PINS = dict(
    re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
)
WITHOUT_TEST = ("not tried", "no:", "tried by hand:")


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


@pytest.mark.parametrize("host", SECTIONS)
def test_what_works_or_is_refused_names_a_test_that_exists(host):
    files = re.findall(r"\]\(\.\./(tests/\S+?)\)", SECTIONS[host])
    tests = "".join((ROOT / file).read_text() for file in files)
    for what, works, test in rows(SECTIONS[host]):
        if works.startswith(WITHOUT_TEST):
            assert not test
        else:
            name = test.strip("| `")
            assert f"def {name}(" in tests, f"{what}: no {name} in {files}"


@pytest.mark.parametrize("host", SECTIONS)
def test_the_versions_are_those_that_the_tests_run_with(host):
    line = SECTIONS[host].splitlines()[2]
    named = re.findall(r"`([\w-]+)`(?: and `[\w-]+`)? (\d[\d.]*\d)", line)
    assert named or "`" not in line
    for name, version in named:
        assert PINS[name] == version


def test_every_module_and_example_of_a_host_has_its_section_in_the_guide():
    guide = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "infobatch" / "integrations").glob("[a-z]*.py"):
        assert module.stem in guide.lower()
    pages = guide + (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    pages += "".join(path.read_text() for path in (ROOT / "docs" / "tasks").glob("*.md"))
    for example in (ROOT / "examples").glob("*.py"):
        assert example.name in pages


def test_every_line_of_what_is_caught_when_names_a_test_that_exists():
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = page.split("\n## Whose losses these are")[1].split("\n## ")[0]
    files = ("delivery", "alignment", "host_hooks", "validation")
    tests = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in files)
    caught = rows(section)
    assert len(caught) > 20
    for what, _, test in caught:
        assert f"def {test.strip('`')}(" in tests, what
