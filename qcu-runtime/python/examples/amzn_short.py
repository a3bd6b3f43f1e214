"""Five years of the same symbol: its volatility. `amzn_long.py` reads these prices, too.

trellis run examples/amzn_short.py --session 2016-08-10
"""

import numpy as np

import trellis


@trellis.strategy(
    "amzn_vol",
    schedule=trellis.at_close("XNYS", delay="20m"),
    inputs=dict(px=trellis.series("equities.daily", ["close", "split"], symbols="AMZN", lookback="1260 sessions")),
    output=trellis.output("signals.amzn_vol", volatility="float64", sessions="int64"),
)
def amzn_vol(ctx, px):
    close, split = px.wide("close")["AMZN"], px.wide("split")["AMZN"]
    log = np.log(close * np.cumprod(np.nan_to_num(split, nan=1.0)))
    log = log[~np.isnan(log)]  # the matrix also has sessions without a price
    return ctx.frame(symbol=["AMZN"], volatility=np.diff(log).std() * np.sqrt(252), sessions=len(log))
