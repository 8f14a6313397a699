"""Says once that a server is away and once that it is back, however often it is tried between."""

from __future__ import annotations

from vidflow.infra.telemetry import log

_log = log("outage")


class Outage:
    """What is known of one server's absence. `needs` is the sentence that tells an operator what to do."""

    def __init__(self, server: str, needs: str) -> None:
        self._server = server
        self._needs = needs
        self._away = False

    def away(self, error: BaseException) -> None:
        """The server did not answer: said the first time."""
        if not self._away:
            _log.warning("away", server=self._server, error=str(error).strip(), needs=self._needs)
        self._away = True

    def back(self) -> None:
        """The server answered: said where it was away before."""
        if self._away:
            _log.info("back", server=self._server)
        self._away = False


def postgres_outage() -> Outage:
    """For the database of a role."""
    return Outage("PostgreSQL", "waiting; start it, or set VIDFLOW_DATABASE_URL; `vidflow dev` brings its own")


def kafka_outage() -> Outage:
    """For the brokers of a role."""
    return Outage("Kafka", "waiting; start it, or set VIDFLOW_KAFKA; `vidflow dev` brings its own")
