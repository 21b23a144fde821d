"""A server under load, with faults and hostile requests."""
