"""Addresses, host ports and port mappings for dense container and microVM hosts."""
