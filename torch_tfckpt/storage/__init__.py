"""Where bytes live.

`protocol` says what a checkpoint asks of a place for files; `local` is the files of this machine, `remote` those behind
URLs, and `choice` says which of them a path means.
"""
