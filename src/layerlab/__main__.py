"""``python -m layerlab`` is ``layerlab``."""

from layerlab.cli import entry

if __name__ == "__main__":
    entry()
