"""Several event loops in one process, each in a thread of its own: python -m benchmarks.threads

Without a GIL, two threads can do twice as much as one if the loops share nothing. Each figure comes from
fresh processes of one loop; the modules named work_... are what these processes do.
"""
