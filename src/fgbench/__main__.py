"""``python -m fgbench``: the same as the command ``fgbench``."""

from fgbench.cli.app import main

if __name__ == "__main__":
    main()
