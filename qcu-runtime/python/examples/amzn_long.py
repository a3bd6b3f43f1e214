"""Ten years of one symbol: its trend, adjusted for splits.

trellis run examples/amzn_long.py --session 2016-08-10
"""

import numpy as np

import trellis


@trellis.strategy(
    "amzn_trend",
    schedule=trellis.at_close("XNYS", delay="20m"),
    inputs=dict(px=trellis.series("equities.daily", ["close", "split"], symbols="AMZN", lookback="2520 sessions")),
    output=trellis.output("signals.amzn_trend", growth="float64", trend="float64", sessions="int64"),
)
def amzn_trend(ctx, px):
    close, split = px.wide("close")["AMZN"], px.wide("split")["AMZN"]
    shares = np.cumprod(np.nan_to_num(split, nan=1.0))  # shares today for one share of the first session
    log = np.log(close * shares)
    traded = np.flatnonzero(~np.isnan(log))  # the matrix also has sessions without a price
    log = log[traded]
    slope, _ = np.polyfit(traded, log, 1)
    return ctx.frame(
        symbol=["AMZN"],
        growth=np.exp(log[-1] - log[0]) - 1,
        trend=slope * 252,  # for a year
        sessions=len(log),
    )
