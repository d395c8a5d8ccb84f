"""``python -m sightline``: the same as ``sightline``; what torchrun starts (``torchrun -m sightline train ...``)."""

from sightline.cli.main import entry

if __name__ == "__main__":
    entry()
