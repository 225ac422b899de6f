"""``python -m nestling.recipes`` is the ``nestling`` command."""

from .cli import main

main()
