"""The engine as a program: `python -m workers.distill RECIPE.json --workdir DIR`."""

import sys

from workers.distill.run import program

if __name__ == "__main__":
    program.main(sys.argv[1:])
