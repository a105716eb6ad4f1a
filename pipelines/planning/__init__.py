"""What the chain will cost on a runtime, before it starts, and a warning where memory or disk will not do."""
