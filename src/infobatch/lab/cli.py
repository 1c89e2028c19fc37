"""The `infobatch` command; its parts are imported only when it runs."""

from __future__ import annotations

import importlib.util
import sys

_REQUIRED = {
    "typer": "typer",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
}


def main() -> None:
    """Entry point of the `infobatch` script."""
    missing = [
        package for module, package in _REQUIRED.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        sys.exit(
            f"The infobatch command needs {', '.join(missing)}. Install it with: "
            "pip install 'infobatch[lab]'"
        )
    from infobatch.lab.command.app import app  # needs what was just looked for

    app()


if __name__ == "__main__":
    main()
