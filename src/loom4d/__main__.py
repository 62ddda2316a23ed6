"""`python -m loom4d`: the same as the `loom4d` command."""

from loom4d.cli import main

if __name__ == "__main__":
    main()
