"""Writes the dashboards and the alert rules from names.py, panels.py and alerts.py.

    python deploy/dashboards/make.py            writes grafana/*.json, vmui/*.json, ../alerts/trellis*.yaml
    python deploy/dashboards/make.py --check    says which of these files differ, and exits with 1 if any does

Import the files of `grafana/` into Grafana, with a data source of the type Prometheus. VictoriaMetrics shows
the files of `vmui/` on its own page, with `-vmui.customDashboardsPath`.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import names as n
import panels

import alerts

HERE = pathlib.Path(__file__).resolve().parent
ROW_HEIGHT, PANEL_HEIGHT, STAT_HEIGHT = 1, 8, 4


def grafana(dashboard: panels.Dashboard) -> str:
    """A dashboard as Grafana imports it."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    made: list[dict[str, Any]] = []
    top = 0
    for title, row in dashboard.rows:
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": 24, "h": ROW_HEIGHT},
                "panels": [],
            }
        )
        top += ROW_HEIGHT
        left = 0
        height = STAT_HEIGHT if all(panel.kind == "stat" for panel in row) else PANEL_HEIGHT
        for panel in row:
            made.append(
                {
                    "id": len(made) + 1,
                    "type": panel.kind,
                    "title": panel.title,
                    "description": panel.about,
                    "datasource": source,
                    "gridPos": {"x": left, "y": top, "w": panel.width, "h": height},
                    "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                    "options": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}}
                    if panel.kind == "timeseries"
                    else {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"},
                    "targets": [
                        {
                            "refId": chr(ord("A") + i),
                            "datasource": source,
                            "expr": expr,
                            "legendFormat": legend,
                        }
                        for i, (expr, legend) in enumerate(panel.lines)
                    ],
                }
            )
            left += panel.width
        top += height
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    ]
    if any(panels.CHOSEN in expr for expr in expressions(dashboard)):
        variables.append(
            {
                "name": panels.CHOSEN.removeprefix("$"),
                "label": "Unit",
                "type": "query",
                "datasource": source,
                "query": f"label_values({panels.select(n.CLIENT_CALLS.count, panels.UNITS)}, {n.INSTANCE})",
                "refresh": 2,
                "sort": 1,
            }
        )
    return as_json(
        {
            "uid": f"trellis-{dashboard.name}",
            "title": dashboard.title,
            "description": dashboard.about,
            "tags": ["trellis"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": variables},
            "panels": made,
        }
    )


def vmui(dashboard: panels.Dashboard) -> str:
    """A dashboard for VictoriaMetrics' own page, which has no variables and twelve columns."""
    rows = [
        {
            "title": title,
            "panels": [
                {
                    "title": panel.title,
                    "description": panel.about,
                    "unit": panel.unit if panel.unit in ("s", "bytes") else "",
                    "expr": [in_vmui(expr) for expr, _ in panel.lines],
                    "alias": [legend for _, legend in panel.lines],
                    "showLegend": True,
                    "width": 12 // len(row),
                }
                for panel in row
            ],
        }
        for title, row in dashboard.rows
    ]
    return as_json({"title": dashboard.title, "rows": rows})


def in_vmui(expr: str) -> str:
    return expr.replace(panels.WINDOW, "[5m]").replace(panels.CHOSEN, ".+")


def expressions(dashboard: panels.Dashboard) -> list[str]:
    """All expressions of a dashboard, as written in panels.py."""
    return [expr for _, row in dashboard.rows for panel in row for expr, _ in panel.lines]


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def rules() -> str:
    """The alert rules."""
    lines = ["# Made by deploy/dashboards/make.py from deploy/dashboards/alerts.py.", "groups:"]
    for group, members in alerts.ALERTS.items():
        lines += [f"  - name: trellis-{group}", "    rules:"]
        for alert in members:
            lines += [
                f"      - alert: {alert.name}",
                f"        expr: {quoted(alert.expr)}",
                f"        for: {alert.lasts}",
                "        labels:",
                f"          severity: {alert.severity}",
                "        annotations:",
            ]
            lines += [f"          {key}: {quoted(text)}" for key, text in annotations(alert).items()]
    return "\n".join(lines) + "\n"


def annotations(alert: alerts.Alert) -> dict[str, str]:
    return {"summary": alert.summary, "runbook_url": f"{alerts.RUNBOOK}#{alert.anchor}"}


def rule_tests() -> str:
    """For promtool: each alert fires on its example, and does not on the calm series."""
    lines = [
        "# Made by deploy/dashboards/make.py from deploy/dashboards/alerts.py.",
        "# promtool test rules trellis.test.yaml",
        "rule_files:",
        "  - trellis.yaml",
        "evaluation_interval: 1m",
        "tests:",
    ]
    for alert in (alert for members in alerts.ALERTS.values() for alert in members):
        for name, series, fires in [("fires", alert.example, True), ("calm", alert.calm, False)]:
            lines += [
                f"  - name: {alert.name} {name}",
                "    interval: 1m",
                "    input_series:" + ("" if series else " []"),
            ]
            for selector, values in series:
                lines += [f"      - series: {quoted(selector)}", f"        values: {quoted(values)}"]
            lines += [
                "    alert_rule_test:",
                f"      - eval_time: {60 if fires else 80}m",
                f"        alertname: {alert.name}",
                "        exp_alerts:" + ("" if fires else " []"),
            ]
            if fires:
                lines += ["          - exp_labels:", f"              severity: {alert.severity}"]
                lines += [f"              {key}: {quoted(value)}" for key, value in alert.labels.items()]
                lines += ["            exp_annotations:"]
                for key, text in annotations(alert).items():
                    for label, value in alert.labels.items():
                        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
                    lines += [f"              {key}: {quoted(text)}"]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A string of YAML."""
    return json.dumps(text, ensure_ascii=False)


def files() -> dict[pathlib.Path, str]:
    """Every file and its text."""
    made = {
        HERE.parent / "alerts/trellis.yaml": rules(),
        HERE.parent / "alerts/trellis.test.yaml": rule_tests(),
    }
    for dashboard in panels.DASHBOARDS:
        made[HERE / f"grafana/{dashboard.name}.json"] = grafana(dashboard)
        made[HERE / f"vmui/{dashboard.name}.json"] = vmui(dashboard)
    return made


def main(argv: list[str]) -> int:
    if argv not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    differ = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in differ:
        print(path.relative_to(HERE.parent))
        if not argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files()[path])
    return 1 if argv and differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
