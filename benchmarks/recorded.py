"""hotloop while it is recorded, to be compared: --loops hotloop,benchmarks.recorded:new_event_loop."""

import hotloop


def new_event_loop() -> hotloop.Loop:
    loop = hotloop.new_event_loop()
    loop.record()
    return loop
