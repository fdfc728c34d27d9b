"""The PACS export, read: folder -> dicom -> series -> catalog -> volume, with the labels beside it.

Nothing in here writes to the export, and nothing that leaves this package names a patient: studies, patients, series
and slices are known by pseudonyms (`pseudonym`), refusals by codes (`quarantine`).
"""
