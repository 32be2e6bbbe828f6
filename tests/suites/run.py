"""Runs the test suites of other projects on asyncio's loop and on hotloop, and compares.

    python tests/suites/run.py [--page FILE] [SUITES ...]

Each suite comes from its project's source distribution, unchanged, and has an environment of its own,
with the versions that requirements/ fixes. Whatever loop its tests ask asyncio for, in whichever process,
is asyncio's in one run and hotloop's in the other (in_each/sitecustomize.py). A test that does not end as
it does on asyncio is a difference; it has failed if it did so three times, for some look at the clock.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import comparing
import page
from catalogue import SUITES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [suite.package for suite in SUITES]
    parser.add_argument("suites", nargs="*", metavar="SUITES", help=f"of {', '.join(names)}; or all")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the outcome into that page")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the suites write")
    options = parser.parse_args()
    unknown = set(options.suites) - set(names)
    if unknown:
        parser.error(f"there is no suite {', '.join(sorted(unknown))}")
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    # Whoever started this in the background may have them ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    results, wrong = [], []
    for suite in SUITES:
        if options.suites and suite.package not in options.suites:
            continue
        result = comparing.run(suite, options.logs)
        results.append(result)
        try:
            result.check()
        except AssertionError as error:
            wrong.append(suite.package)
            print(f"{suite.package}: {error}", flush=True)
    if options.page:
        page.write(options.page, results)
    if wrong:
        print(f"different on hotloop: {', '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
