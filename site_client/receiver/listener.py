"""The DICOM listener: C-STORE (PS3.4 annex B), C-ECHO (annex A) and N-ACTION of storage commitment (annex J).

A data set goes to disk as it arrives, byte for byte, behind file meta information of PS3.10 section 7.1; nothing
decodes it. An association is accepted when its calling title and its address belong together in `storage.senders`.
"""

import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from site_client.receiver.commitments import Commitments
from site_client.receiver.guarded_server import PDU_MAX, GuardedServer, GuardedSocket, is_known, shut
from site_client.receiver.incoming import Incoming
from site_client.receiver.settings import ReceiverSettings

_log = structlog.get_logger()
SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700  # PS3.4 table B.2-1
PROCESSING_FAILURE: Final = 0x0110  # PS3.7 annex C
_NOT_AUTHORIZED: Final = 0x0124
_CT: Final = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_CALLING_UNKNOWN: Final = 0x03  # PS3.8 table 9-21: a title is not recognized
_CALLED_UNKNOWN: Final = 0x07
_ACSE_S: Final = 30.0
_PEERS_MAX: Final = 1_000  # that the log tells apart; an allowed network may hold more


class Listener:
    """The server and its handlers, which run in threads of the associations."""

    def __init__(
        self,
        settings: ReceiverSettings,
        incoming: Incoming,
        commitments: Commitments,
        failed: Callable[[OSError], None],
    ) -> None:
        """Bind and listen; `start` serves.

        Args:
            settings: Of the receiver.
            incoming: Where objects go.
            commitments: Takes requests for storage commitment.
            failed: Is told each error of the disk.

        Raises:
            OSError: The port cannot be bound.
        """
        self._settings, self._incoming, self._commitments, self._failed = settings, incoming, commitments, failed
        self._networks = settings.storage.networks
        self._objects: Counter[str] = Counter()  # stored since the last line in the log, by peer
        self._echoed: set[str] = set()  # peers, as logged: an archive may echo every minute
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self.stored = 0
        silence_libraries()
        # pynetdicom writes a data set into a temporary file while it arrives; here, so that a rename suffices later.
        _config.STORE_RECV_CHUNKED_DATASET = True
        tempfile.tempdir = str(incoming.arriving)
        storage = settings.storage
        ae = AE(storage.title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(storage.senders)
        ae.maximum_associations = storage.associations_max
        ae.maximum_pdu_size = PDU_MAX
        ae.acse_timeout = min(_ACSE_S, storage.idle_s)
        ae.network_timeout = ae.dimse_timeout = storage.idle_s
        classes = (
            _CT if storage.accept == "ct" else [context.abstract_syntax for context in AllStoragePresentationContexts]
        )
        for uid in classes:
            ae.add_supported_context(uid, ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(Verification)
        ae.add_supported_context(StorageCommitmentPushModel)
        self._server = ae.make_server(
            (storage.address, storage.port),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_N_ACTION, self._on_action),
                (evt.EVT_CONN_CLOSE, self._on_closed),
            ],
            server_class=GuardedServer,
            networks=tuple(network for networks in self._networks.values() for network in networks),
            connections_max=storage.associations_max,
            object_max=settings.object_max_bytes,
            idle_s=storage.idle_s,
            refused=self._refused,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener", daemon=True)

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._server.server_address[1])

    @property
    def is_alive(self) -> bool:
        """Whether connections are still accepted."""
        return self._thread.is_alive()

    @property
    def associations(self) -> int:
        """Connections now."""
        return len(self._server.active_associations)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and close what is open. A sender without its answer sends again."""
        self._server.shutdown()
        for assoc in self._server.active_associations:
            shut(assoc)

    def log_counts(self) -> None:
        """Log what came and what was refused since the last call: one line a peer, and one a peer and reason."""
        with self._lock:
            objects, self._objects = self._objects, Counter()
            refusals, self._refusals = self._refusals, Counter()
        for peer, count in objects.items():
            _log.info("objects received", peer=peer, objects=count)
        for (peer, why), count in refusals.items():
            _log.warning("sender refused", peer=peer, why=why, times=count)

    def _refused(self, peer: str, why: str) -> None:
        with self._lock:
            # A peer may try thousands of times.
            if (peer, why) in self._refusals or len(self._refusals) < _PEERS_MAX:
                self._refusals[peer, why] += 1

    def _on_requested(self, event: evt.Event) -> None:
        """Reject an association whose title comes from another title's address; prefer a sender's own syntaxes."""
        assoc = event.assoc
        try:
            asked = assoc.requestor.primitive
            # pynetdicom sets it before it triggers this event.
            assert asked is not None
            title, address = str(asked.calling_ae_title), str(assoc.requestor.address)
            why, diagnostic = "", _CALLING_UNKNOWN
            if str(asked.called_ae_title) != self._settings.storage.title:
                why, diagnostic = "it called another title than storage.title", _CALLED_UNKNOWN
            elif title not in self._networks:
                why = "its title is not in storage.senders"
            elif not is_known(address, self._networks[title]):
                why = "its address is not that of its title in storage.senders"
            _prefer_order_of_sender(event.assoc)
        # pynetdicom drops what a handler raises, and would go on to accept.
        except Exception:
            assoc.abort()
            return
        if why:
            self._refused(address, why)
            assoc.acse.send_reject(0x01, 0x01, diagnostic)  # permanent, by the service user
            assoc.kill()

    def _on_store(self, event: evt.Event) -> int:
        try:
            if self._incoming.free_bytes() < self._settings.disk_free_min_bytes:
                self._refused(str(event.assoc.requestor.address), "the disk has less free than disk_free_min_gib")
                return OUT_OF_RESOURCES
            # The event of a C-STORE has its request.
            assert isinstance(event.request, C_STORE)
            is_new = self._incoming.put(event.dataset_path, str(event.request.AffectedSOPInstanceUID))
        except OSError as error:
            self._failed(error)
            return OUT_OF_RESOURCES
        except Exception as error:
            # The type alone: the text may quote a value.
            _log.error("object not stored", kind=type(error).__name__)
            return PROCESSING_FAILURE
        with self._lock:
            self._objects[str(event.assoc.requestor.address)] += 1
            self.stored += is_new
        return SUCCESS

    def _on_echo(self, event: evt.Event) -> int:
        peer = str(event.assoc.requestor.address)
        if peer not in self._echoed and len(self._echoed) < _PEERS_MAX:
            self._echoed.add(peer)
            _log.info("echo answered", peer=peer)
        return SUCCESS

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        title = str(event.assoc.requestor.ae_title)
        if title not in self._settings.storage.commitment:
            self._refused(str(event.assoc.requestor.address), "its title is not in storage.commitment")
            return _NOT_AUTHORIZED, None
        try:
            self._commitments.request(title, event.action_information)
        except OSError as error:
            self._failed(error)
            return OUT_OF_RESOURCES, None
        except Exception as error:
            _log.warning("commitment not understood", title=title, kind=type(error).__name__)
            return PROCESSING_FAILURE, None
        return SUCCESS, None

    def _on_closed(self, event: evt.Event) -> None:
        connection = event.assoc.dul.socket
        if isinstance(connection, GuardedSocket) and connection.refusal:
            self._refused(str(event.assoc.requestor.address), connection.refusal)


def _prefer_order_of_sender(assoc: Association) -> None:
    """Accept of several transfer syntaxes the one that the sender names first.

    A sender names first that in which it has the image (PS3.8 section 7.1.1.13 leaves the choice to us). With another
    one it would encode the image anew, and its bytes would not be those of the archive.
    """
    asked = assoc.requestor.primitive
    # As in `_on_requested`.
    assert asked is not None
    order: dict[str, int] = {}
    for context in asked.presentation_context_definition_list:
        for syntax in context.transfer_syntax:
            order.setdefault(str(syntax), len(order))
    contexts = assoc.acceptor.supported_contexts
    for context in contexts:
        context.transfer_syntax = sorted(context.transfer_syntax, key=lambda syntax: order.get(str(syntax), len(order)))
    assoc.acceptor.supported_contexts = contexts


def silence_libraries() -> None:
    """Switch all logging of libraries off: pynetdicom and pydicom log UIDs, titles and values of data sets."""
    logging.disable(logging.CRITICAL)
