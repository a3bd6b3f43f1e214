"""Five years of the same symbol: its volatility. Its prices are a part of what `amzn_long.py` reads."""

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
    returns = np.diff(np.log(close * np.cumprod(np.nan_to_num(split, nan=1.0))))
    return ctx.frame(symbol=["AMZN"], volatility=returns.std() * np.sqrt(252), sessions=len(close))
