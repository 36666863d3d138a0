"""The message plane: verify, authorise, forward, prove delivery."""
