"""The experiment platform around :mod:`ayf_core`: settings, stages, execution, tracking, commands."""
