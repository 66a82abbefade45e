"""`python -m streamexit` and the `streamexit` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from streamexit.cli.commands import app

    app()


if __name__ == "__main__":
    main()
