"""Random conversations over TLS go the same way on asyncio's own loop and on hotloop, whatever encrypts.

What they are: `differential/tls.py`. HOTLOOP_SEED says with which seed to begin.
"""

import helpers
import pytest
from differential import running, tls
from torture import effort


@pytest.mark.timeout(600 if effort.FULL else 120)
@pytest.mark.parametrize("tls_engine", [*helpers.TLS, None], ids=[*helpers.TLS, "itself"], indirect=True)
def test_conversations_go_the_same_way(tls_engine):
    """On hotloop as on asyncio; and on asyncio as on asyncio, or the conversations are not determined."""
    other = "hotloop" if tls_engine else "asyncio"
    if not {"asyncio", other} <= set(helpers.FACTORIES):
        pytest.skip("both loops are needed")
    seeds = effort.effort(60, 1500) if tls_engine else effort.effort(15, 400)
    for seed in range(effort.SEED, effort.SEED + seeds):
        try:
            running.compare(
                tls.machine, tls.program(seed), helpers.FACTORIES["asyncio"], helpers.FACTORIES[other]
            )
        except AssertionError as exc:
            pytest.fail(f"seed {seed}, engine {tls_engine}: {exc}")
