"""Drawing samples: settings, time grids, chains of jumps, ODE solvers, and the generator that puts them together."""
