"""A strategy whose first attempt fails, as if a service were away for a moment. The unit tries again."""

import pathlib

import trellis

MARK = pathlib.Path("/tmp/flaky.tried")


@trellis.strategy(
    "flaky",
    schedule=trellis.at_close("XNYS", delay="20m"),
    retries=3,
    inputs=dict(px=trellis.series("equities.history", ["close"], lookback="21 sessions")),
    output=trellis.output("signals.flaky", change="float64"),
)
def flaky(ctx, px):
    if not MARK.exists():
        MARK.touch()
        raise ConnectionError("the first attempt fails")
    close = px.wide("close")
    return ctx.frame(symbol=close.symbols, change=close[-1] / close[0] - 1)
