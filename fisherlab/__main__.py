"""`python -m fisherlab`: the same as the command `fisherlab`."""

from fisherlab.cli import main

if __name__ == "__main__":
    main(prog_name="fisherlab")
