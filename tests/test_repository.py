"""The files of the repository agree with each other and name nothing of one machine."""

import importlib.metadata
import importlib.resources
import re
import subprocess
from pathlib import Path

import pytest
from tests.support.pages import PROJECT, ROOT, run_script

import infobatch

# Written so that this file does not match its own patterns.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|tmp|root|opt)/"),
    "a home directory": re.compile(r"(?<![\w.])/(?:home|Users)/(?!runner\b)\w"),
    "the host of a package index": re.compile(r"(?:pypi|pythonhosted)\.org|download\.pytorch\."),
}


def repository_files() -> list[Path]:
    """What git has or would add. In an unpacked release there is no git, and nothing to check."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def forbidden_strings(text: str) -> list[str]:
    """Each finding as `line: what it is: the line itself`."""
    return [
        f"{number}: {what}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]


def read_text(path: Path) -> str:
    """The text of a file, and nothing for pictures and other binary files."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_the_version_is_the_same_everywhere():
    version = PROJECT["version"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changelog = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert infobatch.__version__ == version
    assert importlib.metadata.version("infobatch") == version
    assert citation
    assert citation.group(1) == version
    assert changelog
    assert changelog.group(1) == version, "the newest entry of the changelog is not this version"


def test_type_information_is_installed_with_the_package():
    assert importlib.resources.files("infobatch").joinpath("py.typed").is_file()


def test_every_dependency_is_pinned():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    pins = (ROOT / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", pins, re.MULTILINE))
    named = {re.match(r"[a-z0-9-]+", name).group() for group in groups for name in group}
    assert named <= pinned


def test_no_file_names_a_machine_or_a_package_index():
    findings = {
        str(path.relative_to(ROOT)): found
        for path in repository_files()
        if (found := forbidden_strings(read_text(path)))
    }
    assert not findings


@pytest.mark.parametrize("folder", ["work", "tmp", "root", "opt", "home"])
def test_a_path_of_a_machine_would_be_found(folder):
    assert forbidden_strings(f'data = "/{folder}/data/cifar10"')
    assert forbidden_strings(f"/{folder}/data")


@pytest.mark.parametrize("host", ["pypi" + ".org", "download.pytorch" + ".org"])
def test_the_host_of_a_package_index_would_be_found(host):
    assert forbidden_strings(f"pip install --index-url https://{host}/simple infobatch")


@pytest.mark.parametrize("text", ["docs/work/index.md", "$HOME/opt/", "./tmp/x"])
def test_a_relative_path_is_no_finding(text):
    assert not forbidden_strings(text)


def test_the_results_pages_are_what_the_committed_results_say():
    run_script(ROOT / "benchmarks" / "results_page.py", ROOT, "results_page.py", "--check")
