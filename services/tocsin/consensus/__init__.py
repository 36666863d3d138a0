"""The consensus service: ballots in, decisions and their certificates out."""
