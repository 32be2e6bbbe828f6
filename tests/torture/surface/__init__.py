"""Calls everything that `hotloop._core` has with everything there is.

`objects` makes hostile objects, `generate` draws programs that hand them to each class and method, and
`runner` runs
such programs, each in a process of its own. What ends a process is made as short as can be and printed.
"""
