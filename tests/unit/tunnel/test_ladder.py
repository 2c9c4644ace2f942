"""Choosing among pools, with carriers that are told."""

import asyncio

from fake_carriers import Fake, run

from htcondor_vpn.errors import GatewayUnreachable, TokenRefused
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.members import Lone
from htcondor_vpn.tunnel.pool import Pool


async def climbed(pools, wanted):
    """Runs a ladder until it says what is `wanted`; returns all that it said."""
    said, over = [], asyncio.Event()
    ladder = Ladder(pools)

    def changed():
        said.append(ladder.now)
        if wanted(ladder.now):
            over.set()

    task = asyncio.ensure_future(ladder.run(changed))
    await over.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return said


def test_the_first_that_works_is_taken():
    pools = [Pool(name, [Lone(carrier)], 0.01, 1) for name, carrier in
             (("a", Fake("x", GatewayUnreachable("no way"))), ("b", Fake("y")), ("c", Fake("z")))]  # fmt: skip
    said = run(climbed(pools, lambda what: isinstance(what, Pool)))
    assert said[-1].engine == "b"
    assert "a: no way" in str(said[0])


def test_what_may_mend_is_no_final_refusal():
    pools = [Pool("a", [Lone(Fake("x", TokenRefused("bad token")))], 0.01, 1),
             Pool("b", [Lone(Fake("y", GatewayUnreachable("no way")))], 0.01, 1)]  # fmt: skip
    said = run(climbed(pools, lambda what: "no way" in str(what)))
    assert type(said[-1]) is GatewayUnreachable
    assert "a: bad token; b: no way" in str(said[-1])
