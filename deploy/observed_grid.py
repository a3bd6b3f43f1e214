"""A grid on this machine that does what the dashboards show, for the tests of the dashboards.

Units read, compute and publish; a unit fails; a publish into another unit's output is refused. Telemetry goes
where OpenTelemetry's variables say. It works in the present folder.
"""

from __future__ import annotations

import pathlib
import time

import trellis
from trellis import _demo
from trellis.deploy import deploy_strategies, load_strategies, process_list
from trellis.errors import TrellisError

STRATEGY = """
import trellis


@trellis.strategy(
    "{name}",
    retries=1,
    schedule=trellis.at_close("XNYS"),
    inputs=dict(px=trellis.series("equities.daily", ["close"], symbols="AMZN", lookback="5 sessions")),
    output=trellis.output("{output}", score="float64"),
)
def strategy(ctx, px):
    {body}
"""
FAILING = STRATEGY.format(name="failing", output="signals.failing", body='raise ValueError("it fails")')
# the output belongs to the unit mom_12_1
INTRUDER = STRATEGY.format(
    name="intruder",
    output="signals.mom_12_1",
    body="return ctx.frame(symbol=['AMZN'], score=[1.0])",
)

# Its publishes, and fetches of years that nobody has read, are further apart than exports: a metric whose first
# exported value is its last one has no rate.
STEADY = STRATEGY.format(
    name="steady",
    output="signals.steady",
    body="return ctx.frame(symbol=['AMZN'], score=[1.0])",
)
STEADY_SESSIONS = ("2016-08-05", "2016-08-08", "2016-08-09", "2016-08-10")
UNREAD_YEARS = (2010, 2011, 2012, 2013)

FAILED_WAIT_S = 60.0
# metrics are exported each second
EXPORT_S = 1.2
# three values of each make a rate
SETTLE_S = 4.0


def load(name: str, text: str) -> trellis.Strategy:
    path = pathlib.Path(f"{name}.py")
    path.write_text(text)
    return load_strategies(str(path))[0]


def show(_: str) -> None:
    """Nobody looks at the progress."""


def main() -> None:
    with _demo.grid_of_processes(show) as info, trellis.connect(info["url"], unit="observer") as grid:
        _demo.bring_in_generated(grid, show)
        units = [_demo.strategy_of(file) for file in ("momentum.py", "combo.py", "amzn_long.py")]
        deploy_strategies(units, _demo.STATE, session=_demo.SESSION)
        _demo.wait_published(grid, units, show)
        for _ in range(20):
            grid.read("equities.daily", ["close"])
        steady = load("steady", STEADY)
        for session, year in zip(STEADY_SESSIONS, UNREAD_YEARS, strict=True):
            steady.run(session, grid=grid, publish=True)
            grid.read("equities.daily", ["volume"], start=f"{year}-01-01", end=f"{year + 1}-01-01")
            time.sleep(EXPORT_S)
        deploy_strategies([load("failing", FAILING)], _demo.STATE, session=_demo.SESSION)
        try:
            load("intruder", INTRUDER).run(session=_demo.SESSION, grid=grid, publish=True)
        except TrellisError as error:
            print(f"refused: {error}")
        else:
            raise AssertionError("a publish into another unit's output was not refused")
        deadline = time.monotonic() + FAILED_WAIT_S
        while not any(process["state"] == "failed" for process in process_list(_demo.STATE)):
            assert time.monotonic() < deadline, "the failing unit did not fail"
            time.sleep(0.1)
        time.sleep(SETTLE_S)


if __name__ == "__main__":
    main()
