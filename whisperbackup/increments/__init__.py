"""Increments: what is new in all whisper files since a time, and how it is laid over their backups again.

    record.py     one metric's share of an increment, to the byte
    fresh.py      reads it from a live file
    part.py       frames and parts: how records are stored
    manifest.py   what an increment and a backup run record about themselves
    reader.py     records out of the store again
    merge.py      many increments, joined by metric
    image.py      records laid over a backup
    window.py     where a run's window begins
    retention.py  which increments may be deleted
    names.py      sets of metrics as runs name them

All but `fresh` are functions of values; the store is a function that the caller hands in.
"""
