"""Labellers: what scores texts. One dataclass per module; its fields come from YAML, what it needs is loaded at its first use."""
