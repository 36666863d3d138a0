"""Which QPU, when, for whom; and running circuits there. Start at service.py, or at scoring.py for the core."""
