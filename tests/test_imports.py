"""`import infobatch` brings in torch and numpy, and nothing else that had to be installed."""

import subprocess
import sys

EVERYTHING_BUT_THE_EXTRAS = """
import importlib, pkgutil
import infobatch

def import_below(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name in ("infobatch.lab", "infobatch.integrations"):
            continue
        imported = importlib.import_module(module.name)
        if module.ispkg:
            import_below(imported)

import_below(infobatch)
"""


def third_party_imports(program: str) -> set[str]:
    """Top-level packages that `program` loads, less the standard library and what torch loads."""
    report = (
        "import sys, torch, numpy\n"
        "before = set(sys.modules)\n"
        f"exec({program!r})\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "names -= {name.partition('.')[0] for name in before} | set(sys.stdlib_module_names)\n"
        "print(*sorted(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_infobatch_needs_torch_and_numpy_only():
    assert third_party_imports("import infobatch") == {"infobatch"}


def test_every_module_outside_lab_and_integrations_needs_torch_and_numpy_only():
    assert third_party_imports(EVERYTHING_BUT_THE_EXTRAS) == {"infobatch"}


def test_an_optional_package_would_be_seen():
    assert third_party_imports("import infobatch; import rich.table") == {"infobatch", "rich"}


def test_the_lab_is_not_loaded_by_the_core():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, infobatch; sys.exit('infobatch.lab' in sys.modules)"]
    )
    assert done.returncode == 0
