"""The ``tocsin`` command: starts and drives all of it."""
