"""The budgets of a running node: changed, shared out, explained, and kept over a restart."""
