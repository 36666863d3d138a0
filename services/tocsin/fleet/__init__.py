"""Fleet: who the agents are, which keys speak for them, and whether they live."""
