"""The optional receiver: it takes images from the hospital's own archive over the LAN and puts them into one folder.

    settings          receiver.toml
    incoming          the one folder: files appear whole, under names that tell nothing
    listener          C-STORE, C-ECHO and requests for storage commitment, by pynetdicom
    guarded_server    bounds on connections, PDUs and messages, in front of pynetdicom
    commitments       reports of storage commitment, which outlive a restart
    archive           QIDO-RS and WADO-RS: one request, one bounded answer
    multipart         the one part of an answer, streamed
    pull              a pass: what the archive has of the last days, without what is here
    cleaning          removes old files that ingest has taken
    service           the process

It has no torch, no grpc, no key of the site, and no way to the aggregator. It decodes no image.
"""
