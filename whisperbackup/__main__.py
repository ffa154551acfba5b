"""`python -m whisperbackup`."""

from whisperbackup.main import run

run()
