"""hotloop while it keeps accounts, to be compared: --loops hotloop,benchmarks.accounted:new_event_loop."""

import hotloop


def new_event_loop() -> hotloop.Loop:
    loop = hotloop.new_event_loop()
    loop.account()
    return loop
