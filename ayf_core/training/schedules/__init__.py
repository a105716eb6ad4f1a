"""Learning rates after the warm-up: a function each, registered by name, of the step and of the training's settings.

A schedule gives the share of the top rate at optimiser step `step` (from 0, warm-up included). It is a function of the
global step, so it has no state, and a resumed training goes on where it was.
"""
