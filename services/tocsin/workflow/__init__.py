"""Workflow: security requests carried out as hybrid quantum-classical workflows."""
