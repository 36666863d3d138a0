"""Models of every message, the catalogue of subjects, identities and errors. Imports nothing of Tocsin."""
