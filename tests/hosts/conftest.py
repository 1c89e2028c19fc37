"""Hosts warn of much that is theirs; only our own warnings are errors here."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error::infobatch.errors.NonFiniteLossWarning"))
        if "two_processes" in item.fixturenames:  # which start a framework twice
            item.add_marker(pytest.mark.slow)
