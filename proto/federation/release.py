"""The release of sealed models: what a site has to show before the aggregator gives it a content key."""

from dataclasses import dataclass
from enum import StrEnum

from federation.v1 import plan_pb2


class ReleaseLevel(StrEnum):
    """The evidence for a content key. plan.toml uses these names."""

    NONE = "none"

    @property
    def number(self) -> plan_pb2.Release.Level.ValueType:
        """The enumerator on the wire."""
        return plan_pb2.Release.Level.Value(self.name)


@dataclass(frozen=True)
class Release:
    """The release of a run's models. The fields are those of plan.proto, with plan.toml's defaults."""

    level: ReleaseLevel = ReleaseLevel.NONE
