"""Algorithms x tasks x seeds, resumable, on this machine's cores or a Ray cluster."""
