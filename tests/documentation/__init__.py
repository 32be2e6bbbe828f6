"""Every example of asyncio's documentation does the same on asyncio's own loop and on hotloop.

The examples are those of Python's documentation, https://docs.python.org/3/library/asyncio.html, copyright
of the Python Software Foundation; its code is under the Zero-Clause BSD license. They are not here, but are
read from the pages of an installed documentation: of one that `install.sh` puts beside the virtual
environment, which `make test-python` does, of one that a distribution has, or of the folder that
HOTLOOP_PYTHON_DOCS names. Without any, the tests are skipped.

- `pages.py` finds the examples on the pages. The name of one is the end of its address, and its number there:
  `asyncio-task#asyncio.timeout/2`.
- `programs.py` is a table of what makes a program of an example that is none by itself.
- `running.py` runs a program with `python` or `python -m hotloop`, and keeps what it printed and its status.
"""
