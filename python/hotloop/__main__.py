"""python -m hotloop: see the command's --help."""

from ._command import main

main()
