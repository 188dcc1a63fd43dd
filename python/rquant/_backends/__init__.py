"""Implementations of the ops: `cpu` on the native module, `reference` in plain torch for any device."""
