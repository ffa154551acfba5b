"""What a run reports: counters, last line, progress, JSON, carbon."""
