"""Which sampled blocks stand for the growth: those a child follows to their owners and holders.

After the JVM's OldObjectSample event, which keeps a sample of the objects that are still alive with the stacks that made them, and
looks for their roots only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping

from memwatch.evidence import census, sources

MOST = 400
YOUNGEST_SHARE = 0.1
"""The youngest part of the window is left out: what lives so short is work in progress, not growth."""


def survivors(
    sampling: sources.Sampling, wanted: Mapping[int, float], since_s: float, until_s: float, most: int = MOST
) -> list[census.Block]:
    """Sampled blocks that stand for the growth: of each stack that grew its part, old enough to be more than work under way.

    Runs in the child, whose memory holds the sampler's tables as they were at the fork.
    """
    old_enough_s = until_s - YOUNGEST_SHARE * (until_s - since_s)
    by_stack: dict[int, list[tuple[int, float]]] = {}
    young: dict[int, list[tuple[int, float]]] = {}
    for address, _, weight, key, born_s in sampling.blocks(since_s, 1 << 30):
        if wanted.get(key, 0.0) > 0:
            (by_stack if born_s <= old_enough_s else young).setdefault(key, []).append((address, weight))
    for key, blocks in young.items():
        by_stack.setdefault(key, blocks)
    total = sum(wanted[key] for key in by_stack) or 1.0
    chosen: list[census.Block] = []
    for key, blocks in sorted(by_stack.items(), key=lambda item: -wanted[item[0]]):
        quota = max(1, round(most * wanted[key] / total))
        picked = blocks[:: max(1, len(blocks) // quota)][:quota]
        whole = sum(weight for _, weight in picked)
        chosen += [census.Block(address, wanted[key] * weight / whole, key) for address, weight in picked]
        if len(chosen) >= most:
            break
    return chosen
