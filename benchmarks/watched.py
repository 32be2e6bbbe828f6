"""hotloop while it is watched, to be compared: --loops hotloop,benchmarks.watched:new_event_loop."""

import hotloop


def new_event_loop() -> hotloop.Loop:
    loop = hotloop.new_event_loop()
    loop.watch_blocking()
    return loop
