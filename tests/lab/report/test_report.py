"""The report is one file that needs nothing else, and says how its verdict was made."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from tests.lab.support import run_command

from infobatch.lab.run.results import FILE_NAME, read_results
from infobatch.lab.run.thumbnails import MOST_PRUNED, NEVER_PRUNED

FIGURES = (
    "metric-against-cost.png",
    "learning-curves.png",
    "kept-fraction.png",
    "loss-distribution.png",
    MOST_PRUNED,
    NEVER_PRUNED,
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what refers to elsewhere, images and tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        entries = dict(attrs)
        self.references += [entries[name] for name in ("src", "href") if name in entries]
        if tag == "img":
            self.images.append(entries)
        if tag == "th":
            self.headers.append(entries)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(comparison):
    return Page((comparison.out / "report.html").read_text())


def test_the_page_needs_no_other_file_no_network_and_no_script(page):
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_every_figure_is_embedded_described_and_written_beside_the_page(page, comparison):
    files = {(comparison.out / name).read_bytes() for name in FIGURES}
    embedded = {base64.b64decode(image["src"].partition(",")[2]) for image in page.images}
    assert embedded == files
    assert all(len(image["alt"]) > 20 for image in page.images)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_something(name, comparison):
    with Image.open(io.BytesIO((comparison.out / name).read_bytes())) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert len(colours) > 20


def test_tables_are_accessible(page):
    assert "caption" in page.tags
    assert page.headers
    assert all(header.get("scope") in ("row", "col") for header in page.headers)


def test_the_page_shows_command_settings_versions_margin_and_the_making_of_the_verdict(page):
    assert "infobatch compare --arms full,fewer-epochs,infobatch" in page.text
    for words in (
        "--epochs 5",
        "--limit-train 300",
        "prune-ratio",
        "torch",
        "How the verdict is made.",
        "The margin of 0.5 points was stated before the runs.",
        "95% confidence interval",
        "samples backpropagated",
    ):
        assert words in page.text


def test_the_page_and_the_console_show_the_same_rows(page, comparison):
    rows = [line for line in comparison.output.splitlines() if line.startswith(("full", "random "))]
    assert len(rows) == 2
    for line in rows:
        for cell in re.split(r"\s{2,}", line.strip()):
            assert cell in page.text


def test_the_recorded_command_repeats_the_comparison(page, comparison, tmp_path):
    words = page.text.partition("How to repeat it ")[2].split()
    command = words[2 : words.index("0.5", words.index("--margin")) + 1]
    shutil.copy(comparison.out / FILE_NAME, tmp_path)
    result = run_command("compare", *command, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert result.output.count("(from before)") == 12


def test_the_report_is_built_again_from_the_results_alone(comparison, tmp_path):
    result = run_command("report", str(comparison.out / FILE_NAME), "--out", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "report.html").read_text() == (
        comparison.out / "report.html"
    ).read_text()


def test_several_results_make_one_report_and_seeds_add_up(comparison, tmp_path):
    runs = read_results(comparison.out)
    changed = {
        "third": [replace(run, seed=2) for run in runs if run.seed == 0],
        "other": [replace(run, settings=replace(run.settings, lr=0.3)) for run in runs],
    }
    for name, results in changed.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps(result.to_json()) + "\n" for result in results]
        (tmp_path / name / FILE_NAME).write_text("".join(lines))

    paths = [str(path) for path in (comparison.out, tmp_path / "third", tmp_path / "other")]
    result = run_command("report", *paths, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("h1") == 2
    assert "; 3 seeds" in page.text
    assert (tmp_path / "1-kept-fraction.png").exists()
    assert (tmp_path / "2-kept-fraction.png").exists()


def test_a_folder_that_cannot_be_written_to_is_an_error_in_words(comparison, tmp_path):
    (tmp_path / "file").touch()
    result = run_command("report", str(comparison.out), "--out", str(tmp_path / "file" / "x"))
    assert result.exit_code == 2
    assert "Error: the report cannot be written to" in result.stderr
