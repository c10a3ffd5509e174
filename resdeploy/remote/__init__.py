"""Devices over SSH: connection, private environment, jobs, and their records; with asyncssh."""
