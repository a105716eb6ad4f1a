"""What a training will cost, before it starts: floating-point operations, memory by part, seconds."""
