"""Jobs: queued, running, succeeded, failed, cancelled. The table is the truth; the broker only rings."""
