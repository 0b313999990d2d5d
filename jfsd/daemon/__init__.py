"""The running service: wiring, phases, signals."""
