"""An embedded QKD key server whose keys come from simulated BB84 runs: for tests and demonstrations alone."""
