"""Starts the command line: `python -m retort`."""

from retort.cli.app import main

if __name__ == "__main__":
    main()
