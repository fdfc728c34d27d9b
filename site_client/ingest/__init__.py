"""From a PACS export to a dataset: `files`, then `series`, then `catalog`, with `labels` beside them.

No code in here writes to the export, and nothing that leaves this package names a patient. Studies, patients, series
and slices are known by pseudonyms (`pseudonym`), refusals by codes (`reasons`).
"""
