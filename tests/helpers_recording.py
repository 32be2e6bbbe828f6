"""What the tests of the flight recorder share: the rules of the Trace Event format, and views of events."""

import json

PHASES = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "i": {"name", "cat", "ts", "s", "pid", "tid", "args"},
    "C": {"name", "ts", "pid", "args"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
    "M": {"name", "pid", "tid", "args"},
}
DESCRIPTIONS = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}


def check(events):
    """Check the events of a trace against the rules of the format, and return them."""
    assert json.loads(json.dumps(events, allow_nan=False)) == events
    tracks, flows = {}, {}
    for event in events:
        phase = event["ph"]
        assert PHASES[phase] <= set(event), event
        assert isinstance(event["pid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
        if phase == "M":
            assert set(event["args"]) == {DESCRIPTIONS[event["name"]]}
            continue
        assert event["ts"] >= 0
        if phase == "X":
            assert event["dur"] >= 0
            tracks.setdefault(event["tid"], []).append(event)
        elif phase == "i":
            assert event["s"] == "t"
        elif phase == "C":
            assert set(event["args"]) == {"value"}
            assert event["args"]["value"] >= 0
        else:
            flows.setdefault(event["id"], []).append(event)
    for track in tracks.values():
        check_nesting(track)
    for begin, end in flows.values():
        assert (begin["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert begin["ts"] <= end["ts"]
        assert enclosing(tracks, begin), "a flow begins within a slice"
        assert enclosing(tracks, end), "a flow ends within a slice"
    named = {event["tid"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"}
    assert set(tracks) <= named, "each track has a name"
    return events


def check_nesting(slices):
    """Slices of a track are one after the other, or one within the other."""
    open_ends = []
    # Perfetto sorts by the time alone: of slices that begin at the same time, the outer one comes first.
    for event in sorted(slices, key=lambda event: event["ts"]):
        begin, end = nanoseconds(event["ts"]), nanoseconds(event["ts"]) + nanoseconds(event["dur"])
        while open_ends and open_ends[-1] <= begin:
            open_ends.pop()
        # Perfetto leaves out a slice that ends a nanosecond after what it is in.
        assert not open_ends or end <= open_ends[-1], event
        open_ends.append(end)


def nanoseconds(microseconds):
    return round(microseconds * 1000)


def enclosing(tracks, flow):
    slices = tracks.get(flow["tid"], [])
    at = nanoseconds(flow["ts"])
    return [
        each
        for each in slices
        if nanoseconds(each["ts"]) <= at <= nanoseconds(each["ts"]) + nanoseconds(each["dur"])
    ]


def slices(events, *categories):
    """The slices of a loop's track, in their order."""
    found = [event for event in events if event["ph"] == "X" and event["tid"] % 10_000_000 == 1]
    found = [event for event in found if not categories or event["cat"] in categories]
    return sorted(found, key=lambda event: event["ts"])


def names(events, *categories):
    categories = categories or ("callback", "timer", "from thread", "task", "step", "event")
    return [event["name"] for event in slices(events, *categories)]


def instants(events, name):
    return [event["args"] for event in events if event["ph"] == "i" and event["name"] == name]


def counted(events, name):
    """The values of a counter."""
    return [event["args"]["value"] for event in events if event["ph"] == "C" and event["name"] == name]


def caused(events):
    """Pairs of names: of a callback, and of what it queued."""
    named = {}
    for event in slices(events, "callback", "timer", "from thread", "task", "step", "event"):
        named[event["tid"], event["ts"]] = event["name"]
    flows = {}
    for event in events:
        if event["ph"] in "sf":
            flows.setdefault(event["id"], []).append(named.get((event["tid"], event["ts"]), "another thread"))
    return list(map(tuple, flows.values()))


def tracks(events):
    """The names of the tracks of tasks, in the order in which the tasks were seen."""
    found = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name" and event["tid"] % 10_000_000 > 10
    }
    return [found[tid] for tid in sorted(found)]


def steps(events, track):
    """The steps of tasks whose track has this name."""
    tids = {
        event["tid"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name" and event["args"]["name"] == track
    }
    return [
        event for event in events if event["ph"] == "X" and event["tid"] in tids and event["name"] == "step"
    ]
