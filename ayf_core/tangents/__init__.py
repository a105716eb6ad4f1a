"""The derivative of a network along a trajectory: what is asked for, the engines that answer, and their check."""
