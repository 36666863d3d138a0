"""The gateway: people and other systems reach Tocsin over HTTP."""
