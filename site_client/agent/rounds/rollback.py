"""A state folder that was put back to an earlier day: noticed, and kept out of masking until a person has decided.

After a restored backup or snapshot this site no longer knows the answers that it has given. Asked again, it could
reveal a second time in one attempt, or join a second sum of one round. Its egress ledger shows the loss, because the
ledger only grows: it is shorter than before, or has another head at a length that it had before. Two marks, a length
and a head each, tell of the time before:

    <spool>/to_trainer/ledger.json    written by this agent at each turn, outside its state folder; no process reads it
                                      but the agent
    PollReply.ledger_*_seen           the longest ledger that this site has reported to the aggregator
    <state>/agent/rolled_back.json    a loss that was noticed, until the next one

From the notice on, each round that the aggregator names is closed here for good. After `hemofed-site ledger
acknowledge` one more is, the one in progress: the lost state may have taken part in it. Then this site takes part again.

Against an aggregator that lies, the first mark alone helps: the aggregator can keep the second one to itself, and it
can stop this site by inventing one, but not make it reveal. Whoever restores the whole machine, spool included, and
has the aggregator lie gets a site that answers twice. The protocol counts such a site among the corrupt ones, of which
it bears fewer than a third of a cohort.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import structlog
from federation.limits import DIGEST_BYTES
from federation.v1 import rounds_pb2
from federation.v1.blobs_pb2 import RoundRef
from msgspec import Meta

from site_client.agent.egress.ledger import Ledger
from site_client.agent.rounds.journal import RoundJournal
from site_client.errors import ConfigRefused, StepRefused
from site_client.files import replace_file
from site_client.records import AwareTime
from site_client.spool import AgentSide, LedgerMark
from site_client.typed_json import Digest, encode, read_state

_log = structlog.get_logger()
_FILE: Final = "rolled_back.json"
