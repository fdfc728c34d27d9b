"""The three pages of monitoring."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from aggregator.health.checks import Check, HealthChecks
from aggregator.health.metrics import CONTENT_TYPE, AggregatorMetrics


def create_health_app(checks: HealthChecks, metrics: AggregatorMetrics) -> FastAPI:
    """Make the application: /healthz, /readyz, /metrics."""
    web = FastAPI(title="hemofed health", docs_url=None, redoc_url=None, openapi_url=None)

    @web.get("/healthz")
    def healthz() -> Response:
        """Whether the service is alive; a supervisor starts it again where it is not."""
        return _answer(checks.alive())

    @web.get("/readyz")
    def readyz() -> Response:
        """Whether it can serve hospitals; a load balancer sends no call where it cannot."""
        return _answer(checks.ready())

    @web.get("/metrics")
    def prometheus() -> Response:
        """Its figures."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return web


def _answer(checks: list[Check]) -> PlainTextResponse:
    """One line a check; status 503 when one fails."""
    lines = [f"{check.name}: {check.fault or 'ok'}\n" for check in checks]
    failed = any(check.fault for check in checks)
    return PlainTextResponse("".join(lines), 503 if failed else 200, headers={"Cache-Control": "no-store"})
