"""``python -m layerlab`` is ``layerlab``."""

from layerlab.cli import main

if __name__ == "__main__":
    main()
