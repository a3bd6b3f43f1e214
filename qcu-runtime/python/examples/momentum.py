"""Twelve-month momentum without the last month, over every symbol.

trellis run examples/momentum.py --session 2016-08-10
"""

import trellis


@trellis.strategy(
    "mom_12_1",
    schedule=trellis.at_close("XNYS", delay="20m"),
    inputs=dict(px=trellis.series("equities.daily", ["close"], symbols="*", lookback="260 sessions")),
    output=trellis.output("signals.mom_12_1", score="float64"),
)
def mom(ctx, px):
    c = px.wide("close")  # sessions x symbols
    return ctx.frame(symbol=c.symbols, score=c[-21] / c[-252] - 1)
