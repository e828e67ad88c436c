"""Evidence: what grows, allocated where, held by whom."""
