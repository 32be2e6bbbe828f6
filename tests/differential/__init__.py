"""Random programs, run on asyncio's own loop and on hotloop, must see the same.

- `running.py` runs a program on a loop within a time limit, keeps its trace, and compares two loops.
- `scheduling.py`, `tasks.py`, `transports.py` (with `transport_programs.py`) and `sockets.py` each have a
  language of small programs (dataclasses whose repr can be pasted back), Hypothesis strategies that generate
  them, and an interpreter.
- `tls.py` (with `tls_programs.py`, `tls_peer.py` and `openssl.py`) is one for TLS; seeds make its programs.

A program sees only what asyncio determines. What depends on the clock or on the kernel is left out of the
languages, or happens one thing at a time, with the loop left to come to rest in between.
"""
