"""Processes, threads, signals, logs and files; nothing here knows what a metric is."""
