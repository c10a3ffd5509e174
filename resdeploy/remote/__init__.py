"""Devices reached over SSH: what runs there, and what comes back. asyncssh, nothing installed."""
