"""python -m hotloop: see _command.py."""

from ._command import main

main()
