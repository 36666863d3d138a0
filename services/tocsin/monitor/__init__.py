"""The monitor: everyone's figures in one place."""
