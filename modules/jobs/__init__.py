"""The durable queue: jobs in SQLite, one worker, events."""
