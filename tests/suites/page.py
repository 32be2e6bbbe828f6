"""The section of docs/compatibility.md that says how the suites went."""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path

import hotloop
from catalogue import SUITES
from comparing import Result, version_of

HEADING = "## Test suites of their own"
TEXT = f"""\
{HEADING}

<!-- Written by `make test-suites PAGE=1`. The words come from tests/suites. -->

The test suites of these projects, from their source distributions, run on asyncio's loop and on hotloop. A
test has failed if it did so three times. "Failed on hotloop alone" counts all tests that do not end as they
do on asyncio. What fails on both needs something that is not there, or another user than root, or is out of
date. "Loops made" are hotloop's; none of asyncio's are made meanwhile. Of redis, what needs modules of Redis
or a cluster is left out. The source distribution of websockets has no tests.

"""
HEAD = """\
| suite | tests run | failed on asyncio | failed on hotloop alone | loops made |
|---|---|---|---|---|
"""


def rows(page: str) -> dict[str, str]:
    """The rows of the table in a page, by the packages that they are of."""
    table = page.partition(HEADING)[2].partition("\n## ")[0]
    return {row.split()[1]: row for row in table.splitlines() if re.match(r"\| \w+ \d", row)}


def row(result: Result) -> str:
    alone = result.different()
    cell = str(len(alone))
    if alone:
        reasons = [f"`{test}`: {result.suite.known.get(test, '**not known**')}" for test in alone]
        cell += ": " + "; ".join(reasons)
    ran = sum(outcome != "skipped" for outcome in result.outcomes["hotloop"].values())
    made = result.loops["hotloop"]["hotloop"]
    cells = (
        f"{result.suite.package} {version_of(result.suite)}",
        ran,
        len(result.failed("asyncio")),
        cell,
        made,
    )
    return f"| {' | '.join(map(str, cells))} |"


def write(path: Path, results: list[Result]) -> None:
    """Put the results into the page, in whose table the other suites keep their rows."""
    former = path.read_text()
    table = rows(former) | {result.suite.package: row(result) for result in results}
    facts = (
        f"{datetime.date.today():%Y-%m-%d}, hotloop {hotloop.__version__}, "
        f"CPython {platform.python_version()}, {platform.system()} {platform.machine()}\n\n"
    )
    lines = [table[suite.package] for suite in SUITES if suite.package in table]
    first, _, rest = former.partition(HEADING)
    # What follows is written by hand.
    _, heading, by_hand = rest.partition("\n## ")
    path.write_text(f"{first.rstrip()}\n\n{TEXT}{facts}{HEAD}" + "\n".join(lines) + "\n" + heading + by_hand)
