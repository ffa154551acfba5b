"""Increments: what is new in all whisper files since a time, and how it is laid over their backups again.

    batch.py      a worker's share of an increment: which files it reads, and what it gives back
    take.py       reads them
    shelf.py      results that came before their turn
    record.py     one metric's share of an increment, to the byte
    plan.py       where it lies in a file
    fresh.py      reads it from a live file
    quick.py      reads it from an ordinary one
    slots.py      makes records of what was read
    part.py       frames and parts: how records are stored
    manifest.py   what an increment and a backup run record about themselves
    history.py    what the store has of increments and runs
    reader.py     records out of the store again
    merge.py      many increments, joined by metric
    image.py      records laid over a backup
    window.py     where a run's window begins
    retention.py  which increments may be deleted
    expire.py     deletes them
    overlay.py    the increments of a store beside its backups, for restore and verify
    names.py      sets of metrics as runs name them

`take`, `history` and `expire` read files and the store.  The rest, but for `fresh`, are functions of values.
"""
