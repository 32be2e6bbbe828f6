"""Operations of an event loop while memory cannot be allocated.

`programs` has the operations, by topic in `scheduling` and `networking`; `attempt` runs one of them with some
allocation failing, `runner` does that for many allocations, each in a process of its own, and prints what
came of it.
"""
