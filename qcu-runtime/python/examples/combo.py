"""A long-short portfolio of another strategy's signal: weights whose absolute values sum to one.

Runs for a session as soon as `mom_12_1` has published it.

trellis run examples/momentum.py --session 2016-08-10 --publish
trellis run examples/combo.py --session 2016-08-10
"""

from momentum import mom

import trellis


@trellis.strategy(
    "combo",
    schedule=trellis.after(mom),
    inputs=dict(m=mom.series(lookback="5 sessions")),
    output=trellis.output("signals.combo", weight="float64!"),
)
def combo(ctx, m):
    score = m.wide("score")[-1].dropna()  # symbols without a year of history have no score
    z = (score - score.mean()) / score.std()
    return ctx.frame(symbol=z.symbols, weight=z / abs(z).sum())
